//! Placements in the files that other engines load at their start.
//!
//! | engine | option | file |
//! |---|---|---|
//! | SGLang | `--init-expert-location` | `{"physical_to_logical_map": [[..], ..]}`, one row per layer of the model |
//! | TensorRT-LLM | `moe_config.load_balancer` | YAML: `num_slots`, `initial_global_assignments` by layer of the model |
//! | vLLM | `--expert-placement-file` ([proposed](https://github.com/vllm-project/vllm/pull/34811)) | `{"expert_to_ep_rank": [..]}`, for all layers |
//! | vllm-ascend | `eplb_config.expert_map_path` | `moe_layer_count`, `layer_list[].device_list[].device_expert` |
//!
//! Each engine has its rules; a placement that breaks one is an error that names it.

use std::fmt::Write as _;
use std::path::Path;
use std::str::FromStr;

use moekit_placement::{ModelPlacement, Placement};
use moekit_routing::Rank;
use serde_json::json;

use crate::{EvalError, file};

/// An engine that loads placements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Engine {
    /// SGLang.
    Sglang,
    /// TensorRT-LLM.
    TensorRtLlm,
    /// vLLM.
    Vllm,
    /// vllm-ascend.
    VllmAscend,
}

impl Engine {
    /// All of them.
    pub const ALL: &'static [Self] = &[
        Self::Sglang,
        Self::TensorRtLlm,
        Self::Vllm,
        Self::VllmAscend,
    ];

    /// The name that a command line uses.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sglang => "sglang",
            Self::TensorRtLlm => "tensorrt-llm",
            Self::Vllm => "vllm",
            Self::VllmAscend => "vllm-ascend",
        }
    }

    /// The name as its makers write it.
    fn title(self) -> &'static str {
        match self {
            Self::Sglang => "SGLang",
            Self::TensorRtLlm => "TensorRT-LLM",
            Self::Vllm => "vLLM",
            Self::VllmAscend => "vllm-ascend",
        }
    }

    fn refuses(self, rule: &'static str, got: String) -> EvalError {
        EvalError::Engine {
            engine: self.title(),
            rule,
            got,
        }
    }
}

impl FromStr for Engine {
    type Err = EvalError;

    fn from_str(name: &str) -> Result<Self, EvalError> {
        let known = || Self::ALL.iter().map(|e| e.name()).collect::<Vec<_>>();
        Self::ALL
            .iter()
            .copied()
            .find(|engine| engine.name() == name)
            .ok_or_else(|| {
                EvalError::setting("the engine", format!("`{name}`"), known().join(", "))
            })
    }
}

/// Which layers of a model are its MoE layers. SGLang and TensorRT-LLM count all layers.
///
/// ```
/// use moekit_eval::engine_file::ModelLayers;
///
/// // DeepSeek-V3: 61 layers, the first three are dense.
/// let layers = ModelLayers::moe_from(3, 61)?;
/// assert_eq!(layers.moe_layers().len(), 58);
/// # Ok::<(), moekit_eval::EvalError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelLayers {
    num_layers: usize,
    moe_layers: Vec<usize>,
}

/// The most layers of a model. Some engines want a row for each.
const MAX_LAYERS: usize = 1 << 16;

impl ModelLayers {
    /// `num_layers` layers, of which `moe_layers` are MoE layers.
    ///
    /// # Errors
    ///
    /// If the MoE layers are not ascending, or one is not below `num_layers`, or there are more than
    /// 2^16 layers.
    pub fn new(num_layers: usize, moe_layers: Vec<usize>) -> Result<Self, EvalError> {
        Self::check(num_layers)?;
        let ascending = moe_layers.is_sorted_by(|a, b| a < b);
        if !ascending || moe_layers.last().is_some_and(|&last| last >= num_layers) {
            return Err(EvalError::setting(
                "the list of MoE layers",
                format!("{moe_layers:?}"),
                format!("ascending numbers below the {num_layers} layers of the model"),
            ));
        }
        Ok(Self {
            num_layers,
            moe_layers,
        })
    }

