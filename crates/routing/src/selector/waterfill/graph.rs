use crate::{LogicalExpert, Rank, RoutingTable};

/// An expert whose slots all sit on one rank: there is nothing to decide.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fixed {
    pub(super) expert: u32,
    pub(super) rank: u32,
    /// Its first slot, which serves all of its tokens.
    pub(super) slot: u32,
}

/// An expert on a rank that shares it with other ranks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Edge {
    /// The expert, as a position in [`ReplicaGraph::shared`].
    pub(super) shared: u32,
    pub(super) rank: u32,
    /// The expert's first slot on the rank. A second one could take no load off the rank.
    pub(super) slot: u32,
    /// The node of the rank.
    pub(super) node: u32,
}

/// Which ranks can take load off which others: experts on several ranks and those ranks, as the
/// edges of a bipartite graph.
#[derive(Clone, Debug, Default)]
pub(super) struct ReplicaGraph {
    pub(super) num_ranks: usize,
    pub(super) num_experts: usize,
    pub(super) num_slots: usize,
    /// Ranks that have a slot.
    pub(super) carriers: u64,
    pub(super) fixed: Vec<Fixed>,
    /// The experts on several ranks, ascending.
    pub(super) shared: Vec<u32>,
    /// By expert, then by rank.
    pub(super) edges: Vec<Edge>,
    /// `[shared + 1]` offsets into `edges`.
    expert_offsets: Vec<u32>,
    /// `[R + 1]` offsets into `rank_edges`.
    rank_offsets: Vec<u32>,
    /// The edges of each rank.
    rank_edges: Vec<u32>,
}

impl ReplicaGraph {
    /// Computed whole from one table.
    pub(super) fn new(table: &RoutingTable) -> Self {
        let mut graph = Self::default();
        graph.rebuild(table);
        graph
    }

    /// The same, in the memory that is there.
    pub(super) fn rebuild(&mut self, table: &RoutingTable) {
        self.num_ranks = table.num_ranks();
        self.num_experts = table.num_logical_experts();
        self.num_slots = table.num_physical_experts();
        let offsets = table.placement().rank_offsets();
        self.carriers = offsets.windows(2).filter(|w| w[0] < w[1]).count() as u64;
        self.fixed.clear();
        self.shared.clear();
        self.edges.clear();
        self.expert_offsets.clear();
        self.expert_offsets.push(0);
        for expert in 0..self.num_experts {
            self.add_expert(table, expert);
        }
        self.index_ranks();
    }

    fn add_expert(&mut self, table: &RoutingTable, expert: usize) {
        let first = self.edges.len();
        let slots = table.replicas(LogicalExpert::new(expert)).unwrap_or(&[]);
        for &slot in slots {
            let rank = table.owner(slot).map_or(0, Rank::index) as u32;
            if self.edges.len() == first || self.edges.last().is_some_and(|e| e.rank != rank) {
                self.edges.push(Edge {
                    shared: self.shared.len() as u32,
                    rank,
                    slot: slot.index() as u32,
                    node: 0,
                });
            }
        }
        match self.edges[first..] {
            [] => {}
            [Edge { rank, slot, .. }] => {
                self.edges.truncate(first);
                self.fixed.push(Fixed {
                    expert: expert as u32,
                    rank,
                    slot,
                });
            }
            _ => {
                for edge in &mut self.edges[first..] {
                    let node = table.topology().node_of(Rank::new(edge.rank as usize));
                    edge.node = node.unwrap_or(0) as u32;
                }
                self.shared.push(expert as u32);
                self.expert_offsets.push(self.edges.len() as u32);
            }
        }
    }

    /// Lists the edges of each rank, by counting sort.
    fn index_ranks(&mut self) {
        self.rank_offsets.clear();
        self.rank_offsets.resize(self.num_ranks + 1, 0);
        for edge in &self.edges {
            self.rank_offsets[edge.rank as usize] += 1;
        }
        let mut end = 0;
        for offset in &mut self.rank_offsets {
            end += *offset;
            *offset = end;
        }
        self.rank_edges.clear();
        self.rank_edges.resize(self.edges.len(), 0);
        // Backwards, each rank's list fills from its end, which leaves the offset at its start.
        for (at, edge) in self.edges.iter().enumerate().rev() {
            let offset = &mut self.rank_offsets[edge.rank as usize];
            *offset -= 1;
            self.rank_edges[*offset as usize] = at as u32;
        }
    }

    /// The edges of an expert, given as a position in `shared`.
    pub(super) fn edges_of(&self, shared: usize) -> std::ops::Range<usize> {
        self.expert_offsets[shared] as usize..self.expert_offsets[shared + 1] as usize
    }

    /// The edges of a rank.
    pub(super) fn edges_on(&self, rank: usize) -> &[u32] {
        &self.rank_edges[self.rank_offsets[rank] as usize..self.rank_offsets[rank + 1] as usize]
    }
}
