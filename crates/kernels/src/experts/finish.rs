//! From sums of w2 to outputs.
#![allow(unsafe_code, reason = "vector instructions")]

use crate::simd::{LANES, Op, Simd};
use crate::tile::SUMS;

/// Adds the bias of some columns to the sums of rows and multiplies each by its router weight.
pub(super) struct Finish<'a, R> {
    /// `[rows, SUMS]`
    pub(super) sums: &'a [f32],
    pub(super) bias: &'a [f32; SUMS],
    /// The weight of each row, and its outputs: at most [`SUMS`] columns.
    pub(super) rows: R,
}

impl<'a, R: Iterator<Item = (f32, &'a mut [f32])>> Op for Finish<'_, R> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (bias, _) = self.bias.as_chunks::<LANES>();
        for (sums, (weight, out)) in self.sums.as_chunks::<SUMS>().0.iter().zip(self.rows) {
            let (sums, _) = sums.as_chunks::<LANES>();
            for ((out, sums), bias) in out.chunks_mut(LANES).zip(sums).zip(bias) {
                // SAFETY: the caller's promise; sums and biases are 32 values long.
                unsafe {
                    let sum = S::add(S::load(sums.as_ptr()), S::load(bias.as_ptr()));
                    put::<S>(S::mul(sum, S::splat(weight)), out);
                }
            }
        }
    }
}

/// Stores the first lanes.
///
/// # Safety
///
/// The machine has the instructions of `S`.
#[inline(always)]
unsafe fn put<S: Simd>(values: S::F, out: &mut [f32]) {
    let mut all = [0.0; LANES];
    // SAFETY: the caller's promise; both are 32 values long.
    unsafe {
        match out.len() {
            LANES => S::store(out.as_mut_ptr(), values),
            len => {
                S::store(all.as_mut_ptr(), values);
                out.copy_from_slice(&all[..len]);
            }
        }
    }
}

/// Asks for the cache lines of some values.
pub(super) struct AskFor<P>(pub(super) P);

impl<'a, P: Iterator<Item = &'a [f32]>> Op for AskFor<P> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for part in self.0 {
            // SAFETY: the caller's promise.
            unsafe { ask_for::<S>(part) };
        }
    }
}

/// # Safety
///
/// The machine has the instructions of `S`.
#[inline(always)]
unsafe fn ask_for<S: Simd>(values: &[f32]) {
    for line in values.chunks(64 / size_of::<f32>()) {
        // SAFETY: the caller's promise; any address may be asked for.
        unsafe { S::prefetch(line.as_ptr().cast()) };
    }
}

/// Adds up the terms of a row, in order.
pub(super) struct Sum<'a, T> {
    /// Some columns of each term, padded to a multiple of 32.
    pub(super) terms: T,
    /// Those of the row that comes next, which are asked for: each lies somewhere else.
    pub(super) next: T,
    pub(super) out: &'a mut [f32],
}

impl<'a, T: Iterator<Item = &'a [f32]> + Clone> Op for Sum<'_, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for (i, out) in self.out.chunks_mut(LANES).enumerate() {
            // SAFETY: the caller's promise; the slices are 32 values long.
            unsafe {
                for term in self.next.clone() {
                    ask_for::<S>(&term[i * LANES..][..LANES]);
                }
                let mut sum = S::zero();
                for term in self.terms.clone() {
                    sum = S::add(sum, S::load(term[i * LANES..][..LANES].as_ptr()));
                }
                put::<S>(sum, out);
            }
        }
    }
}
