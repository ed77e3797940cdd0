//! The loop over panels of codes with scales: products of a group of input features are added up
//! as they are, then multiplied by the scale of the group in `f32`. Codes become bf16 on the way
//! or, for many rows, once before.
#![allow(unsafe_code, reason = "vector instructions, pointers into panels")]

use std::marker::PhantomData;
use std::ptr;

use super::floats;
use crate::Isa;
use crate::simd::{LANES, Op, Simd};
use crate::tile::{Prefetch, SUMS, Tile};

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

/// Codes that [`multiply_and_keep`] has turned into bf16.
pub(super) struct Decoded;

impl Codes for Decoded {
    const BYTES: usize = 2 * FEATURES * LANES;

    #[inline(always)]
    unsafe fn pairs<S: Simd, const HALF: usize>(b: *const u8, _: *const u32) -> S::H {
        // SAFETY: the caller's promise.
        unsafe { S::load_pairs(b.add(HALF * Self::BYTES / 2)) }
    }
}

/// What activations are multiplied as.
pub(super) trait Arithmetic {
    /// Units of a row's activations in a step.
    const UNITS: usize;

    /// Adds the products of two features of all rows.
    ///
    /// # Safety
    ///
    /// Must be `#[inline(always)]`. The machine has the instructions of `S`; `a` holds half of
    /// [`Arithmetic::UNITS`] of each row, those of a feature side by side, `stride` apart from
    /// those of the next.
    unsafe fn add_products<S: Simd, const ROWS: usize>(
        a: *const u32,
        stride: usize,
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
        _: usize,
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
        stride: usize,
        weights: S::H,
        sums: &mut [S::F; ROWS],
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            let [even, odd] = S::widen(weights);
            floats::add_products::<S, ROWS>(a, even, sums);
            floats::add_products::<S, ROWS>(a.add(stride), odd, sums);
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

/// Runs an operation on a tile, compiled for its panels and rows: those of a tile of one panel,
/// and of two.
macro_rules! by_shape {
    ($isa:expr, $shape:expr, $op:expr, $($rows:literal)+, $($pairs:literal)*) => {
        match $shape {
            $((1, $rows) => $isa.dispatch(Shaped::<_, $rows, 1>($op)),)+
            $((2, $pairs) => $isa.dispatch(Shaped::<_, $pairs, 2>($op)),)*
            shape => unreachable!("no tile has this shape: {shape:?}"),
        }
    };
}
pub(super) use by_shape;

/// An operation on a tile of so many rows and panels.
pub(super) struct Shaped<T, const ROWS: usize, const PANELS: usize>(pub(super) T);

/// Most rows of a tile of one panel whose codes become bf16 on the way: sums, weights and what
/// decoding needs then fit into registers.
pub(super) const ROWS: usize = 8;
/// Of one of two panels: their sums are enough not to wait for each other.
pub(super) const ROWS_OF_TWO: usize = 3;
/// Rows times panels whose sums fit into registers twice: those of a group, and of the row.
const HELD: usize = 6;

/// Multiplies tiles of at most [`ROWS`] rows, or [`ROWS_OF_TWO`].
///
/// # Safety
///
/// As [`crate::tile::multiply`], and the pointers of the scaling hold what its docs say.
pub(super) unsafe fn multiply<C: Codes, A: Arithmetic>(isa: Isa, tiles: &[Tile]) {
    let Some(tile) = tiles.first() else { return };
    let op = Multiply::<C, A>(tiles, PhantomData);
    // SAFETY: the caller's promise.
    unsafe { by_shape!(isa, (tile.panels, tile.rows), op, 1 2 3 4 5 6 7 8, 1 2 3) }
}

struct Multiply<'a, C, A>(&'a [Tile], PhantomData<(C, A)>);

impl<C: Codes, A: Arithmetic, const ROWS: usize, const PANELS: usize> Op
    for Shaped<Multiply<'_, C, A>, ROWS, PANELS>
{
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for tile in self.0.0 {
            // SAFETY: the caller of `multiply` has promised it.
            unsafe { add_products::<C, A, S, ROWS, PANELS, false>(tile, ROWS, ptr::null_mut()) }
        }
    }
}

/// Multiplies a tile of one panel, and keeps what its codes have become for tiles of other rows.
///
/// # Arguments
///
/// - `out` - gets [`Decoded`] for each step.
///
/// # Safety
///
/// As [`multiply`]; `out` has room.
pub(super) unsafe fn multiply_and_keep<C: Codes, A: Arithmetic>(
    isa: Isa,
    tile: &Tile,
    out: *mut u8,
) {
    // So few rows that decoding on the way costs next to nothing.
    let first = tile.rows.min(HELD);
    // SAFETY: the caller's promise. The other rows take what the first ones have kept.
    unsafe {
        let op = MultiplyAndKeep::<C, A>(tile, out, PhantomData);
        by_shape!(isa, (1, first), op, 1 2 3 4 5 6,);
        if first < tile.rows {
            let tile = Tile {
                b: [out, ptr::null()],
                prefetch: Prefetch::NONE,
                ..*tile
            };
            multiply_rows::<A>(isa, &tile, first, tile.rows);
        }
    }
}

struct MultiplyAndKeep<'a, C, A>(&'a Tile, *mut u8, PhantomData<(C, A)>);

impl<C: Codes, A: Arithmetic, const ROWS: usize> Op for Shaped<MultiplyAndKeep<'_, C, A>, ROWS, 1> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let MultiplyAndKeep(tile, out, _) = self.0;
        // SAFETY: the caller of `multiply_and_keep` has promised it.
        unsafe { add_products::<C, A, S, ROWS, 1, true>(tile, tile.rows, out) }
    }
}

