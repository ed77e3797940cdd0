//! AVX2 with FMA and F16C: a row of a panel is four vectors.

use std::arch::x86_64::*;
use std::mem::transmute;

use super::codes::Table;
use super::portable::Portable;
use super::{Op, Simd, avx2_codes};

#[derive(Clone, Copy)]
pub(crate) struct Avx2;

/// # Safety
///
/// The machine has these instructions.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn run<O: Op>(op: O) -> O::Output {
    // SAFETY: the caller's promise.
    unsafe { op.run::<Avx2>() }
}

type F = [__m256; 4];

/// The same operation on all vectors, in functions of [`Simd`].
macro_rules! each {
    (@ $i:ident => $f:expr) => {
        // SAFETY: the caller of the function has promised the instructions, and that pointers hold
        // what is read.
        unsafe {
            [
                { let $i = 0; $f },
                { let $i = 1; $f },
                { let $i = 2; $f },
                { let $i = 3; $f },
            ]
        }
    };
    ($($a:ident),+ => $f:expr) => {
        each!(@ i => {
            let ($($a,)+) = ($($a[i],)+);
            $f
        })
    };
}

impl Simd for Avx2 {
    // 12 sums, an activation, and weights of 16 registers.
    const MAX_ROWS: usize = 3;
    type F = F;
    type H = [__m256i; 4];
    type P = [__m256; 2];

    #[inline(always)]
    unsafe fn zero() -> F {
        // SAFETY: the caller's promise of the instructions.
        unsafe { [_mm256_setzero_ps(); 4] }
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> F {
        // SAFETY: the caller's promise of the instructions.
        unsafe { [_mm256_set1_ps(value); 4] }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> F {
        each!(@ i => _mm256_loadu_ps(from.add(8 * i)))
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, values: F) {
        // SAFETY: the caller's promise: the instructions, and room for 32 values.
        unsafe {
            for (i, values) in values.into_iter().enumerate() {
                _mm256_storeu_ps(to.add(8 * i), values);
            }
        }
    }

    #[inline(always)]
    unsafe fn mul_add(a: F, b: F, c: F) -> F {
        each!(a, b, c => _mm256_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> F {
        each!(@ i => _mm256_cvtph_ps(_mm_loadu_si128(from.cast::<__m128i>().add(i))))
    }

    #[inline(always)]
    unsafe fn load_pairs(from: *const u8) -> [__m256i; 4] {
        each!(@ i => _mm256_loadu_si256(from.cast::<__m256i>().add(i)))
    }

    #[inline(always)]
    unsafe fn splat_pair(pair: u32) -> [__m256; 2] {
        // SAFETY: the caller's promise of the instructions.
        unsafe {
            let value = |bits: u32| _mm256_set1_ps(f32::from_bits(bits));
            [value(pair << 16), value(pair & 0xffff_0000)]
        }
    }

    #[inline(always)]
    unsafe fn widen(pairs: [__m256i; 4]) -> [F; 2] {
        [
            each!(pairs => _mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs))),
            each!(pairs => {
                let mask = _mm256_set1_epi32(0xffff_0000_u32.cast_signed());
                _mm256_castsi256_ps(_mm256_and_si256(pairs, mask))
            }),
        ]
    }

    #[inline(always)]
    unsafe fn dot_pairs(pairs: [__m256i; 4], by: [__m256; 2], sum: F) -> F {
        // SAFETY: the caller's promise of the instructions.
        unsafe {
            let [even, odd] = Self::widen(pairs);
            Self::mul_add(odd, [by[1]; 4], Self::mul_add(even, [by[0]; 4], sum))
        }
    }

    #[inline(always)]
    unsafe fn add(a: F, b: F) -> F {
        each!(a, b => _mm256_add_ps(a, b))
    }

    #[inline(always)]
    unsafe fn sub(a: F, b: F) -> F {
        each!(a, b => _mm256_sub_ps(a, b))
    }

    #[inline(always)]
    unsafe fn mul(a: F, b: F) -> F {
        each!(a, b => _mm256_mul_ps(a, b))
    }

    #[inline(always)]
    unsafe fn div(a: F, b: F) -> F {
        each!(a, b => _mm256_div_ps(a, b))
    }

    #[inline(always)]
    unsafe fn at_most(value: F, limit: F) -> F {
        // The second operand is what comes out if one of them is NaN.
        each!(value, limit => _mm256_min_ps(limit, value))
    }

    #[inline(always)]
    unsafe fn at_least(value: F, limit: F) -> F {
        each!(value, limit => _mm256_max_ps(limit, value))
    }

    #[inline(always)]
    unsafe fn round(a: F) -> F {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        each!(a => _mm256_round_ps::<NEAREST>(a))
    }

    #[inline(always)]
    unsafe fn scale(values: F, exponents: F) -> F {
        each!(values, exponents => {
            let bias = _mm256_set1_epi32(127);
            let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(exponents), bias);
            let power = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent));
            _mm256_mul_ps(values, power)
        })
    }

    #[inline(always)]
    unsafe fn store_pairs(to: *mut u32, values: F) {
        // SAFETY: the caller's promise of room for 16 pairs. Four vectors are 32 values.
        unsafe { Portable::store_pairs(to, transmute::<F, [f32; 32]>(values)) }
    }

    #[inline(always)]
    unsafe fn load_e4m3(from: *const u8) -> [__m256i; 4] {
        // SAFETY: the caller's promise.
        unsafe { avx2_codes::load_e4m3(from) }
    }

    #[inline(always)]
    unsafe fn load_nibbles<const HALF: usize>(from: *const u8, table: &Table) -> [__m256i; 4] {
        // SAFETY: the caller's promise.
        unsafe { avx2_codes::load_nibbles::<HALF>(from, table) }
    }

    #[inline(always)]
    unsafe fn load_nibbles_above<const HALF: usize>(
        from: *const u8,
        above: [__m256i; 4],
        table: &Table,
    ) -> [__m256i; 4] {
        // SAFETY: the caller's promise.
        unsafe { avx2_codes::load_nibbles_above::<HALF>(from, above, table) }
    }

    #[inline(always)]
    unsafe fn load_quads<const HALF: usize>(from: *const u8) -> [__m256i; 4] {
        // SAFETY: the caller's promise.
        unsafe { avx2_codes::load_quads::<HALF>(from) }
    }

    #[inline(always)]
    unsafe fn add_quads(quads: *const u8, by: u32, sums: F) -> F {
        // SAFETY: the caller's promise.
        unsafe { avx2_codes::add_quads(quads, by, sums) }
    }

    #[inline(always)]
    unsafe fn from_integers(mut integers: F) -> F {
        for integers in &mut integers {
            // SAFETY: the caller's promise of the instructions.
            *integers = unsafe { _mm256_cvtepi32_ps(_mm256_castps_si256(*integers)) };
        }
        integers
    }

    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        // SAFETY: the caller's promise of the instructions; nothing is read.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }
}
