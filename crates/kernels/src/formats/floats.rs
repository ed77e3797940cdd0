//! Weights that are floats of 16 or 32 bits, without scales.
#![allow(unsafe_code, reason = "vector instructions, pointers into panels")]

use crate::simd::{LANES, Simd};
use crate::tile::Dot;

/// `f32`, or what has been widened to it, times `f32`.
pub(super) struct F32;

impl Dot for F32 {
    const FEATURES: usize = 1;
    const UNITS: usize = 1;
    const BYTES: usize = 4 * LANES;

    #[inline(always)]
    unsafe fn step<S: Simd, const ROWS: usize>(
        a: *const u32,
        b: *const u8,
        sums: &mut [S::F; ROWS],
    ) {
        // SAFETY: the caller's promise: the instructions of `S`, a unit per row, 32 values.
        unsafe {
            let weights = S::load(b.cast());
            add_products::<S, ROWS>(a, weights, sums);
        }
    }
}

/// f16 widened, times `f32`.
pub(super) struct F16;

impl Dot for F16 {
    const FEATURES: usize = 1;
    const UNITS: usize = 1;
    const BYTES: usize = 2 * LANES;

    #[inline(always)]
    unsafe fn step<S: Simd, const ROWS: usize>(
        a: *const u32,
        b: *const u8,
        sums: &mut [S::F; ROWS],
    ) {
        // SAFETY: the caller's promise: the instructions of `S`, a unit per row, 32 values.
        unsafe {
            let weights = S::load_f16(b);
            add_products::<S, ROWS>(a, weights, sums);
        }
    }
}

/// bf16 widened, times `f32`.
pub(super) struct WidenedBf16;

impl Dot for WidenedBf16 {
    const FEATURES: usize = 2;
    const UNITS: usize = 2;
    const BYTES: usize = 4 * LANES;

    #[inline(always)]
    unsafe fn step<S: Simd, const ROWS: usize>(
        a: *const u32,
        b: *const u8,
        sums: &mut [S::F; ROWS],
    ) {
        // SAFETY: the caller's promise: the instructions of `S`, two units per row,
        // 32 pairs.
        unsafe {
            let [even, odd] = S::widen(S::load_pairs(b));
            add_products::<S, ROWS>(a, even, sums);
            add_products::<S, ROWS>(a.add(ROWS), odd, sums);
        }
    }
}

/// bf16 times bf16.
pub(super) struct Bf16;

impl Dot for Bf16 {
    const FEATURES: usize = 2;
    const UNITS: usize = 1;
    const BYTES: usize = 4 * LANES;

    #[inline(always)]
    unsafe fn step<S: Simd, const ROWS: usize>(
        a: *const u32,
        b: *const u8,
        sums: &mut [S::F; ROWS],
    ) {
        // SAFETY: the caller's promise: the instructions of `S`, a unit per row, 32 pairs.
        unsafe {
            let weights = S::load_pairs(b);
            for (row, sum) in sums.iter_mut().enumerate() {
                *sum = S::dot_pairs(weights, S::splat_pair(*a.add(row)), *sum);
            }
        }
    }
}

/// One feature of all rows times its weights.
///
/// # Safety
///
/// The machine has the instructions of `S`; `a` holds a unit for each row.
#[inline(always)]
pub(super) unsafe fn add_products<S: Simd, const ROWS: usize>(
    a: *const u32,
    weights: S::F,
    sums: &mut [S::F; ROWS],
) {
    // SAFETY: the caller's promise.
    unsafe {
        for (row, sum) in sums.iter_mut().enumerate() {
            let x = S::splat(f32::from_bits(*a.add(row)));
            *sum = S::mul_add(weights, x, *sum);
        }
    }
}
