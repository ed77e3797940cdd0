//! Rows of activations in the order in which a tile reads them.

use half::bf16;

use crate::formats::{Input, int8_units};
use crate::rows::Widen;

/// Rows cut into tiles of nearly equal height.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tiles {
    rows: usize,
    count: usize,
}

impl Tiles {
    pub(super) fn new(rows: usize, max_rows: usize) -> Self {
        Self {
            rows,
            count: rows.div_ceil(max_rows),
        }
    }

    pub(super) fn rows(self) -> usize {
        self.rows
    }

    pub(super) fn len(self) -> usize {
        self.count
    }

    /// First row and number of rows of each tile.
    pub(super) fn iter(self) -> impl Iterator<Item = (usize, usize)> {
        let start = move |tile: usize| tile * self.rows / self.count;
        (0..self.count).map(move |tile| (start(tile), start(tile + 1) - start(tile)))
    }
}

/// A row of activations.
#[derive(Clone, Copy, Debug)]
pub(super) enum Row<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
}

/// Writes a row into the units of its tile.
///
/// # Arguments
///
/// - `tile` - the units of a tile from this row's first one on.
/// - `rows` - rows of the tile, which is how far apart the units of a row are.
/// - `units` - units of the row, padding included.
pub(super) fn pack_row(row: Row<'_>, input: Input, tile: &mut [u32], rows: usize, units: usize) {
    match (row, input) {
        // A quantized row is its units.
        (Row::F32(x), Input::Int8) => {
            let units = int8_units(units);
            fill(tile, rows, units, x[..units].iter().map(|x| x.to_bits()));
        }
        (Row::Bf16(_), Input::Int8) => unreachable!("rows of integers have been quantized"),
        (Row::F32(x), Input::F32) => fill(tile, rows, units, x.iter().map(|x| x.to_bits())),
        (Row::Bf16(x), Input::F32) => {
            fill(tile, rows, units, x.iter().map(|x| x.widen().to_bits()));
        }
        (Row::Bf16(x), Input::Bf16) => fill(tile, rows, units, pairs(x, |x| *x)),
        (Row::F32(x), Input::Bf16) => fill(tile, rows, units, pairs(x, |x| bf16::from_f32(*x))),
    }
}

/// Pairs of bf16 as units, a last one without partner with zero.
fn pairs<T>(values: &[T], narrow: impl Fn(&T) -> bf16) -> impl Iterator<Item = u32> {
    let (pairs, last) = values.as_chunks::<2>();
    let bits = move |x: &T| u32::from(narrow(x).to_bits());
    let last: Vec<u32> = last.iter().map(&bits).collect();
    let pairs = pairs
        .iter()
        .map(move |[even, odd]| bits(even) | bits(odd) << 16);
    pairs.chain(last)
}

#[inline]
fn fill(tile: &mut [u32], rows: usize, units: usize, values: impl Iterator<Item = u32>) {
    let mut out = tile.iter_mut().step_by(rows).take(units);
    // The values first: `zip` would take one of `out` more than there are values.
    for value in values {
        if let Some(out) = out.next() {
            *out = value;
        }
    }
    out.for_each(|out| *out = 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_all_rows_evenly() {
        for max in 1..13 {
            for rows in 1..100 {
                let tiles: Vec<_> = Tiles::new(rows, max).iter().collect();
                assert_eq!(tiles.len(), Tiles::new(rows, max).len());
                assert_eq!(tiles.iter().map(|t| t.1).sum::<usize>(), rows);
                assert!(tiles.windows(2).all(|w| w[0].0 + w[0].1 == w[1].0));
                let heights = || tiles.iter().map(|t| t.1);
                let (low, high) = (heights().min().unwrap(), heights().max().unwrap());
                assert!(high <= max && high - low <= 1);
            }
        }
    }

    #[test]
    fn units_of_rows_lie_side_by_side() {
        let x = [1.0_f32, 2.0, 3.0];
        let mut tile = [9; 8];
        pack_row(Row::F32(&x), Input::F32, &mut tile[1..], 2, 4);
        let bits = |v: f32| v.to_bits();
        assert_eq!(tile, [9, bits(1.0), 9, bits(2.0), 9, bits(3.0), 9, 0]);
        let narrow = x.map(bf16::from_f32);
        for row in [Row::F32(&x), Row::Bf16(&narrow)] {
            let mut tile = [9; 2];
            pack_row(row, Input::Bf16, &mut tile, 1, 2);
            assert_eq!(tile, [0x4000_3f80, 0x4040]);
        }
    }
}
