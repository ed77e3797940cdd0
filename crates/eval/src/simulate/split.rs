//! How the tokens of a step fall on the slots of their experts.

use std::fmt::Debug;
use std::time::{Duration, Instant};

use moekit_routing::{
    CountsNeeded, PhysicalExpert, Rank, ReplicaSelector, ReplicaShares, RoutingTable,
    SelectContext, SelectReplica,
};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::EvalError;

/// One layer in one step.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct SplitContext<'a> {
    /// The layer.
    pub layer: usize,
    /// The tables of the placement in force. Their generation changes with the placement.
    pub table: &'a RoutingTable,
    /// Tokens per logical expert in this step, `[E]`.
    pub counts: &'a [f64],
    /// The same of the step before, `[E]`.
    pub previous: &'a [f64],
}

impl<'a> SplitContext<'a> {
    /// A context of layer 0 whose previous step is this one.
    pub fn new(table: &'a RoutingTable, counts: &'a [f64]) -> Self {
        Self {
            layer: 0,
            table,
            counts,
            previous: counts,
        }
    }
}

/// What a split makes of one layer in one step.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct SlotLoads {
    /// Tokens per slot, `[P]`; those of an expert's slots sum to its count.
    pub loads: Vec<f64>,
    /// Tokens that are served on another node than the one they came from.
    pub off_node: f64,
    /// What one rank spends on the decision.
    pub time: Duration,
}

impl SlotLoads {
    /// A split.
    pub fn new(loads: Vec<f64>, off_node: f64, time: Duration) -> Self {
        Self {
            loads,
            off_node,
            time,
        }
    }
}

/// Splits the tokens of each expert over its slots.
///
/// The model of where tokens come from: every rank brings the same share of every expert's
/// tokens, as in data-parallel attention over a mixed batch. [`off_node_blind`] and
/// [`off_node_nearest`] follow from it.
pub trait TokenSplit: Debug {
    /// The name in reports.
    fn name(&self) -> &str;

    /// Splits one layer of one step.
    ///
    /// # Errors
    ///
    /// If the counts do not fit the table, or are not what the split needs.
    fn split(&mut self, context: &SplitContext<'_>) -> Result<SlotLoads, EvalError>;
}

/// Every slot of an expert gets the same number of tokens, fractions included: what replica
/// selectors do on average, and what planners assume.
#[derive(Clone, Copy, Debug, Default)]
pub struct EqualSplit;

impl TokenSplit for EqualSplit {
    fn name(&self) -> &str {
        "equal"
    }

    fn split(&mut self, context: &SplitContext<'_>) -> Result<SlotLoads, EvalError> {
        check_counts(context.table, context.counts)?;
        let start = Instant::now();
        let placement = context.table.placement();
        let per_slot: Vec<f64> = placement
            .replica_counts()
            .into_iter()
            .zip(context.counts)
            .map(|(slots, count)| count / slots as f64)
            .collect();
        let slots = placement.physical_to_logical();
        let loads: Vec<f64> = slots.iter().map(|e| per_slot[e.index()]).collect();
        let time = start.elapsed();
        let off_node = off_node_blind(context.table, &loads);
        Ok(SlotLoads::new(loads, off_node, time))
    }
}

/// The replica selector [`Waterfill`](moekit_routing::Waterfill), by its shares alone: with the counts
/// of the step every slot gets exactly its share, with those of the step before its share's
/// proportion, fractions included, as the ranks give it on average.
///
/// Takes whole counts only. Its time is that of the shares, which every rank computes, without
/// that of routing single tokens by them.
#[derive(Debug)]
pub struct WaterfillSplit {
    name: String,
    previous: bool,
    /// Of each layer.
    layers: Vec<Option<ReplicaShares>>,
}

impl WaterfillSplit {
    /// Shares from the counts of the step itself, under the name that reports show.
    pub fn this_step(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            previous: false,
            layers: Vec::new(),
        }
    }

    /// Shares from the counts of the step before.
    pub fn previous_step(name: impl Into<String>) -> Self {
        Self {
            previous: true,
            ..Self::this_step(name)
        }
    }

