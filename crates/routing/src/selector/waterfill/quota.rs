//! Which rank's tokens make up a replica's share.

use super::shares::Replica;
use crate::Topology;

/// The golden ratio's fractional part and the square root of two's: multiples of either spread
/// evenly over the unit interval, and independently of each other's.
const PHASE_OF_RANK: f64 = 0.618_033_988_749_894_9;
const PHASE_OF_EXPERT: f64 = 0.414_213_562_373_095_1;

/// Deals the shares of an expert's replicas to the ranks that its tokens come from. Every rank
/// serves its own tokens first, every node its own next, and what is left is paired in order of the
/// ranks; so no split of the same shares keeps more tokens on their rank or, of the others, more
/// on their node.
#[derive(Clone, Debug, Default)]
pub(super) struct Quotas {
    /// Tokens of each rank that have no replica yet, `[R]`.
    sources: Vec<u64>,
    /// What is left of each replica's share.
    shares: Vec<u64>,
    weights: Vec<f64>,
}

impl Quotas {
    pub(super) fn new(num_ranks: usize, most_replicas: usize) -> Self {
        Self {
            sources: vec![0; num_ranks],
            shares: vec![0; most_replicas],
            weights: vec![0.0; most_replicas],
        }
    }

    /// Scales quotas of one step to the tokens of another.
    ///
    /// # Arguments
    ///
    /// - `count` - the expert's tokens on this rank now.
    /// - `fractions` - each replica's part of the expert's tokens on all ranks, for a rank that had
    ///   none of them.
    /// - `rank_and_expert` - what the rounding differs by.
    /// - `quota` - the quotas of the other step, then those of this one.
    pub(super) fn scale(
        &mut self,
        count: u64,
        fractions: &[f64],
        rank_and_expert: [usize; 2],
        quota: &mut [u64],
    ) {
        self.weights.clear();
        if quota.iter().any(|&tokens| tokens > 0) {
            self.weights
                .extend(quota.iter().map(|&tokens| tokens as f64));
        } else {
            self.weights.extend(fractions);
        }
        proportional(count, &self.weights, rank_and_expert, quota);
    }

    /// How many of the tokens of `rank` each replica serves.
    ///
    /// # Arguments
    ///
    /// - `counts` - the expert's tokens on each rank, in order of the ranks.
    /// - `share` - the share of each replica; together they are the tokens of all ranks.
    /// - `quota` - the result, as long as `replicas`.
    pub(super) fn deal(
        &mut self,
        topology: &Topology,
        rank: usize,
        counts: impl Iterator<Item = u64>,
        replicas: &[Replica],
        share: impl Iterator<Item = u64>,
        quota: &mut [u64],
    ) {
        self.sources.clear();
        self.sources.extend(counts);
        self.shares.clear();
        self.shares.extend(share);
        quota.fill(0);
        for ((replica, share), quota) in replicas.iter().zip(&mut self.shares).zip(&mut *quota) {
            let own = replica.rank as usize;
            let kept = (*share).min(self.sources[own]);
            *share -= kept;
            self.sources[own] -= kept;
            if own == rank {
                *quota = kept;
            }
        }
        for node in 0..topology.num_nodes() {
            let ranks = topology.ranks_of(node).unwrap_or_default();
            let first = replicas.partition_point(|r| (r.rank as usize) < ranks.start);
            let last = replicas.partition_point(|r| (r.rank as usize) < ranks.end);
            self.pair(ranks, first..last, rank, quota);
        }
        if topology.num_nodes() > 1 {
            self.pair(0..topology.num_ranks(), 0..replicas.len(), rank, quota);
        }
    }

    /// Pairs the tokens of some ranks with the shares of some replicas, both in order.
    fn pair(
        &mut self,
        ranks: std::ops::Range<usize>,
        replicas: std::ops::Range<usize>,
        own: usize,
        quota: &mut [u64],
    ) {
        let mut at = replicas.start;
        for rank in ranks {
            while at < replicas.end && self.sources[rank] > 0 {
                let paired = self.sources[rank].min(self.shares[at]);
                self.sources[rank] -= paired;
                self.shares[at] -= paired;
                if rank == own {
                    quota[at] += paired;
                }
                if self.shares[at] == 0 {
                    at += 1;
                }
            }
        }
    }
}

