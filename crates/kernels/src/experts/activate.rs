//! The activation between w13 and w2.
#![allow(unsafe_code, reason = "vector instructions")]

use moekit_quant::Activation;

use crate::formats::Input;
use crate::simd::{LANES, Op, Simd};
use crate::tile::SUMS;

/// Turns the sums of a tile into units of the input of w2.
pub(super) struct Activate<'a> {
    pub(super) activation: Activation,
    /// `[rows, SUMS]`: gate and up, or two panels of up.
    ///
    /// Each row begins with its units afterwards.
    pub(super) sums: &'a mut [f32],
    /// What the input of each row is multiplied by, for either panel: `[rows]`.
    pub(super) weights: &'a [[f32; 2]],
    /// Of both panels.
    pub(super) bias: &'a [f32; SUMS],
    /// Features that there are; what lies beyond becomes zero.
    pub(super) features: usize,
    pub(super) input: Input,
}

impl Op for Activate<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let rows = self.sums.as_chunks_mut::<SUMS>().0.iter_mut();
        for (sums, weights) in rows.zip(self.weights) {
            // SAFETY: the caller's promise; a row has room for what its two panels become.
            unsafe {
                let gate = linear::<S>(sums, self.bias, 0, weights[0]);
                let up = linear::<S>(sums, self.bias, LANES, weights[1]);
                let values = match self.activation.is_gated() {
                    true => [apply::<S>(self.activation, gate, up), S::zero()],
                    false => [
                        apply::<S>(self.activation, gate, gate),
                        apply::<S>(self.activation, up, up),
                    ],
                };
                let per_unit = self.input.features_per_unit();
                for (i, values) in values.into_iter().enumerate() {
                    let values = first_of::<S>(values, self.features.saturating_sub(i * LANES));
                    let units = sums[i * LANES / per_unit..].as_mut_ptr();
                    match self.input {
                        Input::F32 | Input::Int8 => S::store(units, values),
                        Input::Bf16 => S::store_pairs(units.cast(), values),
                    }
                }
            }
        }
    }
}

/// The first lanes, zero in the others.
#[inline(always)]
unsafe fn first_of<S: Simd>(values: S::F, lanes: usize) -> S::F {
    if lanes >= LANES {
        return values;
    }
    let mut array = [0.0; LANES];
    // SAFETY: the machine has the instructions of `S`; the array has 32 values.
    unsafe {
        S::store(array.as_mut_ptr(), values);
        array[lanes..].fill(0.0);
        S::load(array.as_ptr())
    }
}

/// The sums of a panel times a weight, plus biases.
#[inline(always)]
unsafe fn linear<S: Simd>(sums: &[f32], bias: &[f32; SUMS], first: usize, weight: f32) -> S::F {
    // SAFETY: the slices are 32 values long.
    unsafe {
        let sum = S::load(sums[first..][..LANES].as_ptr());
        let bias = S::load(bias[first..][..LANES].as_ptr());
        S::add(S::mul(sum, S::splat(weight)), bias)
    }
}

/// `gate` and `up` within a limit.
#[inline(always)]
unsafe fn limited<S: Simd>(gate: S::F, up: S::F, limit: Option<f32>) -> (S::F, S::F) {
    // SAFETY: the machine has the instructions of `S`.
    unsafe {
        match limit {
            Some(l) => (
                S::at_most(gate, S::splat(l)),
                S::at_least(S::at_most(up, S::splat(l)), S::splat(-l)),
            ),
            None => (gate, up),
        }
    }
}

