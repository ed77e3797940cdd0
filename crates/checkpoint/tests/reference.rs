//! Checkpoints with reference outputs, read by the backend that their configuration names.

mod common;

use std::path::{Path, PathBuf};

use common::{OneRank, Output, forward, ranks};
use moekit_checkpoint::Checkpoint;
use moekit_quant::{ExpertWeights, MoeLayerSpec, TensorSource, backend_for};
use moekit_quant_unquantized as _;

/// Frobenius-relative error of a layer's output.
const TOLERANCE: f64 = 1e-4;

/// Directories of checkpoints, as far as they are there.
fn checkpoints() -> Vec<PathBuf> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let roots = [
        "examples/checkpoints",
        "tests/fixtures/checkpoints",
        "../shared/checkpoints",
    ];
    let mut found: Vec<PathBuf> = roots
        .iter()
        .map(|root| workspace.join(root))
        .chain(std::env::var_os("MOEKIT_CHECKPOINTS").map(PathBuf::from))
        .filter_map(|root| root.read_dir().ok())
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|dir| dir.join("reference.safetensors").is_file())
        .collect();
    found.sort();
    found
}

/// The tensors of `reference.safetensors` as `f32` rows.
struct Reference(Vec<u8>);

impl Reference {
    fn rows(&self, name: &str) -> Vec<Vec<f32>> {
        self.chunks(name, 4, |b| f32::from_le_bytes(b.try_into().unwrap()))
    }

    fn ids(&self, name: &str) -> Vec<Vec<usize>> {
        self.chunks(name, 8, |b| {
            i64::from_le_bytes(b.try_into().unwrap()) as usize
        })
    }

    fn chunks<T>(&self, name: &str, size: usize, value: fn(&[u8]) -> T) -> Vec<Vec<T>> {
        let tensors = safetensors::SafeTensors::deserialize(&self.0).unwrap();
        let tensor = tensors.tensor(name).unwrap();
        let row = tensor.shape()[1] * size;
        tensor
            .data()
            .chunks(row)
            .map(|row| row.chunks(size).map(value).collect())
            .collect()
    }
}

fn load(
    checkpoint: &Checkpoint,
    layer: &MoeLayerSpec,
    ranks: Vec<OneRank>,
) -> Vec<(OneRank, ExpertWeights)> {
    let backend = backend_for(checkpoint.quantization_config()).unwrap();
    ranks
        .into_iter()
        .map(|rank| {
            let weights = backend.load_experts(layer, checkpoint, &rank).unwrap();
            (rank, weights)
        })
        .collect()
}

/// Slots of ranks: all on one, not contiguous on three, with replicas and an empty rank on four.
fn placements(num_experts: usize) -> [Vec<Vec<usize>>; 3] {
    let all: Vec<usize> = (0..num_experts).collect();
    let strided = (0..3).map(|r| all.iter().copied().filter(|e| e % 3 == r).collect());
    let mut replicated = all.clone();
    replicated.push(0);
    [
        vec![all.clone()],
        strided.collect(),
        vec![replicated, vec![], vec![num_experts - 1], vec![0, 0]],
    ]
}

fn compare(output: &Output, reference: &Reference, layer: usize, dir: &Path) {
    let ids = reference.ids(&format!("layers.{layer}.topk_ids"));
    let weights = reference.rows(&format!("layers.{layer}.topk_weights"));
    for ((got, ids), weights) in output.routed.iter().zip(ids).zip(weights) {
        let mut got = got.clone();
        let mut want: Vec<_> = ids.into_iter().zip(weights).collect();
        got.sort_by_key(|(id, _)| *id);
        want.sort_by_key(|(id, _)| *id);
        for ((id, weight), (want_id, want_weight)) in got.iter().zip(&want) {
            assert_eq!(id, want_id, "{}: layer {layer}", dir.display());
            let difference = (weight - want_weight).abs();
            assert!(
                difference <= 1e-5 * want_weight.abs().max(1.0),
                "{}",
                dir.display()
            );
        }
    }
    let want = reference.rows(&format!("layers.{layer}.output"));
    let (mut error, mut norm) = (0.0, 0.0);
    for (got, want) in output.rows.iter().flatten().zip(want.iter().flatten()) {
        error += f64::from(got - want).powi(2);
        norm += f64::from(*want).powi(2);
    }
    let relative = (error / norm).sqrt();
    assert!(
        relative <= TOLERANCE,
        "{}: layer {layer}: {relative:e}",
        dir.display()
    );
}

