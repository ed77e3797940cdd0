use std::time::Instant;

use moekit_routing::{ReplicaShares, RoutingTable};

use super::{SlotLoads, SplitContext, TokenSplit, check_counts, off_node_nearest, whole};
use crate::EvalError;

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
