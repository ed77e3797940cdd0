//! Bursts of independent multiplications and additions, all in registers.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;
use std::hint::black_box;

use crate::Isa;

/// Steps of a burst: some ten microseconds.
const STEPS: u64 = 4096;
/// Independent sums of the AVX-512 loops: enough for a latency of 8 and two units. 32 registers
/// hold them and the factors.
#[cfg(target_arch = "x86_64")]
const WIDE: usize = 16;
/// Those of the AVX2 loops, for 16 registers.
#[cfg(target_arch = "x86_64")]
const NARROW: usize = 10;
/// Numbers that the portable loops work on.
const LANES: usize = 64;

/// A kind of products and sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Arithmetic {
    /// Of `f32`.
    F32,
    /// Of bfloat16, summed in `f32`. Where the machine multiplies none, those of the `f32` that
    /// they are widened to.
    Bf16,
    /// Of bytes, summed in `i32`. Where the machine multiplies none, those of `i16`.
    Int8,
}

impl Arithmetic {
    /// Runs one burst and tells how many operations it was.
    pub(super) fn burst(self, isa: Isa) -> u64 {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Bf16 => {
                let full = isa == Isa::Avx512Bf16;
                #[allow(unsafe_code, reason = "the instruction set was chosen at run time")]
                // SAFETY: a kernel has only instruction sets of the machine that it runs on.
                unsafe {
                    match self {
                        Self::Bf16 if full => bf16_avx512(),
                        Self::Int8 if full => int8_avx512_vnni(),
                        Self::Int8 => int8_avx512(),
                        Self::F32 | Self::Bf16 => f32_avx512(),
                    }
                }
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                #[allow(unsafe_code, reason = "the instruction set was chosen at run time")]
                // SAFETY: as above.
                unsafe {
                    match self {
                        Self::Int8 => int8_avx2(),
                        Self::F32 | Self::Bf16 => f32_avx2(),
                    }
                }
            }
            _ => match self {
                Self::Int8 => int8(),
                Self::F32 | Self::Bf16 => f32(),
            },
        }
    }
}

/// The loop of a burst over registers: `sum = step(sum)`, and operations per register.
#[cfg(target_arch = "x86_64")]
macro_rules! burst {
    ($sums:expr, $count:expr, $operations:expr, |$sum:ident| $step:expr) => {{
        let mut sums = [$sums; $count];
        for _ in 0..STEPS {
            for $sum in &mut sums {
                *$sum = $step;
            }
        }
        black_box(sums);
        STEPS * $count as u64 * $operations
    }};
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn f32_avx512() -> u64 {
    let factor = black_box(_mm512_set1_ps(0.5));
    burst!(_mm512_set1_ps(1.0), WIDE, 32, |sum| _mm512_fmadd_ps(
        factor, factor, *sum
    ))
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
fn bf16_avx512() -> u64 {
    let halves = _mm512_set1_ps(black_box(0.5));
    let factor = _mm512_cvtne2ps_pbh(halves, halves);
    burst!(_mm512_set1_ps(1.0), WIDE, 64, |sum| _mm512_dpbf16_ps(
        *sum, factor, factor
    ))
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vnni")]
fn int8_avx512_vnni() -> u64 {
    let factor = black_box(_mm512_set1_epi8(3));
    burst!(_mm512_setzero_si512(), WIDE, 128, |sum| {
        _mm512_dpbusd_epi32(*sum, factor, factor)
    })
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw")]
fn int8_avx512() -> u64 {
    let factor = black_box(_mm512_set1_epi16(3));
    burst!(_mm512_setzero_si512(), WIDE, 64, |sum| {
        // The product takes the sum in, so that it is not the same in every step.
        _mm512_add_epi32(*sum, _mm512_madd_epi16(*sum, factor))
    })
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn f32_avx2() -> u64 {
    let factor = black_box(_mm256_set1_ps(0.5));
    burst!(_mm256_set1_ps(1.0), NARROW, 16, |sum| _mm256_fmadd_ps(
        factor, factor, *sum
    ))
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn int8_avx2() -> u64 {
    let factor = black_box(_mm256_set1_epi16(3));
    burst!(_mm256_setzero_si256(), NARROW, 32, |sum| {
        _mm256_add_epi32(*sum, _mm256_madd_epi16(*sum, factor))
    })
}

fn f32() -> u64 {
    let factor = black_box(0.5_f32);
    let mut sums = [1.0_f32; LANES];
    for _ in 0..STEPS {
        sums.iter_mut()
            .for_each(|sum| *sum = *sum * factor + factor);
    }
    black_box(sums);
    STEPS * LANES as u64 * 2
}

fn int8() -> u64 {
    let factor = black_box(3_i16);
    let mut sums = [1_i32; LANES];
    for _ in 0..STEPS {
        for sum in &mut sums {
            *sum = sum.wrapping_add(i32::from(*sum as i16) * i32::from(factor));
        }
    }
    black_box(sums);
    STEPS * LANES as u64 * 2
}
