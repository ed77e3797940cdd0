//! The operations that kernels are written in, once for each instruction set.
//!
//! Everything works on 32 lanes, the columns of a panel: two vectors of AVX-512, four of AVX2, an
//! array in plain Rust. A lane never meets another, so that what a lane computes depends on its
//! own operands alone.
#![allow(unsafe_code, reason = "vector instructions, pointers into panels")]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx2_codes;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512_codes;
mod codes;
mod portable;

use moekit_quant::ScaleFormat;

#[cfg(target_arch = "x86_64")]
use self::avx2::Avx2;
#[cfg(target_arch = "x86_64")]
use self::avx512::Avx512;
pub(crate) use self::codes::{
    F4E2M1, I4_OFFSET, I5_OFFSET, Table, above_nibble, nibble_place, pair_place,
};
use self::portable::Portable;
use crate::Isa;

/// Lanes: output columns of a panel.
pub(crate) const LANES: usize = 32;

/// An instruction set.
///
/// # Safety
///
/// All functions need the instructions of their set. Pointers must be valid for what their names
/// say; nothing is said of alignment.
pub(crate) trait Simd: Copy {
    /// Most rows of a tile whose sums stay in registers.
    const MAX_ROWS: usize;
    /// 32 lanes of `f32`.
    type F: Copy;
    /// 32 lanes of pairs of bf16, the one of the even feature in the low half.
    type H: Copy;
    /// One pair of bf16 in all lanes of a register.
    type P: Copy;

    unsafe fn zero() -> Self::F;
    unsafe fn splat(value: f32) -> Self::F;
    /// 32 values.
    unsafe fn load(from: *const f32) -> Self::F;
    /// 32 values.
    unsafe fn store(to: *mut f32, values: Self::F);
    /// `a * b + c`, fused where the set has it.
    unsafe fn mul_add(a: Self::F, b: Self::F, c: Self::F) -> Self::F;

    /// 32 values of f16, widened.
    unsafe fn load_f16(from: *const u8) -> Self::F;
    /// 32 pairs.
    unsafe fn load_pairs(from: *const u8) -> Self::H;
    /// 32 pairs, as [`Simd::load_pairs`] reads them.
    #[inline(always)]
    unsafe fn keep_pairs(to: *mut u8, pairs: Self::H) {
        const { assert!(size_of::<Self::H>() == 4 * LANES) };
        // SAFETY: the caller's promise; 32 pairs are vectors, or an array, in the order of lanes.
        unsafe { to.cast::<Self::H>().write_unaligned(pairs) }
    }
    unsafe fn splat_pair(pair: u32) -> Self::P;
    /// The even and the odd values of pairs, widened.
    unsafe fn widen(pairs: Self::H) -> [Self::F; 2];
    /// Both products of each pair added to the sum.
    unsafe fn dot_pairs(pairs: Self::H, by: Self::P, sum: Self::F) -> Self::F;

    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F;
    /// The lesser of `value` and `limit`; NaN where `value` is.
    unsafe fn at_most(value: Self::F, limit: Self::F) -> Self::F;
    /// The greater of `value` and `limit`; NaN where `value` is.
    unsafe fn at_least(value: Self::F, limit: Self::F) -> Self::F;
    /// Nearest whole numbers.
    unsafe fn round(a: Self::F) -> Self::F;
    /// `values * 2^exponents` for whole exponents from -126 to 127.
    unsafe fn scale(values: Self::F, exponents: Self::F) -> Self::F;
    /// 32 values rounded to 16 pairs of bf16.
    unsafe fn store_pairs(to: *mut u32, values: Self::F);
    /// The low byte of each of 32 values.
    #[inline(always)]
    unsafe fn store_low_bytes(to: *mut u8, values: Self::F) {
        // SAFETY: the caller's promise: the instructions, and room for 32 bytes.
        unsafe {
            let bytes = codes::values::<Self>(values).map(|value| value.to_bits() as u8);
            to.cast::<[u8; LANES]>().write(bytes);
        }
    }

    /// The pairs of two features of E4M3: 64 bytes in the order of [`pair_place`].
    #[inline(always)]
    unsafe fn load_e4m3(from: *const u8) -> Self::H {
        // SAFETY: the caller's promise.
        unsafe { codes::pairs::<Self>(codes::e4m3_pairs(from)) }
    }

