//! What a model family says of its MoE layers: where the tensors are and how they are used.
//!
//! The types are plain data. A family fills them from `config.json`; quantization backends, the
//! layer and the kernels read them.

mod activation;
mod layout;
mod router;

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use crate::QuantError;

pub use activation::Activation;
pub use layout::{ExpertLayout, FusedOrder, FusedTensor, MlpNames};
pub use router::{ExpertGroups, GroupScore, RouterSpec, ScoringFunction, TopKSelection};

/// A model as far as its MoE layers go.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct MoeModelSpec {
    /// `model_type` of the configuration.
    pub model_type: String,
    /// `H`.
    pub hidden_size: usize,
    /// Layers of the model, dense ones included.
    pub num_layers: usize,
    /// Type of the unquantized tensors, as the configuration names it (`bfloat16`).
    pub dtype: Option<String>,
    /// The MoE layers in ascending order.
    pub layers: Vec<MoeLayerSpec>,
}

impl MoeModelSpec {
    /// A model with these MoE layers.
    pub fn new(
        model_type: impl Into<String>,
        hidden_size: usize,
        num_layers: usize,
        layers: Vec<MoeLayerSpec>,
    ) -> Self {
        Self {
            model_type: model_type.into(),
            hidden_size,
            num_layers,
            dtype: None,
            layers,
        }
    }

    /// The MoE layer of an index, `None` if that layer is dense or does not exist.
    pub fn layer(&self, index: usize) -> Option<&MoeLayerSpec> {
        self.layers.iter().find(|layer| layer.layer == index)
    }
}

/// One MoE layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct MoeLayerSpec {
    /// Index of the layer in the model.
    pub layer: usize,
    /// `E`, routed experts.
    pub num_experts: usize,
    /// `k`, experts per token.
    pub top_k: usize,
    /// `H`.
    pub hidden_size: usize,
    /// `I` of a routed expert.
    pub intermediate_size: usize,
    /// Where the routed experts' tensors are.
    pub experts: ExpertLayout,
    /// How tokens choose experts.
    pub router: RouterSpec,
    /// What lies between w13 and w2.
    pub activation: Activation,
    /// Experts that every token passes.
    pub shared: Option<SharedExpertsSpec>,
}

impl MoeLayerSpec {
    /// A SwiGLU layer without shared experts.
    ///
    /// # Arguments
    ///
    /// - `sizes` - `[E, k, H, I]`.
    pub fn new(layer: usize, sizes: [usize; 4], experts: ExpertLayout, router: RouterSpec) -> Self {
        let [num_experts, top_k, hidden_size, intermediate_size] = sizes;
        Self {
            layer,
            num_experts,
            top_k,
            hidden_size,
            intermediate_size,
            experts,
            router,
            activation: Activation::SILU,
            shared: None,
        }
    }

    /// Makes sure that the numbers fit each other. A family need not: whoever reads a model
    /// checks every layer.
    ///
    /// # Errors
    ///
    /// If a size is 0 or beyond 2^31, there are more experts per token than a token can choose
    /// from, or the groups do not divide the experts.
    pub fn check(&self) -> Result<(), QuantError> {
        let shared = self.shared.as_ref().map_or(1, |s| s.intermediate_size);
        self.expect("hidden size", self.hidden_size, 1..=MAX_SIZE)?;
        self.expect("intermediate size", self.intermediate_size, 1..=MAX_SIZE)?;
        self.expect(
            "intermediate size of the shared experts",
            shared,
            1..=MAX_SIZE,
        )?;
        self.expect("number of experts", self.num_experts, 1..=MAX_SIZE)?;
        self.expect(
            "number of experts per token",
            self.top_k,
            1..=self.num_experts,
        )?;
        let Some(groups) = self.router.groups else {
            return Ok(());
        };
        self.expect(
            "number of expert groups",
            groups.num_groups,
            1..=self.num_experts,
        )?;
        self.expect(
            "number of groups per token",
            groups.top_groups,
            1..=groups.num_groups,
        )?;
        let size = self.num_experts / groups.num_groups;
        if size * groups.num_groups != self.num_experts {
            return Err(self.error(
                "number of expert groups",
                groups.num_groups,
                format!("a divisor of {} experts", self.num_experts),
            ));
        }
        if groups.score == GroupScore::Top2Sum && size < 2 {
            return Err(self.error(
                "number of experts of a group",
                size,
                "at least 2, because groups are compared by their two best".to_owned(),
            ));
        }
        let choice = size * groups.top_groups;
        self.expect(
            "number of experts per token within its groups",
            self.top_k,
            1..=choice,
        )
    }

    fn expect(
        &self,
        what: &'static str,
        got: usize,
        range: RangeInclusive<usize>,
    ) -> Result<(), QuantError> {
        match range.contains(&got) {
            true => Ok(()),
            false => Err(self.error(what, got, format!("{} to {}", range.start(), range.end()))),
        }
    }

    fn error(&self, what: &'static str, got: usize, expected: String) -> QuantError {
        QuantError::Layer {
            layer: self.layer,
            what,
            got,
            expected,
        }
    }
}

/// No model comes near; below it, no product of two sizes overflows.
pub(crate) const MAX_SIZE: usize = 1 << 31;

/// The shared experts of a layer: one MLP as wide as all of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SharedExpertsSpec {
    /// Module that holds the three projections (`model.layers.3.mlp.shared_experts`).
    pub module: String,
    /// Names of the projections.
    pub names: MlpNames,
    /// Width of the whole MLP: `num_experts` times that of one.
    pub intermediate_size: usize,
    /// How many shared experts the MLP is made of.
    pub num_experts: usize,
    /// Whether the projections have biases (`{module}.{name}.bias`).
    pub bias: bool,
    /// Weight `[1, H]` of the gate: the output is multiplied by `sigmoid(gate(x))`.
    pub gate: Option<String>,
    /// What the output is multiplied by.
    pub scaling: f32,
}

impl SharedExpertsSpec {
    /// One shared MLP, added as it is.
    pub fn new(module: impl Into<String>, names: MlpNames, intermediate_size: usize) -> Self {
        Self {
            module: module.into(),
            names,
            intermediate_size,
            num_experts: 1,
            bias: false,
            gate: None,
            scaling: 1.0,
        }
    }
}