    /// `num_layers` layers, which are MoE layers from `first` on.
    ///
    /// # Errors
    ///
    /// If `first` is above `num_layers`, or there are more than 2^16 layers.
    pub fn moe_from(first: usize, num_layers: usize) -> Result<Self, EvalError> {
        Self::check(num_layers)?;
        if first > num_layers {
            return Err(EvalError::setting(
                "the first MoE layer",
                first,
                format!("at most {num_layers}, the layers of the model"),
            ));
        }
        Ok(Self {
            num_layers,
            moe_layers: (first..num_layers).collect(),
        })
    }

    fn check(num_layers: usize) -> Result<(), EvalError> {
        match num_layers {
            0..=MAX_LAYERS => Ok(()),
            _ => Err(EvalError::setting(
                "the number of layers of the model",
                num_layers,
                format!("at most {MAX_LAYERS}"),
            )),
        }
    }

    /// All layers.
    pub fn num_layers(&self) -> usize {
        self.num_layers
    }

    /// The MoE layers, ascending.
    pub fn moe_layers(&self) -> &[usize] {
        &self.moe_layers
    }
}

/// The text of an engine's file.
///
/// ```
/// use moekit_eval::engine_file::{Engine, ModelLayers, to_text};
/// use moekit_placement::{ModelPlacement, Placement};
///
/// let layer = Placement::from_ranks(3, &[[0, 2], [1, 0]])?;
/// let placement = ModelPlacement::new(vec![layer])?;
/// let layers = ModelLayers::new(2, vec![1])?;
/// let yaml = to_text(Engine::TensorRtLlm, &placement, &layers)?;
/// assert_eq!(yaml, "num_slots: 4\ninitial_global_assignments:\n  1: [0, 2, 1, 0]\n");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// [`EvalError::Engine`] if the placement breaks a rule of the engine; [`EvalError::Setting`] if
/// it has not one layer for each MoE layer of the model.
pub fn to_text(
    engine: Engine,
    placement: &ModelPlacement,
    layers: &ModelLayers,
) -> Result<String, EvalError> {
    if layers.moe_layers.len() != placement.num_layers() {
        return Err(EvalError::setting(
            "the number of MoE layers of the model",
            layers.moe_layers.len(),
            format!("{}, as the placement has", placement.num_layers()),
        ));
    }
    match engine {
        Engine::Sglang => sglang(placement, layers),
        Engine::TensorRtLlm => tensorrt_llm(placement, layers),
        Engine::Vllm => vllm(placement),
        Engine::VllmAscend => vllm_ascend(placement),
    }
}

/// Writes the file of an engine, whole or not at all.
///
/// # Errors
///
/// Those of [`to_text`], and if the file cannot be written.
pub fn write(
    path: impl AsRef<Path>,
    engine: Engine,
    placement: &ModelPlacement,
    layers: &ModelLayers,
) -> Result<(), EvalError> {
    file::write_whole(
        path.as_ref(),
        to_text(engine, placement, layers)?.as_bytes(),
    )
}

/// SGLang passes the keys of the object on as arguments: there may be no other. Layers that are
/// not MoE layers have a row too; it gets what SGLang itself starts with, slot modulo experts.
fn sglang(placement: &ModelPlacement, layers: &ModelLayers) -> Result<String, EvalError> {
    let slots = even_slots(Engine::Sglang, placement)? * placement.num_ranks();
    let trivial = |slot: usize| slot % placement.num_logical_experts();
    let mut rows = vec![(0..slots).map(trivial).collect(); layers.num_layers];
    for (&layer, placement) in layers.moe_layers.iter().zip(placement.layers()) {
        if let Some(row) = rows.get_mut(layer) {
            *row = slot_experts(placement);
        }
    }
    Ok(format!("{}\n", json!({ "physical_to_logical_map": rows })))
}

/// Laid out as by TensorRT-LLM's own `generate_eplb_config.py`, with one layer per line.
fn tensorrt_llm(placement: &ModelPlacement, layers: &ModelLayers) -> Result<String, EvalError> {
    let slots = even_slots(Engine::TensorRtLlm, placement)? * placement.num_ranks();
    let mut yaml = format!("num_slots: {slots}\ninitial_global_assignments:\n");
    for (layer, placement) in layers.moe_layers.iter().zip(placement.layers()) {
        // Writing to a string cannot fail.
        let _ = writeln!(yaml, "  {layer}: {:?}", slot_experts(placement));
    }
    Ok(yaml)
}

