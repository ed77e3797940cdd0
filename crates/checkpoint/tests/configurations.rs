//! What families make of `config.json`, and what they refuse.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use moekit_checkpoint::{CheckpointError, ModelConfig, model_types};
use moekit_quant::{
    Activation, ExpertGroups, ExpertLayout, GroupScore, MoeModelSpec, ScoringFunction,
    TopKSelection,
};
use serde_json::{Value, json};

#[path = "common/configs.rs"]
mod configs;

use configs::{deepseek_v3, qwen3, with};

fn model(config: &Value) -> Result<MoeModelSpec, CheckpointError> {
    ModelConfig::new(config, []).model()
}

fn layers(config: &Value) -> Vec<usize> {
    model(config)
        .unwrap()
        .layers
        .iter()
        .map(|layer| layer.layer)
        .collect()
}

fn told(config: &Value) -> String {
    model(config).unwrap_err().to_string()
}

#[test]
fn every_family_of_the_list_is_known() {
    let known = model_types().unwrap();
    for family in [
        "dbrx",
        "deepseek_v2",
        "deepseek_v3",
        "ernie4_5_moe",
        "glm4_moe",
        "gpt_oss",
        "granitemoe",
        "kimi_k2",
        "llama4",
        "minimax_m2",
        "mixtral",
        "olmoe",
        "phimoe",
        "qwen2_moe",
        "qwen3_moe",
        "qwen3_next",
    ] {
        assert!(known.contains(&family), "{family}");
    }
}

#[test]
fn unknown_families_get_help() {
    let error = told(&json!({ "model_type": "mixtrall" }));
    assert!(
        error.starts_with("unknown model_type `mixtrall`, did you mean `mixtral`?"),
        "{error}"
    );
    assert!(
        error.contains("deepseek_v3") && error.contains("A family file says"),
        "{error}"
    );
    assert!(error.contains("register_family!"), "{error}");
    let error = told(&json!({ "model_type": "zzz" }));
    assert!(!error.contains("did you mean"), "{error}");
    for config in [
        json!({}),
        json!([]),
        json!(null),
        json!({ "model_type": 3 }),
    ] {
        assert!(
            told(&config).contains("`model_type` is"),
            "{}",
            told(&config)
        );
    }
}

#[test]
fn both_spellings_of_a_key() {
    let old = model(&qwen3()).unwrap();
    let mut new = qwen3();
    let map = new.as_object_mut().unwrap();
    let experts = map.remove("num_experts").unwrap();
    map.insert("num_local_experts".to_owned(), experts);
    let dtype = map.remove("torch_dtype").unwrap();
    map.insert("dtype".to_owned(), dtype);
    assert_eq!(model(&new).unwrap(), old);
    assert_eq!(old.dtype.as_deref(), Some("bfloat16"));
    assert_eq!(old.layers[0].activation, Activation::SILU);
}

#[test]
fn missing_and_impossible_numbers_are_told() {
    let mut config = qwen3();
    config.as_object_mut().unwrap().remove("hidden_size");
    let expected = "config.json: `hidden_size` is missing, expected a number from 1 to 2^31";
    assert_eq!(told(&config), expected);
    for (key, value, expected) in [
        ("num_experts", json!(0), "`num_experts"),
        ("num_experts", json!(-1), "is -1, expected a whole number"),
        ("num_experts", json!(1.5), "is 1.5, expected a whole number"),
        (
            "num_experts",
            json!(1e300),
            "expected a whole number up to 2^31",
        ),
        (
            "num_experts",
            json!("4"),
            "is \"4\", expected a whole number",
        ),
        (
            "num_experts_per_tok",
            json!(5),
            "experts per token is 5, expected 1 to 4",
        ),
        ("num_hidden_layers", json!(1 << 30), "at most 16384 layers"),
        (
            "norm_topk_prob",
            json!(1),
            "`norm_topk_prob` is 1, expected true or false",
        ),
        (
            "mlp_only_layers",
            json!([-1]),
            "expected a list of layer indices",
        ),
        (
            "hidden_act",
            json!("tanh"),
            "`silu`, `gelu` or `gelu_pytorch_tanh`",
        ),
    ] {
        let error = told(&with(&qwen3(), key, value));
        assert!(error.contains(expected), "{key}: {error}");
    }
}

