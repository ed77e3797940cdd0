//! Directories that are not checkpoints, and files that are not what they say.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::Path;

use moekit_checkpoint::Checkpoint;
use moekit_quant::{TensorDtype, TensorSource};
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use serde_json::json;
use tempfile::TempDir;

/// A directory with `config.json` and, if `tensor` is named, one shard that holds it.
fn directory(config: &str, file: &str, tensor: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("config.json"), config).unwrap();
    let data = [1_u8, 2, 3, 4];
    let view = TensorView::new(Dtype::U8, vec![4], &data).unwrap();
    let tensors = HashMap::from([(tensor, view)]);
    serialize_to_file(&tensors, None, &dir.path().join(file)).unwrap();
    dir
}

fn error(dir: &Path) -> String {
    Checkpoint::open(dir).unwrap_err().to_string()
}

fn index(dir: &Path, map: &serde_json::Value) {
    let text = json!({ "metadata": {}, "weight_map": map }).to_string();
    fs::write(dir.join("model.safetensors.index.json"), text).unwrap();
}

#[test]
fn a_small_checkpoint_is_read() {
    let dir = directory("{}", "model.safetensors", "a");
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(checkpoint.info("a").unwrap().dtype, TensorDtype::U8);
    assert_eq!(&checkpoint.read("a", 1..3).unwrap()[..], [2, 3]);
    assert!(
        checkpoint
            .read("a", 1..5)
            .unwrap_err()
            .to_string()
            .contains("bytes 1..5 of tensor `a`")
    );
    assert!(
        checkpoint
            .read("b", 0..1)
            .unwrap_err()
            .to_string()
            .contains("tensor `b` is missing")
    );
    assert_eq!(checkpoint.quantization_config(), None);
}

#[test]
fn what_is_missing_is_named() {
    let dir = tempfile::tempdir().unwrap();
    assert!(error(dir.path()).contains("there is no config.json"));
    assert!(error(&dir.path().join("nowhere")).contains("there is no config.json"));
    fs::write(dir.path().join("config.json"), "{}").unwrap();
    assert!(
        error(dir.path()).contains("neither model.safetensors nor model.safetensors.index.json")
    );
}

#[test]
fn configurations_that_are_not_json_are_told() {
    for (text, expected) in [
        ("", "EOF while parsing"),
        ("{\"a\": NaN}", "expected value"),
        ("{} {}", "trailing characters"),
        (&"[".repeat(1 << 20), "recursion limit exceeded"),
        (&"{\"a\":".repeat(1 << 20), "recursion limit exceeded"),
    ] {
        let dir = directory(text, "model.safetensors", "a");
        let error = error(dir.path());
        assert!(
            error.contains("config.json is not valid") && error.contains(expected),
            "{error}"
        );
    }
}

#[test]
fn files_that_are_too_large_are_not_read() {
    let dir = directory("{}", "model.safetensors", "a");
    File::create(dir.path().join("config.json"))
        .unwrap()
        .set_len(1 << 40)
        .unwrap();
    assert!(error(dir.path()).contains("has 1099511627776 bytes, more than the 33554432"));
    let dir = directory("{}", "shard.safetensors", "a");
    let path = dir.path().join("model.safetensors.index.json");
    File::create(path).unwrap().set_len(1 << 40).unwrap();
    assert!(error(dir.path()).contains("more than the 134217728"));
}

#[test]
fn truncated_files_are_told() {
    let dir = directory("{}", "model.safetensors", "a");
    let path = dir.path().join("model.safetensors");
    let whole = fs::read(&path).unwrap();
    for len in 0..whole.len() {
        fs::write(&path, &whole[..len]).unwrap();
        let error = error(dir.path());
        assert!(
            error.contains("model.safetensors is not a whole safetensors file"),
            "{error}"
        );
    }
    fs::write(&path, [&whole[..], &[0]].concat()).unwrap();
    assert!(error(dir.path()).contains("tensors end at byte 4 of the data, but 5 bytes follow"));
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert!(error(dir.path()).contains("neither model.safetensors"));
}

#[test]
fn files_that_were_not_fetched_are_told() {
    let dir = directory("{}", "model.safetensors", "a");
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n";
    fs::write(dir.path().join("model.safetensors"), pointer).unwrap();
    assert!(error(dir.path()).contains("`git lfs pull`"));
}

