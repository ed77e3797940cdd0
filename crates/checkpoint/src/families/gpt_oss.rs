//! gpt-oss: the top-k logits, softmax over those; biases everywhere; clamped SwiGLU with
//! interleaved gate and up rows. [gpt-oss model card](https://arxiv.org/abs/2508.10925).

use moekit_quant::{
    Activation, ExpertLayout, FusedOrder, FusedTensor, MlpNames, MoeLayerSpec, MoeModelSpec,
    RouterSpec, TopKSelection,
};

use super::common::sizes;
use crate::{CheckpointError, Family, ModelConfig};

pub(super) const FAMILY: Family = Family::builtin(&["gpt_oss"], spec);

fn spec(config: &ModelConfig<'_>) -> Result<MoeModelSpec, CheckpointError> {
    let sizes = sizes(config, "intermediate_size")?;
    // The published configurations leave the slope to the model's code.
    let activation = Activation::SwigluOai {
        alpha: config.float(&["swiglu_alpha"])?.unwrap_or(1.702),
        beta: config.float(&["swiglu_beta"])?.unwrap_or(1.0),
        limit: Some(config.float(&["swiglu_limit"])?.unwrap_or(7.0)),
    };
    config.layers("mlp.router.weight", |index, layer| {
        let mut router = RouterSpec::new(format!("{layer}.mlp.router.weight"));
        router.bias = Some(format!("{layer}.mlp.router.bias"));
        router.selection = TopKSelection::TopKThenScores;
        let module = format!("{layer}.mlp.experts");
        let experts = experts(config, module);
        let mut spec = MoeLayerSpec::new(index, sizes, experts, router);
        spec.activation = activation;
        Ok(Some(spec))
    })
}

/// `[E, H, 2 * I]` and `[E, I, H]` as published in bf16; quantizers that know linears only write
/// one module per expert.
fn experts(config: &ModelConfig<'_>, module: String) -> ExpertLayout {
    if config.has_module(&format!("{module}.0")) {
        return ExpertLayout::PerExpert {
            module,
            names: MlpNames::proj(),
            bias: true,
        };
    }
    let tensor = |name: &str| {
        FusedTensor::parameter(format!("{module}.{name}"))
            .transposed()
            .with_bias(format!("{module}.{name}_bias"))
    };
    ExpertLayout::Fused {
        gate_up: tensor("gate_up_proj"),
        order: FusedOrder::Interleaved,
        down: tensor("down_proj"),
    }
}
