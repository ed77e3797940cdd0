//! Codes of few bits as bf16, with permutations: of words, and of bytes where VBMI has them.

use std::arch::x86_64::*;

use moekit_quant::ScaleFormat;

use super::codes::{self, Table};

/// The high or the low bytes of the bf16 of all E4M3 codes without sign.
#[repr(align(64))]
struct Bytes([u8; 128]);

static E4M3: [Bytes; 2] = {
    let mut tables = [Bytes([0; 128]), Bytes([0; 128])];
    let mut code = 0;
    while code < 128 {
        let [low, high] = codes::e4m3(code as u8).to_le_bytes();
        tables[0].0[code] = low;
        tables[1].0[code] = high;
        code += 1;
    }
    tables
};

// No closures around intrinsics: one that the compiler leaves alone is compiled without the
// instructions of its surroundings.

/// What `Simd` says of its functions of these names.
///
/// # Safety
///
/// The machine has AVX-512 F and BW, and VBMI for this function; pointers hold what is read.
#[inline(always)]
pub(super) unsafe fn load_e4m3(from: *const u8) -> [__m512i; 2] {
    // SAFETY: the caller's promise.
    unsafe {
        let codes = _mm512_loadu_si512(from.cast());
        let low = look_up_bytes(codes, &E4M3[0]);
        let high = look_up_bytes(codes, &E4M3[1]);
        // high | (codes & 0x80)
        let sign = _mm512_set1_epi8(i8::MIN);
        let high = _mm512_ternarylogic_epi32::<0xf8>(high, codes, sign);
        [
            _mm512_unpacklo_epi8(low, high),
            _mm512_unpackhi_epi8(low, high),
        ]
    }
}

/// The bf16 of the E4M3 codes below 32, of which the first 8 are subnormal.
static SMALL: Table = {
    let mut table = [0; 32];
    let mut code = 0;
    while code < 32 {
        table[code] = codes::e4m3(code as u8);
        code += 1;
    }
    Table(table)
};

/// [`load_e4m3`] without VBMI.
///
/// # Safety
///
/// As [`load_e4m3`], but for VBMI.
#[inline(always)]
pub(super) unsafe fn load_e4m3_words(from: *const u8) -> [__m512i; 2] {
    // SAFETY: the caller's promise.
    unsafe {
        let (codes, zero) = (_mm512_loadu_si512(from.cast()), _mm512_setzero_si512());
        [
            e4m3_of_words(_mm512_unpacklo_epi8(codes, zero)),
            e4m3_of_words(_mm512_unpackhi_epi8(codes, zero)),
        ]
    }
}

/// Exponent and mantissa moved to their places, except those of subnormal numbers, and of NaN.
#[inline(always)]
unsafe fn e4m3_of_words(codes: __m512i) -> __m512i {
    // SAFETY: the caller's promise; the table is a vector long.
    unsafe {
        let nan = _mm512_set1_epi16(0x7f);
        let size = _mm512_and_si512(codes, nan);
        let rebias = _mm512_set1_epi16((127 - 7) << 7);
        let value = _mm512_add_epi16(_mm512_slli_epi16::<4>(size), rebias);
        let is_small = _mm512_cmplt_epi16_mask(size, _mm512_set1_epi16(8));
        let small = _mm512_load_si512(SMALL.0.as_ptr().cast());
        let value = _mm512_mask_permutexvar_epi16(value, is_small, size, small);
        let is_nan = _mm512_cmpeq_epi16_mask(size, nan);
        let value = _mm512_mask_blend_epi16(is_nan, value, _mm512_set1_epi16(0x7fc0));
        // value | (codes << 8 & 0x8000)
        let sign = _mm512_set1_epi16(i16::MIN);
        _mm512_ternarylogic_epi32::<0xf8>(value, _mm512_slli_epi16::<8>(codes), sign)
    }
}

#[inline(always)]
unsafe fn look_up_bytes(codes: __m512i, table: &Bytes) -> __m512i {
    // SAFETY: the caller's promise; the table is two vectors long.
    unsafe {
        let table = table.0.as_ptr().cast::<__m512i>();
        let [first, second] = [_mm512_load_si512(table), _mm512_load_si512(table.add(1))];
        _mm512_permutex2var_epi8(first, codes, second)
    }
}

/// The nibbles of a half as the lowest bits of words, bits of others above them.
#[inline(always)]
unsafe fn words<const HALF: usize>(from: *const u8) -> [__m512i; 2] {
    // SAFETY: the caller's promise.
    unsafe {
        let codes = _mm512_loadu_si512(from.cast());
        match HALF {
            0 => [codes, _mm512_srli_epi16::<4>(codes)],
            _ => [
                _mm512_srli_epi16::<8>(codes),
                _mm512_srli_epi16::<12>(codes),
            ],
        }
    }
}

