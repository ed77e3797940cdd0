//! Plain Rust, which compilers turn into what vectors a machine has at least.

use half::{bf16, f16};

use super::{LANES, Simd};
use crate::rows::Widen;

#[derive(Clone, Copy)]
pub(crate) struct Portable;

type F = [f32; LANES];

#[inline(always)]
fn zip(a: F, b: F, f: impl Fn(f32, f32) -> f32) -> F {
    let mut out = [0.0; LANES];
    for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
        *out = f(a, b);
    }
    out
}

fn low(pair: u32) -> f32 {
    bf16::from_bits(pair as u16).widen()
}

fn high(pair: u32) -> f32 {
    bf16::from_bits((pair >> 16) as u16).widen()
}

impl Simd for Portable {
    const MAX_ROWS: usize = 4;
    type F = F;
    type H = [u32; LANES];
    type P = [f32; 2];

    #[inline(always)]
    unsafe fn zero() -> F {
        [0.0; LANES]
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> F {
        [value; LANES]
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> F {
        // SAFETY: the caller's promise.
        unsafe { from.cast::<F>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, values: F) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<F>().write_unaligned(values) }
    }

    #[inline(always)]
    unsafe fn mul_add(a: F, b: F, c: F) -> F {
        zip(zip(a, b, |a, b| a * b), c, |product, c| product + c)
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> F {
        // SAFETY: the caller's promise.
        let bits = unsafe { from.cast::<[u16; LANES]>().read_unaligned() };
        bits.map(|bits| f16::from_bits(bits).to_f32())
    }

    #[inline(always)]
    unsafe fn load_pairs(from: *const u8) -> [u32; LANES] {
        // SAFETY: the caller's promise.
        unsafe { from.cast::<[u32; LANES]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn splat_pair(pair: u32) -> [f32; 2] {
        [low(pair), high(pair)]
    }

    #[inline(always)]
    unsafe fn widen(pairs: [u32; LANES]) -> [F; 2] {
        [pairs.map(low), pairs.map(high)]
    }

    #[inline(always)]
    unsafe fn dot_pairs(pairs: [u32; LANES], by: [f32; 2], sum: F) -> F {
        // SAFETY: plain Rust.
        unsafe {
            let [even, odd] = Self::widen(pairs);
            let [x, y] = by.map(|x| [x; LANES]);
            Self::mul_add(odd, y, Self::mul_add(even, x, sum))
        }
    }

    #[inline(always)]
    unsafe fn add(a: F, b: F) -> F {
        zip(a, b, |a, b| a + b)
    }

    #[inline(always)]
    unsafe fn sub(a: F, b: F) -> F {
        zip(a, b, |a, b| a - b)
    }

    #[inline(always)]
    unsafe fn mul(a: F, b: F) -> F {
        zip(a, b, |a, b| a * b)
    }

    #[inline(always)]
    unsafe fn div(a: F, b: F) -> F {
        zip(a, b, |a, b| a / b)
    }

    #[inline(always)]
    unsafe fn at_most(value: F, limit: F) -> F {
        zip(value, limit, |v, limit| if v > limit { limit } else { v })
    }

    #[inline(always)]
    unsafe fn at_least(value: F, limit: F) -> F {
        zip(value, limit, |v, limit| if v < limit { limit } else { v })
    }

    #[inline(always)]
    unsafe fn round(a: F) -> F {
        // Adding and taking away a number whose last bit is 1; exact for what `exp` rounds.
        const BIG: f32 = (1_u32 << 23) as f32 + (1_u32 << 22) as f32;
        a.map(|v| (v + BIG) - BIG)
    }

    #[inline(always)]
    unsafe fn scale(values: F, exponents: F) -> F {
        zip(values, exponents, |value, exponent| {
            value * f32::from_bits(((exponent as i32 + 127) << 23).cast_unsigned())
        })
    }

    #[inline(always)]
    unsafe fn store_pairs(to: *mut u32, values: F) {
        let (pairs, _) = values.as_chunks::<2>();
        for (i, &[even, odd]) in pairs.iter().enumerate() {
            let bits = |value| u32::from(bf16::from_f32(value).to_bits());
            // SAFETY: the caller's promise.
            unsafe { to.add(i).write(bits(even) | bits(odd) << 16) };
        }
    }

    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}
}
