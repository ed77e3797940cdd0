//! The flow network behind the certificate: experts with several ranks on the left, ranks on the
//! right. Dinic's algorithm, in integers.

use moekit_routing::{Placement, Rank};

const UNREACHED: u32 = u32::MAX;
/// Reached by the search, but nothing more can be pushed through.
const EXHAUSTED: u32 = u32::MAX - 1;

#[derive(Debug)]
pub(super) struct Network {
    /// Whether a rank has slots.
    live: Vec<bool>,
    /// Tokens of each rank that can go nowhere else.
    fixed: Vec<u64>,
    /// The experts on several ranks.
    shared: Vec<Shared>,
    /// For each rank, the shared experts on it and where it stands in their lists.
    on_rank: Vec<Vec<(usize, usize)>>,
    /// Tokens that a rank could still take.
    room: Vec<u64>,
    /// Distances of the last search: shared experts, then ranks.
    depth: Vec<u32>,
}

#[derive(Debug)]
struct Shared {
    expert: usize,
    tokens: u64,
    /// Its ranks, ascending, each once.
    ranks: Vec<usize>,
    /// Tokens sent to each of them.
    flow: Vec<u64>,
    /// Tokens not sent yet.
    left: u64,
}

impl Network {
    pub(super) fn new(placement: &Placement, counts: &[u64]) -> Self {
        let num_ranks = placement.num_ranks();
        let mut ranks_of = vec![Vec::new(); counts.len()];
        let mut live = vec![false; num_ranks];
        for (rank, live) in live.iter_mut().enumerate() {
            for expert in placement.experts_of(Rank::new(rank)).unwrap_or_default() {
                *live = true;
                let ranks: &mut Vec<usize> = &mut ranks_of[expert.index()];
                if ranks.last() != Some(&rank) {
                    ranks.push(rank);
                }
            }
        }
        let mut network = Self {
            live,
            fixed: vec![0; num_ranks],
            shared: Vec::new(),
            on_rank: vec![Vec::new(); num_ranks],
            room: Vec::new(),
            depth: Vec::new(),
        };
        for (expert, (ranks, &tokens)) in ranks_of.into_iter().zip(counts).enumerate() {
            if let [only] = ranks[..] {
                network.fixed[only] += tokens;
                continue;
            }
            for (at, &rank) in ranks.iter().enumerate() {
                network.on_rank[rank].push((network.shared.len(), at));
            }
            let flow = vec![0; ranks.len()];
            network.shared.push(Shared {
                expert,
                tokens,
                ranks,
                flow,
                left: 0,
            });
        }
        network
    }

    /// The ranks that have slots, ascending.
    pub(super) fn live_ranks(&self) -> Vec<usize> {
        (0..self.live.len())
            .filter(|&rank| self.live[rank])
            .collect()
    }

    /// Each rank and its tokens that can go nowhere else.
    pub(super) fn fixed_tokens(&self) -> Vec<(usize, u64)> {
        self.fixed.iter().copied().enumerate().collect()
    }

    /// A set of ranks whose confined tokens exceed `tokens / ranks` for each of its ranks, if there
    /// is one.
    pub(super) fn violated(&mut self, tokens: u64, ranks: u64) -> Option<Vec<usize>> {
        // All amounts times `ranks`, so that the level is a whole number.
        self.room = self
            .fixed
            .iter()
            .map(|fixed| tokens.saturating_sub(fixed * ranks))
            .collect();
        for shared in &mut self.shared {
            shared.left = shared.tokens * ranks;
            shared.flow.fill(0);
        }
        while self.search() {
            for expert in 0..self.shared.len() {
                while self.shared[expert].left > 0 {
                    let pushed = self.push(expert, self.shared[expert].left);
                    if pushed == 0 {
                        break;
                    }
                    self.shared[expert].left -= pushed;
                }
            }
        }
        if self.shared.iter().all(|shared| shared.left == 0) {
            return None;
        }
        let reached = |rank: &usize| self.depth[self.shared.len() + rank] != UNREACHED;
        Some((0..self.fixed.len()).filter(reached).collect())
    }

