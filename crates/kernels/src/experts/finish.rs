//! From sums of w2 to outputs.
#![allow(unsafe_code, reason = "vector instructions")]

use crate::simd::{LANES, Op, Simd};
use crate::tile::SUMS;

/// Adds the bias of some columns to the sums of a row and multiplies by its router weight.
pub(super) struct Finish<'a> {
    /// `[SUMS]`
    pub(super) sums: &'a [f32],
    pub(super) bias: &'a [f32; SUMS],
    pub(super) weight: f32,
    /// At most [`SUMS`] columns.
    pub(super) out: &'a mut [f32],
}

impl Op for Finish<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let mut values = [0.0; SUMS];
        let sums = self.sums.as_chunks::<LANES>().0;
        let bias = self.bias.as_chunks::<LANES>().0;
        for ((out, sums), bias) in values
            .as_chunks_mut::<LANES>()
            .0
            .iter_mut()
            .zip(sums)
            .zip(bias)
        {
            // SAFETY: the caller's promise; all three are 32 values long.
            unsafe {
                let sum = S::add(S::load(sums.as_ptr()), S::load(bias.as_ptr()));
                S::store(out.as_mut_ptr(), S::mul(sum, S::splat(self.weight)));
            }
        }
        self.out.copy_from_slice(&values[..self.out.len()]);
    }
}

/// Asks for the cache lines of some values.
pub(super) struct AskFor<'a>(pub(super) &'a [f32]);

impl Op for AskFor<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for line in self.0.chunks(64 / size_of::<f32>()) {
            // SAFETY: the caller's promise; any address may be asked for.
            unsafe { S::prefetch(line.as_ptr().cast()) };
        }
    }
}

/// Adds up the terms of a row, in order.
pub(super) struct Sum<'a, T> {
    /// Some columns of each term, padded to a multiple of 32.
    pub(super) terms: T,
    pub(super) out: &'a mut [f32],
}

impl<'a, T: Iterator<Item = &'a [f32]> + Clone> Op for Sum<'_, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for (i, out) in self.out.chunks_mut(LANES).enumerate() {
            let mut values = [0.0; LANES];
            // SAFETY: the caller's promise; the slices are 32 values long.
            unsafe {
                let mut sum = S::zero();
                for term in self.terms.clone() {
                    sum = S::add(sum, S::load(term[i * LANES..][..LANES].as_ptr()));
                }
                S::store(values.as_mut_ptr(), sum);
            }
            out.copy_from_slice(&values[..out.len()]);
        }
    }
}