/// Multiplies a tile of one panel that has been [decoded](multiply_and_keep).
///
/// # Safety
///
/// As [`multiply`].
pub(super) unsafe fn multiply_decoded<A: Arithmetic>(isa: Isa, tile: &Tile) {
    // Some rows after the other: as many as have all their sums in registers.
    let parts = tile.rows.div_ceil(HELD);
    let mut tile = *tile;
    for part in 0..parts {
        let [first, end] = [part, part + 1].map(|part| part * tile.rows / parts);
        // SAFETY: the caller's promise.
        unsafe { multiply_rows::<A>(isa, &tile, first, end) };
        // The first of the parts asks for what comes next.
        tile.prefetch = Prefetch::NONE;
    }
}

/// Multiplies rows `first..end` of a tile of one panel that has been decoded, at most [`HELD`].
///
/// # Safety
///
/// As [`multiply`]; the tile has those rows.
unsafe fn multiply_rows<A: Arithmetic>(isa: Isa, tile: &Tile, first: usize, end: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        let rows = Tile {
            a: tile.a.add(first),
            sums: tile.sums.map(|sums| sums.wrapping_add(first * SUMS)),
            ..*tile
        };
        let op = MultiplyDecoded::<A>(&rows, PhantomData);
        by_shape!(isa, (1, end - first), op, 1 2 3 4 5 6,);
    }
}

/// Some rows of a tile, which begins with them.
struct MultiplyDecoded<'a, A>(&'a Tile, PhantomData<A>);

impl<A: Arithmetic, const ROWS: usize> Op for Shaped<MultiplyDecoded<'_, A>, ROWS, 1> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let tile = self.0.0;
        // SAFETY: the caller of `multiply_rows` has promised it.
        unsafe {
            add_products::<Decoded, A, S, ROWS, 1, false>(tile, tile.rows, ptr::null_mut());
        }
    }
}

/// Adds the products of the first rows of a tile to their sums.
///
/// # Arguments
///
/// - `stride` - rows of the tile.
/// - `out` - gets the weights of the first panel as [`Decoded`] if they are to be kept.
#[inline(always)]
unsafe fn add_products<
    C: Codes,
    A: Arithmetic,
    S: Simd,
    const ROWS: usize,
    const PANELS: usize,
    const KEEP: bool,
>(
    tile: &Tile,
    stride: usize,
    mut out: *mut u8,
) {
    if ROWS * PANELS > S::MAX_ROWS {
        unreachable!("no tile of the instruction set has so many rows");
    }
    let held = ROWS * PANELS <= HELD;
    let mut prefetch = tile.prefetch;
    let Scaling {
        mut scales,
        mut above,
        first,
        group,
    } = tile.scaling;
    let (mut a, mut b) = (tile.a, tile.b);
    let (mut left, mut steps) = (tile.steps, first.min(tile.steps));
    // SAFETY: the caller of `multiply` has promised what pointers hold; each step moves on by
    // what it has read and written, each group by its scales.
    unsafe {
        let mut totals = [[S::zero(); ROWS]; PANELS];
        if held {
            load_sums::<S, ROWS, PANELS>(tile, &mut totals);
        }
        while left > 0 {
            let mut sums = [[S::zero(); ROWS]; PANELS];
            for _ in 0..steps {
                for panel in 0..PANELS {
                    let (b, above) = (b[panel], above[panel]);
                    let first = C::pairs::<S, 0>(b, above);
                    let second = C::pairs::<S, 1>(b, above);
                    if KEEP {
                        S::keep_pairs(out, first);
                        S::keep_pairs(out.add(Decoded::BYTES / 2), second);
                    }
                    let sums = &mut sums[panel];
                    A::add_products::<S, ROWS>(a, stride, first, sums);
                    A::add_products::<S, ROWS>(a.add(A::UNITS / 2 * stride), stride, second, sums);
                }
                for b in &mut b[..PANELS] {
                    *b = b.add(C::BYTES);
                }
                a = a.add(A::UNITS * stride);
                out = out.wrapping_add(Decoded::BYTES);
                prefetch.advance::<S, PANELS>(1);
            }
            if !held {
                load_sums::<S, ROWS, PANELS>(tile, &mut totals);
            }
            for panel in 0..PANELS {
                let scale = S::load(scales[panel]);
                for (total, sum) in totals[panel].iter_mut().zip(sums[panel]) {
                    *total = S::mul_add(sum, scale, *total);
                }
                scales[panel] = scales[panel].add(LANES);
                above[panel] = above[panel].wrapping_add(LANES);
            }
            if !held {
                store_sums::<S, ROWS, PANELS>(tile, &totals);
            }
            left -= steps;
            steps = group.min(left);
        }
        if held {
            store_sums::<S, ROWS, PANELS>(tile, &totals);
        }
    }
}

#[inline(always)]
unsafe fn load_sums<S: Simd, const ROWS: usize, const PANELS: usize>(
    tile: &Tile,
    sums: &mut [[S::F; ROWS]; PANELS],
) {
    for (panel, sums) in sums.iter_mut().enumerate() {
        for (row, sum) in sums.iter_mut().enumerate() {
            // SAFETY: the caller has promised that the tile has these sums.
            *sum = unsafe { S::load(tile.sums[panel].add(row * SUMS)) };
        }
    }
}

#[inline(always)]
unsafe fn store_sums<S: Simd, const ROWS: usize, const PANELS: usize>(
    tile: &Tile,
    sums: &[[S::F; ROWS]; PANELS],
) {
    for (panel, sums) in sums.iter().enumerate() {
        for (row, sum) in sums.iter().enumerate() {
            // SAFETY: the caller has promised that the tile has these sums.
            unsafe { S::store(tile.sums[panel].add(row * SUMS), *sum) };
        }
    }
}