    /// The shares of a layer under the table in force.
    fn shares(&mut self, layer: usize, table: &RoutingTable) -> &mut ReplicaShares {
        if self.layers.len() <= layer {
            self.layers.resize(layer + 1, None);
        }
        let shares = &mut self.layers[layer];
        if shares.as_ref().is_some_and(|shares| !shares.fits(table)) {
            *shares = None;
        }
        shares.get_or_insert_with(|| ReplicaShares::new(table))
    }
}

impl TokenSplit for WaterfillSplit {
    fn name(&self) -> &str {
        &self.name
    }

    fn split(&mut self, context: &SplitContext<'_>) -> Result<SlotLoads, EvalError> {
        let table = context.table;
        check_counts(table, context.counts)?;
        check_counts(table, context.previous)?;
        let seen = match self.previous {
            true => context.previous,
            false => context.counts,
        };
        let seen = seen.iter().map(|&count| whole(count));
        let seen = seen.collect::<Result<Vec<u64>, _>>()?;
        let shares = self.shares(context.layer, table);
        let start = Instant::now();
        let split = shares.split(&seen)?;
        let time = start.elapsed();
        let replicas = table.replica_counts();
        let experts = table.placement().physical_to_logical().iter();
        let loads: Vec<f64> = experts
            .zip(split)
            .map(|(expert, &share)| match seen[expert.index()] {
                // Nothing is known of an expert that had no token.
                0 => context.counts[expert.index()] / replicas[expert.index()] as f64,
                before => context.counts[expert.index()] * (share as f64 / before as f64),
            })
            .collect();
        let off_node = off_node_nearest(table, context.counts, &loads);
        Ok(SlotLoads::new(loads, off_node, time))
    }
}

/// A replica selector at work: every rank routes its tokens, in a random order.
///
/// Takes whole counts only.
#[derive(Debug)]
pub struct SelectorSplit {
    name: String,
    selector: ReplicaSelector,
    top_k: usize,
    rng: ChaCha8Rng,
}

impl SelectorSplit {
    /// A selector under the name that reports show.
    ///
    /// # Arguments
    ///
    /// - `top_k` - ids per row of a batch.
    /// - `seed` - of the order of the tokens.
    pub fn new(
        name: impl Into<String>,
        selector: ReplicaSelector,
        top_k: usize,
        seed: u64,
    ) -> Self {
        Self {
            name: name.into(),
            selector,
            top_k: top_k.max(1),
            rng: ChaCha8Rng::seed_from_u64(seed),
        }
    }

    /// The ids that each rank routes, `[R][tokens / R]`.
    fn ids(&mut self, dealt: &[u64], experts: usize) -> Vec<Vec<i64>> {
        let mut ranks = Vec::new();
        for counts in dealt.chunks(experts) {
            let mut ids = Vec::new();
            for (id, &count) in (0i64..).zip(counts) {
                ids.extend(std::iter::repeat_n(id, count as usize));
            }
            ids.shuffle(&mut self.rng);
            ranks.push(ids);
        }
        ranks
    }
}

impl TokenSplit for SelectorSplit {
    fn name(&self) -> &str {
        &self.name
    }

    fn split(&mut self, context: &SplitContext<'_>) -> Result<SlotLoads, EvalError> {
        let table = context.table;
        let dealt = deal(table, context.counts)?;
        let seen = match self.selector.counts_needed() {
            CountsNeeded::PreviousStep => Some(deal(table, context.previous)?),
            CountsNeeded::None => None,
            _ => Some(dealt.clone()),
        };
        let mut loads = vec![0.0; table.num_physical_experts()];
        let mut off_node = 0.0;
        let mut time = Duration::ZERO;
        let ids = self.ids(&dealt, table.num_logical_experts());
        for (rank, ids) in ids.into_iter().enumerate() {
            let rank = Rank::new(rank);
            let mut select = SelectContext::new(table, rank, self.top_k);
            if let Some(seen) = &seen {
                select = select.with_counts(seen);
            }
            let mut physical = vec![-1; ids.len()];
            let start = Instant::now();
            self.selector.select(&select, &ids, &mut physical)?;
            time += start.elapsed();
            let node = table.topology().node_of(rank);
            for slot in physical.into_iter().filter_map(PhysicalExpert::from_raw) {
                if let Some(load) = loads.get_mut(slot.index()) {
                    *load += 1.0;
                }
                let owner = table.owner(slot);
                let served = owner.and_then(|owner| table.topology().node_of(owner));
                off_node += f64::from(u8::from(served != node));
            }
        }
        let ranks = u32::try_from(table.num_ranks()).unwrap_or(u32::MAX);
        Ok(SlotLoads::new(loads, off_node, time / ranks))
    }
}

