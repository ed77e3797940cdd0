//! What is to be planned, and what can be wrong with it.

/// One layer to plan: the load of its experts and the slots of the ranks.
///
/// Ranks are numbered from 0; a rank with no slots is dead and gets nothing.
#[derive(Clone, Copy, Debug)]
pub struct LayerProblem<'a> {
    pub(crate) loads: &'a [f64],
    pub(crate) slots_per_rank: &'a [usize],
    pub(crate) speed: Option<&'a [f64]>,
    pub(crate) variance: Option<&'a [f64]>,
    pub(crate) current: Option<&'a [Vec<u32>]>,
    pub(crate) budget: Option<usize>,
    pub(crate) nodes: Option<&'a [usize]>,
    pub(crate) homes: Option<&'a [usize]>,
}

impl<'a> LayerProblem<'a> {
    /// A layer with the load of each logical expert (any unit) and the number of slots of each rank.
    pub fn new(loads: &'a [f64], slots_per_rank: &'a [usize]) -> Self {
        Self {
            loads,
            slots_per_rank,
            speed: None,
            variance: None,
            current: None,
            budget: None,
            nodes: None,
            homes: None,
        }
    }

    /// Relative speeds of the ranks: the cost of a rank is its load over its speed.
    #[must_use]
    pub fn with_speed(mut self, speed: &'a [f64]) -> Self {
        self.speed = Some(speed);
        self
    }

    /// Variance of the load of each expert over the window, in squared units of the loads.
    #[must_use]
    pub fn with_variance(mut self, variance: &'a [f64]) -> Self {
        self.variance = Some(variance);
        self
    }

    /// The experts that each rank holds now. A rank that died keeps its list here and has no slots.
    #[must_use]
    pub fn with_current(mut self, current: &'a [Vec<u32>]) -> Self {
        self.current = Some(current);
        self
    }

    /// The most slots whose expert has to come from another rank; only with a placement in force.
    ///
    /// Receptions without which an expert would be nowhere, or a slot empty, always happen.
    #[must_use]
    pub fn with_budget(mut self, slots: usize) -> Self {
        self.budget = Some(slots);
        self
    }

    /// The node of each rank and the home node of each expert, where its tokens had best stay.
    #[must_use]
    pub fn with_nodes(mut self, node_of_rank: &'a [usize], home_of_expert: &'a [usize]) -> Self {
        self.nodes = Some(node_of_rank);
        self.homes = Some(home_of_expert);
        self
    }

    pub(crate) fn check(&self) -> Result<(), PlanError> {
        let (experts, ranks) = (self.loads.len(), self.slots_per_rank.len());
        let slots: usize = self.slots_per_rank.iter().sum();
        if experts == 0 || slots < experts {
            return Err(PlanError::TooFewSlots { slots, experts });
        }
        if slots >= u32::MAX as usize / 2 {
            return Err(PlanError::TooManySlots { slots });
        }
        check_values("load", self.loads, |v| v >= 0.0)?;
        if let Some(speed) = self.speed {
            check_len("speeds", speed.len(), ranks, "rank")?;
            check_values("speed", speed, |v| v > 0.0)?;
        }
        if let Some(variance) = self.variance {
            check_len("variances", variance.len(), experts, "expert")?;
            check_values("variance", variance, |v| v >= 0.0)?;
        }
        if let (Some(nodes), Some(homes)) = (self.nodes, self.homes) {
            check_len("nodes", nodes.len(), ranks, "rank")?;
            check_len("homes", homes.len(), experts, "expert")?;
        }
        if let Some(current) = self.current {
            check_len("lists of current experts", current.len(), ranks, "rank")?;
            for (rank, list) in current.iter().enumerate() {
                if let Some(&expert) = list.iter().find(|&&e| e as usize >= experts) {
                    return Err(PlanError::NoSuchExpert { rank, expert, experts });
                }
            }
        }
        Ok(())
    }
}

fn check_len(what: &'static str, got: usize, want: usize, per: &'static str) -> Result<(), PlanError> {
    if got == want {
        return Ok(());
    }
    Err(PlanError::Length { what, got, want, per })
}

fn check_values(what: &'static str, values: &[f64], fits: fn(f64) -> bool) -> Result<(), PlanError> {
    match values.iter().position(|&v| !v.is_finite() || !fits(v)) {
        Some(at) => Err(PlanError::Value { what, at, value: values[at] }),
        None => Ok(()),
    }
}

/// How hard to try.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Settings {
    /// Stop when the largest rank cost is at most this share above its lower bound.
    pub epsilon: f64,
    /// With a placement in force: leave it alone while it is at most this share above the bound.
    pub keep: f64,
    /// With nodes: the share above the bound that is accepted to keep tokens on their home node.
    pub locality_slack: f64,
    /// Pairs of ranks that the search of one layer may look at.
    pub work_limit: u64,
    /// Standard deviations of a rank's load to be safe against, where variances are given.
    pub risk: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { epsilon: 8e-4, keep: 0.018, locality_slack: 0.01, work_limit: 20_000, risk: 0.0 }
    }
}

/// Why there is no plan.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// Every expert needs a slot.
    #[error("{slots} slots cannot hold {experts} experts; give at least one slot per expert, and one expert")]
    TooFewSlots {
        /// Slots on all ranks.
        slots: usize,
        /// Experts to place.
        experts: usize,
    },
    /// More slots than 32 bits count.
    #[error("{slots} slots are too many; at most 2147483646 can be planned")]
    TooManySlots {
        /// Slots on all ranks.
        slots: usize,
    },
    /// A list has the wrong length.
    #[error("{got} {what} given; there must be {want}, one per {per}")]
    Length {
        /// What the list holds.
        what: &'static str,
        /// Its length.
        got: usize,
        /// The length it must have.
        want: usize,
        /// What each entry stands for.
        per: &'static str,
    },
    /// A number is not finite or out of range.
    #[error("{what} {at} is {value}; it must be finite and not negative, and a speed above 0")]
    Value {
        /// Which number.
        what: &'static str,
        /// Its index.
        at: usize,
        /// Its value.
        value: f64,
    },
    /// The placement in force names an expert that does not exist.
    #[error("rank {rank} holds expert {expert} now, but there are {experts} experts")]
    NoSuchExpert {
        /// The rank.
        rank: usize,
        /// The expert named.
        expert: u32,
        /// Experts there are.
        experts: usize,
    },
}
