use serde::{Deserialize, Serialize};

/// What lies between w13 and w2, with its constants.
///
/// `g` is the gate projection, `u` the up projection. With a limit `L`, `g' = min(g, L)` and
/// `u' = clamp(u, -L, L)`; without, `g' = g` and `u' = u`. Whether the rows of gate and up are
/// interleaved is a matter of the tensors, see [`FusedOrder`](crate::FusedOrder).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Activation {
    /// `g' * sigmoid(g') * u'` (SwiGLU).
    Silu {
        /// `L`.
        limit: Option<f32>,
    },
    /// `0.5 * g' * (1 + erf(g' / sqrt(2))) * u'`.
    Gelu {
        /// `L`.
        limit: Option<f32>,
    },
    /// `0.5 * g' * (1 + tanh(sqrt(2 / pi) * (g' + 0.044715 * g'^3))) * u'`.
    GeluTanh {
        /// `L`.
        limit: Option<f32>,
    },
    /// `(u' + beta) * g' * sigmoid(alpha * g')` (gpt-oss: alpha 1.702, beta 1, limit 7).
    SwigluOai {
        /// Slope of the sigmoid.
        alpha: f32,
        /// Added to `u'`.
        beta: f32,
        /// `L`.
        limit: Option<f32>,
    },
    /// `min(silu(g), L) * clamp(u, -L, L)` (Step).
    SwigluStep {
        /// `L`.
        limit: f32,
    },
    /// `u * sigmoid(u)`, without gate.
    SiluNoMul,
    /// GELU of `u`, without gate.
    GeluNoMul,
    /// GELU of `u` by its tanh approximation, without gate.
    GeluTanhNoMul,
    /// `max(u, 0)^2`, without gate (Nemotron-H).
    Relu2NoMul,
}

impl Activation {
    /// SwiGLU without limit.
    pub const SILU: Self = Self::Silu { limit: None };

    /// Whether w13 has a gate half.
    pub const fn is_gated(self) -> bool {
        !matches!(
            self,
            Self::SiluNoMul | Self::GeluNoMul | Self::GeluTanhNoMul | Self::Relu2NoMul
        )
    }

    /// The gated activation of a name in `hidden_act`, `None` if the name is not known.
    pub fn from_hidden_act(name: &str, limit: Option<f32>) -> Option<Self> {
        match name {
            "silu" | "swish" | "swiglu" => Some(Self::Silu { limit }),
            "gelu" => Some(Self::Gelu { limit }),
            "gelu_tanh" | "gelu_pytorch_tanh" | "gelu_new" => Some(Self::GeluTanh { limit }),
            _ => None,
        }
    }

    /// The value for one feature: the reference that kernels are held to.
    ///
    /// # Arguments
    ///
    /// - `gate` - `g`; forms without gate do not look at it.
    /// - `up` - `u`.
    pub fn apply(self, gate: f32, up: f32) -> f32 {
        let clamped = |limit: Option<f32>| match limit {
            Some(limit) => (at_most(gate, limit), within(up, limit)),
            None => (gate, up),
        };
        match self {
            Self::Silu { limit } => {
                let (g, u) = clamped(limit);
                silu(g) * u
            }
            Self::Gelu { limit } => {
                let (g, u) = clamped(limit);
                gelu(g) * u
            }
            Self::GeluTanh { limit } => {
                let (g, u) = clamped(limit);
                gelu_tanh(g) * u
            }
            Self::SwigluOai { alpha, beta, limit } => {
                let (g, u) = clamped(limit);
                (u + beta) * g * sigmoid(alpha * g)
            }
            Self::SwigluStep { limit } => at_most(silu(gate), limit) * within(up, limit),
            Self::SiluNoMul => silu(up),
            Self::GeluNoMul => gelu(up),
            Self::GeluTanhNoMul => gelu_tanh(up),
            Self::Relu2NoMul => at_least(up, 0.0).powi(2),
        }
    }
}

// `f32::min` and `f32::max` hide a NaN.
fn at_most(x: f32, limit: f32) -> f32 {
    if x > limit { limit } else { x }
}

fn at_least(x: f32, limit: f32) -> f32 {
    if x < limit { limit } else { x }
}

fn within(x: f32, limit: f32) -> f32 {
    at_least(at_most(x, limit), -limit)
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

fn silu(x: f32) -> f32 {
    x * sigmoid(x)
}

fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + libm::erff(x * std::f32::consts::FRAC_1_SQRT_2))
}

fn gelu_tanh(x: f32) -> f32 {
    let inner = (2.0 / std::f32::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
    0.5 * x * (1.0 + inner.tanh())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(got: f32, want: f32) {
        assert!(
            (got - want).abs() <= 1e-6 * want.abs().max(1.0),
            "{got} {want}"
        );
    }

    #[test]
    fn no_limit_hides_a_nan() {
        let limit = Some(7.0);
        for activation in [
            Activation::Silu { limit },
            Activation::Gelu { limit },
            Activation::GeluTanh { limit },
            Activation::SwigluOai {
                alpha: 1.702,
                beta: 1.0,
                limit,
            },
            Activation::SwigluStep { limit: 7.0 },
        ] {
            assert!(activation.apply(f32::NAN, 1.0).is_nan(), "{activation:?}");
            assert!(activation.apply(1.0, f32::NAN).is_nan(), "{activation:?}");
        }
        assert!(Activation::Relu2NoMul.apply(0.0, f32::NAN).is_nan());
    }

    /// Values computed with Python's `math` in double precision.
    #[test]
    fn known_values() {
        near(Activation::SILU.apply(1.5, 2.0), 2.452_723_4);
        near(
            Activation::Gelu { limit: None }.apply(1.5, 2.0),
            2.799_578_4,
        );
        near(
            Activation::GeluTanh { limit: None }.apply(1.5, 2.0),
            2.799_143,
        );
        let oai = Activation::SwigluOai {
            alpha: 1.702,
            beta: 1.0,
            limit: Some(7.0),
        };
        near(oai.apply(1.5, 2.0), 4.174_986_6);
        near(oai.apply(9.0, -9.0), -41.999_718);
        near(Activation::SwigluStep { limit: 7.0 }.apply(9.0, 8.0), 49.0);
        near(Activation::SiluNoMul.apply(0.0, 1.5), 1.226_361_7);
        near(Activation::GeluNoMul.apply(0.0, -0.5), -0.154_268_77);
        near(Activation::GeluTanhNoMul.apply(0.0, -0.5), -0.154_286);
        near(Activation::Relu2NoMul.apply(0.0, 3.0), 9.0);
        near(Activation::Relu2NoMul.apply(0.0, -3.0), 0.0);
    }

    #[test]
    fn limits_clamp_the_gate_from_above_only() {
        let limited = Activation::Silu { limit: Some(1.0) };
        near(limited.apply(5.0, 3.0), Activation::SILU.apply(1.0, 1.0));
        near(
            limited.apply(-5.0, -3.0),
            Activation::SILU.apply(-5.0, -1.0),
        );
    }

    #[test]
    fn extreme_inputs_stay_finite() {
        for x in [-1e4, -100.0, 100.0, 1e4] {
            assert!(Activation::SILU.apply(x, 1.0).is_finite(), "{x}");
            assert!(
                Activation::GeluTanh { limit: None }
                    .apply(x, 1.0)
                    .is_finite(),
                "{x}"
            );
        }
    }
}