/// One list for all layers, without replicas. The experts of a rank are in ascending order there,
/// whatever their order in the placement.
fn vllm(placement: &ModelPlacement) -> Result<String, EvalError> {
    let refuses = |rule, got| Err(Engine::Vllm.refuses(rule, got));
    let mut ranks: Option<Vec<usize>> = None;
    for (l, layer) in placement.layers().iter().enumerate() {
        let replicas = layer.replica_counts();
        if let Some((expert, count)) = replicas.iter().enumerate().find(|(_, n)| **n > 1) {
            let got = format!("logical expert {expert} of layer {l} has {count}");
            return refuses("one slot per logical expert", got);
        }
        let here = expert_ranks(layer);
        match &ranks {
            Some(first) if *first != here => {
                let differs = first.iter().zip(&here).position(|(a, b)| a != b);
                let expert = differs.unwrap_or_default();
                let got = format!(
                    "logical expert {expert} is on rank {} in layer 0 and on rank {} in layer {l}",
                    first[expert], here[expert]
                );
                return refuses("the experts of all layers on the same ranks", got);
            }
            _ => ranks = Some(here),
        }
    }
    Ok(format!("{}\n", json!({ "expert_to_ep_rank": ranks })))
}

/// The file that `expert_map_record_path` writes and `expert_map_path` reads.
fn vllm_ascend(placement: &ModelPlacement) -> Result<String, EvalError> {
    let engine = Engine::VllmAscend;
    even_slots(engine, placement)?;
    if placement.num_ranks() < 2 {
        let rule = "two or more ranks (with one it does not read the file)";
        return Err(engine.refuses(rule, "it has 1".to_owned()));
    }
    for (l, layer) in placement.layers().iter().enumerate() {
        // A second copy would take the first one's place in the expert map, and shift the slots
        // of the ranks that follow.
        for (r, experts) in rank_experts(layer).into_iter().enumerate() {
            let mut sorted = experts;
            sorted.sort_unstable();
            if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
                let got = format!(
                    "rank {r} of layer {l} holds logical expert {} twice",
                    pair[0]
                );
                return Err(engine.refuses("no expert twice on a rank", got));
            }
        }
    }
    let layers = placement.layers().iter().enumerate().map(|(l, layer)| {
        let ranks = rank_experts(layer);
        let devices = ranks.iter().enumerate();
        json!({
            "layer_id": l,
            "device_count": ranks.len(),
            "device_list": devices
                .map(|(r, experts)| json!({"device_id": r, "device_expert": experts}))
                .collect::<Vec<_>>(),
        })
    });
    let map = json!({
        "moe_layer_count": placement.num_layers(),
        "layer_list": layers.collect::<Vec<_>>(),
    });
    Ok(format!("{map:#}\n"))
}

/// The slots of each rank, if they are the same everywhere: these engines find the owner of a
/// slot by division.
fn even_slots(engine: Engine, placement: &ModelPlacement) -> Result<usize, EvalError> {
    let mut slots = None;
    for (l, layer) in placement.layers().iter().enumerate() {
        for (r, offsets) in layer.rank_offsets().windows(2).enumerate() {
            let here = offsets[1] - offsets[0];
            let first = *slots.get_or_insert(here);
            if first != here {
                return Err(engine.refuses(
                    "the same number of slots on every rank of every layer",
                    format!("rank 0 of layer 0 has {first}, rank {r} of layer {l} has {here}"),
                ));
            }
        }
    }
    Ok(slots.unwrap_or_default())
}

fn slot_experts(layer: &Placement) -> Vec<usize> {
    layer
        .physical_to_logical()
        .iter()
        .map(|e| e.index())
        .collect()
}

/// The experts of each rank, slot by slot.
fn rank_experts(layer: &Placement) -> Vec<Vec<usize>> {
    (0..layer.num_ranks())
        .filter_map(|r| layer.experts_of(Rank::new(r)))
        .map(|experts| experts.iter().map(|e| e.index()).collect())
        .collect()
}

/// The rank of each expert, `[E]`, of a placement without replicas.
fn expert_ranks(layer: &Placement) -> Vec<usize> {
    let mut ranks = vec![0; layer.num_logical_experts()];
    for (rank, experts) in rank_experts(layer).into_iter().enumerate() {
        for expert in experts {
            ranks[expert] = rank;
        }
    }
    ranks
}
