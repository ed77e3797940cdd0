use moekit_routing::{Placement, Rank, RoutingError, Topology};

use super::cut::{Layer, MigrationCut, StepBudget, fill_stage, spend};
use super::gain::Loads;
use super::group::Group;
use super::plan::{LayerMigration, MigrationStage, ModelMigration};
use super::stage;
use super::walk::Walk;
use crate::{ExpertLoad, ModelPlacement, PlacementError};

/// Plans how the experts of a layer, or of a model, get from one placement to the next while tokens flow.
///
/// # The model
///
/// A rank has, for a layer, the slots of the placement in force, those that the next one adds, and
/// some *staging buffers* of one expert each. While a [stage](MigrationStage) runs, the placement in
/// force stays whole: experts arrive only in added slots and staging buffers, are sent only from slots
/// in force, and nothing is written to these. So every replica that the table names is complete at
/// every moment, the rounds may be spread over as many forward passes as one likes, and a stage that
/// fails is undone by forgetting what arrived. The commit is local: each rank copies from staging
/// buffers into slots and permutes its slots, in an order in which nothing is read after it was
/// overwritten; then the table changes. All ranks do both between the same two forward passes.
///
/// The other way is to receive straight into slots that the table still names. It needs no staging
/// buffers, but takes replicas out of service during the rounds, cannot move the only replicas of
/// two experts into each other's slots, and leaves a broken layer behind when a rank fails.
///
/// Staging buffers are needed for one layer at a time, as layers migrate one after the other: at most
/// as many as a rank receives experts. With fewer ([`with_staging`](Self::with_staging)), a layer migrates
/// in several stages, each of which ends in a valid placement that covers every expert. One buffer
/// per rank is always enough, and no expert travels more often for it.
///
/// # Sources and rounds
///
/// What a rank holds already stays or is copied. All else comes from a replica on the same node if
/// there is one, else from another node, such that the largest number of experts that a rank sends is
/// as small as the choice of replicas allows (an optimal semi-matching: Harvey, Ladner, Lovász and
/// Tamir, J. Algorithms 59, 2006). Transfers take place in rounds in which a rank sends to at most one
/// rank and receives from at most one, in as few rounds as there can be: the largest number that a
/// rank sends or receives (edge colouring of a bipartite multigraph: Kőnig, Math. Ann. 77, 1916). What
/// no living rank holds is a [`CheckpointRead`](super::CheckpointRead), never a transfer.
///
/// # Ranks
///
/// Every rank of either placement is a rank of the topology: a group that grows or shrinks migrates
/// in the larger of its two sizes, and a rank that a placement does not have holds no slots there.
/// Placements in plans have all ranks of the topology. If ranks change their numbers, see
/// [`placement_in_group`](super::placement_in_group).
///
/// Plans are deterministic: with equal inputs, every rank can make the same plan for itself. Ties go
/// to the lowest index.
///
/// ```
/// use moekit_placement::{Buffer, MigrationPlanner, Placement, Topology};
///
/// let topology = Topology::new(3)?;
/// let current = Placement::from_ranks(4, &[[0, 1], [2, 3], [0, 2]])?;
/// let next = Placement::from_ranks(4, &[[0, 3], [2, 1], [2, 0]])?;
/// let plan = MigrationPlanner::new(&topology).layer(&current, &next)?;
///
/// let stage = &plan.stages[0];
/// assert_eq!(stage.rounds.len(), 1, "rank 0 and 1 exchange, both at a time");
/// assert_eq!(stage.rounds[0][0].into, Buffer::Staging(0));
/// assert_eq!((stage.unchanged, stage.copied), (2, 2), "rank 2 swaps its slots");
/// assert_eq!(stage.staging, [1, 1, 1]);
/// # Ok::<(), moekit_placement::PlacementError>(())
/// ```
#[derive(Clone, Debug)]
pub struct MigrationPlanner<'a> {
    topology: &'a Topology,
    lost: Vec<bool>,
    staging: Option<usize>,
    expert_bytes: Option<ExpertBytes>,
}

#[derive(Clone, Debug)]
enum ExpertBytes {
    Same(u64),
    PerLayer(Vec<u64>),
}

impl<'a> MigrationPlanner<'a> {
    /// All ranks alive, as many staging buffers as it takes, bytes not known.
    pub fn new(topology: &'a Topology) -> Self {
        Self {
            topology,
            lost: Vec::new(),
            staging: None,
            expert_bytes: None,
        }
    }

