//! Sixteen sums side by side, in the registers of each instruction set.
//!
//! Lane `i` of a dot product adds the products at `i`, `i + 16`, ..., one after the other; then the
//! lanes are added in halves. That order depends on nothing but the length. Both vector paths fuse
//! multiplication and addition and so give the same bits; plain Rust rounds in between.
#![allow(
    unsafe_code,
    reason = "vector instructions, chosen at run time; loads take pointers"
)]

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use half::bf16;

use crate::rows::Widen;

/// Sums side by side.
pub(super) const LANES: usize = 16;

/// Sixteen lanes of `f32`.
pub(super) trait Lanes: Copy {
    /// # Safety
    ///
    /// The machine has the instructions of this type; so for all functions here.
    unsafe fn zero() -> Self;
    unsafe fn load<A: LaneValue>(values: &[A; LANES]) -> Self;
    /// `self + a * b`
    unsafe fn add_product(self, a: Self, b: Self) -> Self;
    unsafe fn store(self) -> [f32; LANES];
}

/// A value that is loaded as `f32`, exactly.
pub(super) trait LaneValue: Widen + Default {
    /// # Safety
    ///
    /// The machine has AVX-512 F.
    #[cfg(target_arch = "x86_64")]
    unsafe fn load_512(values: &[Self; LANES]) -> __m512;
    /// # Safety
    ///
    /// The machine has AVX2.
    #[cfg(target_arch = "x86_64")]
    unsafe fn load_256(values: &[Self; LANES]) -> [__m256; 2];
}

// SAFETY of the loads of both types: a reference to an array has all of the bytes that are loaded,
// and the loads need no alignment.
impl LaneValue for f32 {
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load_512(values: &[Self; LANES]) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_loadu_ps(values.as_ptr()) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load_256(values: &[Self; LANES]) -> [__m256; 2] {
        // SAFETY: see above.
        unsafe {
            let at = values.as_ptr();
            [_mm256_loadu_ps(at), _mm256_loadu_ps(at.add(8))]
        }
    }
}

impl LaneValue for bf16 {
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load_512(values: &[Self; LANES]) -> __m512 {
        // SAFETY: see above. A bfloat16 is the upper half of an `f32`.
        unsafe {
            let halves = _mm256_loadu_si256(values.as_ptr().cast());
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves)))
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load_256(values: &[Self; LANES]) -> [__m256; 2] {
        // SAFETY: see above.
        unsafe {
            let at = values.as_ptr();
            [at, at.add(8)].map(|at| {
                let halves = _mm_loadu_si128(at.cast());
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(halves)))
            })
        }
    }
}

/// Plain Rust.
impl Lanes for [f32; LANES] {
    #[inline(always)]
    unsafe fn zero() -> Self {
        [0.0; LANES]
    }

    #[inline(always)]
    unsafe fn load<A: LaneValue>(values: &[A; LANES]) -> Self {
        values.map(Widen::widen)
    }

    #[inline(always)]
    unsafe fn add_product(mut self, a: Self, b: Self) -> Self {
        for ((sum, a), b) in self.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
        self
    }

    #[inline(always)]
    unsafe fn store(self) -> [f32; LANES] {
        self
    }
}

/// AVX-512.
#[cfg(target_arch = "x86_64")]
impl Lanes for __m512 {
    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller's.
        unsafe { _mm512_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn load<A: LaneValue>(values: &[A; LANES]) -> Self {
        // SAFETY: the caller's.
        unsafe { A::load_512(values) }
    }

    #[inline(always)]
    unsafe fn add_product(self, a: Self, b: Self) -> Self {
        // SAFETY: the caller's.
        unsafe { _mm512_fmadd_ps(a, b, self) }
    }

    #[inline(always)]
    unsafe fn store(self) -> [f32; LANES] {
        let mut lanes = [0.0; LANES];
        // SAFETY: the array takes all lanes; the store needs no alignment.
        unsafe { _mm512_storeu_ps(lanes.as_mut_ptr(), self) };
        lanes
    }
}

/// AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
impl Lanes for [__m256; 2] {
    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller's.
        unsafe { [_mm256_setzero_ps(); 2] }
    }