/// A long value is not repeated at length.
#[test]
fn errors_stay_short() {
    let error = told(&with(&qwen3(), "num_experts", json!(vec![1; 100_000])));
    assert!(error.len() < 300, "{}", error.len());
}

#[test]
fn which_layers_are_moe_layers() {
    assert_eq!(layers(&qwen3()), [0, 1, 2, 3, 4, 5]);
    assert_eq!(
        layers(&with(&qwen3(), "decoder_sparse_step", json!(2))),
        [1, 3, 5]
    );
    assert_eq!(
        layers(&with(&qwen3(), "mlp_only_layers", json!([0, 4]))),
        [1, 2, 3, 5]
    );
    assert_eq!(layers(&deepseek_v3()), [2, 3, 4]);
    assert_eq!(
        layers(&with(&deepseek_v3(), "moe_layer_freq", json!(2))),
        [2, 4]
    );
    let llama = json!({
        "model_type": "llama4",
        "text_config": {
            "model_type": "llama4_text", "hidden_size": 8, "intermediate_size": 4,
            "num_hidden_layers": 6, "num_local_experts": 4, "num_experts_per_tok": 1,
            "interleave_moe_layer_step": 2,
        },
    });
    assert_eq!(layers(&llama), [1, 3, 5]);
    let mut listed = llama.clone();
    listed["text_config"]["moe_layers"] = json!([2]);
    assert_eq!(layers(&listed), [2]);
    let ernie = json!({
        "model_type": "ernie4_5_moe", "hidden_size": 8, "moe_intermediate_size": 4,
        "num_hidden_layers": 6, "moe_num_experts": 4, "moe_k": 2, "moe_layer_start_index": 1,
        "moe_layer_end_index": -1, "moe_layer_interval": 2,
    });
    assert_eq!(layers(&ernie), [1, 3, 5]);
    let end = |value: Value| with(&ernie, "moe_layer_end_index", value);
    assert_eq!(layers(&end(json!(3))), [1, 3]);
    assert_eq!(layers(&end(json!(3.0))), [1, 3]);
    assert_eq!(layers(&end(Value::Null)), [1, 3, 5]);
    let error = told(&end(json!("3")));
    assert!(error.contains("`moe_layer_end_index` is \"3\""), "{error}");
    for (config, key) in [
        (&qwen3(), "decoder_sparse_step"),
        (&deepseek_v3(), "moe_layer_freq"),
        (&llama["text_config"], "interleave_moe_layer_step"),
        (&ernie, "moe_layer_interval"),
    ] {
        let error = told(&with(config, key, json!(0)));
        assert!(
            error.contains(&format!("`{key}` is 0, expected a number from 1")),
            "{error}"
        );
    }
    let error = told(&with(&ernie, "moe_norm_min", json!(0.9)));
    assert!(
        error.contains("`moe_norm_min` is 0.9, expected at most 1e-6"),
        "{error}"
    );
    assert!(model(&with(&ernie, "moe_norm_min", json!(1e-12))).is_ok());
}