    /// Ranks that are gone without notice: they send nothing, and what only they held must be read
    /// from the checkpoint. A rank that is to leave but still answers is not lost; it has no slots
    /// in the next placement.
    ///
    /// # Errors
    ///
    /// If a rank is not in the topology.
    pub fn with_lost_ranks(mut self, ranks: &[Rank]) -> Result<Self, PlacementError> {
        let size = self.topology.num_ranks();
        self.lost = vec![false; size];
        for rank in ranks {
            *self
                .lost
                .get_mut(rank.index())
                .ok_or(RoutingError::UnknownRank {
                    group: "EP",
                    rank: rank.index(),
                    size,
                })? = true;
        }
        Ok(self)
    }

    /// At most this many staging buffers per rank. A layer for which they are too few migrates in
    /// several stages.
    #[must_use]
    pub fn with_staging(mut self, buffers: usize) -> Self {
        self.staging = Some(buffers);
        self
    }

    /// Bytes of one expert, the same in all layers.
    #[must_use]
    pub fn with_expert_bytes(mut self, bytes: u64) -> Self {
        self.expert_bytes = Some(ExpertBytes::Same(bytes));
        self
    }

    /// Bytes of one expert of each layer, `[layers]`.
    #[must_use]
    pub fn with_layer_expert_bytes(mut self, bytes: Vec<u64>) -> Self {
        self.expert_bytes = Some(ExpertBytes::PerLayer(bytes));
        self
    }

    /// The migration of one layer.
    ///
    /// With P slots, R ranks, m arrivals, s replicas that they may come from in total and D arrivals
    /// or departures at one rank, a stage takes O(m s) for the sources, which is seldom reached, O(m (D
    /// log D + R)) for the rounds and O(P log P) for all else. The choice of stages takes O(m (P + R)), or
    /// O(m R (P + R)) where only long cycles of ranks can exchange their last replicas.
    ///
    /// # Errors
    ///
    /// If the placements differ in experts, have ranks that the topology has not, the next one uses a
    /// lost rank, or no staging buffer is allowed and one is needed.
    pub fn layer(
        &self,
        current: &Placement,
        next: &Placement,
    ) -> Result<LayerMigration, PlacementError> {
        self.check_bytes(1)?;
        let group = Group::new(self.topology, &self.lost);
        let (current, next) = self.widen(current, next, &group)?;
        self.plan_layer(0, &current, &next, &group)
    }

    /// The migration of every layer.
    ///
    /// # Errors
    ///
    /// As [`MigrationPlanner::layer`], and if the placements differ in layers.
    pub fn model(
        &self,
        current: &ModelPlacement,
        next: &ModelPlacement,
    ) -> Result<ModelMigration, PlacementError> {
        let group = Group::new(self.topology, &self.lost);
        let ends = self.ends(current, next, &group)?;
        self.plan_layers(ends.iter().map(|(from, to)| (from, to)), &group)
    }

    /// The part of a model's migration that fits a budget, and the rest.
    ///
    /// It is made of the smallest sets of arrivals after which every expert is still covered: one, if
    /// a replica or an unused slot gives way, or a cycle of ranks that pass on their last replicas.
    /// Over all layers, the next one taken is the one that lowers the largest rank load of its layer most
    /// per byte, under an even split of each expert's load over its replicas; among equal ones, that
    /// which lowers the sum of squares of the rank loads most. What a lost rank alone held comes
    /// before all else. The budget is used up as far as it goes, even if a step gains nothing by itself, so
    /// that repeated cuts come to an end: each arrival is one of the whole migration's.
    ///
    /// A greedy choice, not an optimum: what one set gains depends on the others. With L layers, a
    /// arrivals taken, c sets to choose from in a layer (at most the product of what arrives at and
    /// leaves a rank, summed over the ranks) and r replicas of an expert, it takes O(L c r² + a (c r² + L)).
    ///
    /// ```
    /// use moekit_placement::{
    ///     ExpertLoad, MigrationPlanner, ModelPlacement, Placement, StepBudget, Topology,
    /// };
    ///
    /// let topology = Topology::new(2)?;
    /// let model = |ranks: [[usize; 3]; 2]| {
    ///     ModelPlacement::new(vec![Placement::from_ranks(6, &ranks)?])
    /// };
    /// let current = model([[0, 1, 2], [3, 4, 5]])?;
    /// let next = model([[0, 4, 5], [3, 1, 2]])?;
    /// let load = ExpertLoad::from_rows(&[[4.0, 9.0, 5.0, 1.0, 1.0, 0.0]])?;
    /// let planner = MigrationPlanner::new(&topology);
    ///
    /// // Four experts move; two of them bring most.
    /// let cut = planner.cut(&current, &next, &load, StepBudget::Slots(2))?;
    /// assert_eq!((cut.slots, cut.gain), (2, 8.0), "18 and 2 become 10 and 10");
    /// assert_eq!(cut.reached, model([[0, 4, 2], [3, 1, 5]])?);
    /// assert_eq!(cut.rest.summary().same_node, 2);
    ///
    /// let one = planner.cut(&current, &next, &load, StepBudget::Slots(1)).unwrap_err();
    /// assert!(one.to_string().contains("needs 2"));
    /// # Ok::<(), moekit_placement::PlacementError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`MigrationPlanner::model`]; if the load has another shape; if the budget is in bytes and
    /// the bytes of an expert are not known; if something is to arrive and the budget is too small
    /// for any part of it.
    pub fn cut(
        &self,
        current: &ModelPlacement,
        next: &ModelPlacement,
        load: &ExpertLoad,
        budget: StepBudget,
    ) -> Result<MigrationCut, PlacementError> {
        let group = Group::new(self.topology, &self.lost);
        let ends = self.ends_of_cut(current, next, load, &group)?;
        self.carry_out(&ends, load, budget, usize::MAX, &group)
    }

