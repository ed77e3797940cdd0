//! 8-bit integers times activations that are quantized to 8-bit integers: exact sums of integers,
//! multiplied by the scale of the row and those of the columns at the end.
//!
//! Dot products of bytes take one operand without sign. That is the weight, as `w + 128`; each row
//! begins with `-128` times the sum of its integers, which takes the excess away again.
#![allow(unsafe_code, reason = "vector instructions, pointers into panels")]

use moekit_quant::{ActivationFormat, ActivationQuant};

use super::scaled::{Shaped, by_shape};
use crate::Isa;
use crate::prepared::Layout;
use crate::rows::Widen;
use crate::simd::{LANES, Op, Simd};
use crate::tile::{SUMS, Tile, UNROLL};

/// Input features of a step, and of a unit.
pub(super) const FEATURES: usize = 4;
/// Bytes of a panel in a step.
pub(super) const BYTES: usize = FEATURES * LANES;
/// Units of a row beyond those of its features: its scale, and where its sums begin.
const EXTRA: usize = 2;
/// The most features whose sum of products, `255 * 128` each, fits into 32 bits.
const MAX_FEATURES: usize = 1 << 16;
/// The fewest features that take more units as `f32` than as integers.
const MIN_FEATURES: usize = 8;

/// Whether inputs so quantized are multiplied as integers.
pub(super) fn multiplies(layout: &Layout, quant: ActivationQuant) -> bool {
    let per_row = matches!(
        quant,
        ActivationQuant::PerToken {
            format: ActivationFormat::I8
        } | ActivationQuant::Static {
            format: ActivationFormat::I8,
            ..
        }
    );
    let one_scale = layout.grouping(FEATURES).is_some_and(|g| g.is_one());
    let fits = (MIN_FEATURES..MAX_FEATURES).contains(&layout.cols);
    per_row && one_scale && fits && layout.is_int8() && layout.zero_points.is_none()
}

/// Units of a row.
pub(crate) fn units(features: usize) -> usize {
    features / FEATURES + EXTRA
}

/// Quantizes a row as [`ActivationQuant::apply`] does, which it is held to; where that gives NaN,
/// the scale is NaN.
pub(crate) struct Quantize<'a, A> {
    /// One that [`multiplies`].
    pub(crate) quant: ActivationQuant,
    pub(crate) values: &'a [A],
    /// What the values are multiplied by before.
    pub(crate) weight: f32,
    /// [`units`] of the features, padding included.
    pub(crate) units: &'a mut [u32],
}

impl<A: Widen + Default> Op for Quantize<'_, A> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        const INFINITE: u32 = f32::INFINITY.to_bits();
        // Magnitudes are in the order of their bits, NaN last.
        let magnitude = |x: A| (x.widen() * self.weight).to_bits() & !(1 << 31);
        let (chunks, rest) = self.values.as_chunks::<LANES>();
        let mut top = [0; LANES];
        for chunk in chunks {
            for (top, x) in top.iter_mut().zip(chunk) {
                *top = magnitude(*x).max(*top);
            }
        }
        let top = top.into_iter().chain(rest.iter().map(|x| magnitude(*x)));
        let top = top.max().unwrap_or(0);
        let scale = match self.quant {
            ActivationQuant::Static { .. } if top > INFINITE => f32::NAN,
            ActivationQuant::Static { scale, .. } => scale,
            _ if top >= INFINITE => f32::NAN,
            _ => f32::from_bits(top) / 127.5,
        };
        let (integers, extra) = self.units.split_at_mut(self.units.len() - EXTRA);
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(integers);
        bytes[self.values.len()..].fill(0);
        let mut sum = 0.0;
        if scale == 0.0 || scale.is_nan() {
            bytes.fill(0);
        } else {
            let bytes = &mut bytes[..self.values.len()];
            // SAFETY: the caller's promise.
            sum = unsafe { round_to_bytes::<S, A>(self.values, self.weight, scale, bytes) };
        }
        extra.copy_from_slice(&[scale.to_bits(), (-128 * sum as i32).cast_unsigned()]);
    }
}

