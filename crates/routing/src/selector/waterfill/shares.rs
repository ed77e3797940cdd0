use super::balance::Balance;
use super::graph::ReplicaGraph;
use crate::{RoutingError, RoutingTable};

/// How many tokens of each expert each of its slots serves.
#[derive(Clone, Debug)]
pub struct ReplicaShares {
    graph: ReplicaGraph,
    balance: Balance,
    slots: Vec<u64>,
    totals: Vec<u64>, by_node: Vec<u64>, nodes: Vec<usize>,
    /// dev
    pub sweeps: usize,
    /// dev
    pub start: usize,
    /// dev
    pub exact: bool,
}

impl ReplicaShares {
    /// new
    pub fn new(table: &RoutingTable) -> Self {
        let graph = ReplicaGraph::new(table);
        let mut balance = Balance::default();
        balance.shares.resize(graph.edges.len(), 0);
        balance.homes.resize(graph.edges.len(), 0);
        balance.free.resize(graph.shared.len(), 0);
        balance.loads.resize(graph.num_ranks, 0);
        let slots = vec![0; graph.num_slots];
        let nodes = (0..graph.num_ranks).map(|r| table.topology().node_of(crate::Rank::new(r)).unwrap()).collect();
        Self { totals: vec![], by_node: vec![], nodes, graph, balance, slots, sweeps: 2, start: 0, exact: true }
    }
    /// split
    pub fn split(&mut self, counts: &[u64]) -> Result<&[u64], RoutingError> {
        let Self { graph, balance, slots, .. } = self;
        let total: u64 = counts.iter().sum();
        balance.loads.fill(0);
        for f in &graph.fixed {
            let c = counts[f.expert as usize];
            slots[f.slot as usize] = c;
            balance.loads[f.rank as usize] += c;
        }
        balance.bound = total.div_ceil(graph.carriers.max(1)).max(balance.largest());
        for (i, &e) in graph.shared.iter().enumerate() {
            let c = counts[e as usize];
            let old = balance.free[i];
            balance.free[i] = c;
            let edges = graph.edges_of(i);
            match self.start {
                0 => balance.shares[edges].fill(0),
                1 => { let k = edges.len() as u64; let (a, b) = (c / k, c % k);
                    for (j, at) in edges.enumerate() { let x = a + u64::from((j as u64) < b); balance.shares[at] = x; balance.loads[graph.edges[at].rank as usize] += x; } }
                _ => { let mut left = c; let f = if old == 0 { 0.0 } else { c as f64 / old as f64 }; let last = edges.end - 1;
                    for at in edges { let x = if at == last { left } else { ((balance.shares[at] as f64 * f) as u64).min(left) }; left -= x; balance.shares[at] = x; balance.loads[graph.edges[at].rank as usize] += x; } }
            }
        }
        for _ in 0..self.sweeps { balance.sweep(graph); if balance.largest() <= balance.bound { break; } }
        if self.exact { balance.settle(graph); }
        for (edge, &share) in graph.edges.iter().zip(&balance.shares) {
            slots[edge.slot as usize] = share;
        }
        Ok(&self.slots)
    }
    /// from
    pub fn split_from(&mut self, counts: &[u64], mode: u32) -> Result<&[u64], RoutingError> {
        let Self { graph, balance, slots, totals, by_node, nodes, .. } = self;
        let ne = graph.num_experts;
        totals.clear(); totals.resize(ne, 0);
        for row in counts.chunks_exact(ne) { for (t, c) in totals.iter_mut().zip(row) { *t += c; } }
        let total: u64 = totals.iter().sum();
        balance.loads.fill(0);
        for f in &graph.fixed {
            let c = totals[f.expert as usize];
            slots[f.slot as usize] = c;
            balance.loads[f.rank as usize] += c;
        }
        balance.bound = total.div_ceil(graph.carriers.max(1)).max(balance.largest());
        for (e, share) in graph.edges.iter().zip(&mut balance.shares) {
            let own = counts[e.rank as usize * ne + graph.shared[e.shared as usize] as usize];
            *share = own;
            balance.loads[e.rank as usize] += own;
        }
        let nn = nodes.iter().max().unwrap() + 1;
        if nn == 1 { balance.homes.copy_from_slice(&balance.shares); }
        for (i, &ex) in graph.shared.iter().enumerate() {
            by_node.clear(); by_node.resize(nn, 0);
            for (r, &n) in nodes.iter().enumerate() { by_node[n] += counts[r * ne + ex as usize]; }
            let all = graph.edges_of(i);
            let mut at = all.start;
            while at < all.end {
                let node = graph.edges[at].node;
                let mut end = at; let mut own = 0;
                while end < all.end && graph.edges[end].node == node { own += balance.shares[end]; end += 1; }
                let rest = std::mem::take(&mut by_node[node as usize]) - own;
                super::pour::pour(rest, &graph.edges[at..end], &mut balance.shares[at..end], &mut balance.loads);
                at = end;
            }
            balance.free[i] = by_node.iter().sum();
        }
        if nn > 1 { balance.homes.copy_from_slice(&balance.shares); }
        for i in 0..graph.shared.len() { let all = graph.edges_of(i); super::pour::pour(balance.free[i], &graph.edges[all.clone()], &mut balance.shares[all], &mut balance.loads); }
        for _ in 0..self.sweeps { balance.sweep(graph); }
        balance.locked = mode & 1 != 0;
        balance.settle(graph);
        if mode & 2 != 0 { balance.go_home(graph); }
        for (edge, &share) in graph.edges.iter().zip(&balance.shares) {
            slots[edge.slot as usize] = share;
        }
        Ok(&self.slots)
    }
    /// largest
    pub fn largest(&self) -> u64 { self.balance.largest() }
    /// bound
    pub fn bound(&self) -> u64 { self.balance.bound }
    /// searches
    pub fn set_tol(&mut self, t: u64) { self.balance.tol = t; }
    /// x
    pub fn searches(&self) -> u64 { self.balance.searches }
    /// size
    pub fn size(&self) -> (usize, usize) { (self.graph.shared.len(), self.graph.edges.len()) }
}
