//! DeepSeek's Expert Parallelism Load Balancer.
//!
//! The algorithm of <https://github.com/deepseek-ai/EPLB>, in float32 as there, ties to the lowest
//! index: replicate the expert with the largest load per replica until all slots are used, then
//! pack replicas onto ranks, heaviest first, each onto the lightest rank with room. In
//! hierarchical mode expert groups are packed onto nodes first, and replicas stay in their node.

mod greedy;
mod packing;
mod preserve;
mod replication;
mod tournament;

use moekit_placement::{
    Capabilities, ExpertLoad, ModelPlacement, Placement, PlacementError, PlacementRequest,
    PlacementStrategy, register_strategy, typetag,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use greedy::{Greedy, Hierarchy};

const NAME: &str = "eplb";

/// Whether replicas keep to the node of their expert group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Mode {
    /// Hierarchical if the model has expert groups and nodes divide them, else global; the choice
    /// that DeepSeek's, vLLM's and SGLang's code makes.
    #[default]
    Auto,
    /// Groups to nodes first.
    Hierarchical,
    /// All ranks alike.
    Global,
}

/// DeepSeek's EPLB. Every rank must have the same number of slots.
///
/// Without a load, and in a layer without any load, the placement is the one with which vLLM
/// starts: slot `s` holds expert `s % E`. That needs no even slots.
///
/// ```
/// use moekit_placement::{ExpertLoad, PlacementRequest, PlacementStrategy, Topology};
/// use moekit_strategy_eplb::Eplb;
///
/// // The example of DeepSeek's repository: 2 nodes of 4 ranks, 4 expert groups, 16 slots.
/// let load = ExpertLoad::from_rows(&[
///     [90., 132., 40., 61., 104., 165., 39., 4., 73., 56., 183., 86.],
///     [20., 107., 104., 64., 19., 197., 187., 157., 172., 86., 16., 27.],
/// ])?;
/// let topology = Topology::new(8)?.with_nodes(2)?;
/// let request = PlacementRequest::new(2, 12, &topology)?
///     .with_redundant_experts(4)?
///     .with_expert_groups(4)?
///     .with_load(&load)?;
/// let plan = Eplb::default().place(&request)?;
/// let slots = |l: usize| plan.layers()[l].physical_to_logical().iter().map(|e| e.index()).collect::<Vec<_>>();
/// assert_eq!(slots(0), [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1]);
/// assert_eq!(slots(1), [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1]);
/// # Ok::<(), moekit_placement::PlacementError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Eplb {
    /// Whether replicas keep to the node of their expert group.
    pub mode: Mode,
    /// If a placement is in force: an expert that stays on its rank stays in its slot, as in vLLM.
    pub preserve_slots: bool,
}

impl Default for Eplb {
    fn default() -> Self {
        Self {
            mode: Mode::Auto,
            preserve_slots: true,
        }
    }
}

#[typetag::serde(name = "eplb")]
impl PlacementStrategy for Eplb {
    fn place(&self, request: &PlacementRequest<'_>) -> Result<ModelPlacement, PlacementError> {
        let all = request.load().into_iter().flat_map(ExpertLoad::layers);
        let loads: Vec<&[f64]> = all.filter(|load| has_load(load)).collect();
        let balanced = match loads.is_empty() {
            true => Vec::new(),
            false => Greedy::new(self.hierarchy(request)?).place(&loads),
        };
        let mut balanced = balanced.into_iter();
        let (experts, offsets) = (request.num_logical_experts(), request.rank_offsets());
        let layers = (0..request.num_layers()).map(|layer| {
            let load = request.load().and_then(|load| load.layer(layer));
            let balanced = load
                .filter(|load| has_load(load))
                .and_then(|_| balanced.next());
            let mut slots = balanced.unwrap_or_else(|| cyclic(request));
            let current = request.current().and_then(|c| c.layers().get(layer));
            if let Some(current) = current.filter(|_| self.preserve_slots) {
                preserve::preserve_slots(&mut slots, &offsets, current);
            }
            Ok(Placement::new(experts, slots, offsets.clone())?)
        });
        let layers = layers.collect::<Result<_, PlacementError>>()?;
        ModelPlacement::new(layers)
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::default();
        capabilities.uses_load = true;
        capabilities.uses_current = self.preserve_slots;
        capabilities.uses_nodes = self.mode != Mode::Global;
        capabilities
    }
}

register_strategy! {
    Eplb,
    name: "eplb",
    summary: "DeepSeek's load balancer: greedy replication and packing, hierarchical or global",
    example: Eplb::default(),
}