#[test]
fn groups_must_divide_the_experts() {
    let spec = model(&deepseek_v3()).unwrap();
    let router = &spec.layers[0].router;
    assert_eq!(
        router.groups,
        Some(ExpertGroups::new(4, 2, GroupScore::Top2Sum))
    );
    assert_eq!(router.scoring, ScoringFunction::Sigmoid);
    assert_eq!(spec.layers[0].shared.as_ref().unwrap().intermediate_size, 8);
    for (key, value, expected) in [
        (
            "n_group",
            json!(3),
            "is 3, expected a divisor of 16 experts",
        ),
        ("n_group", json!(0), "is 0, expected 1 to 16"),
        (
            "n_group",
            json!(16),
            "experts of a group is 1, expected at least 2",
        ),
        (
            "topk_group",
            json!(5),
            "groups per token is 5, expected 1 to 4",
        ),
        (
            "num_experts_per_tok",
            json!(9),
            "within its groups is 9, expected 1 to 8",
        ),
        (
            "topk_method",
            json!("greedy"),
            "topk_method `greedy` is not supported",
        ),
        (
            "scoring_func",
            json!("softmax"),
            "`scoring_func` is \"softmax\", expected `sigmoid`",
        ),
    ] {
        let error = told(&with(&deepseek_v3(), key, value));
        assert!(error.contains(expected), "{key}: {error}");
    }
    // One group is no grouping.
    let mut one = with(&deepseek_v3(), "n_group", json!(1));
    one["topk_group"] = json!(1);
    assert_eq!(model(&one).unwrap().layers[0].router.groups, None);
}

#[test]
fn variants_that_ports_disagree_on_are_refused() {
    let v2 = json!({
        "model_type": "deepseek_v2", "hidden_size": 8, "moe_intermediate_size": 4,
        "num_hidden_layers": 2, "n_routed_experts": 4, "num_experts_per_tok": 2,
    });
    assert!(model(&v2).is_ok());
    assert!(told(&with(&v2, "norm_topk_prob", json!(true))).contains("norm_topk_prob = true"));
    assert!(told(&with(&v2, "topk_method", json!("noaux_tc"))).contains("group_limited_greedy"));
    let error = told(&with(&v2, "scoring_func", json!("sigmoid")));
    assert!(error.contains("\"sigmoid\", expected `softmax`"), "{error}");
    let error = told(&with(&v2, "moe_layer_freq", json!(0)));
    assert!(error.contains("`moe_layer_freq` is 0"), "{error}");
    let minimax = json!({
        "model_type": "minimax_m2", "hidden_size": 8, "intermediate_size": 4,
        "num_hidden_layers": 1, "num_local_experts": 4, "num_experts_per_tok": 2,
    });
    assert!(model(&minimax).is_ok());
    let error = told(&with(&minimax, "scoring_func", json!("softmax")));
    assert!(error.contains("\"softmax\", expected `sigmoid`"), "{error}");
    let phi = json!({
        "model_type": "phimoe", "hidden_size": 8, "intermediate_size": 4, "num_hidden_layers": 1,
        "num_local_experts": 4, "num_experts_per_tok": 2,
    });
    let selection = model(&phi).unwrap().layers[0].router.selection;
    assert_eq!(selection, TopKSelection::SparseMixer { epsilon: 0.01 });
    assert!(told(&with(&phi, "num_experts_per_tok", json!(3))).contains("sparsemixer with 3"));
}

#[test]
fn dbrx_norms_and_activations() {
    let config = |ffn: Value| json!({ "model_type": "dbrx", "d_model": 8, "n_layers": 1, "ffn_config": ffn });
    let mut ffn = json!({ "ffn_hidden_size": 4, "moe_num_experts": 4, "moe_top_k": 2 });
    let renormalize = |ffn: &Value| {
        model(&config(ffn.clone())).unwrap().layers[0]
            .router
            .renormalize
    };
    assert!(renormalize(&ffn));
    ffn["moe_normalize_expert_weights"] = json!(1);
    assert!(renormalize(&ffn));
    ffn["moe_normalize_expert_weights"] = json!(null);
    assert!(!renormalize(&ffn));
    ffn["moe_normalize_expert_weights"] = json!(2);
    assert!(told(&config(ffn.clone())).contains("moe_normalize_expert_weights = 2"));
    ffn["moe_normalize_expert_weights"] = json!(1);
    ffn["ffn_act_fn"] = json!({ "name": "gelu" });
    let activation = model(&config(ffn.clone())).unwrap().layers[0].activation;
    assert_eq!(activation, Activation::Gelu { limit: None });
    for function in [
        json!("gelu"),
        json!({ "name": 3 }),
        json!({ "name": "tanh" }),
        json!({ "name": "gelu", "approximate": "tanh" }),
        json!({}),
    ] {
        ffn["ffn_act_fn"] = function;
        let error = told(&config(ffn.clone()));
        assert!(error.contains("`ffn_act_fn` is"), "{error}");
    }
    assert!(told(&config(json!(1))).contains("`ffn_config` is 1, expected an object"));
}

