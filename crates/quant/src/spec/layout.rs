use serde::{Deserialize, Serialize};

/// Names of an MLP's projections within their module.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct MlpNames {
    /// `None` where the activation has no gate.
    pub gate: Option<String>,
    /// Up projection.
    pub up: String,
    /// Down projection.
    pub down: String,
}

impl MlpNames {
    /// Three names.
    pub fn new(gate: &str, up: &str, down: &str) -> Self {
        Self {
            gate: Some(gate.to_owned()),
            up: up.to_owned(),
            down: down.to_owned(),
        }
    }

    /// `gate_proj`, `up_proj`, `down_proj`.
    pub fn proj() -> Self {
        Self::new("gate_proj", "up_proj", "down_proj")
    }

    /// Mixtral's `w1` (gate), `w3` (up), `w2` (down).
    pub fn w123() -> Self {
        Self::new("w1", "w3", "w2")
    }

    /// Two names, for activations without gate.
    pub fn ungated(up: &str, down: &str) -> Self {
        Self {
            gate: None,
            up: up.to_owned(),
            down: down.to_owned(),
        }
    }
}

/// How gate and up lie in one fused tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FusedOrder {
    /// The first `I` rows are the gate, the last `I` are up.
    Halves,
    /// Even rows are the gate, odd rows are up (gpt-oss).
    Interleaved,
}

/// A tensor that stacks the experts of a layer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct FusedTensor {
    /// The parameter (`…experts.gate_up_proj`) or, with `is_module`, the module that holds it
    /// (`…input_linear`). Exclusion lists of quantizers name it.
    pub name: String,
    /// Whether the weight is `name.weight` and its companions are `name.weight_scale` and so on.
    /// Otherwise the weight is `name` itself and its companions are `name_scale` and so on.
    pub is_module: bool,
    /// Whether an expert is stored as `[in, out]`.
    pub transposed: bool,
    /// Tensor of the biases, `[E, out]`.
    pub bias: Option<String>,
}

impl FusedTensor {
    /// A parameter `[E, out, in]` without bias.
    pub fn parameter(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            is_module: false,
            transposed: false,
            bias: None,
        }
    }

    /// A module whose weight is `[E, out, in]`.
    pub fn module(name: impl Into<String>) -> Self {
        Self {
            is_module: true,
            ..Self::parameter(name)
        }
    }

    /// The same, stored as `[in, out]` per expert.
    #[must_use]
    pub fn transposed(mut self) -> Self {
        self.transposed = true;
        self
    }

    /// The same, with biases.
    #[must_use]
    pub fn with_bias(mut self, bias: impl Into<String>) -> Self {
        self.bias = Some(bias.into());
        self
    }
}

/// Where the tensors of a layer's routed experts are.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ExpertLayout {
    /// One module per expert and projection: `{module}.{expert}.{name}.weight`, `[out, in]`.
    PerExpert {
        /// Module of the experts (`model.layers.0.mlp.experts`).
        module: String,
        /// Names of the projections.
        names: MlpNames,
        /// Whether the linears have biases (`{module}.{expert}.{name}.bias`).
        bias: bool,
    },
    /// All experts in two tensors: gate and up `[E, 2 * I, H]`, down `[E, H, I]`.
    Fused {
        /// Gate and up.
        gate_up: FusedTensor,
        /// How gate and up share it.
        order: FusedOrder,
        /// Down.
        down: FusedTensor,
    },
    /// All experts in one tensor per projection, `[E, out, in]` or `[E * out, in]`.
    Stacked {
        /// Gate; `None` where the activation has none.
        gate: Option<FusedTensor>,
        /// Up.
        up: FusedTensor,
        /// Down.
        down: FusedTensor,
    },
}

impl ExpertLayout {
    /// Whether any linear has a bias.
    pub fn has_bias(&self) -> bool {
        match self {
            Self::PerExpert { bias, .. } => *bias,
            Self::Fused { gate_up, down, .. } => gate_up.bias.is_some() || down.bias.is_some(),
            Self::Stacked { gate, up, down } => {
                let mut stacks = gate.iter().chain([up, down]);
                stacks.any(|stack| stack.bias.is_some())
            }
        }
    }
}