/// A header that claims gigabytes costs nothing.
#[test]
fn headers_that_claim_gigabytes_are_told() {
    let dir = directory("{}", "model.safetensors", "a");
    let path = dir.path().join("model.safetensors");
    for claim in [1 << 20, 3 << 30, u64::MAX - 7, u64::MAX] {
        let mut file = fs::read(&path).unwrap();
        file[..8].copy_from_slice(&claim.to_le_bytes());
        fs::write(&path, file).unwrap();
        let error = error(dir.path());
        assert!(
            error.contains(&format!("claims a header of {claim} bytes")),
            "{error}"
        );
    }
}

#[test]
fn indices_must_fit_their_shards() {
    let dir = directory("{}", "one.safetensors", "a");
    let told = |map: serde_json::Value| {
        index(dir.path(), &map);
        error(dir.path())
    };
    let missing = told(json!({ "a": "one.safetensors", "b": "two.safetensors" }));
    assert!(
        missing.contains("shard `two.safetensors` is missing"),
        "{missing}"
    );
    let lacks = told(json!({ "a": "one.safetensors", "b": "one.safetensors" }));
    assert!(
        lacks.contains("shard `one.safetensors` lacks tensor `b`"),
        "{lacks}"
    );
    for outside in [
        "../one.safetensors",
        "/etc/passwd",
        "",
        "..",
        "x/one.safetensors",
    ] {
        let error = told(json!({ "a": outside }));
        assert!(
            error.contains("is not the name of a file"),
            "{outside}: {error}"
        );
    }
    assert!(told(json!({ "a": 3 })).contains("invalid type"));
    fs::write(dir.path().join("model.safetensors.index.json"), "{}").unwrap();
    assert!(error(dir.path()).contains("missing field `weight_map`"));
    // A shard that is cut off is named.
    index(dir.path(), &json!({ "a": "one.safetensors" }));
    assert!(Checkpoint::open(dir.path()).is_ok());
    let path = dir.path().join("one.safetensors");
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    assert!(error(dir.path()).contains("one.safetensors is not a whole safetensors file"));
}

/// A tensor that the index does not name does not exist, as for other readers.
#[test]
fn the_index_says_which_shard_counts() {
    let dir = directory("{}", "one.safetensors", "a");
    fs::copy(
        dir.path().join("one.safetensors"),
        dir.path().join("two.safetensors"),
    )
    .unwrap();
    index(dir.path(), &json!({ "a": "two.safetensors" }));
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(checkpoint.tensor_names().collect::<Vec<_>>(), ["a"]);
}

#[test]
fn quantization_is_found_wherever_it_is() {
    let quantization = |config: &serde_json::Value, separate: Option<&serde_json::Value>| {
        let dir = directory(&config.to_string(), "model.safetensors", "a");
        if let Some(separate) = separate {
            let path = dir.path().join("hf_quant_config.json");
            fs::write(path, separate.to_string()).unwrap();
        }
        Checkpoint::open(dir.path())
            .map(|c| c.quantization_config().cloned())
            .map_err(|e| e.to_string())
    };
    let inline = json!({ "quant_method": "fp8" });
    let top = json!({ "quantization_config": inline });
    assert_eq!(quantization(&top, None).unwrap().as_ref(), Some(&inline));
    let nested = json!({ "quantization_config": null, "text_config": top });
    assert_eq!(quantization(&nested, None).unwrap().as_ref(), Some(&inline));
    let nested = json!({ "llm_config": top });
    assert_eq!(quantization(&nested, None).unwrap().as_ref(), Some(&inline));
    assert_eq!(
        quantization(&json!({ "text_config": {} }), None).unwrap(),
        None
    );
    // ModelOpt's own file, alone and beside what config.json says.
    let separate = json!({
        "producer": { "name": "modelopt" },
        "quantization": { "quant_algo": "FP8", "exclude_modules": ["lm_head"] },
    });
    let alone = quantization(&json!({}), Some(&separate)).unwrap().unwrap();
    assert_eq!(alone["quant_method"], "modelopt");
    assert_eq!(alone["quant_algo"], "FP8");
    let config =
        json!({ "quantization_config": { "quant_method": "modelopt", "quant_algo": "NVFP4" } });
    let both = quantization(&config, Some(&separate)).unwrap().unwrap();
    assert_eq!(
        (&both["quant_algo"], &both["exclude_modules"][0]),
        (&json!("NVFP4"), &json!("lm_head"))
    );
    let error = quantization(&json!({ "quantization_config": [1] }), None).unwrap_err();
    assert!(
        error.contains("`quantization_config` is [1], expected an object"),
        "{error}"
    );
    let error = quantization(&json!({}), Some(&json!({ "quantization": 1 }))).unwrap_err();
    assert!(error.contains("hf_quant_config.json"), "{error}");
}