/// The configured constants of gpt-oss's activation are taken.
#[test]
fn swiglu_constants_are_configured() {
    let config = json!({
        "model_type": "gpt_oss", "hidden_size": 8, "intermediate_size": 4, "num_hidden_layers": 1,
        "num_local_experts": 4, "num_experts_per_tok": 2, "swiglu_limit": 5.5, "swiglu_alpha": 1.5,
    });
    let activation = model(&config).unwrap().layers[0].activation;
    assert_eq!(
        activation,
        Activation::SwigluOai {
            alpha: 1.5,
            beta: 1.0,
            limit: Some(5.5)
        }
    );
    let clamped = model(&with(&deepseek_v3(), "swiglu_limit", json!(10.0))).unwrap();
    assert_eq!(
        clamped.layers[0].activation,
        Activation::Silu { limit: Some(10.0) }
    );
}

/// What the text model is decides, whatever the model around it is called.
#[test]
fn wrapped_models_have_the_defaults_of_the_text_model() {
    let mut text = qwen3();
    text.as_object_mut().unwrap().remove("norm_topk_prob");
    let wrapped = json!({ "model_type": "my_vl", "text_config": text });
    for config in [&text, &wrapped] {
        assert!(!model(config).unwrap().layers[0].router.renormalize);
    }
    text["model_type"] = json!("qwen3_vl_moe_text");
    let wrapped = json!({ "model_type": "my_vl", "text_config": text });
    let names = ["model.layers.0.mlp.experts.gate_up_proj"];
    let spec = ModelConfig::new(&wrapped, names).model().unwrap();
    assert!(spec.layers[0].router.renormalize);
    assert!(matches!(&spec.layers[0].experts,
        ExpertLayout::Fused { gate_up, .. } if gate_up.transposed));
    assert_eq!(spec.model_type, "my_vl");
}

/// Qwen3-VL's fused experts lie as `[in, out]`, those of its successors as `[out, in]`.
#[test]
fn vision_models() {
    let fused = "model.language_model.layers.0.mlp.experts.gate_up_proj";
    for (model_type, expected) in [("qwen3_vl_moe", true), ("qwen3_5_moe", false)] {
        let mut text = qwen3();
        text["model_type"] = json!(format!("{model_type}_text"));
        let config = json!({ "model_type": model_type, "text_config": text });
        let names = [fused, "model.language_model.layers.0.mlp.gate.weight"];
        let spec = ModelConfig::new(&config, names).model().unwrap();
        let ExpertLayout::Fused { gate_up, .. } = &spec.layers[0].experts else {
            panic!("{:?}", spec.layers[0].experts);
        };
        assert_eq!(
            (gate_up.name.as_str(), gate_up.transposed),
            (fused, expected)
        );
        assert_eq!(spec.model_type, model_type);
    }
}

/// Another crate's family.
mod third_party {
    use super::*;
    use moekit_checkpoint::register_family;

    fn spec(config: &ModelConfig<'_>) -> Result<MoeModelSpec, CheckpointError> {
        config.layers("router.weight", |_, _| Ok(None))
    }

    register_family!(["dense_only"], spec);

    #[test]
    fn it_is_known() {
        let config =
            json!({ "model_type": "dense_only", "num_hidden_layers": 3, "hidden_size": 8 });
        let spec = model(&config).unwrap();
        assert_eq!((spec.num_layers, spec.layers.len()), (3, 0));
        assert_eq!(spec.model_type, "dense_only");
    }
}