/// The counts of each rank, `[R, E]`: tokens are dealt to the ranks one by one, like cards.
fn deal(table: &RoutingTable, counts: &[f64]) -> Result<Vec<u64>, EvalError> {
    check_counts(table, counts)?;
    let (ranks, experts) = (table.num_ranks(), table.num_logical_experts());
    let mut dealt = vec![0; ranks * experts];
    let mut next = 0;
    for (expert, &count) in counts.iter().enumerate() {
        let count = whole(count)?;
        let (all, rest) = (count / ranks as u64, (count % ranks as u64) as usize);
        for rank in 0..ranks {
            let turn = (rank + ranks - next) % ranks;
            dealt[rank * experts + expert] = all + u64::from(turn < rest);
        }
        next = (next + rest) % ranks;
    }
    Ok(dealt)
}

/// The tokens of an expert in a step that is routed.
fn whole(count: f64) -> Result<u64, EvalError> {
    if count.fract() != 0.0 || !(0.0..=f64::from(u32::MAX)).contains(&count) {
        let what = "the load of an expert in a step that a replica selector routes";
        return Err(EvalError::setting(what, count, "a whole number of tokens"));
    }
    Ok(count as u64)
}

fn check_counts(table: &RoutingTable, counts: &[f64]) -> Result<(), EvalError> {
    if counts.len() == table.num_logical_experts() {
        return Ok(());
    }
    let expected = format!("{}, as the table has", table.num_logical_experts());
    Err(EvalError::setting(
        "the number of experts in the load",
        counts.len(),
        expected,
    ))
}

/// Tokens that leave their node if the choice of a slot does not look at where they are.
///
/// # Arguments
///
/// - `loads` - tokens per slot, `[P]`.
pub fn off_node_blind(table: &RoutingTable, loads: &[f64]) -> f64 {
    let at_home = node_shares(table);
    slot_nodes(table)
        .zip(loads)
        .map(|(node, load)| load * (1.0 - at_home[node]))
        .sum()
}

/// Tokens that leave their node if every node serves its own tokens first: the least that the
/// loads of the slots allow.
///
/// # Arguments
///
/// - `counts` - tokens per logical expert, `[E]`.
/// - `loads` - tokens per slot, `[P]`.
pub fn off_node_nearest(table: &RoutingTable, counts: &[f64], loads: &[f64]) -> f64 {
    let nodes = table.topology().num_nodes();
    let mut served = vec![0.0; counts.len() * nodes];
    let experts = table.placement().physical_to_logical();
    for ((node, expert), load) in slot_nodes(table).zip(experts).zip(loads) {
        if let Some(served) = served.get_mut(expert.index() * nodes + node) {
            *served += load;
        }
    }
    let at_home = node_shares(table);
    served
        .chunks(nodes)
        .zip(counts)
        .flat_map(|(nodes, count)| {
            nodes
                .iter()
                .zip(&at_home)
                .map(move |(s, home)| s - home * count)
        })
        .map(|beyond| beyond.max(0.0))
        .sum()
}

/// The share of the ranks, and so of the tokens, that each node has.
fn node_shares(table: &RoutingTable) -> Vec<f64> {
    let topology = table.topology();
    (0..topology.num_nodes())
        .filter_map(|node| topology.ranks_of(node))
        .map(|ranks| ranks.len() as f64 / topology.num_ranks() as f64)
        .collect()
}

/// The node of each slot.
fn slot_nodes(table: &RoutingTable) -> impl Iterator<Item = usize> {
    (0..table.num_physical_experts())
        .map(PhysicalExpert::new)
        .filter_map(|slot| table.topology().node_of(table.owner(slot)?))
}

