//! The loop over panels of codes with scales: products of a group of input features are added up
//! as they are, then multiplied by the scale of the group in `f32`.
#![allow(unsafe_code, reason = "vector instructions, pointers into panels")]

use std::marker::PhantomData;

use super::floats;
use crate::Isa;
use crate::simd::{LANES, Op, Simd};
use crate::tile::{SUMS, Tile};

/// How codes become bf16: four input features at a time.
pub(super) trait Codes {
    /// Bytes of a panel in four features.
    const BYTES: usize;

    /// The pairs of features `2 * HALF` and `2 * HALF + 1`, exactly.
    ///
    /// # Safety
    ///
    /// Must be `#[inline(always)]`. The machine has the instructions of `S`; `b` holds
    /// [`Codes::BYTES`] bytes; `above`, where the format has zero points, a pair of words for each
    /// lane: what is added to nibbles.
    unsafe fn pairs<S: Simd, const HALF: usize>(b: *const u8, above: *const u32) -> S::H;
}

/// Input features of a step.
pub(super) const FEATURES: usize = 4;

/// What activations are multiplied as.
pub(super) trait Arithmetic {
    /// Units of a row's activations in a step.
    const UNITS: usize;

    /// Adds the products of two features of all rows.
    ///
    /// # Safety
    ///
    /// Must be `#[inline(always)]`. The machine has the instructions of `S`; `a` holds half of
    /// [`Arithmetic::UNITS`] of each row, those of a feature side by side.
    unsafe fn add_products<S: Simd, const ROWS: usize>(
        a: *const u32,
        weights: S::H,
        sums: &mut [S::F; ROWS],
    );
}

/// bf16 times bf16.
pub(super) struct Narrow;

impl Arithmetic for Narrow {
    const UNITS: usize = 2;

    #[inline(always)]
    unsafe fn add_products<S: Simd, const ROWS: usize>(
        a: *const u32,
        weights: S::H,
        sums: &mut [S::F; ROWS],
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            for (row, sum) in sums.iter_mut().enumerate() {
                *sum = S::dot_pairs(weights, S::splat_pair(*a.add(row)), *sum);
            }
        }
    }
}

/// Weights widened, times `f32`.
pub(super) struct Wide;

impl Arithmetic for Wide {
    const UNITS: usize = 4;

    #[inline(always)]
    unsafe fn add_products<S: Simd, const ROWS: usize>(
        a: *const u32,
        weights: S::H,
        sums: &mut [S::F; ROWS],
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            let [even, odd] = S::widen(weights);
            floats::add_products::<S, ROWS>(a, even, sums);
            floats::add_products::<S, ROWS>(a.add(ROWS), odd, sums);
        }
    }
}

/// Scales of the panels of a tile.
#[derive(Clone, Copy)]
pub(crate) struct Scaling {
    /// For each group that the steps of the tile touch those of 32 columns.
    pub(crate) scales: [*const f32; 2],
    /// For each group what is added to the nibbles of 32 columns; not looked at by formats without
    /// zero points.
    pub(crate) above: [*const u32; 2],
    /// Steps of the first group.
    pub(crate) first: usize,
    /// Steps of the others.
    pub(crate) group: usize,
}

impl Scaling {
    pub(crate) const NONE: Self = Self {
        scales: [std::ptr::null(); 2],
        above: [std::ptr::null(); 2],
        first: 0,
        group: 0,
    };
}

/// Runs an operation on a tile, compiled for its rows and panels.
macro_rules! by_shape {
    ($isa:expr, $tile:expr, $op:expr) => {
        by_shape!(@ $isa, $tile, $op, 1 2 3 4 5 6 7 8 9 10 11 12, 1 2 3 4 5 6)
    };
    (@ $isa:expr, $tile:expr, $op:expr, $($rows:literal)+, $($pairs:literal)+) => {
        match ($tile.panels, $tile.rows) {
            $((1, $rows) => $isa.dispatch_codes(Shaped::<_, $rows, 1>($op)),)+
            $((2, $pairs) => $isa.dispatch_codes(Shaped::<_, $pairs, 2>($op)),)+
            shape => unreachable!("no tile has this shape: {shape:?}"),
        }
    };
}
pub(super) use by_shape;

/// An operation on a tile of so many rows and panels.
pub(super) struct Shaped<T, const ROWS: usize, const PANELS: usize>(pub(super) T);

/// Multiplies a tile.
///
/// # Safety
///
/// As [`crate::tile::multiply`], and the pointers of the scaling hold what its docs say.
pub(super) unsafe fn multiply<C: Codes, A: Arithmetic>(isa: Isa, tile: &Tile) {
    // SAFETY: the caller's promise.
    unsafe { by_shape!(isa, tile, Multiply::<C, A>(tile, PhantomData)) }
}

struct Multiply<'a, C, A>(&'a Tile, PhantomData<(C, A)>);

impl<C: Codes, A: Arithmetic, const ROWS: usize, const PANELS: usize> Op
    for Shaped<Multiply<'_, C, A>, ROWS, PANELS>
{
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let tile = self.0.0;
        let Scaling {
            mut scales,
            mut above,
            first,
            group,
        } = tile.scaling;
        let (mut a, mut b) = (tile.a, tile.b);
        let mut prefetch = tile.prefetch;
        let (mut left, mut steps) = (tile.steps, first.min(tile.steps));
        // SAFETY: the caller of `multiply` has promised what pointers hold; each step moves on by
        // what it has read, each group by its scales.
        unsafe {
            while left > 0 {
                let mut sums = [[S::zero(); ROWS]; PANELS];
                for _ in 0..steps {
                    for panel in 0..PANELS {
                        step::<C, A, S, ROWS>(a, b[panel], above[panel], &mut sums[panel]);
                        b[panel] = b[panel].add(C::BYTES);
                    }
                    a = a.add(A::UNITS * ROWS);
                }
                for (panel, sums) in sums.into_iter().enumerate() {
                    let scale = S::load(scales[panel]);
                    for (row, sum) in sums.into_iter().enumerate() {
                        let at = tile.sums.add(row * SUMS + panel * LANES);
                        S::store(at, S::mul_add(sum, scale, S::load(at)));
                    }
                    scales[panel] = scales[panel].add(LANES);
                    above[panel] = above[panel].wrapping_add(LANES);
                }
                prefetch.advance::<S, PANELS>(steps);
                left -= steps;
                steps = group.min(left);
            }
        }
    }
}

#[inline(always)]
unsafe fn step<C: Codes, A: Arithmetic, S: Simd, const ROWS: usize>(
    a: *const u32,
    b: *const u8,
    above: *const u32,
    sums: &mut [S::F; ROWS],
) {
    // SAFETY: the caller's promise.
    unsafe {
        A::add_products::<S, ROWS>(a, C::pairs::<S, 0>(b, above), sums);
        let a = a.add(A::UNITS / 2 * ROWS);
        A::add_products::<S, ROWS>(a, C::pairs::<S, 1>(b, above), sums);
    }
}
