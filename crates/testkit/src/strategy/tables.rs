//! The maps that follow from a strategy's placement.

use std::ops::Range;

use moekit_placement::{Placement, Topology};
use moekit_routing::{LocalExpert, LogicalExpert, NOT_LOCAL, PhysicalExpert, Rank, RoutingTable};

use super::StrategySuite;
use crate::Violation;
use crate::case::slots_by_rank;

/// Shared experts in the tables under test.
const SHARED: usize = 1;

impl StrategySuite {
    /// The tables of every placement exist and are inverse to each other: slot to expert and back
    /// to all its replicas, local to global and back, slot to owner and local index and back.
    ///
    /// # Errors
    ///
    /// A placement without tables, or an entry that does not lead back.
    pub fn has_inverse_maps(&self) -> Result<(), Violation> {
        self.for_every_placement("has_inverse_maps", |case, placement| {
            for layer in placement.layers() {
                let topology = Topology::new(case.ranks).map_err(|error| error.to_string())?;
                let table = RoutingTable::new(layer.clone(), topology, SHARED, 0)
                    .map_err(|error| error.to_string())?;
                check_slots(layer, &table)?;
                check_experts(layer, &table)?;
            }
            Ok(())
        })
    }
}

/// Every slot leads to its expert, its rank and its place there, and back.
fn check_slots(layer: &Placement, table: &RoutingTable) -> Result<(), String> {
    let mut next = 0;
    for (r, experts) in slots_by_rank(layer).into_iter().enumerate() {
        let rank = Rank::new(r);
        for (l, e) in experts.into_iter().enumerate() {
            let (slot, local, expert) = (
                PhysicalExpert::new(next),
                LocalExpert::new(l),
                LogicalExpert::new(e),
            );
            let leads_back = table.logical_of(slot) == Some(expert)
                && table.owner(slot) == Some(rank)
                && table.local_index(rank, slot) == Some(local)
                && table.physical_of(rank, local) == Some(slot)
                && table.local_to_global(rank).and_then(|all| all.get(l)) == Some(&expert)
                && table
                    .replicas(expert)
                    .is_some_and(|all| all.contains(&slot));
            if !leads_back {
                return Err(format!(
                    "slot {next} of expert {e} on rank {r} does not lead back"
                ));
            }
            next += 1;
        }
    }
    Ok(())
}

/// Every expert leads to its slots and no others, and each rank's map and mask to the local ones.
fn check_experts(layer: &Placement, table: &RoutingTable) -> Result<(), String> {
    let slots = slots_by_rank(layer).concat();
    for e in 0..layer.num_logical_experts() {
        let replicas: Vec<_> = table
            .replicas(LogicalExpert::new(e))
            .unwrap_or_default()
            .iter()
            .map(|slot| slot.index())
            .collect();
        let expected: Vec<_> = (0..slots.len()).filter(|&slot| slots[slot] == e).collect();
        if replicas != expected {
            return Err(format!(
                "expert {e} leads to the slots {replicas:?}, not {expected:?}"
            ));
        }
        for r in 0..layer.num_ranks() {
            let range = layer.slot_range(Rank::new(r)).unwrap_or_default();
            check_local(table, r, &range, e, &expected)?;
        }
    }
    Ok(())
}

fn check_local(
    table: &RoutingTable,
    r: usize,
    range: &Range<usize>,
    e: usize,
    replicas: &[usize],
) -> Result<(), String> {
    let entry = |entries: Option<&[i32]>| entries.and_then(|all| all.get(e)).copied();
    let map = entry(table.expert_map(Rank::new(r)));
    let mask = entry(table.expert_mask(Rank::new(r)));
    let first = replicas.iter().find(|slot| range.contains(slot));
    let expected = match first {
        Some(slot) => i32::try_from(slot - range.start).map_err(|error| error.to_string())?,
        None => NOT_LOCAL,
    };
    if map != Some(expected) || mask != Some(i32::from(first.is_some())) {
        return Err(format!(
            "on rank {r} the map of expert {e} is {map:?} and its mask {mask:?}, not {expected}"
        ));
    }
    Ok(())
}