    /// As [`MigrationPlanner::cut`], but it ends where the largest rank loads, summed over the layers,
    /// are the lowest that they are on that way: at the placement in force if no part of the way
    /// gains anything. What a lost rank alone held is brought back first, whatever it costs.
    ///
    /// # Errors
    ///
    /// As [`MigrationPlanner::cut`].
    pub fn cut_at_best(
        &self,
        current: &ModelPlacement,
        next: &ModelPlacement,
        load: &ExpertLoad,
        budget: StepBudget,
    ) -> Result<MigrationCut, PlacementError> {
        let group = Group::new(self.topology, &self.lost);
        let ends = self.ends_of_cut(current, next, load, &group)?;
        let mut layers = self.layers_of_cut(&ends, load, budget, &group)?;
        let best = spend(&mut layers, budget, usize::MAX)?.best_units;
        self.carry_out(&ends, load, budget, best, &group)
    }

    /// The first `most_units` units of a cut.
    fn carry_out(
        &self,
        ends: &[(Placement, Placement)],
        load: &ExpertLoad,
        budget: StepBudget,
        most_units: usize,
        group: &Group<'_>,
    ) -> Result<MigrationCut, PlacementError> {
        let mut layers = self.layers_of_cut(ends, load, budget, group)?;
        let before: f64 = layers.iter().map(Layer::largest_load).sum();
        let taken = spend(&mut layers, budget, most_units)?;
        let mut reached = Vec::with_capacity(ends.len());
        let mut after = 0.0;
        for (layer, (_, to)) in layers.iter().zip(ends) {
            let placement = layer.walk.reached(to)?;
            let walk = Walk::new(&placement, to, group);
            after += Loads::of(walk.slots(), layer.load).largest();
            reached.push(placement);
        }
        let first = ends.iter().zip(&reached).map(|((from, _), to)| (from, to));
        let rest = reached.iter().zip(ends).map(|(from, (_, to))| (from, to));
        Ok(MigrationCut {
            first: self.plan_layers(first, group)?,
            rest: self.plan_layers(rest, group)?,
            reached: ModelPlacement::new(reached)?,
            slots: taken.slots,
            bytes: taken.bytes,
            gain: before - after,
        })
    }

