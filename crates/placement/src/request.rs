use moekit_routing::{RoutingError, Topology, even_offsets};

use crate::{ExpertLoad, LoadTrace, ModelPlacement, PlacementError};

/// How much may move from the placement in force to the next one.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub enum MigrationBudget {
    /// Anything may move.
    #[default]
    Unlimited,
    /// At most this many slots over all layers may receive an expert that their rank does not
    /// hold yet.
    Slots(usize),
    /// The same in bytes, if all experts are of one size.
    Bytes {
        /// Bytes that may arrive over all layers.
        budget: u64,
        /// Bytes of an expert.
        per_expert: u64,
    },
}

impl MigrationBudget {
    /// Slots that may receive an expert; `None` without a limit.
    ///
    /// ```
    /// use moekit_placement::MigrationBudget;
    ///
    /// let budget = MigrationBudget::Bytes { budget: 100_000_000, per_expert: 44_000_000 };
    /// assert_eq!(budget.slots(), Some(2));
    /// assert_eq!(MigrationBudget::Unlimited.slots(), None);
    /// ```
    pub fn slots(self) -> Option<usize> {
        match self {
            Self::Unlimited => None,
            Self::Slots(slots) => Some(slots),
            // Experts without bytes cost nothing.
            Self::Bytes { per_expert: 0, .. } => None,
            Self::Bytes { budget, per_expert } => {
                Some(usize::try_from(budget / per_expert).unwrap_or(usize::MAX))
            }
        }
    }
}

/// What a strategy is asked: shape, topology, observed load, placement in force.
///
/// ```
/// use moekit_placement::{PlacementRequest, Topology};
///
/// let topology = Topology::new(3)?;
/// let request = PlacementRequest::new(1, 8, &topology)?.with_redundant_experts(2)?;
/// assert_eq!(request.slots_per_rank(), [4, 3, 3]);
/// # Ok::<(), moekit_placement::PlacementError>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PlacementRequest<'a> {
    num_layers: usize,
    num_logical_experts: usize,
    topology: &'a Topology,
    slots_per_rank: Vec<usize>,
    slots_requested: bool,
    num_expert_groups: Option<usize>,
    load: Option<&'a ExpertLoad>,
    trace: Option<&'a LoadTrace>,
    current: Option<&'a ModelPlacement>,
    budget: MigrationBudget,
}

impl<'a> PlacementRequest<'a> {
    /// A request for one slot per expert, spread evenly: if ranks do not divide experts, the first
    /// ranks hold one more.
    ///
    /// # Errors
    ///
    /// If there is no layer or no expert, or more than 2^20 experts.
    pub fn new(
        num_layers: usize,
        num_logical_experts: usize,
        topology: &'a Topology,
    ) -> Result<Self, PlacementError> {
        if num_layers == 0 {
            return Err(PlacementError::NoLayers);
        }
        if num_logical_experts == 0 {
            return Err(RoutingError::NoExperts.into());
        }
        check_slots(num_logical_experts)?;
        Ok(Self {
            num_layers,
            num_logical_experts,
            topology,
            slots_per_rank: even_slots(num_logical_experts, topology),
            slots_requested: false,
            num_expert_groups: None,
            load: None,
            trace: None,
            current: None,
            budget: MigrationBudget::Unlimited,
        })
    }

    /// `redundant` slots beyond one per expert, over all ranks.
    ///
    /// # Errors
    ///
    /// If there are more than 2^20 slots.
    pub fn with_redundant_experts(self, redundant: usize) -> Result<Self, PlacementError> {
        let slots = self.num_logical_experts.saturating_add(redundant);
        self.with_num_slots(slots)
    }

    /// `num_slots` slots over all ranks, as evenly as possible.
    ///
    /// # Errors
    ///
    /// If they do not hold all experts.
    pub fn with_num_slots(self, num_slots: usize) -> Result<Self, PlacementError> {
        check_slots(num_slots)?;
        let slots = even_slots(num_slots, self.topology);
        self.with_slots_per_rank(slots)
    }

    /// The slots of each rank. A rank with 0 slots is legal: it is lost, or holds no experts.
    ///
    /// # Errors
    ///
    /// If there is not one number per rank, or they do not hold all experts.
    pub fn with_slots_per_rank(mut self, slots: Vec<usize>) -> Result<Self, PlacementError> {
        if slots.len() != self.topology.num_ranks() {
            return Err(PlacementError::Shape {
                what: "number of ranks in slots_per_rank".to_owned(),
                got: slots.len(),
                expected: self.topology.num_ranks(),
            });
        }
        let num_slots = slots.iter().fold(0, |sum: usize, &s| sum.saturating_add(s));
        check_slots(num_slots)?;
        if num_slots < self.num_logical_experts {
            return Err(PlacementError::TooFewSlots {
                num_slots,
                num_experts: self.num_logical_experts,
            });
        }
        self.slots_per_rank = slots;
        self.slots_requested = true;
        Ok(self)
    }

    /// The expert groups of group-limited gating: experts `g * E / G..(g + 1) * E / G` form group
    /// `g`, and a token's experts come from few groups.
    ///
    /// # Errors
    ///
    /// If groups do not divide experts.
    pub fn with_expert_groups(mut self, num_groups: usize) -> Result<Self, PlacementError> {
        if num_groups == 0 || !self.num_logical_experts.is_multiple_of(num_groups) {
            return Err(PlacementError::Groups {
                got: num_groups,
                num_experts: self.num_logical_experts,
            });
        }
        self.num_expert_groups = Some(num_groups);
        Ok(self)
    }

