//! The ranks of a layer: how many slots, how fast, on which node.

use std::ops::Range;

use moekit_placement::Topology;
use moekit_routing::Rank;

#[derive(Clone, Debug)]
pub(crate) struct Ranks {
    /// The first slot of each rank and the number of slots, `[R + 1]`.
    offsets: Vec<usize>,
    /// Time per load, `[R]`: the inverse of the relative speed.
    pace: Vec<f64>,
    /// The node of each rank, `[R]`.
    node: Vec<usize>,
    /// The ranks of each node, `[N]`.
    nodes: Vec<Range<usize>>,
    /// That of the fastest.
    least_pace: f64,
    are_as_fast: bool,
    are_all_live: bool,
    /// The rank of each slot, `[P]`.
    rank_of: Vec<u32>,
}

impl Ranks {
    /// # Arguments
    ///
    /// - `slots` - `[R]`.
    /// - `speeds` - `[R]`, or empty if all are alike.
    pub(crate) fn new(slots: &[usize], topology: &Topology, speeds: &[f64]) -> Self {
        let ranks = 0..slots.len();
        let pace = |rank| speeds.get(rank).map_or(1.0, |speed| 1.0 / speed);
        let node = |rank| topology.node_of(Rank::new(rank)).unwrap_or_default();
        let unfilled = Self {
            offsets: Vec::new(),
            pace: ranks.clone().map(pace).collect(),
            node: ranks.map(node).collect(),
            nodes: (0..topology.num_nodes())
                .filter_map(|node| topology.ranks_of(node))
                .collect(),
            least_pace: slots
                .iter()
                .enumerate()
                .map(|(rank, _)| pace(rank))
                .fold(f64::INFINITY, f64::min),
            are_as_fast: speeds.iter().all(|speed| *speed == speeds[0]),
            are_all_live: true,
            rank_of: Vec::new(),
        };
        unfilled.with_slots(slots)
    }

    /// The same ranks with at most one slot per expert: no rank needs more without holding an expert
    /// twice.
    pub(crate) fn without_surplus(&self, num_experts: usize) -> Self {
        let slots = (0..self.len()).map(|rank| self.slots(rank).len().min(num_experts));
        self.with_slots(&slots.collect::<Vec<_>>())
    }

    /// The same ranks with other slots, `[R]`.
    pub(crate) fn with_slots(&self, slots: &[usize]) -> Self {
        let ends = slots.iter().scan(0, |total, n| {
            *total += n;
            Some(*total)
        });
        let of = |(rank, &n): (usize, &usize)| std::iter::repeat_n(rank as u32, n);
        Self {
            offsets: std::iter::once(0).chain(ends).collect(),
            rank_of: slots.iter().enumerate().flat_map(of).collect(),
            are_all_live: !slots.contains(&0),
            ..self.clone()
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.pace.len()
    }

    pub(crate) fn offsets(&self) -> &[usize] {
        &self.offsets
    }

    pub(crate) fn slots(&self, rank: usize) -> Range<usize> {
        self.offsets[rank]..self.offsets[rank + 1]
    }

    pub(crate) fn num_slots(&self) -> usize {
        self.offsets[self.len()]
    }

    /// The rank of a slot.
    pub(crate) fn rank_of(&self, slot: usize) -> usize {
        self.rank_of[slot] as usize
    }

    pub(crate) fn pace(&self, rank: usize) -> f64 {
        self.pace[rank]
    }

    pub(crate) fn least_pace(&self) -> f64 {
        self.least_pace
    }

    pub(crate) fn node(&self, rank: usize) -> usize {
        self.node[rank]
    }

    pub(crate) fn num_nodes(&self) -> usize {
        self.nodes.len()
    }

    /// The ranks of a node.
    pub(crate) fn on(&self, node: usize) -> Range<usize> {
        self.nodes[node].clone()
    }

    /// Ranks that have slots, ascending.
    pub(crate) fn live(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.len()).filter(|&rank| !self.slots(rank).is_empty())
    }

    /// Ranks of a node that have slots, ascending.
    pub(crate) fn live_on(&self, node: usize) -> impl Iterator<Item = usize> + '_ {
        self.on(node).filter(|&rank| !self.slots(rank).is_empty())
    }

    /// Whether every rank has slots.
    pub(crate) fn are_all_live(&self) -> bool {
        self.are_all_live
    }

    /// Whether all ranks are as fast.
    pub(crate) fn are_as_fast(&self) -> bool {
        self.are_as_fast
    }

    /// Whether all ranks have as many slots and are as fast.
    pub(crate) fn are_alike(&self) -> bool {
        let first = self.slots(0).len();
        self.are_as_fast && (0..self.len()).all(|r| self.slots(r).len() == first)
    }

    /// No placement of these loads, `[E]`, gives every rank less time: neither than the mean, nor
    /// than the largest replica on the fastest rank.
    pub(crate) fn bound(&self, weights: &[f64], counts: &[u32]) -> f64 {
        let speed: f64 = self.live().map(|rank| 1.0 / self.pace[rank]).sum();
        let fastest = self
            .live()
            .map(|rank| self.pace[rank])
            .fold(f64::INFINITY, f64::min);
        let shares = weights.iter().zip(counts);
        let largest = shares.map(|(w, &n)| w / f64::from(n)).fold(0.0, f64::max);
        (weights.iter().sum::<f64>() / speed).max(largest * fastest)
    }
}
