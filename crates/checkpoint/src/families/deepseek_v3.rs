//! DeepSeek-V3 and R1, Kimi-K2: sigmoid scores, groups by their two best biased scores,
//! renormalized and scaled; dense first layers, shared experts.
//! [DeepSeek-V3](https://arxiv.org/abs/2412.19437), [Kimi K2](https://arxiv.org/abs/2507.20534).

use moekit_quant::MoeModelSpec;

use super::common::{NoauxTcDefaults, noaux_tc};
use crate::{CheckpointError, Family, ModelConfig};

pub(super) const FAMILY: Family = Family::builtin(
    &["deepseek_v3", "deepseek_v32", "kimi_k2", "kimi_k25"],
    spec,
);

fn spec(config: &ModelConfig<'_>) -> Result<MoeModelSpec, CheckpointError> {
    let method = config.text_or(&["topk_method"], "noaux_tc")?;
    if method != "noaux_tc" {
        return Err(config.unsupported(format!("topk_method `{method}`"), "noaux_tc"));
    }
    noaux_tc(
        config,
        &NoauxTcDefaults {
            groups: [8, 4],
            routed_scaling_factor: 2.5,
            first_k_dense_replace: 3,
        },
    )
}