/// [`Activation::apply`] of 32 values, which it is held to.
#[inline(always)]
unsafe fn apply<S: Simd>(activation: Activation, gate: S::F, up: S::F) -> S::F {
    // SAFETY: the machine has the instructions of `S`.
    unsafe {
        match activation {
            Activation::Silu { limit } => {
                let (g, u) = limited::<S>(gate, up, limit);
                S::mul(times_sigmoid::<S>(g, g), u)
            }
            Activation::GeluTanh { limit } => {
                let (g, u) = limited::<S>(gate, up, limit);
                S::mul(gelu_tanh::<S>(g), u)
            }
            Activation::Gelu { limit } => {
                let (g, u) = limited::<S>(gate, up, limit);
                S::mul(gelu::<S>(g), u)
            }
            Activation::SwigluOai { alpha, beta, limit } => {
                let (g, u) = limited::<S>(gate, up, limit);
                let g = times_sigmoid::<S>(g, S::mul(g, S::splat(alpha)));
                S::mul(S::add(u, S::splat(beta)), g)
            }
            Activation::SwigluStep { limit } => {
                let (_, u) = limited::<S>(gate, up, Some(limit));
                let g = times_sigmoid::<S>(gate, gate);
                S::mul(S::at_most(g, S::splat(limit)), u)
            }
            Activation::SiluNoMul => times_sigmoid::<S>(up, up),
            Activation::GeluNoMul => gelu::<S>(up),
            Activation::GeluTanhNoMul => gelu_tanh::<S>(up),
            Activation::Relu2NoMul => {
                let positive = S::at_least(up, S::zero());
                S::mul(positive, positive)
            }
            // One without a vector form.
            other => {
                let (mut gates, mut ups) = ([0.0; LANES], [0.0; LANES]);
                S::store(gates.as_mut_ptr(), gate);
                S::store(ups.as_mut_ptr(), up);
                let pairs = gates.iter_mut().zip(ups);
                pairs.for_each(|(g, u)| *g = other.apply(*g, u));
                S::load(gates.as_ptr())
            }
        }
    }
}

/// `x Phi(x) = max(x, 0) - |x| h` with `h = erfc(|x| / sqrt(2)) / 2`, the latter by formula 7.1.26
/// of Abramowitz and Stegun, Handbook of Mathematical Functions: wrong by 1e-7 at most.
#[inline(always)]
unsafe fn gelu<S: Simd>(x: S::F) -> S::F {
    const P: f32 = 0.327_591_1;
    const A: [f32; 5] = [
        1.061_405_4,
        -1.453_152_1,
        1.421_413_8,
        -0.284_496_72,
        0.254_829_6,
    ];
    // SAFETY: the machine has the instructions of `S`.
    unsafe {
        let size = S::at_least(x, S::sub(S::zero(), x));
        // Beyond, `h` is zero, which an infinite number would not be multiplied with.
        let size = S::at_most(size, S::splat(30.0));
        let z = S::mul(size, S::splat(std::f32::consts::FRAC_1_SQRT_2));
        let one = S::splat(1.0);
        let t = S::div(one, S::mul_add(z, S::splat(P), one));
        let mut sum = S::zero();
        for a in A {
            sum = S::mul(S::add(sum, S::splat(a)), t);
        }
        let h = S::mul(sum, exp::<S>(S::sub(S::zero(), S::mul(z, z))));
        let rest = S::mul(S::mul(size, S::splat(0.5)), h);
        S::sub(S::at_least(x, S::zero()), rest)
    }
}

/// `0.5 x (1 + tanh(y)) = x sigmoid(2 y)` with `y = sqrt(2 / pi) (x + 0.044715 x^3)`.
#[inline(always)]
unsafe fn gelu_tanh<S: Simd>(x: S::F) -> S::F {
    const TWICE: f32 = 2.0 * 0.797_884_6;
    // SAFETY: the machine has the instructions of `S`.
    unsafe {
        let square = S::mul(x, x);
        let factor = S::mul_add(square, S::splat(TWICE * 0.044_715), S::splat(TWICE));
        times_sigmoid::<S>(x, S::mul(x, factor))
    }
}

/// `x / (1 + exp(-y))`
#[inline(always)]
unsafe fn times_sigmoid<S: Simd>(x: S::F, y: S::F) -> S::F {
    // SAFETY: the machine has the instructions of `S`.
    unsafe {
        let exp = exp::<S>(S::sub(S::zero(), y));
        S::div(x, S::add(S::splat(1.0), exp))
    }
}