#[test]
fn outputs_match_the_original_libraries() {
    let mut layers = 0;
    for dir in checkpoints() {
        let checkpoint = Checkpoint::open(&dir).unwrap();
        let model = checkpoint.model().unwrap();
        let reference = Reference(std::fs::read(dir.join("reference.safetensors")).unwrap());
        for layer in &model.layers {
            let x = reference.rows(&format!("layers.{}.input", layer.layer));
            for slots in placements(layer.num_experts) {
                let ranks = ranks(layer.num_experts, &slots, 0);
                let loaded = load(&checkpoint, layer, ranks);
                let output = forward(layer, &checkpoint, &loaded, &x);
                compare(&output, &reference, layer.layer, &dir);
            }
            layers += 1;
        }
    }
    // The checkpoints of `examples/` are part of the repository.
    assert!(layers >= 4, "{layers}");
}

/// Fused into local slots, shared experts give the same output.
#[test]
fn fused_shared_experts_give_the_same_output() {
    for dir in checkpoints() {
        let checkpoint = Checkpoint::open(&dir).unwrap();
        let reference = Reference(std::fs::read(dir.join("reference.safetensors")).unwrap());
        for layer in &checkpoint.model().unwrap().layers {
            let Some(shared) = &layer.shared else {
                continue;
            };
            if shared.intermediate_size % layer.intermediate_size != 0 {
                continue;
            }
            let num_shared = shared.intermediate_size / layer.intermediate_size;
            let slots = &placements(layer.num_experts)[1];
            let loaded = load(
                &checkpoint,
                layer,
                ranks(layer.num_experts, slots, num_shared),
            );
            let x = reference.rows(&format!("layers.{}.input", layer.layer));
            let output = forward(layer, &checkpoint, &loaded, &x);
            compare(&output, &reference, layer.layer, &dir);
        }
    }
}

#[test]
fn a_rank_reads_the_bytes_of_its_own_experts_only() {
    for dir in checkpoints() {
        let checkpoint = Checkpoint::open(&dir).unwrap();
        for layer in &checkpoint.model().unwrap().layers {
            let read_by = |slots: Vec<usize>| {
                let source = moekit_quant::CountingSource::new(&checkpoint);
                let others: Vec<usize> = (0..layer.num_experts)
                    .filter(|e| !slots.contains(e))
                    .collect();
                let ranks = ranks(layer.num_experts, &[slots, others], 0);
                let backend = backend_for(checkpoint.quantization_config()).unwrap();
                let weights = backend.load_experts(layer, &source, &ranks[0]).unwrap();
                (source.bytes_read(), weights)
            };
            let (none, _) = read_by(vec![]);
            let (three, weights) = read_by(vec![0, layer.num_experts - 1, 1, 0]);
            let all = read_by((0..layer.num_experts).collect()).0;
            let total =
                |read: &std::collections::BTreeMap<String, usize>| -> usize { read.values().sum() };
            let own = total(&three) - total(&none);
            let every = total(&all) - total(&none);
            let name = dir.display();
            assert_eq!(own * layer.num_experts, every * 3, "{name}");
            // What is kept in memory is what was read, but for derived tensors.
            let kept = weights.num_bytes() as f64;
            let read = total(&three) as f64;
            assert!(kept <= 1.05 * read, "{name}: {kept} {read}");
            for tensor in three.keys() {
                assert!(checkpoint.contains(tensor));
                let own = ["0", "1", &(layer.num_experts - 1).to_string()]
                    .iter()
                    .any(|e| tensor.contains(&format!(".experts.{e}.")));
                let per_expert = tensor.contains(".experts.")
                    && tensor.split('.').any(|part| part.parse::<usize>().is_ok())
                    && tensor.split(".experts.").nth(1).is_some_and(|rest| {
                        rest.split('.')
                            .next()
                            .is_some_and(|e| e.parse::<usize>().is_ok())
                    });
                assert!(own || !per_expert, "{name}: {tensor}");
            }
        }
    }
}