/// Writes values, times a weight, over a scale as nearest integers, and returns the sum of these,
/// which is exact for [`MAX_FEATURES`].
///
/// # Safety
///
/// The machine has the instructions of `S`.
#[inline(always)]
unsafe fn round_to_bytes<S: Simd, A: Widen + Default>(
    values: &[A],
    weight: f32,
    scale: f32,
    bytes: &mut [u8],
) -> f32 {
    let (values, values_left) = values.as_chunks::<LANES>();
    let (bytes, bytes_left) = bytes.as_chunks_mut::<LANES>();
    let mut sums = [0.0; LANES];
    // SAFETY: the caller's promise; the array is 32 values long.
    unsafe {
        let mut sum = S::zero();
        for (values, bytes) in values.iter().zip(bytes) {
            sum = S::add(sum, round_lanes::<S, A>(values, weight, scale, bytes));
        }
        if !values_left.is_empty() {
            let (mut last, mut rounded) = ([A::default(); LANES], [0; LANES]);
            last[..values_left.len()].copy_from_slice(values_left);
            sum = S::add(sum, round_lanes::<S, A>(&last, weight, scale, &mut rounded));
            bytes_left.copy_from_slice(&rounded[..bytes_left.len()]);
        }
        S::store(sums.as_mut_ptr(), sum);
    }
    sums.iter().sum()
}

/// [`round_to_bytes`] of 32 values, and their integers.
///
/// # Safety
///
/// The machine has the instructions of `S`.
#[inline(always)]
unsafe fn round_lanes<S: Simd, A: Widen>(
    values: &[A; LANES],
    weight: f32,
    scale: f32,
    bytes: &mut [u8; LANES],
) -> S::F {
    // A number whose last bit is 1, so that adding it rounds, and the low byte of the sum is that
    // of the integer.
    const BIG: f32 = (1_u32 << 23) as f32 + (1_u32 << 22) as f32;
    let values = values.map(|x| x.widen() * weight);
    // SAFETY: the caller's promise; all arrays are 32 long.
    unsafe {
        let x = S::div(S::load(values.as_ptr()), S::splat(scale));
        let x = S::at_least(S::at_most(x, S::splat(127.0)), S::splat(-128.0));
        let rounded = S::add(x, S::splat(BIG));
        S::store_low_bytes(bytes.as_mut_ptr(), rounded);
        S::sub(rounded, S::splat(BIG))
    }
}

/// Multiplies tiles, whose steps are all that a row has.
///
/// # Safety
///
/// As [`crate::tile::multiply`]; [`EXTRA`] units of all rows follow those of the steps, and the
/// scaling has the scales of one group.
pub(super) unsafe fn multiply(isa: Isa, tiles: &[Tile]) {
    let Some(tile) = tiles.first() else { return };
    let op = Multiply(tiles);
    // SAFETY: the caller's promise.
    unsafe { by_shape!(isa, (tile.panels, tile.rows), op, 1 2 3 4 5 6 7 8 9 10 11 12, 1 2 3 4 5 6) }
}

struct Multiply<'a>(&'a [Tile]);

impl<const ROWS: usize, const PANELS: usize> Op for Shaped<Multiply<'_>, ROWS, PANELS> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for tile in self.0.0 {
            // SAFETY: the caller of `multiply` has promised it.
            unsafe { add_products::<S, ROWS, PANELS>(tile) }
        }
    }
}

/// Adds the products of a tile to its sums.
#[inline(always)]
unsafe fn add_products<S: Simd, const ROWS: usize, const PANELS: usize>(tile: &Tile) {
    // SAFETY: the caller has promised what pointers hold; each step moves on by what it has read.
    unsafe {
        // For each row its scale, then for each row where its sums begin.
        let extra = tile.a.add(tile.steps * ROWS);
        let mut sums = [[S::zero(); ROWS]; PANELS];
        for sums in &mut sums {
            for (row, sum) in sums.iter_mut().enumerate() {
                *sum = S::splat(f32::from_bits(*extra.add(ROWS + row)));
            }
        }
        let (mut a, mut b, mut prefetch) = (tile.a, tile.b, tile.prefetch);
        for _ in 0..tile.steps / UNROLL {
            for _ in 0..UNROLL {
                step::<S, ROWS, PANELS>(&mut a, &mut b, &mut sums);
            }
            prefetch.advance::<S, PANELS>(UNROLL);
        }
        for _ in 0..tile.steps % UNROLL {
            step::<S, ROWS, PANELS>(&mut a, &mut b, &mut sums);
        }
        for (panel, sums) in sums.into_iter().enumerate() {
            let scale = S::load(tile.scaling.scales[panel]);
            for (row, sum) in sums.into_iter().enumerate() {
                let at = tile.sums[panel].add(row * SUMS);
                let of_row = S::splat(f32::from_bits(*extra.add(row)));
                let sum = S::mul(S::from_integers(sum), of_row);
                S::store(at, S::mul_add(sum, scale, S::load(at)));
            }
        }
    }
}

