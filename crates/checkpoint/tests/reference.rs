//! Checkpoints with reference outputs, read by the backend that their configuration names.

#![allow(clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};

use common::{Output, forward, ranks};
use moekit_checkpoint::Checkpoint;
use moekit_quant::{
    CountingSource, ExpertLinear, ExpertMlp, ExpertWeights, MoeLayerSpec, PackedMatrix, ScaleGrid,
    backend_for,
};
use moekit_quant_compressed_tensors as _;
use moekit_quant_fp8 as _;
use moekit_quant_modelopt as _;
use moekit_quant_mxfp4 as _;
use moekit_quant_unquantized as _;
use moekit_routing::{ExpertRouting, RankView};

/// Frobenius-relative error of a layer's output.
const TOLERANCE: f64 = 1e-4;
/// Absolute error of a routing weight.
const WEIGHT_TOLERANCE: f32 = 1e-5;

/// What is wrong with a checkpoint.
type Failure = Box<dyn std::error::Error>;

/// Directories of checkpoints, as far as they are there; `MOEKIT_CHECKPOINTS` names one more.
fn directories() -> Vec<PathBuf> {
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

/// Runs a check on every MoE layer of every checkpoint; all failures are told at once.
fn every_layer(check: fn(&Checkpoint, &MoeLayerSpec) -> Result<(), Failure>) {
    let mut failures = Vec::new();
    let mut layers = 0;
    for dir in directories() {
        let mut check_all = || -> Result<(), Failure> {
            let checkpoint = Checkpoint::open(&dir)?;
            for layer in &checkpoint.model()?.layers {
                layers += 1;
                check(&checkpoint, layer)
                    .map_err(|failure| format!("layer {}: {failure}", layer.layer))?;
            }
            Ok(())
        };
        if let Err(failure) = check_all() {
            failures.push(format!("{}: {failure}", dir.display()));
        }
    }
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
    // The checkpoints of `examples/` are part of the repository.
    assert!(layers >= 4, "{layers}");
}

/// The tensors of `reference.safetensors` of one layer.
struct Reference {
    bytes: Vec<u8>,
    layer: usize,
}

impl Reference {
    fn read(checkpoint: &Checkpoint, layer: usize) -> Result<Self, Failure> {
        let bytes = std::fs::read(checkpoint.dir().join("reference.safetensors"))?;
        Ok(Self { bytes, layer })
    }

    fn rows(&self, name: &str) -> Result<Vec<Vec<f32>>, Failure> {
        self.chunks(name, 4, |b| f32::from_le_bytes(b.try_into().unwrap()))
    }

    fn ids(&self, name: &str) -> Result<Vec<Vec<usize>>, Failure> {
        self.chunks(name, 8, |b| {
            i64::from_le_bytes(b.try_into().unwrap()) as usize
        })
    }

    fn chunks<T>(
        &self,
        name: &str,
        size: usize,
        value: fn(&[u8]) -> T,
    ) -> Result<Vec<Vec<T>>, Failure> {
        let tensors = safetensors::SafeTensors::deserialize(&self.bytes)?;
        let tensor = tensors.tensor(&format!("layers.{}.{name}", self.layer))?;
        let row = tensor.shape()[1] * size;
        let rows = tensor.data().chunks(row);
        Ok(rows
            .map(|row| row.chunks(size).map(value).collect())
            .collect())
    }

    /// Experts, their weights and the output are those of the original.
    fn compare(&self, output: &Output) -> Result<(), Failure> {
        let originals = self
            .ids("topk_ids")?
            .into_iter()
            .zip(self.rows("topk_weights")?);
        for (got, (ids, weights)) in output.routed.iter().zip(originals) {
            let mut got = got.clone();
            let mut want: Vec<_> = ids.into_iter().zip(weights).collect();
            got.sort_by_key(|(id, _)| *id);
            want.sort_by_key(|(id, _)| *id);
            let same = got
                .iter()
                .zip(&want)
                .all(|((id, weight), (want_id, want_weight))| {
                    id == want_id && (weight - want_weight).abs() <= WEIGHT_TOLERANCE
                });
            if !same {
                return Err(format!("routed to {got:?}, expected {want:?}").into());
            }
        }
        let want = self.rows("output")?;
        let (mut error, mut norm) = (0.0, 0.0);
        for (got, want) in output.rows.iter().flatten().zip(want.iter().flatten()) {
            error += f64::from(got - want).powi(2);
            norm += f64::from(*want).powi(2);
        }
        match (error / norm).sqrt() {
            relative if relative <= TOLERANCE => Ok(()),
            relative => Err(format!("relative error {relative:e}").into()),
        }
    }
}

fn load(
    checkpoint: &Checkpoint,
    layer: &MoeLayerSpec,
    ranks: Vec<RankView>,
) -> Result<Vec<(RankView, ExpertWeights)>, Failure> {
    let backend = backend_for(checkpoint.quantization_config())?;
    ranks
        .into_iter()
        .map(|rank| {
            let weights = backend.load_experts(layer, checkpoint, &rank)?;
            Ok((rank, weights))
        })
        .collect()
}

/// Slots of ranks: all on one, not contiguous on three, with replicas and an empty rank on four.
fn placements(num_experts: usize) -> [Vec<Vec<usize>>; 3] {
    let all: Vec<usize> = (0..num_experts).collect();
    let strided = |r| all.iter().copied().filter(|e| e % 3 == r).collect();
    let replicated = all.iter().copied().chain([0]).collect();
    [
        vec![all.clone()],
        (0..3).map(strided).collect(),
        vec![replicated, vec![], vec![num_experts - 1], vec![0, 0]],
    ]
}

#[test]
fn outputs_match_the_original_libraries() {
    every_layer(|checkpoint, layer| {
        let reference = Reference::read(checkpoint, layer.layer)?;
        let x = reference.rows("input")?;
        let slots = &placements(layer.num_experts)[0];
        let loaded = load(checkpoint, layer, ranks(layer.num_experts, slots, 0))?;
        reference.compare(&forward(layer, checkpoint, &loaded, &x))
    });
}

#[test]
fn every_slot_of_every_rank_holds_its_expert() {
    every_layer(|checkpoint, layer| {
        let [one, others @ ..] = placements(layer.num_experts);
        let one = load(checkpoint, layer, ranks(layer.num_experts, &one, 0))?;
        for slots in others {
            for (rank, weights) in load(checkpoint, layer, ranks(layer.num_experts, &slots, 0))? {
                let held = rank.local_experts();
                if held.len() != weights.experts.len() {
                    return Err(
                        format!("{} slots, not {}", weights.experts.len(), held.len()).into(),
                    );
                }
                for (expert, got) in held.iter().zip(&weights.experts) {
                    let want = &one[0].1.experts[expert.index()];
                    if !got
                        .linears()
                        .zip(want.linears())
                        .all(|(a, b)| is_same(a, b))
                    {
                        return Err(format!("another expert in the slot of {expert}").into());
                    }
                }
            }
        }
        Ok(())
    });
}

/// Whether two linears are the same part of the same tensors.
fn is_same(a: &ExpertLinear, b: &ExpertLinear) -> bool {
    let grid =
        |g: Option<&ScaleGrid>| g.map(|g| (g.bytes().clone(), g.shape(), g.strides(), g.phase()));
    let matrix = |m: &PackedMatrix| {
        let codes = (
            m.codes().clone(),
            m.rows(),
            m.cols(),
            m.row_stride(),
            m.col_stride(),
        );
        (
            codes,
            grid(m.scales()),
            grid(m.zero_points()),
            m.global_scale().to_bits(),
        )
    };
    matrix(&a.weight) == matrix(&b.weight) && a.bias == b.bias && a.input_quant == b.input_quant
}

#[test]
fn fused_shared_experts_give_the_same_output() {
    every_layer(|checkpoint, layer| {
        let Some(shared) = &layer.shared else {
            return Ok(());
        };
        let num_shared = shared.intermediate_size / layer.intermediate_size;
        if num_shared * layer.intermediate_size != shared.intermediate_size {
            return Ok(());
        }
        let slots = &placements(layer.num_experts)[1];
        let loaded = load(
            checkpoint,
            layer,
            ranks(layer.num_experts, slots, num_shared),
        )?;
        let reference = Reference::read(checkpoint, layer.layer)?;
        let x = reference.rows("input")?;
        reference.compare(&forward(layer, checkpoint, &loaded, &x))
    });
}

#[test]
fn a_rank_reads_and_keeps_its_own_experts_only() {
    every_layer(|checkpoint, layer| {
        let backend = backend_for(checkpoint.quantization_config())?;
        let load = |slots: &[usize]| {
            let others = (0..layer.num_experts)
                .filter(|e| !slots.contains(e))
                .collect();
            let ranks = ranks(layer.num_experts, &[slots.to_vec(), others], 0);
            let source = CountingSource::new(checkpoint);
            let weights = backend.load_experts(layer, &source, &ranks[0])?;
            Ok::<_, Failure>((source.bytes_read(), weights))
        };
        let read_by = |slots: &[usize]| Ok::<_, Failure>(load(slots)?.0.values().sum::<usize>());
        let shared = read_by(&[])?;
        let own: Vec<usize> = (0..layer.num_experts)
            .map(|expert| Ok(read_by(&[expert])? - shared))
            .collect::<Result<_, Failure>>()?;
        let last = layer.num_experts - 1;
        let three = read_by(&[0, last, 1, 0])? - shared;
        if three != own[0] + own[1] + own[last] {
            return Err(format!("three experts read {three} bytes, each {own:?}").into());
        }
        let all: Vec<usize> = (0..layer.num_experts).collect();
        let (read, weights) = load(&all)?;
        if read.values().sum::<usize>() - shared != own.iter().sum::<usize>() {
            return Err(format!("all experts read {read:?}, each {own:?}").into());
        }
        // Weights are kept as they are; biases, a vector beside a matrix, as f32.
        let weight_bytes = |expert: &ExpertMlp| -> usize {
            expert
                .linears()
                .map(|linear| linear.weight.num_bytes())
                .sum()
        };
        let kept: usize = weights
            .experts
            .iter()
            .chain(&weights.shared)
            .map(|e| weight_bytes(e))
            .sum();
        let biases = read.iter().filter(|(name, _)| name.ends_with("bias"));
        let read = read.values().sum::<usize>() - biases.map(|(_, bytes)| bytes).sum::<usize>();
        match kept as f64 <= 1.05 * read as f64 {
            true => Ok(()),
            false => Err(format!("{kept} bytes kept of {read} read").into()),
        }
    });
}
