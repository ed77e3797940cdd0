use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use moekit::checkpoint::Checkpoint;
use moekit::fused_moe::GateTensors;
use moekit::kernels::PreparedExpert;
use moekit::quant::{
    Activation, ExpertWeights, MoeLayerSpec, QuantBackend, RouterSpec, SharedExpertsSpec,
    backend_for,
};
use moekit::routing::{ExpertRouting, Placement, Rank, RankView, RoutingTable, Topology};
use serde::Serialize;
use serde_json::Value;

use crate::error::Result;
use crate::output::{print_json, print_line};
use crate::planning::{GroupOptions, ReportOptions};

/// Arguments of `moekit inspect`.
#[derive(Args)]
pub(crate) struct Inspect {
    /// A Hugging Face checkpoint directory
    checkpoint: PathBuf,
    #[command(flatten)]
    group: GroupOptions,
    #[command(flatten)]
    report: ReportOptions,
}

#[derive(Serialize)]
struct Report {
    model_type: String,
    quant_method: String,
    dtype: Option<String>,
    hidden_size: usize,
    num_layers: usize,
    ranks: usize,
    strategy: String,
    layers: Vec<LayerReport>,
}

#[derive(Serialize)]
struct LayerReport {
    layer: usize,
    num_experts: usize,
    top_k: usize,
    hidden_size: usize,
    intermediate_size: usize,
    router: RouterSpec,
    activation: Activation,
    shared: Option<SharedExpertsSpec>,
    /// How the weights of the routed experts are stored; several if experts differ.
    formats: Vec<String>,
    /// Of the largest routed expert.
    bytes_per_expert: usize,
    /// Of the same in the memory of a rank, rearranged for the kernels.
    memory_per_expert: usize,
    bytes_per_rank: Vec<usize>,
    /// Why the layer cannot be loaded, if it cannot.
    #[serde(skip_serializing_if = "Option::is_none")]
    unsupported: Option<String>,
}

impl Inspect {
    pub(crate) fn run(self) -> Result<()> {
        let checkpoint = Checkpoint::open(&self.checkpoint)?;
        let model = checkpoint.model()?;
        let backend = backend_for(checkpoint.quantization_config())?;
        let topology = self.group.topology()?;
        let placements = self.placements(&model.layers, &topology)?;
        let layers = model
            .layers
            .iter()
            .zip(&placements)
            .map(|(layer, placement)| layer_report(layer, placement, &checkpoint, backend.as_ref()))
            .collect::<Result<_>>()?;
        let report = Report {
            model_type: model.model_type,
            quant_method: backend.name().to_owned(),
            dtype: model.dtype,
            hidden_size: model.hidden_size,
            num_layers: model.num_layers,
            ranks: topology.num_ranks(),
            strategy: self.group.strategy_name().to_owned(),
            layers,
        };
        if self.report.json {
            print_json(&report)
        } else {
            print_line(&report.lines())
        }
    }

    /// A placement for each layer. One plan places layers of equal size that follow each other.
    fn placements(&self, layers: &[MoeLayerSpec], topology: &Topology) -> Result<Vec<Placement>> {
        let strategy = self.group.strategy()?;
        let mut placements = Vec::with_capacity(layers.len());
        for alike in layers.chunk_by(|a, b| a.num_experts == b.num_experts) {
            let plan = strategy.plan(&self.group.request_for(alike, topology)?)?;
            placements.extend_from_slice(plan.layers());
        }
        Ok(placements)
    }
}

fn layer_report(
    spec: &MoeLayerSpec,
    placement: &Placement,
    checkpoint: &Checkpoint,
    backend: &dyn QuantBackend,
) -> Result<LayerReport> {
    let all = one_rank(spec.num_experts)?;
    // Views of a mapped file: no weight is read.
    let loaded = spec
        .check()
        .and_then(|()| GateTensors::check(spec, checkpoint))
        .and_then(|()| backend.load_experts(spec, checkpoint, &all));
    let (sizes, memory, formats) = match &loaded {
        Ok(weights) => (expert_bytes(weights), memory(weights)?, formats(weights)),
        Err(_) => (vec![0; spec.num_experts], 0, Vec::new()),
    };
    Ok(LayerReport {
        layer: spec.layer,
        num_experts: spec.num_experts,
        top_k: spec.top_k,
        hidden_size: spec.hidden_size,
        intermediate_size: spec.intermediate_size,
        router: spec.router.clone(),
        activation: spec.activation,
        shared: spec.shared.clone(),
        formats,
        bytes_per_expert: sizes.iter().copied().max().unwrap_or(0),
        memory_per_expert: memory,
        bytes_per_rank: bytes_per_rank(placement, &sizes),
        unsupported: loaded.err().map(|error| error.to_string()),
    })
}

/// All experts on one rank, in order.
fn one_rank(num_experts: usize) -> Result<impl ExpertRouting> {
    let placement = Placement::new(
        num_experts,
        (0..num_experts).collect(),
        vec![0, num_experts],
    )?;
    let table = RoutingTable::new(placement, Topology::new(1)?, 0, 0)?;
    Ok(RankView::new(Rank::new(0), Arc::new(table))?)
}

fn expert_bytes(weights: &ExpertWeights) -> Vec<usize> {
    weights
        .experts
        .iter()
        .map(|expert| expert.num_bytes())
        .collect()
}