#[inline(always)]
unsafe fn look_up([first, second]: [__m512i; 2], table: &Table) -> [__m512i; 2] {
    // SAFETY: the caller's promise; the table is a vector long.
    unsafe {
        let table = _mm512_load_si512(table.0.as_ptr().cast());
        [
            _mm512_permutexvar_epi16(first, table),
            _mm512_permutexvar_epi16(second, table),
        ]
    }
}

/// # Safety
///
/// As [`load_e4m3`].
#[inline(always)]
pub(super) unsafe fn load_nibbles<const HALF: usize>(
    from: *const u8,
    table: &Table,
) -> [__m512i; 2] {
    // SAFETY: the caller's promise.
    unsafe { look_up(words::<HALF>(from), table) }
}

/// # Safety
///
/// As [`load_e4m3`].
#[inline(always)]
pub(super) unsafe fn load_nibbles_above<const HALF: usize>(
    from: *const u8,
    above: [__m512i; 2],
    table: &Table,
) -> [__m512i; 2] {
    // SAFETY: the caller's promise.
    unsafe {
        let mask = _mm512_set1_epi8(15);
        let codes = _mm512_loadu_si512(from.cast());
        // Both halves at once: a nibble and its number are below 32, so that no byte runs over.
        let first = _mm512_and_si512(codes, mask);
        let second = _mm512_and_si512(_mm512_srli_epi16::<4>(codes), mask);
        let [first, second] = [
            _mm512_add_epi8(first, above[0]),
            _mm512_add_epi8(second, above[1]),
        ];
        let words = match HALF {
            0 => [first, second],
            _ => [
                _mm512_srli_epi16::<8>(first),
                _mm512_srli_epi16::<8>(second),
            ],
        };
        look_up(words, table)
    }
}

/// # Safety
///
/// As [`load_e4m3`].
#[inline(always)]
pub(super) unsafe fn load_zero_points(from: *const u8) -> [__m512i; 2] {
    // SAFETY: the caller's promise.
    unsafe {
        let from = from.cast::<__m128i>();
        [
            above_nibbles(_mm_loadu_si128(from)),
            above_nibbles(_mm_loadu_si128(from.add(1))),
        ]
    }
}

/// `8 - zero point` in all bytes of a lane.
#[inline(always)]
unsafe fn above_nibbles(zero_points: __m128i) -> __m512i {
    // SAFETY: the caller's promise.
    unsafe {
        let zero_points = _mm512_cvtepi8_epi32(zero_points);
        let above = _mm512_sub_epi32(_mm512_set1_epi32(8), zero_points);
        _mm512_mullo_epi32(above, _mm512_set1_epi32(0x0101_0101))
    }
}

/// # Safety
///
/// As [`load_e4m3`].
#[inline(always)]
pub(super) unsafe fn load_quads<const HALF: usize>(from: *const u8) -> [__m512i; 2] {
    // SAFETY: the caller's promise.
    unsafe {
        let from = from.cast::<__m512i>();
        [
            quad_pairs::<HALF>(_mm512_loadu_si512(from)),
            quad_pairs::<HALF>(_mm512_loadu_si512(from.add(1))),
        ]
    }
}

#[inline(always)]
unsafe fn quad_pairs<const HALF: usize>(quads: __m512i) -> __m512i {
    // SAFETY: the caller's promise.
    unsafe {
        let [even, odd] = match HALF {
            0 => [quads, _mm512_srli_epi32::<8>(quads)],
            _ => [
                _mm512_srli_epi32::<16>(quads),
                _mm512_srli_epi32::<24>(quads),
            ],
        };
        // The low half of the float of such an integer is zero.
        let even = _mm512_srli_epi32::<16>(float_of_byte(even));
        _mm512_mask_blend_epi16(0xaaaa_aaaa, even, float_of_byte(odd))
    }
}

/// The `f32` of a low byte less 128.
#[inline(always)]
unsafe fn float_of_byte(integers: __m512i) -> __m512i {
    // SAFETY: the caller's promise.
    unsafe {
        let byte = _mm512_and_si512(integers, _mm512_set1_epi32(0xff));
        let float = _mm512_sub_ps(_mm512_cvtepi32_ps(byte), _mm512_set1_ps(128.0));
        _mm512_castps_si512(float)
    }
}

/// # Safety
///
/// As [`load_e4m3`].
#[inline(always)]
pub(super) unsafe fn load_scales(format: ScaleFormat, from: *const u8) -> [__m512; 2] {
    // SAFETY: the caller's promise.
    unsafe {
        let second = from.add(16 * format.bytes());
        [sixteen_scales(format, from), sixteen_scales(format, second)]
    }
}

