//! The innermost loop: a few rows of activations times one or two panels of weights.
#![allow(unsafe_code, reason = "vector instructions, pointers into panels")]

use std::marker::PhantomData;

use crate::Isa;
use crate::formats::Scaling;
use crate::simd::{LANES, Op, Simd};

/// Sums from one row to the next: those of two panels.
pub(crate) const SUMS: usize = 2 * LANES;
/// Steps between two looks at what to prefetch.
pub(crate) const UNROLL: usize = 8;

/// How a weight format multiplies: a step takes a few input features of a panel.
pub(crate) trait Dot {
    /// Input features of a step.
    const FEATURES: usize;
    /// 4-byte units of a row's activations in a step.
    const UNITS: usize;
    /// Bytes of a panel in a step.
    const BYTES: usize;

    /// Adds the products of a step to the sums of `ROWS` rows.
    ///
    /// A sum takes its products in an order that depends on nothing but the step, so that a row
    /// has the same bits whatever rows share its tile.
    ///
    /// # Safety
    ///
    /// Must be `#[inline(always)]`. The machine has the instructions of `S`; `a` holds `UNITS`
    /// times `ROWS` units, those of a feature side by side, and `b` [`Dot::BYTES`] bytes.
    unsafe fn step<S: Simd, const ROWS: usize>(
        a: *const u32,
        b: *const u8,
        sums: &mut [S::F; ROWS],
    );
}

/// Rows times panels.
#[derive(Clone, Copy)]
pub(crate) struct Tile {
    /// Activations: for each unit of a row, those of all rows side by side.
    pub(crate) a: *const u32,
    /// Two panels, of which the second is not looked at where `panels` is 1.
    pub(crate) b: [*const u8; 2],
    /// Where the products with each panel are added: 32 sums for each row, [`SUMS`] from one row
    /// to the next.
    pub(crate) sums: [*mut f32; 2],
    /// At most [`Isa::max_rows`], or [`Isa::max_rows_of_two`].
    pub(crate) rows: usize,
    /// 1 or 2.
    pub(crate) panels: usize,
    pub(crate) steps: usize,
    pub(crate) prefetch: Prefetch,
    /// Of formats with scales.
    pub(crate) scaling: Scaling,
}

/// What is read after this: its cache lines are asked for along the way.
#[derive(Clone, Copy)]
pub(crate) struct Prefetch {
    /// Where the next bytes of each panel lie, or any address.
    at: [*const u8; 2],
    /// Lines of each panel per [`UNROLL`] steps.
    lines: usize,
    /// Steps since the last lines, times `lines`.
    due: usize,
}

impl Prefetch {
    pub(crate) const NONE: Self = Self {
        at: [std::ptr::null(); 2],
        lines: 0,
        due: 0,
    };

    /// `bytes` from each address on, spread over some steps.
    pub(crate) fn over(at: [*const u8; 2], bytes: usize, steps: usize) -> Self {
        let lines = bytes.div_ceil(64).div_ceil((steps / UNROLL).max(1));
        Self { at, lines, due: 0 }
    }

    /// Asks for the lines that are due after some more steps over so many panels.
    ///
    /// # Safety
    ///
    /// The machine has the instructions of `S`.
    #[inline(always)]
    pub(crate) unsafe fn advance<S: Simd, const PANELS: usize>(&mut self, steps: usize) {
        self.due += steps * self.lines;
        while self.due >= UNROLL {
            for at in &mut self.at[..PANELS] {
                // SAFETY: the caller's promise; any address may be asked for.
                unsafe { S::prefetch(*at) };
                *at = at.wrapping_add(64);
            }
            self.due -= UNROLL;
        }
    }
}

impl Tile {
    /// One without anything.
    pub(crate) const NONE: Self = Self {
        a: std::ptr::null(),
        b: [std::ptr::null(); 2],
        sums: [std::ptr::null_mut(); 2],
        rows: 0,
        panels: 0,
        steps: 0,
        prefetch: Prefetch::NONE,
        scaling: Scaling::NONE,
    };
}

/// Multiplies tiles of the same shape one after the other: a processor that finds the loads of the
/// next one soon after the last of this one asks memory for them before it is done with this one.
pub(crate) type TileFn = unsafe fn(Isa, &[Tile]);

/// Multiplies tiles.
///
/// # Safety
///
/// The machine has the instruction set; the pointers of the tiles hold what their docs say for all
/// their rows, panels and steps; nothing else touches the sums.
pub(crate) unsafe fn multiply<D: Dot>(isa: Isa, tiles: &[Tile]) {
    let Some(tile) = tiles.first() else { return };
    macro_rules! run {
        ($($rows:literal)+, $($pairs:literal)+) => {
            // SAFETY: the caller's promise.
            unsafe {
                match (tile.panels, tile.rows) {
                    $((1, $rows) => isa.dispatch(Multiply::<D, $rows, 1>(tiles, PhantomData)),)+
                    $((2, $pairs) => isa.dispatch(Multiply::<D, $pairs, 2>(tiles, PhantomData)),)+
                    shape => unreachable!("no tile has this shape: {shape:?}"),
                }
            }
        };
    }
    run!(1 2 3 4 5 6 7 8 9 10 11 12, 1 2 3 4 5 6);
}

impl Isa {
    /// Most rows of a tile of two panels.
    pub(crate) fn max_rows_of_two(self) -> usize {
        (self.max_rows() / 2).max(1)
    }
}

struct Multiply<'a, D, const ROWS: usize, const PANELS: usize>(&'a [Tile], PhantomData<D>);

impl<D: Dot, const ROWS: usize, const PANELS: usize> Op for Multiply<'_, D, ROWS, PANELS> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for tile in self.0 {
            // SAFETY: the caller of `multiply` has promised it.
            unsafe { add_products::<D, S, ROWS, PANELS>(tile) }
        }
    }
}

/// Adds the products of a tile to its sums.
#[inline(always)]
unsafe fn add_products<D: Dot, S: Simd, const ROWS: usize, const PANELS: usize>(tile: &Tile) {
    // SAFETY: the caller has promised what pointers hold; each step moves on by what it has read.
    unsafe {
        // No closures: one that is not inlined would be compiled without the instructions.
        let mut sums = [[S::zero(); ROWS]; PANELS];
        for (panel, sums) in sums.iter_mut().enumerate() {
            for (row, sum) in sums.iter_mut().enumerate() {
                *sum = S::load(tile.sums[panel].add(row * SUMS));
            }
        }
        let (mut a, mut b, mut prefetch) = (tile.a, tile.b, tile.prefetch);
        let mut left = tile.steps;
        while left > 0 {
            let steps = left.min(UNROLL);
            left -= steps;
            for _ in 0..steps {
                for (panel, sums) in sums.iter_mut().enumerate() {
                    D::step::<S, ROWS>(a, b[panel], sums);
                    b[panel] = b[panel].add(D::BYTES);
                }
                a = a.add(D::UNITS * ROWS);
            }
            prefetch.advance::<S, PANELS>(UNROLL);
        }
        for (panel, sums) in sums.into_iter().enumerate() {
            for (row, sum) in sums.into_iter().enumerate() {
                S::store(tile.sums[panel].add(row * SUMS), sum);
            }
        }
    }
}
