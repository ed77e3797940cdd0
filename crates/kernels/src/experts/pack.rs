//! Rows of activations in the order in which a tile reads them.

use half::bf16;

use crate::formats::Input;
use crate::rows::Widen;

/// Most rows of a tile on any instruction set.
pub(super) const MAX_ROWS: usize = 12;

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

impl<'a> Row<'a> {
    /// A row whose values are its units already, so that alone in a tile it is copied.
    fn bytes_of_units(self, input: Input) -> Option<&'a [u8]> {
        match (self, input) {
            (Self::F32(x), Input::F32 | Input::Int8) => Some(bytemuck::cast_slice(x)),
            // The even feature of a pair is in the low half.
            (Self::Bf16(x), Input::Bf16) if cfg!(target_endian = "little") => {
                Some(bytemuck::cast_slice(x))
            }
            _ => None,
        }
    }
}

/// Units of a row that are written at a time: as many lines of a tile stay in the first-level cache
/// for the rows that follow.
const BLOCK: usize = 16;

/// Writes rows into a tile.
///
/// # Arguments
///
/// - `rows` - at most [`MAX_ROWS`].
/// - `tile` - the units of the rows, padding included.
pub(super) fn pack(rows: &[Row<'_>], input: Input, tile: &mut [u32]) {
    if let [row] = rows
        && let Some(bytes) = row.bytes_of_units(input)
    {
        let tile: &mut [u8] = bytemuck::cast_slice_mut(tile);
        let (units, padding) = tile.split_at_mut(bytes.len().min(tile.len()));
        units.copy_from_slice(&bytes[..units.len()]);
        padding.fill(0);
        return;
    }
    let mut blocks = [[0; BLOCK]; MAX_ROWS];
    let blocks = &mut blocks[..rows.len()];
    for (i, out) in tile.chunks_mut(BLOCK * rows.len().max(1)).enumerate() {
        for (row, block) in rows.iter().zip(&mut *blocks) {
            units(*row, input, i * BLOCK, block);
        }
        interleave(blocks, out);
    }
}

/// For each unit those of all rows, as a tile has them.
///
/// # Arguments
///
/// - `out` - takes the first units of the rows.
pub(super) fn interleave<const UNITS: usize>(rows: &[[u32; UNITS]], out: &mut [u32]) {
    for (unit, out) in (0..UNITS).zip(out.chunks_exact_mut(rows.len().max(1))) {
        for (out, row) in out.iter_mut().zip(rows) {
            *out = row[unit];
        }
    }
}

/// The units of a row from `first` on, zeros behind its last one.
fn units(row: Row<'_>, input: Input, first: usize, out: &mut [u32; BLOCK]) {
    match (row, input) {
        // A quantized row is its units.
        (Row::F32(x), Input::F32 | Input::Int8) => convert(x, first, out, |[x]| x.to_bits()),
        (Row::Bf16(_), Input::Int8) => unreachable!("rows of integers have been quantized"),
        (Row::Bf16(x), Input::F32) => convert(x, first, out, |[x]| x.widen().to_bits()),
        (Row::Bf16(x), Input::Bf16) => convert(x, first, out, pair),
        (Row::F32(x), Input::Bf16) => {
            convert(x, first, out, |x: [f32; 2]| pair(x.map(bf16::from_f32)));
        }
    }
}

/// A pair of bf16 as a unit.
fn pair(pair: [bf16; 2]) -> u32 {
    let [even, odd] = pair.map(|x| u32::from(x.to_bits()));
    even | odd << 16
}

/// Units of `N` features each, a last one without all of them filled up with zeros.
#[inline(always)]
fn convert<T: Copy + Default, const N: usize>(
    values: &[T],
    first: usize,
    out: &mut [u32; BLOCK],
    unit: impl Fn([T; N]) -> u32,
) {
    let values = values.get(first * N..).unwrap_or_default();
    let (whole, rest) = values.as_chunks::<N>();
    if let Some(whole) = whole.first_chunk::<BLOCK>() {
        *out = whole.map(unit);
        return;
    }
    let mut last = [T::default(); N];
    last[..rest.len()].copy_from_slice(rest);
    let mut units = whole.iter().copied().chain([last]).map(unit);
    *out = std::array::from_fn(|_| units.next().unwrap_or(0));
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
        let bits = |v: f32| v.to_bits();
        let (x, y) = ([1.0_f32, 2.0, 3.0], [4.0_f32, 5.0, 6.0]);
        let mut tile = [9; 8];
        pack(&[Row::F32(&x), Row::F32(&y)], Input::F32, &mut tile);
        let [a, b, c, d, e, f] = [1.0, 4.0, 2.0, 5.0, 3.0, 6.0].map(bits);
        assert_eq!(tile, [a, b, c, d, e, f, 0, 0]);
        let narrow = x.map(bf16::from_f32);
        pack(&[Row::Bf16(&narrow)], Input::F32, &mut tile[..4]);
        assert_eq!(tile[..4], [a, c, e, 0]);
        for row in [Row::F32(&x), Row::Bf16(&narrow)] {
            let mut tile = [9; 3];
            pack(&[row], Input::Bf16, &mut tile);
            assert_eq!(tile, [0x4000_3f80, 0x4040, 0]);
        }
        pack(&[Row::F32(&x)], Input::F32, &mut tile[..4]);
        assert_eq!(tile[..4], [a, c, e, 0]);
    }

    #[test]
    fn rows_of_any_length_come_out_of_blocks() {
        for len in [BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK] {
            let rows: Vec<Vec<f32>> = (0..MAX_ROWS)
                .map(|row| (0..len).map(|i| (row * 100 + i) as f32).collect())
                .collect();
            let mut tile = vec![9; MAX_ROWS * (len + 2)];
            let sources: Vec<_> = rows.iter().map(|row| Row::F32(row)).collect();
            pack(&sources, Input::F32, &mut tile);
            for (i, unit) in tile.into_iter().enumerate() {
                let value = rows[i % MAX_ROWS].get(i / MAX_ROWS).copied();
                assert_eq!(f32::from_bits(unit), value.unwrap_or(0.0));
            }
        }
    }
}