    /// The observed load.
    ///
    /// # Errors
    ///
    /// If its shape differs from the request's.
    pub fn with_load(mut self, load: &'a ExpertLoad) -> Result<Self, PlacementError> {
        self.check_shape("the load", load.num_layers(), load.num_experts())?;
        self.load = Some(load);
        Ok(self)
    }

    /// The load step by step, for strategies that plan for its variance. Give the load itself too.
    ///
    /// # Errors
    ///
    /// If its shape differs from the request's.
    pub fn with_trace(mut self, trace: &'a LoadTrace) -> Result<Self, PlacementError> {
        self.check_shape("the load trace", trace.num_layers(), trace.num_experts())?;
        self.trace = Some(trace);
        Ok(self)
    }

    /// The placement in force, and how much may move away from it. It may have another number of
    /// ranks or slots than the request.
    ///
    /// # Errors
    ///
    /// If it has other layers or experts.
    pub fn with_current(
        mut self,
        current: &'a ModelPlacement,
        budget: MigrationBudget,
    ) -> Result<Self, PlacementError> {
        let experts = current.num_logical_experts();
        self.check_shape("the placement in force", current.num_layers(), experts)?;
        self.current = Some(current);
        self.budget = budget;
        Ok(self)
    }

    fn check_shape(&self, what: &str, layers: usize, experts: usize) -> Result<(), PlacementError> {
        for (dimension, got, expected) in [
            ("layers", layers, self.num_layers),
            ("experts", experts, self.num_logical_experts),
        ] {
            if got != expected {
                return Err(PlacementError::Shape {
                    what: format!("number of {dimension} in {what}"),
                    got,
                    expected,
                });
            }
        }
        Ok(())
    }

    /// MoE layers to place.
    pub fn num_layers(&self) -> usize {
        self.num_layers
    }

    /// Logical experts per layer.
    pub fn num_logical_experts(&self) -> usize {
        self.num_logical_experts
    }

    /// Slots per layer over all ranks.
    pub fn num_slots(&self) -> usize {
        self.slots_per_rank.iter().sum()
    }

    /// Slots of each rank, `[R]`.
    pub fn slots_per_rank(&self) -> &[usize] {
        &self.slots_per_rank
    }

    /// Whether the caller asked for these slots, rather than for the default of one per expert.
    pub fn slots_requested(&self) -> bool {
        self.slots_requested
    }

    /// The first slot of each rank and the number of slots, `[R + 1]`.
    pub fn rank_offsets(&self) -> Vec<usize> {
        let mut total = 0;
        let ends = self.slots_per_rank.iter().map(|slots| {
            total += slots;
            total
        });
        std::iter::once(0).chain(ends).collect()
    }

    /// Ranks and nodes.
    pub fn topology(&self) -> &'a Topology {
        self.topology
    }

    /// Expert groups of the gate, if it has any.
    pub fn num_expert_groups(&self) -> Option<usize> {
        self.num_expert_groups
    }

    /// The observed load, if there is one.
    pub fn load(&self) -> Option<&'a ExpertLoad> {
        self.load
    }

    /// The observed load step by step, if it is known.
    pub fn trace(&self) -> Option<&'a LoadTrace> {
        self.trace
    }

    /// The placement in force, if there is one.
    pub fn current(&self) -> Option<&'a ModelPlacement> {
        self.current
    }

    /// How much may move away from the placement in force.
    pub fn budget(&self) -> MigrationBudget {
        self.budget
    }
}

/// Slots of a layer, at most: what [`Placement`](moekit_routing::Placement) takes.
const MAX_SLOTS: usize = 1 << 20;

fn check_slots(num_slots: usize) -> Result<(), PlacementError> {
    if num_slots <= MAX_SLOTS {
        return Ok(());
    }
    Err(RoutingError::TooMany {
        what: "slots",
        got: num_slots,
        max: MAX_SLOTS,
    }
    .into())
}

fn even_slots(num_slots: usize, topology: &Topology) -> Vec<usize> {
    even_offsets(num_slots, topology.num_ranks())
        .windows(2)
        .map(|w| w[1] - w[0])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonsense_is_refused() {
        let topology = Topology::new(2).unwrap();
        let request = || PlacementRequest::new(1, 4, &topology).unwrap();
        let message = |r: Result<PlacementRequest<'_>, PlacementError>| r.unwrap_err().to_string();
        assert!(message(PlacementRequest::new(0, 4, &topology)).contains("at least 1 MoE layer"));
        assert!(
            message(PlacementRequest::new(1, 0, &topology)).contains("at least 1 logical expert")
        );
        assert!(message(request().with_num_slots(3)).contains("3 slots cannot hold 4"));
        assert!(
            message(request().with_redundant_experts(usize::MAX))
                .contains("slots are more than the 1048576")
        );
        assert!(message(request().with_slots_per_rank(vec![4])).contains("got 1, expected 2"));
        assert!(message(request().with_expert_groups(3)).contains("1, 2, 4 do"));
        let load = ExpertLoad::from_rows(&[[1.0; 3]]).unwrap();
        assert!(
            message(request().with_load(&load)).contains("experts in the load: got 3, expected 4")
        );
    }
}
