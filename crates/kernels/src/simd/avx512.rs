//! AVX-512: a row of a panel is two vectors.

use std::arch::x86_64::*;
use std::mem::transmute;

use moekit_quant::ScaleFormat;

use super::codes::Table;
use super::portable::Portable;
use super::{Op, Simd, avx512_codes};

/// With BF16 (and VNNI and VBMI, which the instruction set of that name has) or without.
#[derive(Clone, Copy)]
pub(crate) struct Avx512<const BF16: bool>;

/// # Safety
///
/// The machine has these instructions.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub(crate) unsafe fn run<O: Op>(op: O) -> O::Output {
    // SAFETY: the caller's promise.
    unsafe { op.run::<Avx512<false>>() }
}

/// # Safety
///
/// The machine has these instructions.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
#[target_feature(enable = "avx512bf16,avx512vnni,avx512vbmi,avx512vbmi2")]
pub(crate) unsafe fn run_bf16<O: Op>(op: O) -> O::Output {
    // SAFETY: the caller's promise.
    unsafe { op.run::<Avx512<true>>() }
}

type F = [__m512; 2];

/// The same operation on both vectors, in functions of [`Simd`].
macro_rules! both {
    ($($a:ident),+ => $f:expr) => {
        // SAFETY: the caller of the function has promised the instructions, and that pointers hold
        // what is read.
        unsafe { [both!(@ 0 $($a)+ => $f), both!(@ 1 $($a)+ => $f)] }
    };
    (@ $i:literal $($a:ident)+ => $f:expr) => {{
        let ($($a,)+) = ($($a[$i],)+);
        $f
    }};
}

impl<const BF16: bool> Simd for Avx512<BF16> {
    // 24 sums, 2 weights and an activation of 32 registers.
    const MAX_ROWS: usize = 12;
    type F = F;
    type H = [__m512i; 2];
    type P = __m512i;

