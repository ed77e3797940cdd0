//! The way from the placement in force to a plan: what `plan --current` tells.

use std::collections::BTreeSet;

use moekit::placement::{MigrationPlanner, MigrationSummary, ModelPlacement, Topology, Traffic};
use moekit::routing::Placement;
use serde::Serialize;

use crate::charts::{Page, bars};
use crate::error::Result;

/// A migration in numbers.
#[derive(Serialize)]
pub(super) struct MigrationReport {
    /// Slots of the plan that keep their expert.
    unchanged: usize,
    /// Experts, over all layers, that the placement in force has only on ranks beyond the plan's.
    only_on_leaving_ranks: usize,
    /// All layers, one after the other.
    #[serde(flatten)]
    all: MigrationSummary,
    expert_bytes: Option<u64>,
    /// Who sends how much to whom.
    #[serde(flatten)]
    traffic: Traffic,
    layers: Vec<MigrationSummary>,
    #[serde(skip)]
    num_ranks: usize,
}

impl MigrationReport {
    pub(super) fn of(
        topology: &Topology,
        current: &ModelPlacement,
        plan: &ModelPlacement,
        expert_bytes: Option<u64>,
    ) -> Result<Self> {
        let topology = group_of_both(topology, current.num_ranks())?;
        let mut planner = MigrationPlanner::new(&topology);
        if let Some(bytes) = expert_bytes {
            planner = planner.with_expert_bytes(bytes);
        }
        let migration = planner.model(current, plan)?;
        let all = migration.summary();
        let slots: usize = plan.layers().iter().map(|l| l.num_physical_experts()).sum();
        let moved = all.copied + all.same_node + all.cross_node + all.checkpoint_reads;
        Ok(Self {
            unchanged: slots - moved,
            only_on_leaving_ranks: only_on_leaving_ranks(current, plan.num_ranks()),
            all,
            expert_bytes,
            traffic: migration.traffic(),
            layers: migration.layers.iter().map(|l| l.summary()).collect(),
            num_ranks: topology.num_ranks(),
        })
    }

    pub(super) fn lines(&self) -> String {
        let all = &self.all;
        let most = self.layers.iter().map(|layer| layer.rounds).max();
        let mut text = format!(
            "migration: {} slots unchanged, {} copied on their rank, {} received on their node, {} from another node\n\
             {} rounds over all layers, at most {} in a layer; at most {} staging buffers on a rank",
            self.unchanged,
            all.copied,
            all.same_node,
            all.cross_node,
            all.rounds,
            most.unwrap_or(0),
            all.peak_staging
        );
        if self.only_on_leaving_ranks > 0 {
            text += &format!(
                "\n{} experts were on no rank that stays; a strategy may bring back no more than these and \
                 balance with the next plan",
                self.only_on_leaving_ranks
            );
        }
        let busiest = self.traffic.ranks.iter();
        if let Some(rank) =
            busiest.max_by_key(|r| (r.received.max(r.sent), std::cmp::Reverse(r.rank)))
        {
            text += &format!(
                "\nbusiest rank {}: sends {} experts, receives {}",
                rank.rank, rank.sent, rank.received
            );
        }
        let links = self.traffic.links.iter();
        if let (Some(bytes), Some(busiest)) = (
            all.link_bytes.filter(|_| self.expert_bytes.is_some()),
            links.filter_map(|l| l.bytes).max(),
        ) {
            text += &format!(
                "\n{} between ranks, at most {} from one rank to another",
                in_bytes(bytes),
                in_bytes(busiest)
            );
        }
        text
    }

    /// What each rank receives and sends.
    pub(super) fn draw(&self, page: &mut Page) -> Result<()> {
        let mut received = vec![0; self.num_ranks];
        let mut sent = vec![0; self.num_ranks];
        for rank in &self.traffic.ranks {
            received[rank.rank.index()] = rank.received;
            sent[rank.rank.index()] = rank.sent;
        }
        for (title, experts) in [
            ("Migration: experts received per rank, all layers", received),
            ("Migration: experts sent per rank, all layers", sent),
        ] {
            let named = experts.into_iter().enumerate();
            let named: Vec<_> = named
                .map(|(rank, n)| (rank.to_string(), n as f64))
                .collect();
            page.chart(&bars(title, &named)?);
        }
        Ok(())
    }
}

fn only_on_leaving_ranks(current: &ModelPlacement, staying: usize) -> usize {
    let missing = |layer: &Placement| {
        let slots = layer.physical_to_logical();
        let end = layer.rank_offsets()[staying.min(layer.num_ranks())];
        let kept: BTreeSet<_> = slots[..end].iter().collect();
        layer.num_logical_experts() - kept.len()
    };
    current.layers().iter().map(missing).sum()
}

/// The group in which a placement of `num_ranks` ranks becomes one of the topology's ranks: the
/// larger of the two, with nodes of the same size if there are several.
fn group_of_both(topology: &Topology, num_ranks: usize) -> Result<Topology> {
    if num_ranks <= topology.num_ranks() {
        return Ok(topology.clone());
    }
    if topology.num_nodes() == 1 {
        return Ok(Topology::new(num_ranks)?);
    }
    let per_node = topology.num_ranks().div_ceil(topology.num_nodes());
    Ok(Topology::new(num_ranks)?.with_nodes(num_ranks.div_ceil(per_node))?)
}

fn in_bytes(bytes: u64) -> String {
    let units = [
        (1u64 << 40, "TiB"),
        (1 << 30, "GiB"),
        (1 << 20, "MiB"),
        (1 << 10, "KiB"),
    ];
    match units.iter().find(|(size, _)| bytes >= *size) {
        Some((size, unit)) => format!("{:.2} {unit}", bytes as f64 / *size as f64),
        None => format!("{bytes} B"),
    }
}