    #[inline(always)]
    unsafe fn load<A: LaneValue>(values: &[A; LANES]) -> Self {
        // SAFETY: the caller's.
        unsafe { A::load_256(values) }
    }

    #[inline(always)]
    unsafe fn add_product(self, a: Self, b: Self) -> Self {
        // SAFETY: the caller's.
        unsafe {
            [
                _mm256_fmadd_ps(a[0], b[0], self[0]),
                _mm256_fmadd_ps(a[1], b[1], self[1]),
            ]
        }
    }

    #[inline(always)]
    unsafe fn store(self) -> [f32; LANES] {
        let mut lanes = [0.0; LANES];
        // SAFETY: the array takes the lanes of both; the stores need no alignment.
        unsafe {
            _mm256_storeu_ps(lanes.as_mut_ptr(), self[0]);
            _mm256_storeu_ps(lanes.as_mut_ptr().add(8), self[1]);
        }
        lanes
    }
}

/// The dot products of `R` rows with `C` others, all of one length.
///
/// # Safety
///
/// The machine has the instructions of `L`.
#[inline(always)]
pub(super) unsafe fn dots<L: Lanes, A: LaneValue, W: LaneValue, const R: usize, const C: usize>(
    x: [&[A]; R],
    w: [&[W]; C],
) -> [[f32; C]; R] {
    let x = x.map(|x| x.as_chunks::<LANES>());
    let w = w.map(|w| w.as_chunks::<LANES>());
    // As many as all have, so that no index below is out of bounds.
    let full = x
        .iter()
        .map(|x| x.0.len())
        .chain(w.iter().map(|w| w.0.len()));
    let full = full.min().unwrap_or(0);
    let (x_full, w_full) = (x.map(|x| &x.0[..full]), w.map(|w| &w.0[..full]));
    // SAFETY: the caller's.
    unsafe {
        let mut sums = [[L::zero(); C]; R];
        for k in 0..full {
            let weights = w_full.map(|w| L::load(&w[k]));
            for (sums, x) in sums.iter_mut().zip(x_full) {
                let x = L::load(&x[k]);
                for (sum, weight) in sums.iter_mut().zip(weights) {
                    *sum = sum.add_product(weight, x);
                }
            }
        }
        let weights = w.map(|w| L::load(&padded(w.1)));
        for (sums, x) in sums.iter_mut().zip(x) {
            let x = L::load(&padded(x.1));
            for (sum, weight) in sums.iter_mut().zip(weights) {
                *sum = sum.add_product(weight, x);
            }
        }
        sums.map(|sums| sums.map(|sum| add_lanes(sum.store())))
    }
}

/// What is left of a row, followed by zeros.
#[inline(always)]
fn padded<A: LaneValue>(tail: &[A]) -> [A; LANES] {
    let mut lanes = [A::default(); LANES];
    for (lane, value) in lanes.iter_mut().zip(tail) {
        *lane = *value;
    }
    lanes
}

#[inline(always)]
fn add_lanes(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sum in the order that the lanes define, one product after another.
    fn one_by_one(w: &[f32], x: &[bf16]) -> f32 {
        let mut lanes = [0.0; LANES];
        for (i, (w, x)) in w.iter().zip(x).enumerate() {
            lanes[i % LANES] += w * x.to_f32();
        }
        add_lanes(lanes)
    }

    #[test]
    fn plain_rust_is_the_reference() {
        for len in 0..70 {
            let w: Vec<f32> = (0..len).map(|i| (i as f32 * 0.37).sin()).collect();
            let x: Vec<bf16> = (0..len)
                .map(|i| bf16::from_f32((i as f32 * 0.91).cos()))
                .collect();
            // SAFETY: plain Rust runs everywhere.
            let [[got, twice]] = unsafe { dots::<[f32; LANES], _, _, 1, 2>([&x], [&w, &w]) };
            assert_eq!(got.to_bits(), one_by_one(&w, &x).to_bits(), "length {len}");
            assert_eq!(got.to_bits(), twice.to_bits());
        }
    }
}