    #[inline(always)]
    unsafe fn zero() -> F {
        // SAFETY: the caller's promise of the instructions.
        unsafe { [_mm512_setzero_ps(); 2] }
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> F {
        // SAFETY: the caller's promise of the instructions.
        unsafe { [_mm512_set1_ps(value); 2] }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> F {
        // SAFETY: the caller's promise: the instructions, and 32 values.
        unsafe { [_mm512_loadu_ps(from), _mm512_loadu_ps(from.add(16))] }
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, values: F) {
        // SAFETY: the caller's promise: the instructions, and room for 32 values.
        unsafe {
            _mm512_storeu_ps(to, values[0]);
            _mm512_storeu_ps(to.add(16), values[1]);
        }
    }

    #[inline(always)]
    unsafe fn mul_add(a: F, b: F, c: F) -> F {
        both!(a, b, c => _mm512_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> F {
        let halves = [from, from.wrapping_add(32)];
        both!(halves => _mm512_cvtph_ps(_mm256_loadu_si256(halves.cast())))
    }

    #[inline(always)]
    unsafe fn load_pairs(from: *const u8) -> [__m512i; 2] {
        let halves = [from, from.wrapping_add(64)];
        both!(halves => _mm512_loadu_si512(halves.cast()))
    }

    #[inline(always)]
    unsafe fn splat_pair(pair: u32) -> __m512i {
        // SAFETY: the caller's promise of the instructions.
        unsafe { _mm512_set1_epi32(pair.cast_signed()) }
    }

    #[inline(always)]
    unsafe fn widen(pairs: [__m512i; 2]) -> [F; 2] {
        [
            both!(pairs => _mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs))),
            both!(pairs => {
                let mask = _mm512_set1_epi32(0xffff_0000_u32.cast_signed());
                _mm512_castsi512_ps(_mm512_and_si512(pairs, mask))
            }),
        ]
    }

    #[inline(always)]
    unsafe fn dot_pairs(pairs: [__m512i; 2], by: __m512i, sum: F) -> F {
        if BF16 {
            return both!(pairs, sum => {
                let by: __m512bh = transmute(by);
                _mm512_dpbf16_ps(sum, by, transmute::<__m512i, __m512bh>(pairs))
            });
        }
        // SAFETY: the caller's promise of the instructions.
        unsafe {
            let mask = _mm512_set1_epi32(0xffff_0000_u32.cast_signed());
            let even = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(by));
            let odd = _mm512_castsi512_ps(_mm512_and_si512(by, mask));
            let weights = Self::widen(pairs);
            Self::mul_add(
                weights[1],
                [odd; 2],
                Self::mul_add(weights[0], [even; 2], sum),
            )
        }
    }

    #[inline(always)]
    unsafe fn add(a: F, b: F) -> F {
        both!(a, b => _mm512_add_ps(a, b))
    }

    #[inline(always)]
    unsafe fn sub(a: F, b: F) -> F {
        both!(a, b => _mm512_sub_ps(a, b))
    }

    #[inline(always)]
    unsafe fn mul(a: F, b: F) -> F {
        both!(a, b => _mm512_mul_ps(a, b))
    }

    #[inline(always)]
    unsafe fn div(a: F, b: F) -> F {
        both!(a, b => _mm512_div_ps(a, b))
    }

    #[inline(always)]
    unsafe fn at_most(value: F, limit: F) -> F {
        // The second operand is what comes out if one of them is NaN.
        both!(value, limit => _mm512_min_ps(limit, value))
    }

    #[inline(always)]
    unsafe fn at_least(value: F, limit: F) -> F {
        both!(value, limit => _mm512_max_ps(limit, value))
    }

    #[inline(always)]
    unsafe fn round(a: F) -> F {
        both!(a => _mm512_roundscale_ps::<_MM_FROUND_TO_NEAREST_INT>(a))
    }

    #[inline(always)]
    unsafe fn scale(values: F, exponents: F) -> F {
        both!(values, exponents => _mm512_scalef_ps(values, exponents))
    }

    #[inline(always)]
    unsafe fn store_pairs(to: *mut u32, values: F) {
        // SAFETY: the caller's promise: the instructions, and room for 16 pairs. Two vectors are 32
        // values, one of bf16 as many bits as one of integers.
        unsafe {
            if BF16 {
                let pairs = _mm512_cvtne2ps_pbh(values[1], values[0]);
                _mm512_storeu_si512(to.cast(), transmute::<__m512bh, __m512i>(pairs));
                return;
            }
            Portable::store_pairs(to, transmute::<F, [f32; 32]>(values));
        }
    }

    #[inline(always)]
    unsafe fn store_low_bytes(to: *mut u8, values: F) {
        // SAFETY: the caller's promise: the instructions, and room for 32 bytes.
        unsafe {
            for (i, values) in values.into_iter().enumerate() {
                let bytes = _mm512_cvtepi32_epi8(_mm512_castps_si512(values));
                _mm_storeu_si128(to.add(16 * i).cast(), bytes);
            }
        }
    }

    #[inline(always)]
    unsafe fn load_e4m3(from: *const u8) -> [__m512i; 2] {
        // SAFETY: the caller's promise: the instructions, and 64 bytes.
        unsafe {
            match BF16 {
                true => avx512_codes::load_e4m3(from),
                false => avx512_codes::load_e4m3_words(from),
            }
        }
    }

    #[inline(always)]
    unsafe fn load_nibbles<const HALF: usize>(from: *const u8, table: &Table) -> [__m512i; 2] {
        // SAFETY: the caller's promise: the instructions, and 64 bytes.
        unsafe { avx512_codes::load_nibbles::<HALF>(from, table) }
    }

    #[inline(always)]
    unsafe fn load_nibbles_above<const HALF: usize>(
        from: *const u8,
        above: [__m512i; 2],
        table: &Table,
    ) -> [__m512i; 2] {
        // SAFETY: the caller's promise: the instructions, and 64 bytes.
        unsafe { avx512_codes::load_nibbles_above::<HALF>(from, above, table) }
    }

    #[inline(always)]
    unsafe fn load_zero_points(from: *const u8) -> [__m512i; 2] {
        // SAFETY: the caller's promise: the instructions, and 32 bytes.
        unsafe { avx512_codes::load_zero_points(from) }
    }

    #[inline(always)]
    unsafe fn load_quads<const HALF: usize>(from: *const u8) -> [__m512i; 2] {
        // SAFETY: the caller's promise: the instructions, and 128 bytes.
        unsafe { avx512_codes::load_quads::<HALF>(from) }
    }

    #[inline(always)]
    unsafe fn load_scales(format: ScaleFormat, from: *const u8) -> F {
        // SAFETY: the caller's promise: the instructions, and 32 scales.
        unsafe { avx512_codes::load_scales(format, from) }
    }

    #[inline(always)]
    unsafe fn add_quads(quads: *const u8, by: u32, sums: F) -> F {
        // SAFETY: the caller's promise: the instructions, and 128 bytes. Two vectors are 32 values.
        unsafe {
            match BF16 {
                true => avx512_codes::add_quads(quads, by, sums),
                false => avx512_codes::add_quads_words(quads, by, sums),
            }
        }
    }

    #[inline(always)]
    unsafe fn from_integers(integers: F) -> F {
        both!(integers => _mm512_cvtepi32_ps(_mm512_castps_si512(integers)))
    }

    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        // SAFETY: the caller's promise of the instructions; nothing is read.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }
}