/// Splits `count` tokens in proportion to `weights` so that each part is the exact one rounded up or
/// down, and which of the two differs from rank to rank: the parts of all ranks add up to nearly
/// the exact ones even if every rank has a single token (systematic sampling, with phases that
/// spread evenly). The sum of the weights is positive.
fn proportional(count: u64, weights: &[f64], [rank, expert]: [usize; 2], parts: &mut [u64]) {
    let phase = (rank as f64 * PHASE_OF_RANK + expert as f64 * PHASE_OF_EXPERT).fract();
    let scale = count as f64 / weights.iter().sum::<f64>();
    let (mut exact, mut given) = (phase, 0);
    for (part, weight) in parts.iter_mut().zip(weights) {
        exact += weight * scale;
        let until = (exact as u64).min(count);
        *part = until.saturating_sub(given);
        given = given.max(until);
    }
    if let Some(last) = parts.last_mut() {
        *last += count - given;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The quotas of all ranks, `[R][replicas]`.
    fn all_quotas(
        nodes: usize,
        counts: &[u64],
        replicas: &[Replica],
        shares: &[u64],
    ) -> Vec<Vec<u64>> {
        let topology = Topology::new(counts.len()).unwrap().with_nodes(nodes);
        let topology = topology.unwrap();
        let mut quotas = Quotas::new(counts.len(), replicas.len());
        let quota = |rank| {
            let mut quota = vec![9; replicas.len()];
            let (counts, shares) = (counts.iter().copied(), shares.iter().copied());
            quotas.deal(&topology, rank, counts, replicas, shares, &mut quota);
            quota
        };
        (0..counts.len()).map(quota).collect()
    }

    fn replicas(ranks: &[u32]) -> Vec<Replica> {
        let replica = |&rank| Replica { rank, slot: rank };
        ranks.iter().map(replica).collect()
    }

    #[test]
    fn own_rank_then_own_node_then_the_rest() {
        let quotas = all_quotas(2, &[5, 5, 5, 5], &replicas(&[1, 2]), &[12, 8]);
        assert_eq!(quotas, [[5, 0], [5, 0], [0, 5], [2, 3]]);
        let alone = all_quotas(1, &[5, 5, 5, 5], &replicas(&[1, 2]), &[12, 8]);
        assert_eq!(alone, [[5, 0], [5, 0], [0, 5], [2, 3]]);
    }

    proptest! {
        #[test]
        fn rows_and_columns_add_up(
            counts in prop::collection::vec(0u64..20, 6),
            on in prop::collection::btree_set(0u32..6, 1..5),
            cuts in prop::collection::vec(0.0f64..1.0, 4),
            nodes in 1usize..4,
        ) {
            let on: Vec<u32> = on.into_iter().collect();
            let total: u64 = counts.iter().sum();
            let mut ends: Vec<u64> = cuts[..on.len() - 1].iter().map(|c| (c * total as f64) as u64).collect();
            ends.sort_unstable();
            ends.push(total);
            let shares: Vec<u64> = ends.iter().scan(0, |last, &end| Some(end - std::mem::replace(last, end))).collect();
            let quotas = all_quotas(nodes, &counts, &replicas(&on), &shares);
            for (quota, count) in quotas.iter().zip(&counts) {
                prop_assert_eq!(quota.iter().sum::<u64>(), *count);
            }
            let mut kept = 0;
            for (at, (&rank, share)) in on.iter().zip(&shares).enumerate() {
                prop_assert_eq!(quotas.iter().map(|quota| quota[at]).sum::<u64>(), *share);
                kept += quotas[rank as usize][at];
                prop_assert_eq!(quotas[rank as usize][at], counts[rank as usize].min(*share));
            }
            prop_assert!(kept <= total);
        }

        #[test]
        fn parts_are_the_exact_ones_up_or_down(
            count in 0u64..100,
            weights in prop::collection::vec(0.0f64..5.0, 1..6),
            rank in 0usize..100,
            expert in 0usize..100,
        ) {
            let total: f64 = weights.iter().sum();
            prop_assume!(total > 0.0);
            let mut parts = vec![9; weights.len()];
            proportional(count, &weights, [rank, expert], &mut parts);
            prop_assert_eq!(parts.iter().sum::<u64>(), count);
            for (part, weight) in parts.iter().zip(&weights) {
                let exact = count as f64 * weight / total;
                prop_assert!((*part as f64 - exact).abs() < 1.0 + 1e-9, "{parts:?} {weights:?}");
            }
        }
    }

    #[test]
    fn single_tokens_of_many_ranks_spread_in_proportion() {
        let mut sums = [0; 3];
        for rank in 0..100 {
            let mut parts = [0; 3];
            proportional(1, &[0.2, 0.3, 0.5], [rank, 7], &mut parts);
            sums.iter_mut()
                .zip(parts)
                .for_each(|(sum, part)| *sum += part);
        }
        let off = |(sum, exact): (u64, u64)| sum.abs_diff(exact) <= 2;
        assert!(sums.into_iter().zip([20, 30, 50]).all(off), "{sums:?}");
    }
}