#[inline(always)]
unsafe fn sixteen_scales(format: ScaleFormat, from: *const u8) -> __m512 {
    // SAFETY: the caller's promise.
    unsafe {
        match format {
            ScaleFormat::F32 => _mm512_loadu_ps(from.cast()),
            ScaleFormat::F16 => _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())),
            ScaleFormat::BF16 => {
                let words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(words))
            }
            ScaleFormat::F8E4M3 => e4m3_scales(_mm_loadu_si128(from.cast())),
            ScaleFormat::F8E8M0 => e8m0_scales(_mm_loadu_si128(from.cast())),
            ScaleFormat::I8 => {
                let bytes = _mm_loadu_si128(from.cast());
                _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes))
            }
            _ => _mm512_loadu_ps(codes::scales::<16>(format, from).as_ptr()),
        }
    }
}

/// Sign, exponent and mantissa at their places in an `f32`, which is the value over 2^120: the
/// biases differ by that, and numbers below the least exponent are such ones in either format.
#[inline(always)]
unsafe fn e4m3_scales(codes: __m128i) -> __m512 {
    // SAFETY: the caller's promise.
    unsafe {
        let codes = _mm512_cvtepi8_epi32(codes);
        let places = _mm512_set1_epi32(0x87f0_0000_u32.cast_signed());
        let small = _mm512_and_si512(_mm512_slli_epi32::<20>(codes), places);
        let factor = _mm512_set1_ps(f32::from_bits((127 + 120) << 23));
        let values = _mm512_mul_ps(_mm512_castsi512_ps(small), factor);
        let magnitude = _mm512_set1_epi32(0x7f);
        let nan = _mm512_cmpeq_epi32_mask(_mm512_and_si512(codes, magnitude), magnitude);
        _mm512_mask_mov_ps(values, nan, _mm512_set1_ps(f32::NAN))
    }
}

#[inline(always)]
unsafe fn e8m0_scales(codes: __m128i) -> __m512 {
    // SAFETY: the caller's promise.
    unsafe {
        let codes = _mm512_cvtepu8_epi32(codes);
        // The exponent of 2^-127 is that of numbers below the least one, whose first bit is half.
        let least = _mm512_set1_epi32(1 << 22);
        let values = _mm512_max_epu32(_mm512_slli_epi32::<23>(codes), least);
        let nan = _mm512_cmpeq_epi32_mask(codes, _mm512_set1_epi32(0xff));
        _mm512_mask_mov_ps(_mm512_castsi512_ps(values), nan, _mm512_set1_ps(f32::NAN))
    }
}

/// # Safety
///
/// As [`load_e4m3`].
#[inline(always)]
pub(super) unsafe fn add_quads(quads: *const u8, by: u32, sums: [__m512; 2]) -> [__m512; 2] {
    // SAFETY: the caller's promise.
    unsafe {
        let by = _mm512_set1_epi32(by.cast_signed());
        let quads = quads.cast::<__m512i>();
        let first = _mm512_castps_si512(sums[0]);
        let second = _mm512_castps_si512(sums[1]);
        let first = _mm512_dpbusd_epi32(first, _mm512_loadu_si512(quads), by);
        let second = _mm512_dpbusd_epi32(second, _mm512_loadu_si512(quads.add(1)), by);
        [_mm512_castsi512_ps(first), _mm512_castsi512_ps(second)]
    }
}

/// [`add_quads`] without VNNI, by products of words: those of bytes may be more than a word holds.
///
/// # Safety
///
/// As [`load_e4m3_words`].
#[inline(always)]
pub(super) unsafe fn add_quads_words(
    quads: *const u8,
    by: u32,
    mut sums: [__m512; 2],
) -> [__m512; 2] {
    // SAFETY: the caller's promise.
    unsafe {
        let by = _mm512_set1_epi32(by.cast_signed());
        let by_even = _mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(by));
        let by_odd = _mm512_srai_epi16::<8>(by);
        for (i, sum) in sums.iter_mut().enumerate() {
            let quads = _mm512_loadu_si512(quads.cast::<__m512i>().add(i));
            let even = _mm512_and_si512(quads, _mm512_set1_epi16(0xff));
            let odd = _mm512_srli_epi16::<8>(quads);
            let even = _mm512_madd_epi16(even, by_even);
            let odd = _mm512_madd_epi16(odd, by_odd);
            let integers = _mm512_add_epi32(_mm512_castps_si512(*sum), even);
            *sum = _mm512_castsi512_ps(_mm512_add_epi32(integers, odd));
        }
        sums
    }
}
