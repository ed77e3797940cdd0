//! From a set of members to a group with tables that say who holds what.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use moekit_fused_moe::{Local, PreparedExpert, TokenDispatcher};
use moekit_parallel::{Communicator, EpDispatcher};
use moekit_placement::{ModelPlacement, Placement};
use moekit_routing::{LogicalExpert, Rank, RoutingTable, Topology};
use serde::{Deserialize, Serialize};

use crate::error::chain;
use crate::expert::prepared;
use crate::group::Group;
use crate::layer::{LiveLayer, NextLayer, build, largest};
use crate::planner::topology;
use crate::stages::with_reserved_slots;
use crate::{ExpertSource, LiveConfig, LiveError};

/// A group that a rank is in.
#[derive(Debug)]
pub(crate) struct InGroup {
    pub(crate) comm: Arc<dyn Communicator>,
    pub(crate) members: Vec<u64>,
    pub(crate) topology: Topology,
    pub(crate) dispatcher: Arc<dyn TokenDispatcher>,
    /// Bytes of the largest expert of each layer, on any rank.
    pub(crate) expert_bytes: Vec<u64>,
}

impl InGroup {
    pub(crate) fn rank(&self) -> Rank {
        self.comm.rank()
    }
}

/// What a member brings into a group.
#[derive(Debug, Serialize, Deserialize)]
struct Inventory {
    /// Steps done; `None` of a newcomer.
    step: Option<u64>,
    layers: Vec<LayerInventory>,
}

#[derive(Debug, Serialize, Deserialize)]
struct LayerInventory {
    num_experts: usize,
    /// The experts that the member holds, slot by slot.
    held: Vec<usize>,
    generation: u64,
    /// Of the largest expert that the member knows of.
    expert_bytes: u64,
}

/// What is known of a group when it has formed.
pub(crate) struct Formed {
    pub(crate) group: InGroup,
    /// Steps done, the same on all ranks.
    pub(crate) step: u64,
    /// Whether this is the first group: it has read the first placement.
    pub(crate) first: bool,
}

/// Enters a group: all ranks tell each other what they hold, and make the same tables of it.
///
/// Nothing but what is held counts, so that it does not matter which of the ranks had committed
/// what when their last group ended.
pub(crate) fn form(
    group: Group,
    config: &LiveConfig,
    layers: &mut [LiveLayer],
    initial: &ModelPlacement,
    source: &dyn ExpertSource,
    step: Option<u64>,
) -> Result<Formed, LiveError> {
    let (comm, members) = (group.comm, group.members);
    let own = Inventory {
        step,
        layers: layers.iter().map(inventory).collect(),
    };
    let inventories: Vec<Inventory> = gather(comm.as_ref(), &own)?;
    check(&inventories, layers)?;
    let num_ranks = comm.size();
    let first = is_first(&inventories);
    if first && initial.num_ranks() != num_ranks {
        return Err(LiveError::Config(format!(
            "the first placement is for {} ranks, the group has {num_ranks}",
            initial.num_ranks()
        )));
    }
    let entering = Entering {
        topology: topology(num_ranks, config.nodes)?,
        dispatcher: match num_ranks {
            1 => Arc::new(Local),
            _ => Arc::new(EpDispatcher::new(comm.clone())),
        },
        comm: comm.as_ref(),
        config,
        inventories: &inventories,
        first,
    };
    for (l, layer) in layers.iter_mut().enumerate() {
        entering.layer(l, layer, &initial.layers()[l], source)?;
    }
    let bytes = |layers: &[LiveLayer]| layers.iter().map(|l| l.expert_bytes).collect();
    if first {
        let all: Vec<Vec<u64>> = gather(comm.as_ref(), &bytes(layers))?;
        for (l, layer) in layers.iter_mut().enumerate() {
            let of_ranks = all.iter().filter_map(|rank| rank.get(l));
            layer.expert_bytes = of_ranks.copied().max().unwrap_or(0);
        }
    }
    let (topology, dispatcher) = (entering.topology, entering.dispatcher);
    Ok(Formed {
        group: InGroup {
            comm,
            members,
            topology,
            dispatcher,
            expert_bytes: bytes(layers),
        },
        // A forward pass may have failed on one rank when it was through on the others: all go back
        // to it, so that no step is without its outputs.
        step: inventories.iter().filter_map(|i| i.step).min().unwrap_or(0),
        first,
    })
}

/// What the layers are made of when a group is entered.
struct Entering<'a> {
    comm: &'a dyn Communicator,
    topology: Topology,
    dispatcher: Arc<dyn TokenDispatcher>,
    config: &'a LiveConfig,
    /// Of all ranks.
    inventories: &'a [Inventory],
    /// Whether the first placement is read.
    first: bool,
}

impl Entering<'_> {
    /// Puts a layer into force whose table says what the ranks hold.
    fn layer(
        &self,
        l: usize,
        layer: &mut LiveLayer,
        initial: &Placement,
        source: &dyn ExpertSource,
    ) -> Result<(), LiveError> {
        let held = self.inventories.iter().map(|i| &i.layers[l]);
        let (generation, placement, absent) = if self.first {
            (0, initial.clone(), BTreeSet::new())
        } else {
            let generation = held.clone().map(|h| h.generation).max().unwrap_or(0);
            let (placement, absent) = placement_of(self.inventories, l, initial)?;
            (generation + 1, placement, absent)
        };
        let shared = layer.parts.num_fused_shared();
        let table = RoutingTable::new(placement, self.topology.clone(), shared, generation)?;
        let weights = if self.first {
            let read = read(l, &table, self.comm.rank(), source);
            agree(self.comm, read)?
        } else {
            layer.held().into_iter().collect()
        };
        let known = held.map(|h| h.expert_bytes).max().unwrap_or(0);
        layer.expert_bytes = largest(weights.values()).max(known);
        let next = NextLayer {
            table: Arc::new(table),
            weights,
            absent: absent.clone(),
            dispatcher: self.dispatcher.clone(),
            selector: self.config.selector.clone(),
        };
        let next = build(&layer.parts, layer.current().as_deref(), &next)?;
        layer.commit(Arc::new(next), absent);
        Ok(())
    }
}