#[cfg(test)]
mod tests {
    use moekit_routing::{LogicalExpert, Placement, RoutingError, Topology};
    use proptest::prelude::*;

    use super::*;

    fn table(ranks: &[&[usize]], experts: usize, nodes: usize) -> RoutingTable {
        let placement = Placement::from_ranks(experts, ranks).unwrap();
        let topology = Topology::new(ranks.len())
            .unwrap()
            .with_nodes(nodes)
            .unwrap();
        RoutingTable::new(placement, topology, 0, 0).unwrap()
    }

    /// Expert 0 is on both ranks; rank 1 must carry expert 2 as well.
    fn shared_expert() -> RoutingTable {
        table(&[&[0, 1], &[0, 2]], 3, 2)
    }

    #[test]
    fn waterfill_levels_the_ranks_of_this_step() {
        let (table, other) = (shared_expert(), table(&[&[0, 1], &[0, 2]], 3, 1));
        let mut split = WaterfillSplit::this_step("waterfill");
        assert_eq!(split.name(), "waterfill");
        let mut context = SplitContext::new(&table, &[4.0, 1.0, 3.0]);
        context.previous = &[0.0, 9.0, 0.0];
        let result = split.split(&context).unwrap();
        assert_eq!(result.loads, [3.0, 1.0, 1.0, 3.0]);
        // Half of each expert's tokens come from each node, and expert 0 keeps two of them there.
        assert_eq!(result.off_node, 1.0 + 0.5 + 1.5);
        context.layer = 2;
        (context.table, context.counts) = (&other, &[4.0, 3.0, 1.0]);
        assert_eq!(split.split(&context).unwrap().loads, [1.0, 3.0, 3.0, 1.0]);
    }

    #[test]
    fn waterfill_previous_keeps_the_proportions_of_the_step_before() {
        let table = shared_expert();
        let mut split = WaterfillSplit::previous_step("waterfill-previous");
        let mut context = SplitContext::new(&table, &[10.0, 2.0, 2.0]);
        context.previous = &[4.0, 1.0, 3.0];
        assert_eq!(split.split(&context).unwrap().loads, [7.5, 2.0, 2.5, 2.0]);
        context.previous = &[0.0, 1.0, 3.0];
        assert_eq!(split.split(&context).unwrap().loads, [5.0, 2.0, 5.0, 2.0]);
    }

    fn by_name(name: &str) -> SelectorSplit {
        SelectorSplit::new(name, ReplicaSelector::from_name(name).unwrap(), 2, 5)
    }

    #[test]
    fn equal_split_halves() {
        let table = table(&[&[0, 1], &[0, 2]], 3, 2);
        let split = EqualSplit
            .split(&SplitContext::new(&table, &[3.0, 4.0, 5.0]))
            .unwrap();
        assert_eq!(split.loads, [1.5, 4.0, 1.5, 5.0]);
        assert_eq!(
            split.off_node, 6.0,
            "half of all tokens come from the other node"
        );
    }

    #[test]
    fn nodes_serve_their_own_first() {
        let table = table(&[&[0], &[1], &[0], &[2]], 3, 2);
        // Expert 0 has two tokens on each node and is asked to serve three on the first.
        assert_eq!(
            off_node_nearest(&table, &[4.0, 0.0, 0.0], &[3.0, 0.0, 1.0, 0.0]),
            1.0
        );
        assert_eq!(
            off_node_nearest(&table, &[4.0, 2.0, 0.0], &[2.0, 2.0, 2.0, 0.0]),
            1.0
        );
        assert_eq!(off_node_blind(&table, &[3.0, 0.0, 1.0, 0.0]), 2.0);
    }

    #[test]
    fn local_first_stays_on_its_node() {
        let table = table(&[&[0, 1], &[2], &[0, 1], &[2]], 3, 2);
        let context = SplitContext::new(&table, &[40.0, 8.0, 16.0]);
        assert_eq!(
            by_name("local_first").split(&context).unwrap().off_node,
            0.0
        );
        let blind = by_name("round_robin").split(&context).unwrap();
        assert!((blind.off_node - 32.0).abs() < 16.0, "{}", blind.off_node);
    }