/// `2^n e^r` with `n` whole and `|r| <= ln(2) / 2`, the latter by its series up to `r^7 / 7!`, which
/// leaves out less than 2^-27. Below -87, the value there; above 88.4 infinity, or what is near it;
/// NaN stays.
#[inline(always)]
unsafe fn exp<S: Simd>(x: S::F) -> S::F {
    // The high part of ln(2) has zeros enough for products with `n` to be exact.
    const LN2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    // SAFETY: the machine has the instructions of `S`.
    unsafe {
        let x = S::at_least(S::at_most(x, S::splat(89.0)), S::splat(-87.0));
        let n = S::round(S::mul(x, S::splat(std::f32::consts::LOG2_E)));
        let r = S::mul_add(n, S::splat(-LN2[0]), x);
        let r = S::mul_add(n, S::splat(-LN2[1]), r);
        let mut sum = S::splat(1.0 / 5040.0);
        for divisor in [720.0, 120.0, 24.0, 6.0, 2.0, 1.0, 1.0] {
            sum = S::mul_add(sum, r, S::splat(1.0 / divisor));
        }
        S::scale(sum, n)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::Isa;

    /// One value as the kernels compute it.
    pub(in crate::experts) fn activated(
        isa: Isa,
        activation: Activation,
        gate: f32,
        up: f32,
    ) -> f32 {
        let mut sums = [0.0; SUMS];
        sums[..LANES].fill(if activation.is_gated() { gate } else { up });
        sums[LANES..].fill(up);
        let op = Activate {
            activation,
            sums: &mut sums,
            weights: &[[1.0; 2]],
            bias: &[0.0; SUMS],
            features: LANES,
            input: Input::F32,
        };
        // SAFETY: the instruction set is an available one.
        unsafe { isa.dispatch(op) };
        let values = &sums[..LANES];
        assert!(values.iter().all(|x| x.to_bits() == values[0].to_bits()));
        values[0]
    }

    /// What a sigmoid makes of a gate so large that its exponential overflows.
    #[test]
    fn far_from_zero() {
        for isa in Isa::available() {
            for activation in [
                Activation::SILU,
                Activation::Gelu { limit: None },
                Activation::GeluTanh { limit: None },
                Activation::SwigluStep { limit: 2.0 },
                Activation::SiluNoMul,
                Activation::GeluTanhNoMul,
            ] {
                for size in [89.0, 1e3, 1e30, 1e37, 3e38, f32::MAX] {
                    for x in [size, -size] {
                        let up = if activation.is_gated() { 1.0 } else { x };
                        let got = activated(isa, activation, x, up);
                        let want = activation.apply(x, up);
                        assert!(
                            (got - want).abs() <= 1e-6 * want.abs() + 1e-30,
                            "{isa} {activation:?} ({x}): {got} {want}"
                        );
                    }
                }
                if matches!(activation, Activation::Gelu { .. }) {
                    // It takes the limit at infinity, where the reference multiplies by zero.
                    continue;
                }
                let least = f32::NEG_INFINITY;
                let got = activated(isa, activation, least, least);
                let want = activation.apply(least, least);
                assert!(
                    got == want || got.is_nan() && want.is_nan(),
                    "{isa} {activation:?}: {got} {want}"
                );
            }
        }
    }

    #[test]
    fn as_the_reference() {
        let limit = Some(2.5);
        for isa in Isa::available() {
            for activation in [
                Activation::SILU,
                Activation::Silu { limit },
                Activation::Gelu { limit },
                Activation::GeluTanh { limit: None },
                Activation::GeluTanh { limit },
                Activation::SwigluOai {
                    alpha: 1.702,
                    beta: 1.0,
                    limit,
                },
                Activation::SwigluStep { limit: 2.5 },
                Activation::SiluNoMul,
                Activation::GeluNoMul,
                Activation::GeluTanhNoMul,
                Activation::Relu2NoMul,
            ] {
                for i in -400..=400 {
                    let (gate, up) = (i as f32 * 0.27, (i % 13) as f32 - 6.0);
                    let (gate, up) = if activation.is_gated() {
                        (gate, up)
                    } else {
                        (up, gate)
                    };
                    let got = f64::from(activated(isa, activation, gate, up));
                    let want = f64::from(activation.apply(gate, up));
                    let error = (got - want).abs();
                    let size = f64::from(gate.abs() * (up.abs() + 1.0));
                    // Where `tanh` is nearly -1, the reference itself has few bits left.
                    assert!(
                        error <= 1e-6 * want.abs() + 1e-7 * size,
                        "{isa} {activation:?} ({gate}, {up}): {got} {want}"
                    );
                }
                assert!(activated(isa, activation, f32::NAN, f32::NAN).is_nan());
            }
        }
    }
}
