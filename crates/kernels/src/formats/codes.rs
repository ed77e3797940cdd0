//! Codes of 8 and 4 bits that become bf16 in registers. Every value of these formats is a bf16.
#![allow(unsafe_code, reason = "vector instructions, pointers into panels")]

use super::scaled::Codes;
use crate::simd::{F4E2M1, I4_OFFSET, I5_OFFSET, Simd};

/// 8-bit floats.
pub(super) struct E4m3;

impl Codes for E4m3 {
    const BYTES: usize = 128;

    #[inline(always)]
    unsafe fn pairs<S: Simd, const HALF: usize>(b: *const u8, _: *const u32) -> S::H {
        // SAFETY: the caller's promise: the instructions of `S`, 128 bytes, of which each half has 64.
        unsafe { S::load_e4m3(b.add(64 * HALF)) }
    }
}

/// 8-bit integers.
pub(super) struct Int8;

impl Codes for Int8 {
    const BYTES: usize = 128;

    #[inline(always)]
    unsafe fn pairs<S: Simd, const HALF: usize>(b: *const u8, _: *const u32) -> S::H {
        // SAFETY: the caller's promise: the instructions of `S`, 128 bytes.
        unsafe { S::load_quads::<HALF>(b) }
    }
}

/// 4-bit floats.
pub(super) struct E2m1;

impl Codes for E2m1 {
    const BYTES: usize = 64;

    #[inline(always)]
    unsafe fn pairs<S: Simd, const HALF: usize>(b: *const u8, _: *const u32) -> S::H {
        // SAFETY: the caller's promise: the instructions of `S`, 64 bytes.
        unsafe { S::load_nibbles::<HALF>(b, &F4E2M1) }
    }
}

/// 4-bit integers, symmetric.
pub(super) struct Int4;

impl Codes for Int4 {
    const BYTES: usize = 64;

    #[inline(always)]
    unsafe fn pairs<S: Simd, const HALF: usize>(b: *const u8, _: *const u32) -> S::H {
        // SAFETY: the caller's promise: the instructions of `S`, 64 bytes.
        unsafe { S::load_nibbles::<HALF>(b, &I4_OFFSET) }
    }
}

/// 4-bit integers whose zero points are taken away before they become floats.
pub(super) struct Int4Asymmetric;

impl Codes for Int4Asymmetric {
    const BYTES: usize = 64;

    #[inline(always)]
    unsafe fn pairs<S: Simd, const HALF: usize>(b: *const u8, above: *const u32) -> S::H {
        // SAFETY: the caller's promise: the instructions of `S`, 64 bytes, and 32 pairs above.
        unsafe {
            let above = S::load_pairs(above.cast());
            S::load_nibbles_above::<HALF>(b, above, &I5_OFFSET)
        }
    }
}
