//! Configurations of models, and changes of them.

use serde_json::{Value, json};

pub(crate) fn with(config: &Value, key: &str, value: Value) -> Value {
    let mut config = config.clone();
    config[key] = value;
    config
}

pub(crate) fn qwen3() -> Value {
    json!({
        "model_type": "qwen3_moe", "hidden_size": 8, "moe_intermediate_size": 4,
        "num_hidden_layers": 6, "num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": true,
        "torch_dtype": "bfloat16",
    })
}

pub(crate) fn deepseek_v3() -> Value {
    json!({
        "model_type": "deepseek_v3", "hidden_size": 8, "moe_intermediate_size": 4,
        "num_hidden_layers": 5, "n_routed_experts": 16, "num_experts_per_tok": 4, "n_group": 4,
        "topk_group": 2, "first_k_dense_replace": 2, "n_shared_experts": 2,
        "routed_scaling_factor": 2.5, "norm_topk_prob": true, "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
    })
}