    /// The pairs of features `2 * HALF` and `2 * HALF + 1` of four features of nibbles: 64 bytes
    /// in the order of [`nibble_place`]. The table must not look at the fifth bit.
    #[inline(always)]
    unsafe fn load_nibbles<const HALF: usize>(from: *const u8, table: &Table) -> Self::H {
        // SAFETY: the caller's promise.
        unsafe { codes::pairs::<Self>(codes::nibble_pairs::<HALF>(from, [0; LANES], table)) }
    }

    /// [`Simd::load_nibbles`] with a number added to each nibble: sums are below 32. All bytes of
    /// each lane of `above` hold the number.
    #[inline(always)]
    unsafe fn load_nibbles_above<const HALF: usize>(
        from: *const u8,
        above: Self::H,
        table: &Table,
    ) -> Self::H {
        // SAFETY: the caller's promise.
        unsafe {
            let numbers = codes::values::<Self>(Self::widen(above)[1]);
            let numbers = numbers.map(|number| number.to_bits() >> 16);
            codes::pairs::<Self>(codes::nibble_pairs::<HALF>(from, numbers, table))
        }
    }

    /// What [`Simd::load_nibbles_above`] adds for 32 zero points, a byte each: [`above_nibble`].
    #[inline(always)]
    unsafe fn load_zero_points(from: *const u8) -> Self::H {
        // SAFETY: the caller's promise.
        unsafe { codes::pairs::<Self>(codes::zero_points(from)) }
    }

    /// The pairs of features `2 * HALF` and `2 * HALF + 1` of four features of bytes that hold an
    /// integer plus 128: 128 bytes, those of a column side by side.
    #[inline(always)]
    unsafe fn load_quads<const HALF: usize>(from: *const u8) -> Self::H {
        // SAFETY: the caller's promise.
        unsafe { codes::pairs::<Self>(codes::quad_pairs::<HALF>(from)) }
    }

    /// 32 scales of a format.
    #[inline(always)]
    unsafe fn load_scales(format: ScaleFormat, from: *const u8) -> Self::F {
        // SAFETY: the caller's promise.
        unsafe { Self::load(codes::scales::<LANES>(format, from).as_ptr()) }
    }

    /// The products of 32 times 4 unsigned bytes with 4 signed ones, added to integers of 32 bits,
    /// which wrap around.
    #[inline(always)]
    unsafe fn add_quads(quads: *const u8, by: u32, sums: Self::F) -> Self::F {
        // SAFETY: the caller's promise.
        unsafe { Self::load(codes::add_quads(quads, by, codes::values::<Self>(sums)).as_ptr()) }
    }

    /// Integers of 32 bits as nearest `f32`.
    #[inline(always)]
    unsafe fn from_integers(integers: Self::F) -> Self::F {
        // SAFETY: the caller's promise.
        unsafe {
            let integers = codes::values::<Self>(integers);
            Self::load(integers.map(|i| i.to_bits().cast_signed() as f32).as_ptr())
        }
    }

    /// Asks for the cache line at an address, which need not be one of ours.
    unsafe fn prefetch(at: *const u8);
}

/// A piece of code that is compiled for each instruction set.
pub(crate) trait Op {
    type Output;

    /// Must be `#[inline(always)]`, to be compiled with the instructions of `S`.
    ///
    /// # Safety
    ///
    /// The machine has the instructions of `S`.
    unsafe fn run<S: Simd>(self) -> Self::Output;
}

impl Isa {
    /// Runs the code compiled for this instruction set.
    ///
    /// # Safety
    ///
    /// The machine has it: [`Isa::checked`] has been asked.
    #[inline]
    pub(crate) unsafe fn dispatch<O: Op>(self, op: O) -> O::Output {
        // SAFETY: the caller's promise.
        unsafe {
            match self {
                Self::Portable => op.run::<Portable>(),
                #[cfg(target_arch = "x86_64")]
                Self::Avx2 => avx2::run(op),
                #[cfg(target_arch = "x86_64")]
                Self::Avx512 => avx512::run(op),
                #[cfg(target_arch = "x86_64")]
                Self::Avx512Bf16 => avx512::run_bf16(op),
                #[cfg(not(target_arch = "x86_64"))]
                _ => op.run::<Portable>(),
            }
        }
    }

    /// Most rows of a tile.
    pub(crate) fn max_rows(self) -> usize {
        match self {
            Self::Portable => Portable::MAX_ROWS,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => Avx2::MAX_ROWS,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 | Self::Avx512Bf16 => Avx512::<true>::MAX_ROWS,
            #[cfg(not(target_arch = "x86_64"))]
            _ => Portable::MAX_ROWS,
        }
    }
}
