//! Codes of few bits as bf16, with byte shuffles in tables of 16 bytes.
//!
//! # Safety
//!
//! All functions need AVX2, and pointers that hold what `Simd` says of its functions of these
//! names.

use std::arch::x86_64::*;

use super::codes::{self, Table};

type Pairs = [__m256i; 4];

/// The bf16 of the E4M3 codes below 16, of which the first 8 are subnormal.
static SMALL: Table = {
    let mut table = [0; 32];
    let mut code = 0;
    while code < 16 {
        table[code] = codes::e4m3(code as u8);
        code += 1;
    }
    Table(table)
};

#[inline(always)]
pub(super) unsafe fn load_e4m3(from: *const u8) -> Pairs {
    // SAFETY: the caller's promise: 64 bytes.
    unsafe {
        let from = from.cast::<__m128i>();
        let [a, b] = [_mm_loadu_si128(from), _mm_loadu_si128(from.add(1))];
        let [c, d] = [_mm_loadu_si128(from.add(2)), _mm_loadu_si128(from.add(3))];
        [
            e4m3(_mm_unpacklo_epi64(a, b)),
            e4m3(_mm_unpacklo_epi64(c, d)),
            e4m3(_mm_unpackhi_epi64(a, b)),
            e4m3(_mm_unpackhi_epi64(c, d)),
        ]
    }
}

/// The bf16 of 16 codes: exponent and mantissa moved to their places, except those of subnormal
/// numbers, and of NaN.
#[inline(always)]
unsafe fn e4m3(codes: __m128i) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe {
        let codes = _mm256_cvtepu8_epi16(codes);
        let size = _mm256_and_si256(codes, _mm256_set1_epi16(0x7f));
        let sign = _mm256_and_si256(codes, _mm256_set1_epi16(0x80));
        let rebias = _mm256_set1_epi16((127 - 7) << 7);
        let normal = _mm256_add_epi16(_mm256_slli_epi16::<4>(size), rebias);
        let small = look_up(size, bytes(&SMALL, 0));
        let is_small = _mm256_cmpgt_epi16(_mm256_set1_epi16(8), size);
        let value = _mm256_blendv_epi8(normal, small, is_small);
        let is_nan = _mm256_cmpeq_epi16(size, _mm256_set1_epi16(0x7f));
        let value = _mm256_blendv_epi8(value, _mm256_set1_epi16(0x7fc0), is_nan);
        _mm256_or_si256(value, _mm256_slli_epi16::<8>(sign))
    }
}

/// The low and the high bytes of 16 values of a table, in both halves of a register.
#[inline(always)]
unsafe fn bytes(table: &Table, first: usize) -> [__m256i; 2] {
    // SAFETY: the caller's promise; 16 values are as long as what is read.
    unsafe {
        let values = _mm256_loadu_si256(table.0[first..][..16].as_ptr().cast());
        let low = _mm256_and_si256(values, _mm256_set1_epi16(0xff));
        let high = _mm256_srli_epi16::<8>(values);
        // Each half of what is packed has its 8 bytes twice.
        [
            _mm256_permute4x64_epi64::<0b10_00_10_00>(_mm256_packus_epi16(low, low)),
            _mm256_permute4x64_epi64::<0b10_00_10_00>(_mm256_packus_epi16(high, high)),
        ]
    }
}

/// The values of words below 16; of others below 128 anything.
#[inline(always)]
unsafe fn look_up(words: __m256i, [low, high]: [__m256i; 2]) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe {
        let low = _mm256_shuffle_epi8(low, words);
        let high = _mm256_slli_epi16::<8>(_mm256_shuffle_epi8(high, words));
        _mm256_or_si256(_mm256_and_si256(low, _mm256_set1_epi16(0xff)), high)
    }
}

