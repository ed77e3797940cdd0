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
    /// Asks for the cache line at an address, which need not be one of ours.
    unsafe fn prefetch(at: *const u8);
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
            [widen_256(at), widen_256(at.add(8))]
        }
    }
}

/// Eight values of bfloat16 as `f32`.
///
/// # Safety
///
/// The machine has AVX2, and there are eight values.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn widen_256(values: *const bf16) -> __m256 {
    // SAFETY: the caller's.
    unsafe {
        let halves = _mm_loadu_si128(values.cast());
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(halves)))
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

    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}
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

    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        // SAFETY: the caller's; nothing is read.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
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

    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        // SAFETY: the caller's; nothing is read.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }
}

/// The dot products of `R` rows with `C` others, all of one length.
///
/// Of one row it asks for as much of what lies behind the `C` others, which is multiplied next: rows
/// are too short for the processor to fetch ahead by itself.
///
/// There are no closures here and in what is called: one that is not inlined would be compiled
/// without the instructions of `L`.
///
/// # Safety
///
/// The machine has the instructions of `L`.
#[allow(clippy::needless_range_loop, reason = "an index into several arrays")]
#[inline(always)]
pub(super) unsafe fn dots<L: Lanes, A: LaneValue, W: LaneValue, const R: usize, const C: usize>(
    x: [&[A]; R],
    w: [&[W]; C],
) -> [[f32; C]; R] {
    // As much as all have, so that no index below is out of bounds.
    let mut len = usize::MAX;
    for x in x {
        len = len.min(x.len());
    }
    for w in w {
        len = len.min(w.len());
    }
    let mut x_full: [&[[A; LANES]]; R] = [&[]; R];
    let mut x_tail = [[A::default(); LANES]; R];
    for i in 0..R {
        let (full, tail) = x[i][..len].as_chunks();
        (x_full[i], x_tail[i]) = (full, padded(tail));
    }
    let mut w_full: [&[[W; LANES]]; C] = [&[]; C];
    let mut w_tail = [[W::default(); LANES]; C];
    for i in 0..C {
        let (full, tail) = w[i][..len].as_chunks();
        (w_full[i], w_tail[i]) = (full, padded(tail));
    }
    // SAFETY: the caller's.
    unsafe {
        let mut sums = [[L::zero(); C]; R];
        for k in 0..len / LANES {
            let mut weights = [L::zero(); C];
            for i in 0..C {
                weights[i] = L::load(&w_full[i][k]);
                if R == 1 {
                    let next = w[i].as_ptr().wrapping_add(C * len + k * LANES);
                    L::prefetch(next.cast());
                }
            }
            add_products(&mut sums, &x_full, k, weights);
        }
        let mut weights = [L::zero(); C];
        for i in 0..C {
            weights[i] = L::load(&w_tail[i]);
        }
        let mut x_last: [&[[A; LANES]]; R] = [&[]; R];
        for i in 0..R {
            x_last[i] = std::slice::from_ref(&x_tail[i]);
        }
        add_products(&mut sums, &x_last, 0, weights);
        let mut out = [[0.0; C]; R];
        for (out, sums) in out.iter_mut().zip(sums) {
            for (out, sum) in out.iter_mut().zip(sums) {
                *out = add_lanes(sum.store());
            }
        }
        out
    }
}

/// Adds the products of chunk `k` of each row with the weights.
///
/// # Safety
///
/// The machine has the instructions of `L`.
#[inline(always)]
unsafe fn add_products<L: Lanes, A: LaneValue, const R: usize, const C: usize>(
    sums: &mut [[L; C]; R],
    x: &[&[[A; LANES]]; R],
    k: usize,
    weights: [L; C],
) {
    for i in 0..R {
        // SAFETY: the caller's.
        unsafe {
            let x = L::load(&x[i][k]);
            for j in 0..C {
                sums[i][j] = sums[i][j].add_product(weights[j], x);
            }
        }
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