    /// Breadth-first distances from the experts with tokens left; whether a rank with room is
    /// reached.
    fn search(&mut self) -> bool {
        let experts = self.shared.len();
        self.depth = vec![UNREACHED; experts + self.fixed.len()];
        let mut queue: Vec<usize> = (0..experts).filter(|&e| self.shared[e].left > 0).collect();
        queue.iter().for_each(|&expert| self.depth[expert] = 0);
        let (mut head, mut found) = (0, false);
        while let Some(&node) = queue.get(head) {
            head += 1;
            let next = self.depth[node] + 1;
            if node < experts {
                for &rank in &self.shared[node].ranks {
                    if self.depth[experts + rank] == UNREACHED {
                        self.depth[experts + rank] = next;
                        found |= self.room[rank] > 0;
                        queue.push(experts + rank);
                    }
                }
            } else {
                for &(expert, at) in &self.on_rank[node - experts] {
                    if self.shared[expert].flow[at] > 0 && self.depth[expert] == UNREACHED {
                        self.depth[expert] = next;
                        queue.push(expert);
                    }
                }
            }
        }
        found
    }

    /// Sends up to `amount` from an expert along rising distances.
    fn push(&mut self, expert: usize, amount: u64) -> u64 {
        let experts = self.shared.len();
        for at in 0..self.shared[expert].ranks.len() {
            let rank = self.shared[expert].ranks[at];
            let depth = self.depth[experts + rank];
            if depth != self.depth[expert] + 1 {
                continue;
            }
            let direct = amount.min(self.room[rank]);
            if direct > 0 {
                self.room[rank] -= direct;
                self.shared[expert].flow[at] += direct;
                return direct;
            }
            // Through an expert that gives up some of its place on the rank.
            for i in 0..self.on_rank[rank].len() {
                let (other, back) = self.on_rank[rank][i];
                let taken = amount.min(self.shared[other].flow[back]);
                if taken == 0 || self.depth[other] != depth + 1 {
                    continue;
                }
                let pushed = self.push(other, taken);
                if pushed > 0 {
                    self.shared[other].flow[back] -= pushed;
                    self.shared[expert].flow[at] += pushed;
                    return pushed;
                }
            }
            self.depth[experts + rank] = EXHAUSTED;
        }
        self.depth[expert] = EXHAUSTED;
        0
    }

    /// Tokens of the experts that sit on these ranks only. `set` is ascending.
    pub(super) fn confined(&self, set: &[usize]) -> u64 {
        let inside = |shared: &&Shared| shared.ranks.iter().all(|r| set.binary_search(r).is_ok());
        let fixed: u64 = set.iter().map(|&rank| self.fixed[rank]).sum();
        fixed
            + self
                .shared
                .iter()
                .filter(inside)
                .map(|shared| shared.tokens)
                .sum::<u64>()
    }

    /// The flow per slot, `[P]`; of several slots on one rank the first gets all.
    pub(super) fn split(&self, placement: &Placement, counts: &[u64]) -> Vec<u64> {
        let mut left: Vec<u64> = counts.to_vec();
        let mut flows: Vec<Option<&Shared>> = vec![None; counts.len()];
        for shared in &self.shared {
            flows[shared.expert] = Some(shared);
        }
        let mut split = vec![0; placement.num_physical_experts()];
        let mut last_rank = vec![usize::MAX; counts.len()];
        for (rank, slots) in placement.rank_offsets().windows(2).enumerate() {
            let experts = placement.physical_to_logical()[slots[0]..slots[1]].iter();
            for (expert, split) in experts.zip(&mut split[slots[0]..slots[1]]) {
                let expert = expert.index();
                if last_rank[expert] == rank {
                    continue;
                }
                last_rank[expert] = rank;
                *split = match flows[expert] {
                    None => left[expert],
                    Some(shared) => shared
                        .ranks
                        .binary_search(&rank)
                        .map_or(0, |at| shared.flow[at].min(left[expert])),
                };
                left[expert] -= *split;
            }
        }
        split
    }
}