/// Four features of all rows times their weights.
#[inline(always)]
unsafe fn step<S: Simd, const ROWS: usize, const PANELS: usize>(
    a: &mut *const u32,
    b: &mut [*const u8; 2],
    sums: &mut [[S::F; ROWS]; PANELS],
) {
    // SAFETY: the caller's promise.
    unsafe {
        for panel in 0..PANELS {
            for (row, sum) in sums[panel].iter_mut().enumerate() {
                *sum = S::add_quads(b[panel], *a.add(row), *sum);
            }
            b[panel] = b[panel].add(BYTES);
        }
        *a = a.add(ROWS);
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    /// The units of a row.
    fn quantized<A: Widen + Default>(
        isa: Isa,
        quant: ActivationQuant,
        values: &[A],
        weight: f32,
    ) -> Vec<u32> {
        let mut units = vec![7; units(values.len().next_multiple_of(FEATURES))];
        let op = Quantize {
            quant,
            values,
            weight,
            units: &mut units,
        };
        // SAFETY: tests ask for instruction sets that the machine has.
        unsafe { isa.dispatch(op) };
        units
    }

    /// What a row of units stands for.
    fn restored(units: &[u32], len: usize) -> Vec<f32> {
        let (integers, extra) = units.split_at(units.len() - EXTRA);
        let scale = f32::from_bits(extra[0]);
        let bytes: &[u8] = bytemuck::cast_slice(integers);
        let sum: i32 = bytes.iter().map(|b| i32::from(b.cast_signed())).sum();
        assert_eq!(extra[1].cast_signed(), -128 * sum);
        assert!(bytes[len..].iter().all(|b| *b == 0));
        let value = |b: &u8| f32::from(b.cast_signed()) * scale;
        bytes[..len].iter().map(value).collect()
    }

    #[test]
    fn rows_are_quantized_as_the_reference_does() {
        let format = ActivationFormat::I8;
        for isa in Isa::available() {
            for quant in [
                ActivationQuant::PerToken { format },
                ActivationQuant::Static {
                    format,
                    scale: 0.013,
                },
            ] {
                for len in [8_usize, 31, 64, 70] {
                    for size in [0.0, 0.01, 3.0] {
                        let x: Vec<f32> = (0..len)
                            .map(|i| ((i * 37 % 101) as f32 - 50.0) * size)
                            .collect();
                        let units = quantized(isa, quant, &x, 1.0);
                        let mut expected = x.clone();
                        quant.apply(&mut expected);
                        assert_eq!(restored(&units, len), expected);
                    }
                }
            }
        }
    }

    #[test]
    fn rows_of_bf16_are_weighted_and_quantized_as_those_of_f32() {
        let quant = ActivationQuant::PerToken {
            format: ActivationFormat::I8,
        };
        let narrow: Vec<bf16> = (0..70)
            .map(|i| bf16::from_f32((i * 37 % 101) as f32 - 50.0))
            .collect();
        let wide: Vec<f32> = narrow.iter().map(|x| x.to_f32() * 0.3).collect();
        for isa in Isa::available() {
            let got = quantized(isa, quant, &narrow, 0.3);
            let expected = quantized(isa, quant, &wide, 1.0);
            assert_eq!(got, expected);
        }
    }

    #[test]
    fn what_is_not_finite_makes_the_row_nan() {
        let format = ActivationFormat::I8;
        for (quant, bad) in [
            (ActivationQuant::PerToken { format }, f32::NAN),
            (ActivationQuant::PerToken { format }, f32::INFINITY),
            (ActivationQuant::Static { format, scale: 1.0 }, f32::NAN),
        ] {
            let mut x = [1.0; 40];
            x[33] = bad;
            let units = quantized(Isa::Portable, quant, &x, 1.0);
            assert!(f32::from_bits(units[10]).is_nan());
        }
    }
}
