//! What families make of the names of a checkpoint's tensors, and which they refuse.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use moekit_checkpoint::{CheckpointError, ModelConfig};
use moekit_quant::ExpertLayout;
use serde_json::{Value, json};

#[path = "common/configs.rs"]
mod configs;

use configs::{deepseek_v3, qwen3, with};

/// Tensor names show what comes before the layers, and how the experts are laid out.
#[test]
fn names_tell_prefix_and_layout() {
    let module = |names: &[&str], config: &Value| {
        let spec = ModelConfig::new(config, names.iter().copied())
            .model()
            .unwrap();
        (
            spec.layers[0].router.weight.clone(),
            spec.layers[0].experts.clone(),
        )
    };
    let names = [
        "mtp.layers.0.mlp.gate.weight",
        "model.language_model.layers.0.mlp.gate.weight",
        "model.language_model.layers.1.mlp.gate.weight",
        "model.language_model.layers.0.mlp.experts.gate_up_proj",
        "visual.blocks.0.mlp.gate.weights",
    ];
    let (gate, experts) = module(&names, &with(&qwen3(), "model_type", json!("qwen3_next")));
    assert_eq!(gate, "model.language_model.layers.0.mlp.gate.weight");
    assert!(matches!(experts, ExpertLayout::Fused { .. }));
    let (gate, experts) = module(&[], &qwen3());
    assert_eq!(gate, "model.layers.0.mlp.gate.weight");
    assert!(matches!(experts, ExpertLayout::PerExpert { .. }));
}

/// What the configuration forgets is not left out in silence.
#[test]
fn parts_that_the_configuration_forgets_are_told() {
    let model = |config: &Value, name: &str| {
        let names = ["model.layers.1.mlp.gate.weight", name];
        ModelConfig::new(config, names).model()
    };
    let shared = "model.layers.1.mlp.shared_expert.up_proj.weight";
    let error = model(&qwen3(), shared).unwrap_err().to_string();
    assert!(error.contains(shared), "{error}");
    let known = with(&qwen3(), "shared_expert_intermediate_size", json!(4));
    assert!(model(&known, shared).is_ok());
    let bias = "model.layers.1.mlp.gate.e_score_correction_bias";
    let error = model(&qwen3(), bias).unwrap_err().to_string();
    assert!(error.contains(bias), "{error}");
    // Layer 11 is not layer 1.
    assert!(model(&qwen3(), "model.layers.11.mlp.shared_expert.up_proj.weight").is_ok());
    let none = with(&deepseek_v3(), "n_shared_experts", json!(0));
    let shared = "model.layers.3.mlp.shared_experts.up_proj.weight";
    assert!(model(&none, shared).is_err() && model(&deepseek_v3(), shared).is_ok());
}

/// A bias or a scale of the inputs that nobody adds would make the output wrong.
#[test]
fn biases_that_no_layer_names_are_told() {
    let mixtral = json!({
        "model_type": "mixtral", "hidden_size": 8, "intermediate_size": 4, "num_hidden_layers": 1,
        "num_local_experts": 4, "num_experts_per_tok": 2,
    });
    let gpt_oss = with(&mixtral, "model_type", json!("gpt_oss"));
    let shared = with(&qwen3(), "shared_expert_intermediate_size", json!(4));
    let model = |config: &Value, gate: &str, name: &str| {
        let (gate, name) = (
            format!("model.layers.0.{gate}"),
            format!("model.layers.0.{name}"),
        );
        let names = [gate.as_str(), name.as_str()];
        ModelConfig::new(config, names).model()
    };
    let moe = "block_sparse_moe.gate.weight";
    for (config, gate, name) in [
        (&mixtral, moe, "block_sparse_moe.experts.3.w2.bias"),
        (
            &mixtral,
            moe,
            "block_sparse_moe.experts.0.w1.pre_quant_scale",
        ),
        (&mixtral, moe, "block_sparse_moe.gate.bias"),
        (&shared, "mlp.gate.weight", "mlp.shared_expert.up_proj.bias"),
        (&shared, "mlp.gate.weight", "mlp.shared_expert_gate.bias"),
        (&gpt_oss, "mlp.router.weight", "mlp.experts.down_proj.bias"),
    ] {
        let error = model(config, gate, name).unwrap_err().to_string();
        assert!(
            error.contains(&format!("`model.layers.0.{name}`, of which")),
            "{error}"
        );
    }
    // Biases that the family names, and those of other parts of the layer.
    for name in [
        "mlp.router.bias",
        "mlp.experts.down_proj_bias",
        "mlp.experts.0.up_proj.bias",
    ] {
        assert!(model(&gpt_oss, "mlp.router.weight", name).is_ok(), "{name}");
    }
    assert!(model(&mixtral, moe, "self_attn.q_proj.bias").is_ok());
}

/// Where a key gives MLPs biases, routed experts have those that are stored.
#[test]
fn routed_experts_may_have_biases() {
    for (model_type, key) in [("ernie4_5_moe", "use_bias"), ("deepseek_v2", "mlp_bias")] {
        let mut config = json!({
            "model_type": model_type, "hidden_size": 8, "moe_intermediate_size": 4,
            "num_hidden_layers": 2, "num_experts": 4, "num_experts_per_tok": 2,
            "n_shared_experts": 1, key: true,
        });
        let name = "model.layers.1.mlp.experts.0.up_proj.bias";
        let biases = |config: &Value, names: &[&str]| {
            let names = names
                .iter()
                .copied()
                .chain(["model.layers.1.mlp.gate.weight"]);
            let spec = ModelConfig::new(config, names).model()?;
            let layer = spec.layer(1).unwrap();
            let ExpertLayout::PerExpert { bias, .. } = &layer.experts else {
                panic!("{:?}", layer.experts);
            };
            Ok::<_, CheckpointError>((*bias, layer.shared.as_ref().unwrap().bias))
        };
        assert_eq!(biases(&config, &[]).unwrap(), (false, true));
        assert_eq!(biases(&config, &[name]).unwrap(), (true, true));
        config[key] = json!(false);
        assert!(biases(&config, &[name]).is_err(), "{model_type}");
    }
}
