//! The rows of a chunk times panels.
#![allow(unsafe_code, reason = "tiles")]

use std::ptr;

use super::pack::Tiles;
use super::plan::BLOCK;
use super::series::Series;
use super::streams::{Panel, Streams};
use crate::Isa;
use crate::formats::{DECODED, DIRECT_ROWS, Direct, SCALES, Scaling};
use crate::simd::LANES;
use crate::tile::{Prefetch, SUMS, Tile};

/// A panel and what it is multiplied with.
#[derive(Clone, Copy)]
pub(super) struct Part<'p, 'a> {
    pub(super) panel: Panel<'p, 'a>,
    pub(super) input: &'p [u32],
}

/// Multiplies the rows of a chunk with the panels of a task, and adds the products to `sums`.
///
/// # Arguments
///
/// - `inputs` - of panels in even and in odd places.
/// - `sums` - `[pairs, rows, SUMS]`.
/// - `next` - what this thread reads after that.
pub(super) fn multiply<'p, 'a>(
    isa: Isa,
    streams: &Streams<'p, 'a>,
    inputs: [&'p [u32]; 2],
    tiles: Tiles,
    sums: &mut [f32],
    block: &mut [f32],
    next: Option<&Streams<'p, 'a>>,
) {
    let part = |panel: Panel<'p, 'a>| Part {
        panel,
        input: inputs[panel.place % 2],
    };
    let parts = |step| streams.step(step).map(|panel| panel.map(part));
    let mut done = 0;
    if tiles.len() == 1
        && let [Some(first), Some(second)] = parts(0)
        && let Some(direct) = together(isa, first, second, tiles)
        && [first, second]
            .iter()
            .all(|part| part.panel.linear.needs_no_decoding())
    {
        Series {
            isa,
            direct,
            streams,
            input: first.input,
            rows: tiles.rows(),
            next,
        }
        .multiply(sums);
        done = streams.pairs();
    }
    for step in done..streams.len() {
        let next = after(streams, next, step + 1);
        multiply_step(isa, parts(step), tiles, sums, block, next);
    }
}

/// The panels of a step of a task, or the first ones of the task that comes next.
pub(super) fn after<'p, 'a>(
    streams: &Streams<'p, 'a>,
    next: Option<&Streams<'p, 'a>>,
    step: usize,
) -> [*const u8; 2] {
    let panels = match step < streams.len() {
        true => streams.step(step),
        false => next.map_or([None; 2], |next| next.step(0)),
    };
    panels.map(|panel| panel.map_or(ptr::null(), |panel| panel.bytes().as_ptr()))
}

/// Multiplies the rows of a chunk with one or two panels, and adds the products to `sums`.
///
/// # Arguments
///
/// - `next` - what this thread reads after that.
fn multiply_step(
    isa: Isa,
    parts: [Option<Part<'_, '_>>; 2],
    tiles: Tiles,
    sums: &mut [f32],
    block: &mut [f32],
    next: [*const u8; 2],
) {
    if let [Some(first), Some(second)] = parts
        && let Some(direct) = together(isa, first, second, tiles)
    {
        return run_direct(isa, direct, &[first, second], tiles, sums, block, next);
    }
    for (i, part) in parts.iter().enumerate() {
        let Some(part) = part else { continue };
        let next = match parts.get(i + 1) {
            Some(Some(second)) => [second.panel.bytes().as_ptr(), ptr::null()],
            _ => next,
        };
        match part.panel.linear.direct {
            Some(direct) => {
                run_direct(isa, direct, &[*part], tiles, sums, block, next);
            }
            None => run_widened(isa, *part, tiles, sums, block),
        }
    }
}

/// The sums of a panel: 32 for each row, [`SUMS`] from one row to the next, those of the other panel of
/// its pair between them.
pub(super) fn sums_of(panel: Panel<'_, '_>, rows: usize, sums: *mut [f32]) -> *mut f32 {
    let start = panel.sums(rows);
    let end = start + (rows - 1) * SUMS + LANES;
    assert!(end <= sums.len(), "a task has sums for all of its panels");
    sums.cast::<f32>().wrapping_add(start)
}

/// The loop that multiplies two panels at once, for so few rows that one panel would leave
/// registers unused and sums waiting for each other.
fn together(isa: Isa, first: Part<'_, '_>, second: Part<'_, '_>, tiles: Tiles) -> Option<Direct> {
    let (a, b) = (first.panel.linear.direct?, second.panel.linear.direct?);
    let same = ptr::fn_addr_eq(a.tile, b.tile)
        && a.grouping == b.grouping
        && ptr::eq(first.input, second.input);
    let most = a.rows_of_two.min(isa.max_rows_of_two());
    let fits = tiles.iter().all(|(_, rows)| rows <= most);
    (same && fits).then_some(a)
}

/// Multiplies out of panels, which belong to the same loop and take the same input.
fn run_direct(
    isa: Isa,
    direct: Direct,
    parts: &[Part<'_, '_>],
    tiles: Tiles,
    sums: &mut [f32],
    block: &mut [f32],
    next: [*const u8; 2],
) {
    let (linear, input) = (parts[0].panel.linear, parts[0].input);
    let panel = |i: usize| parts.get(i).map_or(&[][..], |part| part.panel.bytes());
    let (features, units) = (linear.features, linear.units());
    let steps = features / direct.features;
    assert!(
        (0..parts.len()).all(|i| panel(i).len() >= steps * direct.bytes),
        "a panel holds all steps"
    );
    let decoded = direct.decoded.filter(|_| tiles.rows() > DIRECT_ROWS);
    let (block, kept) = block.split_at_mut(4 * SCALES);
    let sums: *mut [f32] = sums;
    let sums = [0, 1].map(|i| match parts.get(i) {
        Some(part) => sums_of(part.panel, tiles.rows(), sums),
        None => ptr::null_mut(),
    });
    assert!(decoded.is_none() || parts.len() == 1 && kept.len() >= DECODED);
    let kept: *mut u8 = kept.as_mut_ptr().cast();
    // Where few rows share a panel, memory alone is the limit, and what the processor fetches
    // ahead by itself comes faster than what it is asked for, unless decoding slows it down.
    let few = isa.max_rows_of_two();
    let is_asked_for = direct.decoded.is_some() || tiles.iter().any(|(_, rows)| rows > few);
    for start in (0..steps).step_by(direct.steps) {
        let steps_here = direct.steps.min(steps - start);
        let offset = start * direct.bytes;
        let bytes = steps_here * direct.bytes;
        let after = match start + steps_here < steps {
            true => [0, 1].map(|i| panel(i).as_ptr().wrapping_add(offset + bytes)),
            false => next,
        };
        let scaling = scaling(isa, direct, parts, start, steps_here, block, next);
        let share = bytes.div_ceil(tiles.len());
        for (tile, (first, rows)) in tiles.iter().enumerate() {
            let input = &input[first * units..][..rows * units];
            let prefetch = match is_asked_for && !after[0].is_null() {
                true => {
                    let after = after.map(|after| after.wrapping_add(tile * share));
                    Prefetch::over(after, share, steps_here)
                }
                false => Prefetch::NONE,
            };
            let tile = Tile {
                a: input[start * direct.units * rows..].as_ptr(),
                b: [0, 1].map(|i| panel(i).as_ptr().wrapping_add(offset)),
                sums: sums.map(|sums| sums.wrapping_add(first * SUMS)),
                rows,
                panels: parts.len(),
                steps: steps_here,
                prefetch,
                scaling,
            };
            // SAFETY: the instruction set is an available one. The input of the tile holds
            // `units` for each row, the panels all steps, and there are sums for each row of the
            // chunk (all asserted); the scaling is that of these steps of these panels. The
            // first tile writes what the others read, for which there is room.
            unsafe {
                match decoded {
                    None => (direct.tile)(isa, &[tile]),
                    Some(decoded) if first == 0 => (decoded.first)(isa, &tile, kept),
                    Some(decoded) => {
                        let b = [kept.cast_const(), ptr::null()];
                        (decoded.tile)(isa, &Tile { b, ..tile });
                    }
                }
            }
        }
    }
}

/// Decodes the scales of some steps of one or two panels into `block`.
fn scaling(
    isa: Isa,
    direct: Direct,
    parts: &[Part<'_, '_>],
    start: usize,
    steps: usize,
    block: &mut [f32],
    next: [*const u8; 2],
) -> Scaling {
    let (mut scaling, features) = direct.scaling(start, steps);
    if direct.grouping.is_none() {
        return scaling;
    }
    let blocks = block.chunks_exact_mut(2 * SCALES);
    for (i, (part, block)) in parts.iter().zip(blocks).enumerate() {
        let Panel { linear, index, .. } = part.panel;
        let out = &mut block[..linear.scale_values(&features)];
        (scaling.scales[i], scaling.above[i]) =
            linear.decode_scales(isa, index, &features, out, next[i]);
    }
    scaling
}

/// Widens a block of the panel at a time, for formats without a loop of their own.
fn run_widened(isa: Isa, part: Part<'_, '_>, tiles: Tiles, sums: &mut [f32], block: &mut [f32]) {
    let Panel { linear, index, .. } = part.panel;
    let features = linear.features;
    let sums = [sums_of(part.panel, tiles.rows(), sums), ptr::null_mut()];
    let direct = Direct::widened();
    for start in (0..features).step_by(BLOCK) {
        let len = BLOCK.min(features - start);
        let block = &mut block[..len * LANES];
        linear.unpack(index, start..start + len, block);
        for (first, rows) in tiles.iter() {
            let input = &part.input[first * features..][..rows * features];
            let tile = Tile {
                a: input[start * rows..].as_ptr(),
                b: [block.as_ptr().cast(), ptr::null()],
                sums: sums.map(|sums| sums.wrapping_add(first * SUMS)),
                rows,
                panels: 1,
                steps: len,
                prefetch: Prefetch::NONE,
                scaling: Scaling::NONE,
            };
            // SAFETY: as in `run_direct`; the block holds 32 values for each step.
            unsafe { (direct.tile)(isa, &[tile]) };
        }
    }
}