    #[test]
    fn whole_tokens_only() {
        let table = table(&[&[0]], 1, 1);
        let split = |count: f64| by_name("row_hash").split(&SplitContext::new(&table, &[count]));
        assert_eq!(split(2.0).unwrap().loads, [2.0]);
        for bad in [0.5, -1.0, f64::NAN, 1e300] {
            let error = split(bad).unwrap_err().to_string();
            assert!(
                error.contains(&bad.to_string()) && error.contains("whole"),
                "{error}"
            );
        }
        let wrong = EqualSplit
            .split(&SplitContext::new(&table, &[1.0, 2.0]))
            .unwrap_err();
        assert!(wrong.to_string().contains("is 2, expected 1"), "{wrong}");
    }

    /// Takes the last replica, and notes the counts that it was shown.
    #[derive(Debug)]
    struct Noting(CountsNeeded, std::sync::Mutex<Vec<Vec<u64>>>);

    impl SelectReplica for Noting {
        fn select(
            &self,
            context: &SelectContext<'_>,
            _: &[i64],
            _: &mut [i64],
        ) -> Result<(), RoutingError> {
            let counts = context.counts.unwrap_or_default().to_vec();
            self.1.lock().unwrap().push(counts);
            Ok(())
        }

        fn counts_needed(&self) -> CountsNeeded {
            self.0
        }
    }

    #[test]
    fn selectors_get_the_counts_that_they_ask_for() {
        let table = table(&[&[0], &[1]], 2, 1);
        for (needed, expected) in [
            (CountsNeeded::None, vec![]),
            (CountsNeeded::ThisStep, vec![2, 1, 1, 1]),
            (CountsNeeded::PreviousStep, vec![0, 3, 0, 2]),
        ] {
            let noting = std::sync::Arc::new(Noting(needed, std::sync::Mutex::default()));
            let custom = moekit_routing::CustomSelector(noting.clone());
            let mut split = SelectorSplit::new("noting", ReplicaSelector::Custom(custom), 1, 0);
            let mut context = SplitContext::new(&table, &[3.0, 2.0]);
            context.previous = &[0.0, 5.0];
            split.split(&context).unwrap();
            assert_eq!(*noting.1.lock().unwrap(), [expected.clone(), expected]);
        }
    }

    proptest! {
        #[test]
        fn no_token_is_lost(
            counts in prop::collection::vec(0u32..50, 4),
            name in prop::sample::select(ReplicaSelector::NAMES),
        ) {
            let table = table(&[&[0, 1, 2], &[3, 0], &[], &[0, 1]], 4, 2);
            let counts: Vec<f64> = counts.into_iter().map(f64::from).collect();
            let context = SplitContext::new(&table, &counts);
            let splits: [&mut dyn TokenSplit; 4] = [
                &mut EqualSplit,
                &mut by_name(name),
                &mut WaterfillSplit::this_step("this"),
                &mut WaterfillSplit::previous_step("previous"),
            ];
            for split in splits {
                let split = split.split(&context).unwrap();
                for (expert, count) in counts.iter().enumerate() {
                    let slots = table.replicas(LogicalExpert::new(expert)).unwrap();
                    let sum: f64 = slots.iter().map(|s| split.loads[s.index()]).sum();
                    prop_assert!((sum - count).abs() < 1e-9);
                }
                let least = off_node_nearest(&table, &counts, &split.loads);
                // Dealing leaves each expert uneven by less than a token per rank.
                prop_assert!(split.off_node >= least - 16.0);
            }
        }

        #[test]
        fn ranks_are_dealt_alike(counts in prop::collection::vec(0u32..50, 3)) {
            let table = table(&[&[0, 1], &[2], &[], &[0], &[1]], 3, 1);
            let counts: Vec<f64> = counts.into_iter().map(f64::from).collect();
            let dealt = deal(&table, &counts).unwrap();
            let ranks: Vec<u64> = dealt.chunks(3).map(|rank| rank.iter().sum()).collect();
            prop_assert!(ranks.iter().max().unwrap() - ranks.iter().min().unwrap() <= 1);
            for (expert, count) in counts.iter().enumerate() {
                let sum: u64 = dealt.iter().skip(expert).step_by(3).sum();
                prop_assert_eq!(sum as f64, *count);
            }
        }
    }
}
