use thiserror::Error;

/// What can be wrong with a placement, a topology or a lookup.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RoutingError {
    /// An EP group needs a rank.
    #[error("an EP group needs at least 1 rank, got 0")]
    NoRanks,
    /// A node without ranks is not a node.
    #[error("{num_nodes} nodes cannot share {num_ranks} ranks: every node needs at least one rank")]
    Nodes {
        /// Nodes asked for.
        num_nodes: usize,
        /// Ranks of the group.
        num_ranks: usize,
    },
    /// `node_offsets` does not partition ranks into nodes.
    #[error(
        "node_offsets must start at 0 and grow from node to node, with one node or more, got {offsets:?}"
    )]
    NodeOffsets {
        /// The offsets given.
        offsets: Vec<usize>,
    },
    /// More than any deployment has; larger numbers would only exhaust memory.
    #[error("{got} {what} are more than the {max} that are supported")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many.
        got: usize,
        /// The largest number.
        max: usize,
    },
    /// A layer needs an expert.
    #[error("a MoE layer needs at least 1 logical expert, got 0")]
    NoExperts,
    /// A slot names an expert that the layer does not have.
    #[error(
        "slot {slot} holds logical expert {expert}, but the layer has only experts 0..{num_logical}"
    )]
    UnknownExpert {
        /// Physical slot.
        slot: usize,
        /// The id found there.
        expert: usize,
        /// Number of logical experts.
        num_logical: usize,
    },
    /// Some expert sits nowhere.
    #[error(
        "logical expert {expert} has no physical slot: each of the {num_logical} experts needs at least one"
    )]
    Uncovered {
        /// The first expert without a slot.
        expert: usize,
        /// Number of logical experts.
        num_logical: usize,
    },
    /// `rank_offsets` does not partition the slots.
    #[error(
        "rank_offsets must start at 0, never decrease and end at the number of slots ({num_slots}), got {offsets:?}"
    )]
    RankOffsets {
        /// The offsets given.
        offsets: Vec<usize>,
        /// Number of slots.
        num_slots: usize,
    },
    /// Placement and topology speak of different groups.
    #[error("the placement has {placement} ranks, the topology {topology}")]
    RankCount {
        /// Ranks of the placement.
        placement: usize,
        /// Ranks of the topology.
        topology: usize,
    },
    /// A rank outside of its group.
    #[error("{group} rank {rank} does not exist: the group has ranks 0..{size}")]
    UnknownRank {
        /// Which group (`EP`, `TP`, ...).
        group: &'static str,
        /// The rank asked for.
        rank: usize,
        /// Size of the group.
        size: usize,
    },
    /// An empty parallel group.
    #[error("the {group} group has size 0, it needs at least 1")]
    EmptyGroup {
        /// Which group (`TP`, `DP`, ...).
        group: &'static str,
    },
    /// Buffers of a batch disagree.
    #[error("{what} has {got} entries, expected {expected}")]
    Length {
        /// Which buffer.
        what: &'static str,
        /// Its length.
        got: usize,
        /// The length it needs.
        expected: usize,
    },
    /// A selector was not given the counts that it asked for.
    #[error("replica selector `{selector}` needs the token counts of {step}, but none were given")]
    MissingCounts {
        /// Name of the selector.
        selector: &'static str,
        /// Which step's counts.
        step: &'static str,
    },
    /// A selector was given the counts of another batch.
    #[error(
        "the token counts are not those of this batch: rank {rank} routes {routed} tokens to logical expert {expert}, the counts say {counted}"
    )]
    OtherCounts {
        /// The rank that routes.
        rank: usize,
        /// The first expert that differs.
        expert: usize,
        /// Tokens that the counts say.
        counted: u64,
        /// Tokens of the batch.
        routed: u64,
    },
    /// A tolerance is a part of the whole.
    #[error("the tolerance of a split is {got}, expected at least 0 and below 1")]
    Tolerance {
        /// The value given.
        got: String,
    },
    /// Loads of different tables were added up.
    #[error("cannot add the load of table generation {other} to that of generation {this}")]
    Generation {
        /// Generation of the load that is added to.
        this: u64,
        /// Generation of the load that was to be added.
        other: u64,
    },
    /// An unknown replica selector.
    #[error("unknown replica selector `{name}`; known are {}", known.join(", "))]
    UnknownSelector {
        /// The name asked for.
        name: String,
        /// The names that exist.
        known: &'static [&'static str],
    },
}

/// Ranks of an EP group, at most.
pub(crate) const MAX_RANKS: usize = 1 << 16;
/// Slots of a layer over all ranks, at most.
pub(crate) const MAX_SLOTS: usize = 1 << 20;
/// Entries of the expert maps of all ranks together, at most.
pub(crate) const MAX_MAP_ENTRIES: usize = 1 << 28;

/// Refuses a number that is larger than `max`.
pub(crate) fn at_most(what: &'static str, got: usize, max: usize) -> Result<(), RoutingError> {
    if got <= max {
        return Ok(());
    }
    Err(RoutingError::TooMany { what, got, max })
}