impl Eplb {
    /// Checks what the algorithm requires and chooses the mode.
    fn hierarchy(&self, request: &PlacementRequest<'_>) -> Result<Hierarchy, PlacementError> {
        let refuse = |message: String| Err(PlacementError::precondition(NAME, message));
        let (experts, slots) = (request.num_logical_experts(), request.num_slots());
        let (ranks, nodes) = (
            request.topology().num_ranks(),
            request.topology().num_nodes(),
        );
        let per_rank = request.slots_per_rank().iter().copied();
        let (least, most) = (per_rank.clone().min(), per_rank.max());
        if least != most {
            return refuse(format!(
                "needs the same number of slots on every rank, but {slots} slots on {ranks} ranks are {} to {} each; \
                 the next number of slots that ranks divide is {}",
                least.unwrap_or(0),
                most.unwrap_or(0),
                slots.next_multiple_of(ranks)
            ));
        }
        let groups = request.num_expert_groups();
        let hierarchical = match self.mode {
            Mode::Global => false,
            Mode::Auto => groups.is_some_and(|g| g.is_multiple_of(nodes)),
            Mode::Hierarchical => true,
        };
        if !hierarchical {
            return Ok(Hierarchy {
                groups: 1,
                nodes: 1,
                ranks,
                slots,
                experts,
            });
        }
        let Some(groups) = groups else {
            return refuse(
                "mode `hierarchical` needs the number of expert groups, none was given".to_owned(),
            );
        };
        for (what, n, per, m) in [
            ("expert groups", groups, "nodes", nodes),
            ("ranks", ranks, "nodes", nodes),
            ("logical experts", experts, "expert groups", groups),
        ] {
            if !n.is_multiple_of(m) {
                return refuse(format!(
                    "hierarchical placement needs {per} to divide {what}, got {m} {per} and {n} {what}"
                ));
            }
        }
        Ok(Hierarchy {
            groups,
            nodes,
            ranks,
            slots,
            experts,
        })
    }
}

fn has_load(load: &[f64]) -> bool {
    load.iter().any(|&l| l > 0.0)
}

/// vLLM's initial placement of a layer.
fn cyclic(request: &PlacementRequest<'_>) -> Vec<usize> {
    let experts = request.num_logical_experts();
    (0..request.num_slots())
        .map(|slot| slot % experts)
        .collect()
}

#[cfg(test)]
mod tests {
    use moekit_placement::{ExpertLoad, MigrationBudget, Topology};

    use super::*;

    fn indices(placement: &Placement) -> Vec<usize> {
        placement
            .physical_to_logical()
            .iter()
            .map(|e| e.index())
            .collect()
    }

    #[test]
    fn preconditions_name_their_numbers() {
        let load = ExpertLoad::from_rows(&[[1.0; 12]]).unwrap();
        let message = |mode, ranks: usize, nodes, groups: Option<usize>| {
            let topology = Topology::new(ranks).unwrap().with_nodes(nodes).unwrap();
            let mut request = PlacementRequest::new(1, 12, &topology)
                .unwrap()
                .with_load(&load)
                .unwrap();
            if let Some(groups) = groups {
                request = request.with_expert_groups(groups).unwrap();
            }
            let eplb = Eplb {
                mode,
                preserve_slots: true,
            };
            eplb.place(&request).map(|_| ()).map_err(|e| e.to_string())
        };
        let error = message(Mode::Auto, 5, 1, None).unwrap_err();
        assert!(
            error.contains("12 slots on 5 ranks are 2 to 3 each") && error.contains("is 15"),
            "{error}"
        );
        let error = message(Mode::Hierarchical, 4, 2, None).unwrap_err();
        assert!(error.contains("none was given"), "{error}");
        let error = message(Mode::Hierarchical, 4, 2, Some(3)).unwrap_err();
        assert!(error.contains("2 nodes and 3 expert groups"), "{error}");
        let error = message(Mode::Hierarchical, 3, 2, Some(4)).unwrap_err();
        assert!(error.contains("2 nodes and 3 ranks"), "{error}");
        assert_eq!(
            message(Mode::Auto, 4, 2, Some(3)),
            Ok(()),
            "auto is global if nodes do not divide groups"
        );
    }

    #[test]
    fn without_a_load_vllms_initial_placement() {
        let topology = Topology::new(3).unwrap();
        let zero = ExpertLoad::from_rows(&[[0.0; 4]]).unwrap();
        let request = PlacementRequest::new(1, 4, &topology)
            .unwrap()
            .with_redundant_experts(2)
            .unwrap();
        for request in [request.clone(), request.with_load(&zero).unwrap()] {
            let plan = Eplb::default().place(&request).unwrap();
            assert_eq!(indices(&plan.layers()[0]), [0, 1, 2, 3, 0, 1]);
        }
    }

    #[test]
    fn experts_that_stay_keep_their_slot() {
        let topology = Topology::new(2).unwrap();
        let load = ExpertLoad::from_rows(&[[1.0, 2.0, 3.0, 4.0]]).unwrap();
        let request = PlacementRequest::new(1, 4, &topology)
            .unwrap()
            .with_load(&load)
            .unwrap();
        let fresh = Eplb::default().place(&request).unwrap();
        assert_eq!(indices(&fresh.layers()[0]), [3, 0, 2, 1]);
        let current =
            ModelPlacement::new(vec![Placement::from_ranks(4, &[[0, 1], [2, 3]]).unwrap()])
                .unwrap();
        let request = request
            .with_current(&current, MigrationBudget::Unlimited)
            .unwrap();
        let preserved = Eplb::default().place(&request).unwrap();
        assert_eq!(indices(&preserved.layers()[0]), [0, 3, 2, 1]);
        let moved = Eplb {
            mode: Mode::Auto,
            preserve_slots: false,
        }
        .place(&request)
        .unwrap();
        assert_eq!(moved, fresh);
    }
}