    fn layers_of_cut<'l>(
        &self,
        ends: &[(Placement, Placement)],
        load: &'l ExpertLoad,
        budget: StepBudget,
        group: &Group<'_>,
    ) -> Result<Vec<Layer<'l>>, PlacementError> {
        let layers = ends.iter().enumerate().zip(load.layers());
        layers
            .map(|((l, (from, to)), load)| {
                let bytes = self.bytes_of(l);
                let cost = match budget {
                    StepBudget::Slots(_) => 1,
                    StepBudget::Bytes(_) => bytes.ok_or(PlacementError::ExpertBytes {
                        problem: "a budget in bytes needs them, and the planner was not told",
                    })?,
                };
                Ok(Layer::new(Walk::new(from, to, group), load, cost, bytes))
            })
            .collect()
    }

    fn ends_of_cut(
        &self,
        current: &ModelPlacement,
        next: &ModelPlacement,
        load: &ExpertLoad,
        group: &Group<'_>,
    ) -> Result<Vec<(Placement, Placement)>, PlacementError> {
        same_layers("the load", load.num_layers(), current)?;
        same(
            "number of experts in the load",
            load.num_experts(),
            current.num_logical_experts(),
        )?;
        self.ends(current, next, group)
    }

    /// The placements of each layer over the ranks of the group, checked.
    fn ends(
        &self,
        current: &ModelPlacement,
        next: &ModelPlacement,
        group: &Group<'_>,
    ) -> Result<Vec<(Placement, Placement)>, PlacementError> {
        same_layers("the next placement", next.num_layers(), current)?;
        self.check_bytes(current.num_layers())?;
        let layers = current.layers().iter().zip(next.layers());
        layers
            .map(|(current, next)| self.widen(current, next, group))
            .collect()
    }

    fn plan_layers<'p>(
        &self,
        ends: impl Iterator<Item = (&'p Placement, &'p Placement)>,
        group: &Group<'_>,
    ) -> Result<ModelMigration, PlacementError> {
        let layers = ends
            .enumerate()
            .map(|(l, (current, next))| self.plan_layer(l, current, next, group))
            .collect::<Result<_, _>>()?;
        Ok(ModelMigration { layers })
    }

    fn plan_layer(
        &self,
        layer: usize,
        current: &Placement,
        next: &Placement,
        group: &Group<'_>,
    ) -> Result<LayerMigration, PlacementError> {
        let stages = if current == next {
            Vec::new()
        } else {
            self.stages(current, next, group)?
        };
        Ok(LayerMigration {
            expert_bytes: self.bytes_of(layer),
            stages,
        })
    }

    /// One stage, or as many as the staging buffers ask for.
    fn stages(
        &self,
        current: &Placement,
        next: &Placement,
        group: &Group<'_>,
    ) -> Result<Vec<MigrationStage>, PlacementError> {
        let whole = stage::between(current, next, group);
        let Some(staging) = self.staging.filter(|&s| s < whole.peak_staging()) else {
            return Ok(vec![whole]);
        };
        // One buffer brings any unit forward, and is enough to permute slots.
        if staging == 0 {
            return Err(PlacementError::BudgetTooSmall {
                what: "staging buffers per rank",
                budget: 0,
                needed: 1,
            });
        }
        let mut stages = Vec::new();
        let mut walk = Walk::new(current, next, group);
        let mut current = current.clone();
        while current != *next {
            fill_stage(&mut walk, staging);
            let reached = walk.reached(next)?;
            stages.push(stage::between(&current, &reached, group));
            current = reached;
        }
        Ok(stages)
    }

    /// Both placements over the ranks of the group.
    fn widen(
        &self,
        current: &Placement,
        next: &Placement,
        group: &Group<'_>,
    ) -> Result<(Placement, Placement), PlacementError> {
        same(
            "number of logical experts in the next placement",
            next.num_logical_experts(),
            current.num_logical_experts(),
        )?;
        let (current, next) = (group.widen(current)?, group.widen(next)?);
        for rank in (0..group.num_ranks()).filter(|&rank| group.is_lost(rank)) {
            let slots = next.experts_of(Rank::new(rank)).map_or(0, <[_]>::len);
            if slots > 0 {
                return Err(PlacementError::LostRankInUse { rank, slots });
            }
        }
        Ok((current, next))
    }

    fn bytes_of(&self, layer: usize) -> Option<u64> {
        match self.expert_bytes.as_ref()? {
            ExpertBytes::Same(bytes) => Some(*bytes),
            ExpertBytes::PerLayer(bytes) => bytes.get(layer).copied(),
        }
    }

    fn check_bytes(&self, num_layers: usize) -> Result<(), PlacementError> {
        let bytes = match &self.expert_bytes {
            None => return Ok(()),
            Some(ExpertBytes::Same(bytes)) => std::slice::from_ref(bytes),
            Some(ExpertBytes::PerLayer(bytes)) => {
                same(
                    "number of layers in the bytes of an expert",
                    bytes.len(),
                    num_layers,
                )?;
                bytes
            }
        };
        if bytes.contains(&0) {
            return Err(PlacementError::ExpertBytes {
                problem: "an expert has at least 1 byte, got 0",
            });
        }
        Ok(())
    }
}

fn same_layers(of: &str, got: usize, current: &ModelPlacement) -> Result<(), PlacementError> {
    same(
        &format!("number of layers in {of}"),
        got,
        current.num_layers(),
    )
}

fn same(what: &str, got: usize, expected: usize) -> Result<(), PlacementError> {
    if got == expected {
        return Ok(());
    }
    Err(PlacementError::Shape {
        what: what.to_owned(),
        got,
        expected,
    })
}
