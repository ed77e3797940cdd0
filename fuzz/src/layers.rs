//! Layers, and the ranks that share their experts.

use std::sync::Arc;

use arbitrary::{Result, Unstructured};
use moekit_quant::{
    Activation, ExpertLayout, FusedOrder, FusedTensor, MlpNames, MoeLayerSpec, RouterSpec,
    SharedExpertsSpec,
};
use moekit_routing::{Placement, Rank, RankView, RoutingTable, Topology};

use crate::pick::{pick, size};

/// A layer of any layout.
pub(crate) fn layer(u: &mut Unstructured<'_>) -> Result<MoeLayerSpec> {
    let num_experts = u.int_in_range(1..=3)?;
    let sizes = [num_experts, 1, size(u)?, size(u)?];
    let is_gated = u.ratio(3, 4)?;
    let layout = layout(u, is_gated)?;
    let is_gated = is_gated || matches!(layout, ExpertLayout::Fused { .. });
    let mut layer = MoeLayerSpec::new(0, sizes, layout, RouterSpec::new("gate.weight"));
    if !is_gated {
        layer.activation = Activation::Relu2NoMul;
    }
    if u.ratio(1, 2)? {
        let count = u.int_in_range(1..=2)?;
        let width = pick(u, &[count * sizes[3], count * sizes[3], sizes[3] + 1])?;
        let mut shared = SharedExpertsSpec::new("layers.0.shared", names(is_gated), width);
        shared.num_experts = count;
        shared.bias = u.arbitrary()?;
        layer.shared = Some(shared);
    }
    Ok(layer)
}

fn names(is_gated: bool) -> MlpNames {
    match is_gated {
        true => MlpNames::proj(),
        false => MlpNames::ungated("up_proj", "down_proj"),
    }
}

fn layout(u: &mut Unstructured<'_>, is_gated: bool) -> Result<ExpertLayout> {
    let bias = u.ratio(1, 4)?;
    let transposed = u.arbitrary()?;
    let is_module: bool = u.arbitrary()?;
    let tensor = |name: &str| {
        let name = format!("layers.0.experts.{name}");
        let mut tensor = match is_module {
            true => FusedTensor::module(&name),
            false => FusedTensor::parameter(&name),
        };
        tensor.transposed = transposed;
        tensor.bias = bias.then(|| format!("{name}_bias"));
        tensor
    };
    Ok(match u.int_in_range(0..=3)? {
        0 => ExpertLayout::Fused {
            gate_up: tensor("gate_up_proj"),
            order: pick(u, &[FusedOrder::Halves, FusedOrder::Interleaved])?,
            down: tensor("down_proj"),
        },
        1 => ExpertLayout::Stacked {
            gate: is_gated.then(|| tensor("gate_proj")),
            up: tensor("up_proj"),
            down: tensor("down_proj"),
        },
        _ => ExpertLayout::PerExpert {
            module: "layers.0.experts".to_owned(),
            names: names(is_gated),
            bias,
        },
    })
}

/// The one rank that holds all experts, and nothing else.
pub(crate) fn alone(num_experts: usize) -> RankView {
    let all: Vec<usize> = (0..num_experts).collect();
    views(num_experts, &[all], 0).swap_remove(0)
}

/// A rank that holds the first of all experts.
pub(crate) fn first(num_experts: usize) -> RankView {
    let others = (1..num_experts).collect();
    views(num_experts, &[vec![0], others], 0).swap_remove(0)
}

/// Several ranks with any experts, and the number of fused shared experts.
pub(crate) fn ranks(u: &mut Unstructured<'_>, num_experts: usize) -> Result<Vec<RankView>> {
    let mut ranks = vec![Vec::new(); u.int_in_range(1..=3)?];
    let count = ranks.len();
    for expert in 0..num_experts {
        ranks[u.choose_index(count)?].push(expert);
    }
    for _ in 0..u.int_in_range(0..=2)? {
        ranks[u.choose_index(count)?].push(u.choose_index(num_experts)?);
    }
    let num_shared = pick(u, &[0, 0, 1, 2])?;
    Ok(views(num_experts, &ranks, num_shared))
}

fn views(num_experts: usize, ranks: &[Vec<usize>], num_shared: usize) -> Vec<RankView> {
    let placement = Placement::from_ranks(num_experts, ranks).expect("all experts are held");
    let topology = Topology::new(ranks.len()).expect("there is a rank");
    let table = RoutingTable::new(placement, topology, num_shared, 0).expect("a table");
    let table = Arc::new(table);
    let view = |rank| RankView::new(Rank::new(rank), Arc::clone(&table)).expect("a rank");
    (0..ranks.len()).map(view).collect()
}
