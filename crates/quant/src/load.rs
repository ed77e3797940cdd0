use std::collections::HashMap;
use std::sync::Arc;

use moekit_routing::ExpertRouting;

use crate::site::{LinearSite, Projection};
use crate::spec::{
    ExpertLayout, FusedOrder, FusedTensor, MlpNames, MoeLayerSpec, SharedExpertsSpec,
};
use crate::{ExpertLinear, ExpertMlp, ExpertWeights, QuantError, TensorSource};

/// Loads the experts of a rank, linear by linear: all of a backend but its format.
///
/// Each local expert is loaded once, however many slots hold it. Shared experts are cut into the
/// rank's last slots if the routing table fuses them, otherwise they are one MLP of their own.
///
/// # Arguments
///
/// - `load` - reads one linear. It sees each linear's own place and may choose its format by
///   [`LinearSite::module`], so that experts of one layer may differ.
///
/// # Errors
///
/// If routing and layer disagree on the number of experts, or `load` fails.
pub fn load_linears(
    layer: &MoeLayerSpec,
    tensors: &dyn TensorSource,
    routing: &dyn ExpertRouting,
    load: &dyn Fn(&LinearSite, &dyn TensorSource) -> Result<ExpertLinear, QuantError>,
) -> Result<ExpertWeights, QuantError> {
    let table = routing.routing_table();
    let rank = routing.rank();
    if table.num_logical_experts() != layer.num_experts {
        return Err(QuantError::ExpertCount {
            layer: layer.layer,
            spec: layer.num_experts,
            table: table.num_logical_experts(),
        });
    }
    let local = table.local_to_global(rank).ok_or(QuantError::UnknownRank {
        rank: rank.index(),
        num_ranks: table.num_ranks(),
    })?;
    layer.check()?;
    let num_shared = table.num_shared_experts();
    let mlp = |sites: MlpSites| -> Result<Arc<ExpertMlp>, QuantError> {
        let gate = sites.gate.map(|site| load(&site, tensors)).transpose()?;
        let up = load(&sites.up, tensors)?;
        let down = load(&sites.down, tensors)?;
        ExpertMlp::new(gate, up, down).map(Arc::new)
    };
    let mut loaded = HashMap::<usize, Arc<ExpertMlp>>::new();
    let mut experts = Vec::with_capacity(local.len());
    for expert in local.iter().map(|e| e.index()) {
        let weights = match loaded.get(&expert) {
            Some(weights) => Arc::clone(weights),
            None => {
                let weights = mlp(match expert.checked_sub(layer.num_experts) {
                    None => routed_sites(layer, expert),
                    Some(shared) => fused_shared_sites(layer, shared, num_shared)?,
                })?;
                loaded.insert(expert, Arc::clone(&weights));
                weights
            }
        };
        experts.push(weights);
    }
    let weights = ExpertWeights::new(layer.hidden_size, layer.intermediate_size, experts)?;
    match &layer.shared {
        Some(shared) if num_shared == 0 => {
            weights.with_shared(mlp(shared_sites(layer, shared, (0, 1)))?)
        }
        _ => Ok(weights),
    }
}

struct MlpSites {
    gate: Option<LinearSite>,
    up: LinearSite,
    down: LinearSite,
}

fn routed_sites(layer: &MoeLayerSpec, expert: usize) -> MlpSites {
    let (hidden, inter) = (layer.hidden_size, layer.intermediate_size);
    let stacked = |tensor: &FusedTensor, projection, shape| {
        LinearSite::in_stack(tensor, projection, shape, (expert, layer.num_experts))
    };
    match &layer.experts {
        ExpertLayout::PerExpert {
            module,
            names,
            bias,
        } => {
            let sizes = [hidden, inter];
            named_sites(&format!("{module}.{expert}"), names, sizes, *bias)
        }
        ExpertLayout::Fused {
            gate_up,
            order,
            down,
        } => {
            let half = |projection, index: usize| {
                let mut site = stacked(gate_up, projection, [inter, hidden]);
                site.stored = [inter.saturating_mul(2), hidden];
                match order {
                    FusedOrder::Halves => site.start[0] = index * inter,
                    FusedOrder::Interleaved => {
                        site.start[0] = index;
                        site.row_step = 2;
                    }
                }
                site
            };
            MlpSites {
                gate: Some(half(Projection::Gate, 0)),
                up: half(Projection::Up, 1),
                down: stacked(down, Projection::Down, [hidden, inter]),
            }
        }
        ExpertLayout::Stacked { gate, up, down } => MlpSites {
            gate: gate
                .as_ref()
                .map(|gate| stacked(gate, Projection::Gate, [inter, hidden])),
            up: stacked(up, Projection::Up, [inter, hidden]),
            down: stacked(down, Projection::Down, [hidden, inter]),
        },
    }
}

fn named_sites(
    module: &str,
    names: &MlpNames,
    [hidden, inter]: [usize; 2],
    bias: bool,
) -> MlpSites {
    let site = |name: &String, projection, shape| {
        let mut site = LinearSite::own_tensor(format!("{module}.{name}"), projection, shape);
        site.bias = bias.then(|| site.tensor("bias"));
        site
    };
    MlpSites {
        gate: names
            .gate
            .as_ref()
            .map(|name| site(name, Projection::Gate, [inter, hidden])),
        up: site(&names.up, Projection::Up, [inter, hidden]),
        down: site(&names.down, Projection::Down, [hidden, inter]),
    }
}

/// Part `part.0` of `part.1` of the shared MLP: rows of gate and up, columns of down.
fn shared_sites(
    layer: &MoeLayerSpec,
    shared: &SharedExpertsSpec,
    part: (usize, usize),
) -> MlpSites {
    let width = shared.intermediate_size;
    let sizes = [layer.hidden_size, width];
    let mut sites = named_sites(&shared.module, &shared.names, sizes, shared.bias);
    let part_width = width / part.1;
    let start = part.0 * part_width;
    for site in sites.gate.iter_mut().chain([&mut sites.up]) {
        (site.shape[0], site.start[0]) = (part_width, start);
    }
    (sites.down.shape[1], sites.down.start[1]) = (part_width, start);
    if part.0 > 0 {
        // The outputs of the parts are added up; the bias comes once.
        sites.down.bias = None;
    }
    sites
}

fn fused_shared_sites(
    layer: &MoeLayerSpec,
    index: usize,
    num_shared: usize,
) -> Result<MlpSites, QuantError> {
    let error = |reason: String| QuantError::SharedExperts {
        layer: layer.layer,
        num_shared,
        reason,
    };
    let Some(shared) = &layer.shared else {
        return Err(error(
            "the checkpoint's layer has no shared experts".to_owned(),
        ));
    };
    let width = layer.intermediate_size;
    if shared.intermediate_size != width.saturating_mul(num_shared) {
        return Err(error(format!(
            "the shared experts are {} wide, {num_shared} local slots are {num_shared} * {width}",
            shared.intermediate_size
        )));
    }
    Ok(shared_sites(layer, shared, (index, num_shared)))
}
