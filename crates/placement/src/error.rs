use moekit_plugin::PluginError;
use moekit_routing::RoutingError;
use thiserror::Error;

/// Why there is no placement.
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum PlacementError {
    /// A placement, topology or id is invalid.
    #[error(transparent)]
    Routing(#[from] RoutingError),
    /// The strategy is not linked, or two claim its name.
    #[error(transparent)]
    Plugin(#[from] PluginError),
    /// The configuration of a strategy does not name it.
    #[error(
        "a strategy's configuration is a table with the key `strategy`, e.g. {{\"strategy\": \"linear\"}}, got {got}"
    )]
    NoStrategyName {
        /// What was given.
        got: String,
    },
    /// A setting is unknown or has a wrong value.
    #[error("settings of strategy `{strategy}`: {message}")]
    Settings {
        /// The strategy.
        strategy: String,
        /// What is wrong.
        message: String,
    },
    /// The request does not meet what the strategy requires.
    #[error("strategy `{strategy}`: {message}")]
    Precondition {
        /// The strategy.
        strategy: String,
        /// What is required, and what was given.
        message: String,
    },
    /// A strategy answered something else than what was asked.
    #[error("strategy `{strategy}` broke its contract: {message}")]
    Contract {
        /// The strategy.
        strategy: String,
        /// What differs.
        message: String,
    },
    /// There is nothing to place.
    #[error("a model needs at least 1 MoE layer, got 0")]
    NoLayers,
    /// Too few slots for the experts.
    #[error(
        "{num_slots} slots cannot hold {num_experts} logical experts: each needs at least one slot"
    )]
    TooFewSlots {
        /// Slots over all ranks.
        num_slots: usize,
        /// Logical experts.
        num_experts: usize,
    },
    /// Something has the wrong length.
    #[error("{what}: got {got}, expected {expected}")]
    Shape {
        /// What.
        what: String,
        /// Its size.
        got: usize,
        /// The size it needs.
        expected: usize,
    },
    /// Expert groups of different sizes.
    #[error(
        "{got} expert groups do not divide {num_experts} logical experts; {} do",
        divisors(*num_experts)
    )]
    Groups {
        /// The number of groups.
        got: usize,
        /// Logical experts.
        num_experts: usize,
    },
    /// A load that counts no tokens.
    #[error(
        "load of layer {layer}, expert {expert} is {value:?}; a load is a number from 0 to 1e100"
    )]
    Load {
        /// Layer.
        layer: usize,
        /// Logical expert.
        expert: usize,
        /// The value.
        value: f64,
    },
    /// A placement file of another format or version.
    #[error("{what} is `{got}`, expected `{expected}`")]
    Format {
        /// Which field.
        what: &'static str,
        /// Its value.
        got: String,
        /// The value it needs.
        expected: String,
    },
    /// A budget of a migration that moves nothing.
    #[error(
        "a migration budget of {budget} {what} is too small: the smallest step that keeps every expert reachable needs {needed}"
    )]
    BudgetTooSmall {
        /// Of what.
        what: &'static str,
        /// The budget.
        budget: u64,
        /// The smallest budget with which something can move.
        needed: u64,
    },
    /// A placement that counts on a rank that is gone.
    #[error("rank {rank} is lost, but the next placement gives it {slots} slots; it must have 0")]
    LostRankInUse {
        /// The rank.
        rank: usize,
        /// Its slots.
        slots: usize,
    },
    /// Two ranks that would have one number.
    #[error(
        "two ranks of the placement become rank {rank} of the group; each needs its own number"
    )]
    RankTwice {
        /// The number.
        rank: usize,
    },
    /// The bytes of an expert are missing or impossible.
    #[error("bytes of an expert: {problem}")]
    ExpertBytes {
        /// What is wrong.
        problem: &'static str,
    },
}

/// The numbers that divide `n`, in a list.
fn divisors(n: usize) -> String {
    let divisors = (1..=n).filter(|&d| n.is_multiple_of(d));
    let divisors: Vec<String> = divisors.map(|d| d.to_string()).collect();
    divisors.join(", ")
}

impl PlacementError {
    /// A precondition of `strategy` that the request does not meet.
    pub fn precondition(strategy: &str, message: impl Into<String>) -> Self {
        Self::Precondition {
            strategy: strategy.to_owned(),
            message: message.into(),
        }
    }
}