/// The nibbles of a half as words.
#[inline(always)]
unsafe fn nibbles<const HALF: usize>(from: *const u8) -> Pairs {
    // SAFETY: the caller's promise: 64 bytes.
    unsafe {
        let from = from.cast::<__m256i>();
        let mut codes = [_mm256_loadu_si256(from), _mm256_loadu_si256(from.add(1))];
        if HALF == 1 {
            codes = [
                _mm256_srli_epi16::<8>(codes[0]),
                _mm256_srli_epi16::<8>(codes[1]),
            ];
        }
        let mask = _mm256_set1_epi16(15);
        [
            _mm256_and_si256(codes[0], mask),
            _mm256_and_si256(codes[1], mask),
            _mm256_and_si256(_mm256_srli_epi16::<4>(codes[0]), mask),
            _mm256_and_si256(_mm256_srli_epi16::<4>(codes[1]), mask),
        ]
    }
}

#[inline(always)]
pub(super) unsafe fn load_nibbles<const HALF: usize>(from: *const u8, table: &Table) -> Pairs {
    // SAFETY: the caller's promise.
    unsafe {
        let mut words = nibbles::<HALF>(from);
        let table = bytes(table, 0);
        for words in &mut words {
            *words = look_up(*words, table);
        }
        words
    }
}

#[inline(always)]
pub(super) unsafe fn load_nibbles_above<const HALF: usize>(
    from: *const u8,
    above: Pairs,
    table: &Table,
) -> Pairs {
    // SAFETY: the caller's promise.
    unsafe {
        let mut words = nibbles::<HALF>(from);
        let [first, second] = [bytes(table, 0), bytes(table, 16)];
        let [mask, most] = [_mm256_set1_epi16(31), _mm256_set1_epi16(15)];
        for (words, above) in words.iter_mut().zip(above) {
            let sum = _mm256_add_epi16(*words, _mm256_and_si256(above, mask));
            let low = _mm256_and_si256(sum, most);
            let is_second = _mm256_cmpgt_epi16(sum, most);
            *words = _mm256_blendv_epi8(look_up(low, first), look_up(low, second), is_second);
        }
        words
    }
}

#[inline(always)]
pub(super) unsafe fn load_quads<const HALF: usize>(from: *const u8) -> Pairs {
    // SAFETY: the caller's promise: 128 bytes.
    unsafe {
        let from = from.cast::<__m256i>();
        let mut pairs = [_mm256_setzero_si256(); 4];
        for (i, pairs) in pairs.iter_mut().enumerate() {
            let mut quads = _mm256_loadu_si256(from.add(i));
            if HALF == 1 {
                quads = _mm256_srli_epi32::<16>(quads);
            }
            // The low half of the float of such an integer is zero.
            let even = _mm256_srli_epi32::<16>(float_of_byte(quads));
            let odd = float_of_byte(_mm256_srli_epi32::<8>(quads));
            *pairs = _mm256_or_si256(even, odd);
        }
        pairs
    }
}

/// The `f32` of a low byte less 128.
#[inline(always)]
unsafe fn float_of_byte(integers: __m256i) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe {
        let byte = _mm256_and_si256(integers, _mm256_set1_epi32(0xff));
        let float = _mm256_sub_ps(_mm256_cvtepi32_ps(byte), _mm256_set1_ps(128.0));
        _mm256_castps_si256(float)
    }
}

/// Products of words: those of bytes may be more than a word holds.
#[inline(always)]
pub(super) unsafe fn add_quads(quads: *const u8, by: u32, mut sums: [__m256; 4]) -> [__m256; 4] {
    // SAFETY: the caller's promise: 128 bytes.
    unsafe {
        let by = _mm256_set1_epi32(by.cast_signed());
        let by_even = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(by));
        let by_odd = _mm256_srai_epi16::<8>(by);
        for (i, sum) in sums.iter_mut().enumerate() {
            let quads = _mm256_loadu_si256(quads.cast::<__m256i>().add(i));
            let even = _mm256_and_si256(quads, _mm256_set1_epi16(0xff));
            let odd = _mm256_srli_epi16::<8>(quads);
            let even = _mm256_madd_epi16(even, by_even);
            let odd = _mm256_madd_epi16(odd, by_odd);
            let integers = _mm256_add_epi32(_mm256_castps_si256(*sum), even);
            *sum = _mm256_castsi256_ps(_mm256_add_epi32(integers, odd));
        }
        sums
    }
}
