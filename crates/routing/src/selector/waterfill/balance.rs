use super::graph::ReplicaGraph;
use super::pour::pour;

/// How many tokens of each shared expert each of its ranks serves, and what the ranks carry then.
#[derive(Clone, Debug, Default)]
pub(super) struct Balance {
    /// `[R]`
    pub(super) loads: Vec<u64>,
    /// Tokens per edge of the graph.
    pub(super) shares: Vec<u64>,
    /// Tokens per edge that sweeps leave where they are.
    pub(super) homes: Vec<u64>,
    /// Tokens per shared expert that sweeps may place.
    pub(super) free: Vec<u64>,
    /// No split of these tokens has a smaller largest load.
    pub(super) bound: u64,
    pub(super) searches: u64,
    pub(super) locked: bool,
    pub(super) mode: u32,
    pub(super) tol: u64,
    target: u64,
    search: Search,
}

/// A search for ranks with room, breadth first, from those with too much.
#[derive(Clone, Debug, Default)]
struct Search {
    queue: Vec<u32>,
    /// How each rank was reached: the edge that would lose tokens and the edge that would gain them.
    steps: Vec<(u32, u32)>,
    seen_ranks: Vec<bool>,
    seen_experts: Vec<bool>,
}

const START: u32 = u32::MAX;

impl Balance {
    pub(super) fn sweep(&mut self, graph: &ReplicaGraph) {
        for shared in 0..graph.shared.len() {
            let edges = graph.edges_of(shared);
            for at in edges.clone() {
                let share = &mut self.shares[at];
                self.loads[graph.edges[at].rank as usize] -= *share - self.homes[at];
                *share = self.homes[at];
            }
            pour(
                self.free[shared],
                &graph.edges[edges.clone()],
                &mut self.shares[edges],
                &mut self.loads,
            );
        }
    }

    fn residual(&self, e: usize) -> u64 { if self.locked { self.shares[e].saturating_sub(self.homes[e]) } else { self.shares[e] } }

    pub(super) fn go_home(&mut self, graph: &ReplicaGraph) {
        for i in 0..graph.shared.len() {
            let edges = graph.edges_of(i);
            for to in edges.clone() {
                let r = graph.edges[to].rank as usize;
                for from in edges.clone() {
                    let d = self.homes[to].saturating_sub(self.shares[to]).min(self.shares[from].saturating_sub(self.homes[from])).min(self.bound.saturating_sub(self.loads[r]));
                    if d > 0 {
                        self.shares[to] += d; self.shares[from] -= d;
                        self.loads[r] += d; self.loads[graph.edges[from].rank as usize] -= d;
                    }
                }
            }
        }
    }

    pub(super) fn largest(&self) -> u64 {
        self.loads.iter().copied().max().unwrap_or(0)
    }

    /// Moves tokens until the largest load equals the bound, which is raised where a set of ranks
    /// proves that it must be.
    pub(super) fn settle(&mut self, graph: &ReplicaGraph) {
        self.searches = 0;
        self.target = self.bound + if self.tol == 0 { 0 } else { self.bound / self.tol };
        while self.largest() > self.target {
            self.searches += 1;
            if !self.relieve(graph) {
                if self.locked { self.locked = false; continue; }
                let reached = &self.search.queue;
                let confined: u64 = reached.iter().map(|&r| self.loads[r as usize]).sum();
                self.bound = confined.div_ceil(reached.len() as u64); self.target = self.bound + if self.tol == 0 { 0 } else { self.bound / self.tol };
            }
        }
    }

    fn relieve(&mut self, graph: &ReplicaGraph) -> bool {
        let search = &mut self.search;
        search.queue.clear();
        search.seen_ranks.clear();
        search.seen_experts.clear();
        search.seen_experts.resize(graph.shared.len(), false);
        search.steps.resize(graph.num_ranks, (START, START));
        for (rank, &load) in self.loads.iter().enumerate() {
            search.seen_ranks.push(load > self.target);
            if load > self.target {
                search.queue.push(rank as u32);
                search.steps[rank] = (START, START);
            }
        }
        let (mut head, mut moved) = (0, false);
        while let Some(&rank) = self.search.queue.get(head) {
            head += 1;
            for &loser in graph.edges_on(rank as usize) {
                let shared = graph.edges[loser as usize].shared as usize;
                if self.residual(loser as usize) == 0 || self.search.seen_experts[shared] {
                    continue;
                }
                self.search.seen_experts[shared] = true;
                for gainer in graph.edges_of(shared) {
                    let other = graph.edges[gainer].rank as usize;
                    if self.search.seen_ranks[other] {
                        continue;
                    }
                    self.search.seen_ranks[other] = true;
                    self.search.steps[other] = (loser, gainer as u32);
                    self.search.queue.push(other as u32);
                    if self.loads[other] < self.target {
                        moved |= self.push(graph, other);
                    }
                }
            }
        }
        moved
    }

    fn push(&mut self, graph: &ReplicaGraph, end: usize) -> bool {
        let mut amount = self.target - self.loads[end];
        let mut rank = end;
        while let (loser, _) = self.search.steps[rank] && loser != START {
            amount = amount.min(self.residual(loser as usize));
            rank = graph.edges[loser as usize].rank as usize;
        }
        amount = amount.min(self.loads[rank].saturating_sub(self.target));
        if amount == 0 {
            return false;
        }
        self.loads[rank] -= amount;
        self.loads[end] += amount;
        let mut rank = end;
        while let (loser, gainer) = self.search.steps[rank] && loser != START {
            self.shares[loser as usize] -= amount;
            self.shares[gainer as usize] += amount;
            rank = graph.edges[loser as usize].rank as usize;
        }
        true
    }
}
