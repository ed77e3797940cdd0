//! A few rows times all panels of a task.
#![allow(unsafe_code, reason = "tiles")]

use std::ptr;

use super::multiply::{after, sums_of};
use super::streams::Streams;
use crate::Isa;
use crate::formats::Direct;
use crate::tile::{Prefetch, Tile};

/// Most tiles that are multiplied one right after the other.
const MOST: usize = 8;

/// Rows so few that two panels are multiplied at a time, and scales need not be decoded. Memory is
/// their limit: what lies between the last load of a pair of panels and the first of the next one
/// would leave it idle, so that tiles are made before the first of them is multiplied.
pub(super) struct Series<'s, 'p, 'a> {
    pub(super) isa: Isa,
    pub(super) direct: Direct,
    pub(super) streams: &'s Streams<'p, 'a>,
    /// That of all panels, one tile.
    pub(super) input: &'p [u32],
    pub(super) rows: usize,
    /// What the thread reads after that.
    pub(super) next: Option<&'s Streams<'p, 'a>>,
}

impl Series<'_, '_, '_> {
    /// Multiplies all pairs of panels, and adds the products to `sums`.
    pub(super) fn multiply(&self, sums: &mut [f32]) {
        let (steps, sums) = (self.steps(), ptr::from_mut(sums));
        let starts = |pair| {
            (0..steps)
                .step_by(self.direct.steps)
                .map(move |at| (pair, at))
        };
        let mut places = (0..self.streams.pairs()).flat_map(starts).peekable();
        while places.peek().is_some() {
            let (mut tiles, mut len) = ([Tile::NONE; MOST], 0);
            for (tile, (pair, start)) in tiles.iter_mut().zip(&mut places) {
                *tile = self.tile(pair, start, sums);
                len += 1;
            }
            let tiles = &mut tiles[..len];
            if self.direct.decoded.is_some() {
                self.ask_ahead(tiles, places.peek().copied());
            }
            // SAFETY: the instruction set is an available one. The input holds all units of the
            // rows, the panels all steps, and there are sums for each row (all asserted); the
            // scales are those of these panels.
            unsafe { (self.direct.tile)(self.isa, tiles) }
        }
    }

    /// Steps of a panel.
    fn steps(&self) -> usize {
        self.streams.linear().features / self.direct.features
    }

    /// The tile of a pair of panels from a step on.
    fn tile(&self, pair: usize, start: usize, sums: *mut [f32]) -> Tile {
        let direct = self.direct;
        let steps = direct.steps.min(self.steps() - start);
        let [Some(first), Some(second)] = self.streams.step(pair) else {
            unreachable!("a pair has two panels");
        };
        let panels = [first, second];
        let (mut scaling, _) = direct.scaling(start, steps);
        if direct.grouping.is_some() {
            let scales = |i: usize| panels[i].linear.column_scales(panels[i].index);
            let [Some(first), Some(second)] = [0, 1].map(scales) else {
                unreachable!("scales need not be decoded");
            };
            scaling.scales = [first.as_ptr(), second.as_ptr()].map(<*const u8>::cast);
        }
        let bytes = start * direct.bytes..(start + steps) * direct.bytes;
        let input = &self.input[..self.rows * first.linear.units()];
        Tile {
            a: input[start * direct.units * self.rows..].as_ptr(),
            b: panels.map(|panel| panel.bytes()[bytes.clone()].as_ptr()),
            sums: panels.map(|panel| sums_of(panel, self.rows, sums)),
            rows: self.rows,
            panels: 2,
            steps,
            prefetch: Prefetch::NONE,
            scaling,
        }
    }

    /// Lets each tile ask for what comes after it, because decoding keeps the processor from looking
    /// far ahead.
    ///
    /// # Arguments
    ///
    /// - `place` - pair and first step of what comes after the last one, if it is of this task.
    fn ask_ahead(&self, tiles: &mut [Tile], place: Option<(usize, usize)>) {
        let mut next = match place {
            Some((pair, start)) => after(self.streams, None, pair)
                .map(|panel| panel.wrapping_add(start * self.direct.bytes)),
            None => after(self.streams, self.next, self.streams.len()),
        };
        for tile in tiles.iter_mut().rev() {
            if !next[0].is_null() {
                tile.prefetch = Prefetch::over(next, tile.steps * self.direct.bytes, tile.steps);
            }
            next = tile.b;
        }
    }
}