/// Bytes of the largest expert once it is rearranged.
fn memory(weights: &ExpertWeights) -> Result<usize> {
    let sizes = weights.experts.iter().map(|e| PreparedExpert::bytes_of(e));
    let sizes = sizes.collect::<std::result::Result<Vec<_>, _>>()?;
    Ok(sizes.into_iter().max().unwrap_or(0))
}

/// The distinct formats of the experts' codes and scales.
fn formats(weights: &ExpertWeights) -> Vec<String> {
    let mut formats: Vec<String> = Vec::new();
    for linear in weights.experts.iter().flat_map(|expert| expert.linears()) {
        let weight = &linear.weight;
        let mut name = weight.format().name().to_owned();
        if let Some(scales) = weight.scales() {
            let [rows, cols] = scales.block();
            name += &format!(", {} scales per {rows}x{cols}", scales.format().name());
        }
        if !formats.contains(&name) {
            formats.push(name);
        }
    }
    formats
}

/// Bytes of the distinct experts of each rank.
fn bytes_per_rank(placement: &Placement, sizes: &[usize]) -> Vec<usize> {
    (0..placement.num_ranks())
        .map(|rank| {
            let mut experts = placement
                .experts_of(Rank::new(rank))
                .unwrap_or_default()
                .to_vec();
            experts.sort_unstable();
            experts.dedup();
            experts.iter().map(|e| sizes[e.index()]).sum()
        })
        .collect()
}

impl Report {
    fn lines(&self) -> String {
        let mut lines = vec![format!(
            "{}: {} of {} layers are MoE layers, hidden size {}, {}, {}",
            self.model_type,
            self.layers.len(),
            self.num_layers,
            self.hidden_size,
            self.quant_method,
            self.dtype.as_deref().unwrap_or("no dtype named"),
        )];
        for layer in &self.layers {
            lines.push(format!(
                "layer {}: {} experts, top-{}, intermediate size {}, {} per expert, {} in memory ({})",
                layer.layer,
                layer.num_experts,
                layer.top_k,
                layer.intermediate_size,
                bytes(layer.bytes_per_expert),
                bytes(layer.memory_per_expert),
                layer.formats.join("; "),
            ));
            lines.push(format!("  router      {}", describe_router(&layer.router)));
            lines.push(format!("  activation  {}", named(&layer.activation)));
            if let Some(shared) = &layer.shared {
                let gated = if shared.gate.is_some() { ", gated" } else { "" };
                lines.push(format!(
                    "  shared      {} wide{gated}",
                    shared.intermediate_size
                ));
            }
            let per_rank: Vec<_> = layer.bytes_per_rank.iter().map(|&b| bytes(b)).collect();
            lines.push(format!(
                "  per rank    {} ({})",
                per_rank.join(", "),
                self.strategy
            ));
            if let Some(reason) = &layer.unsupported {
                lines.push(format!("  not supported: {reason}"));
            }
        }
        lines.join("\n")
    }
}

fn describe_router(router: &RouterSpec) -> String {
    let mut parts = vec![named(&router.scoring), named(&router.selection)];
    if let Some(groups) = router.groups {
        parts.push(format!(
            "{} of {} groups by {}",
            groups.top_groups,
            groups.num_groups,
            named(&groups.score)
        ));
    }
    for (set, what) in [
        (router.renormalize, "renormalized"),
        (router.bias.is_some(), "bias"),
        (router.correction_bias.is_some(), "correction bias"),
        (router.weight_on_input, "weight on input"),
    ] {
        if set {
            parts.push(what.to_owned());
        }
    }
    if router.routed_scaling_factor != 1.0 {
        parts.push(format!("times {}", router.routed_scaling_factor));
    }
    parts.join(", ")
}

/// A variant of an enum by its name in `--json`, with its settings: `swiglu_oai (alpha 1.702, beta 1.0)`.
fn named(variant: &impl Serialize) -> String {
    // By way of text, which keeps `f32` as short as it is.
    let value = serde_json::to_string(variant).and_then(|text| serde_json::from_str(&text));
    match value {
        Ok(Value::String(name)) => name,
        Ok(Value::Object(variant)) => {
            let one = |(name, settings): (String, Value)| match settings_of(&settings) {
                settings if settings.is_empty() => name,
                settings => format!("{name} ({settings})"),
            };
            variant.into_iter().map(one).collect()
        }
        _ => "?".to_owned(),
    }
}

fn settings_of(settings: &Value) -> String {
    let settings = settings.as_object().into_iter().flatten();
    let given = settings.filter(|(_, value)| !value.is_null());
    let given: Vec<String> = given
        .map(|(name, value)| format!("{name} {value}"))
        .collect();
    given.join(", ")
}

/// A size for people, in binary units.
pub(crate) fn bytes(n: usize) -> String {
    indicatif::HumanBytes(n as u64).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variants_are_told_by_name_and_settings() {
        assert_eq!(named(&Activation::SILU), "silu");
        let oai = Activation::SwigluOai {
            alpha: 1.702,
            beta: 1.0,
            limit: None,
        };
        assert_eq!(named(&oai), "swiglu_oai (alpha 1.702, beta 1.0)");
        let router = RouterSpec::new("gate.weight");
        assert_eq!(describe_router(&router), "softmax, scores_then_top_k");
    }
}
