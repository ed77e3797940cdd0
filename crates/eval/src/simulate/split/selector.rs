use std::time::{Duration, Instant};

use moekit_routing::{
    CountsNeeded, PhysicalExpert, Rank, ReplicaSelector, RoutingTable, SelectContext, SelectReplica,
};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::{SlotLoads, SplitContext, TokenSplit, check_counts, whole};
use crate::EvalError;

/// Tokens of a layer that are routed one by one: of each, an id is held.
const MOST_TOKENS: f64 = (1u64 << 28) as f64;

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
        let tokens: f64 = context.counts.iter().sum();
        if tokens > MOST_TOKENS {
            let what = "the tokens of a layer in a step that a replica selector routes one by one";
            let expected =
                format!("at most {MOST_TOKENS}; `equal` and `waterfill` take any number");
            return Err(EvalError::setting(what, tokens, expected));
        }
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
pub(super) fn deal(table: &RoutingTable, counts: &[f64]) -> Result<Vec<u64>, EvalError> {
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