/// Whether no rank has come as far as a first step, and some layer has not been read at all: a group
/// that lost all who held experts is not a first one, however little is left.
fn is_first(all: &[Inventory]) -> bool {
    let num_layers = all.first().map_or(0, |i| i.layers.len());
    let unread = |l: usize| all.iter().all(|i| i.layers[l].held.is_empty());
    all.iter().all(|i| i.step.is_none()) && (0..num_layers).any(unread)
}

fn inventory(layer: &LiveLayer) -> LayerInventory {
    let held = layer.held();
    LayerInventory {
        num_experts: layer.parts.num_experts(),
        held: held.iter().map(|(expert, _)| expert.index()).collect(),
        generation: layer.generation(),
        expert_bytes: layer.expert_bytes,
    }
}

/// The values of all ranks, in rank order.
fn gather<T: Serialize + for<'de> Deserialize<'de>>(
    comm: &dyn Communicator,
    value: &T,
) -> Result<Vec<T>, LiveError> {
    let bytes = serde_json::to_vec(value)
        .map_err(|e| LiveError::Config(format!("a rank cannot tell what it holds: {e}")))?;
    let blocks = comm.all_gather_v(bytes.into())?;
    let parse = |(rank, block): (usize, moekit_parallel::Buffer)| {
        serde_json::from_slice(&block.to_bytes()).map_err(|e| LiveError::Message {
            rank: Rank::new(rank),
            problem: format!("it does not tell what the rank holds: {e}"),
        })
    };
    blocks
        .into_buffers()
        .into_iter()
        .enumerate()
        .map(parse)
        .collect()
}

/// Whether all ranks have the same layers.
fn check(all: &[Inventory], layers: &[LiveLayer]) -> Result<(), LiveError> {
    for (rank, inventory) in all.iter().enumerate() {
        let disagreement = |what, theirs: usize, ours: usize| {
            Err(LiveError::Disagreement {
                rank: Rank::new(rank),
                what,
                theirs: theirs as u64,
                ours: ours as u64,
            })
        };
        if inventory.layers.len() != layers.len() {
            return disagreement("layers:", inventory.layers.len(), layers.len());
        }
        for (theirs, ours) in inventory.layers.iter().zip(layers) {
            let (theirs, ours) = (theirs.num_experts, ours.parts.num_experts());
            if theirs != ours {
                return disagreement("experts in a layer:", theirs, ours);
            }
        }
    }
    Ok(())
}

/// What the ranks hold of a layer, with slots reserved for what none of them holds.
fn placement_of(
    all: &[Inventory],
    layer: usize,
    initial: &Placement,
) -> Result<(Placement, BTreeSet<LogicalExpert>), LiveError> {
    let experts = initial.num_logical_experts();
    let held: Vec<Vec<LogicalExpert>> = all
        .iter()
        .map(|i| {
            i.layers[layer]
                .held
                .iter()
                .copied()
                .map(LogicalExpert::new)
                .collect()
        })
        .collect();
    let mut absent: BTreeSet<LogicalExpert> = (0..experts).map(LogicalExpert::new).collect();
    held.iter().flatten().for_each(|expert| {
        absent.remove(expert);
    });
    // A placement of no use to anybody: each absent expert goes where there is most room.
    let nowhere = Placement::new(experts, (0..experts).collect(), vec![0, experts])?;
    let wanted =
        moekit_placement::placement_in_group(&nowhere, &[Rank::new(all.len())], all.len() + 1)?;
    Ok((with_reserved_slots(held, &absent, &wanted)?, absent))
}

/// The experts of a rank's slots, from the checkpoint.
fn read(
    layer: usize,
    table: &RoutingTable,
    rank: Rank,
    source: &dyn ExpertSource,
) -> Result<BTreeMap<LogicalExpert, Arc<PreparedExpert>>, LiveError> {
    let mut weights = BTreeMap::new();
    for &expert in table.placement().experts_of(rank).unwrap_or_default() {
        if weights.contains_key(&expert) {
            continue;
        }
        let read = source
            .read(layer, expert)
            .map_err(|source| LiveError::Source {
                layer,
                expert,
                source,
            })?;
        weights.insert(expert, prepared(&read)?);
    }
    Ok(weights)
}

/// The value, if all ranks have theirs; a rank's own error, or the first of another.
fn agree<T>(comm: &dyn Communicator, result: Result<T, LiveError>) -> Result<T, LiveError> {
    let problem = result.as_ref().err().map(|e| chain(e));
    let all: Vec<Option<String>> = gather(comm, &problem)?;
    let value = result?;
    match all
        .into_iter()
        .enumerate()
        .find_map(|(rank, p)| Some((rank, p?)))
    {
        None => Ok(value),
        Some((rank, problem)) => Err(LiveError::Message {
            rank: Rank::new(rank),
            problem,
        }),
    }
}
