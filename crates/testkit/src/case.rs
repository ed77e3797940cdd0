//! A request with all that it borrows, and the requests that every strategy is asked.

use std::fmt;

use moekit_placement::{
    ExpertLoad, LoadTrace, MigrationBudget, ModelPlacement, Placement, PlacementError,
    PlacementRequest, Topology, even_offsets,
};

/// The values of a request. What has no value is not asked for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Case {
    pub(crate) layers: usize,
    pub(crate) experts: usize,
    pub(crate) ranks: usize,
    pub(crate) nodes: usize,
    pub(crate) slots: Option<Vec<usize>>,
    pub(crate) groups: Option<usize>,
    pub(crate) load: Option<ExpertLoad>,
    pub(crate) trace: Option<LoadTrace>,
    pub(crate) current: Option<ModelPlacement>,
    pub(crate) budget: MigrationBudget,
}

impl Case {
    pub(crate) fn new(layers: usize, experts: usize, ranks: usize) -> Self {
        Self {
            layers,
            experts,
            ranks,
            nodes: 1,
            slots: None,
            groups: None,
            load: None,
            trace: None,
            current: None,
            budget: MigrationBudget::Unlimited,
        }
    }

    /// Hands the request to `ask`.
    pub(crate) fn request<T>(
        &self,
        ask: impl FnOnce(&PlacementRequest<'_>) -> T,
    ) -> Result<T, PlacementError> {
        let topology = Topology::new(self.ranks)?.with_nodes(self.nodes)?;
        let mut request = PlacementRequest::new(self.layers, self.experts, &topology)?;
        if let Some(slots) = &self.slots {
            request = request.with_slots_per_rank(slots.clone())?;
        }
        if let Some(groups) = self.groups {
            request = request.with_expert_groups(groups)?;
        }
        if let Some(load) = &self.load {
            request = request.with_load(load)?;
        }
        if let Some(trace) = &self.trace {
            request = request.with_trace(trace)?;
        }
        if let Some(current) = &self.current {
            request = request.with_current(current, self.budget)?;
        }
        Ok(ask(&request))
    }

    /// Whether the placement in force cannot stay as it is.
    pub(crate) fn current_has_other_slots(&self) -> bool {
        let fits = |current: &ModelPlacement| {
            self.request(|request| {
                current.check_shape(request)?;
                current.check_slots(request)
            })
            .is_ok_and(|fits| fits.is_ok())
        };
        self.current.as_ref().is_some_and(|current| !fits(current))
    }

    pub(crate) fn with_load_row(mut self, row: &[f64]) -> Result<Self, PlacementError> {
        self.load = Some(ExpertLoad::from_rows(&vec![row; self.layers])?);
        Ok(self)
    }

    pub(crate) fn without_load(&self) -> Self {
        Self {
            load: None,
            trace: None,
            ..self.clone()
        }
    }

    pub(crate) fn without_current(&self) -> Self {
        Self {
            current: None,
            budget: MigrationBudget::Unlimited,
            ..self.clone()
        }
    }

    pub(crate) fn on_one_node(&self) -> Self {
        Self {
            nodes: 1,
            groups: None,
            ..self.clone()
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} layers of {} experts on {} ranks of {} nodes",
            self.layers, self.experts, self.ranks, self.nodes
        )?;
        if let Some(slots) = &self.slots {
            write!(f, ", slots per rank {slots:?}")?;
        }
        if let Some(groups) = self.groups {
            write!(f, ", {groups} expert groups")?;
        }
        if let Some(load) = &self.load {
            write!(f, ", load {:?}", load.layers().collect::<Vec<_>>())?;
        }
        if let Some(trace) = &self.trace {
            write!(f, ", a trace of {} steps", trace.steps().len())?;
        }
        if let Some(current) = &self.current {
            let layers: Vec<_> = current.layers().iter().map(slots_by_rank).collect();
            write!(f, ", in force {layers:?}, budget {:?}", self.budget)?;
        }
        Ok(())
    }
}

/// The experts of each rank, slot by slot, as plain numbers.
pub(crate) fn slots_by_rank(placement: &Placement) -> Vec<Vec<usize>> {
    let slots = placement.physical_to_logical();
    let ranks = placement.rank_offsets().windows(2);
    ranks
        .map(|w| {
            let rank = slots.get(w[0]..w[1]).unwrap_or_default();
            rank.iter().map(|e| e.index()).collect()
        })
        .collect()
}

/// The corners: one rank, ranks that do not divide experts, more ranks than experts, redundant
/// slots, uneven slots, lost ranks, loads at the ends of what a number can hold, a placement in
/// force over the same ranks and over others.
pub(crate) fn standing() -> Result<Vec<Case>, PlacementError> {
    let mut cases = Vec::new();
    for (layers, experts, ranks) in SHAPES {
        let shape = Case::new(layers, experts, ranks);
        cases.push(shape.clone());
        for slots in slot_choices(experts, ranks) {
            for load in loads(experts) {
                let slots = Some(slots.clone());
                cases.push(
                    Case {
                        slots,
                        ..shape.clone()
                    }
                    .with_load_row(&load)?,
                );
            }
        }
        cases.extend(on_nodes(&shape)?);
        cases.extend(over_current(&shape)?);
    }
    Ok(cases)
}

/// `(layers, experts, ranks)`
const SHAPES: [(usize, usize, usize); 9] = [
    (1, 1, 1),
    (1, 8, 1),
    (1, 8, 2),
    (2, 8, 4),
    (1, 8, 3),
    (2, 7, 4),
    (1, 12, 4),
    (1, 3, 5),
    (1, 2, 8),
];

/// One slot per expert, redundant slots that ranks divide and that they do not, all slots on one
/// rank, a first rank without slots.
fn slot_choices(experts: usize, ranks: usize) -> Vec<Vec<usize>> {
    let even = |slots: usize| -> Vec<usize> {
        let offsets = even_offsets(slots, ranks);
        offsets.windows(2).map(|w| w[1] - w[0]).collect()
    };
    let mut choices = vec![
        even(experts),
        even(experts + 1),
        vec![experts.div_ceil(ranks); ranks],
        vec![experts.div_ceil(ranks) + 1; ranks],
        vec![experts; ranks],
        (0..ranks)
            .map(|rank| experts * usize::from(rank + 1 == ranks))
            .collect(),
        (0..ranks)
            .map(|rank| experts.div_ceil(ranks) + rank)
            .collect(),
    ];
    if ranks > 1 {
        let mut lost = vec![experts.div_ceil(ranks - 1); ranks];
        lost[0] = 0;
        choices.push(lost);
    }
    choices
}

/// Loads of one layer, `[experts]`.
fn loads(experts: usize) -> Vec<Vec<f64>> {
    let with = |value: fn(usize) -> f64| (0..experts).map(value).collect();
    vec![
        vec![0.0; experts],
        vec![1.0; experts],
        with(|e| f64::from(u8::from(e == 0))),
        with(|e| e as f64),
        with(|e| 1.0 / (e + 1) as f64),
        vec![1e99; experts],
        with(|e| if e == 0 { 1e100 } else { 1.0 }),
        vec![1e100; experts],
        vec![f64::from_bits(1); experts],
        with(|e| if e == 0 { 1e99 } else { f64::MIN_POSITIVE }),
    ]
}

fn on_nodes(shape: &Case) -> Result<Vec<Case>, PlacementError> {
    let row: Vec<f64> = (0..shape.experts).map(|e| (e % 3) as f64).collect();
    let mut cases = Vec::new();
    for nodes in (2..=shape.ranks).take(2) {
        for groups in (1..=shape.experts).filter(|g| shape.experts.is_multiple_of(*g)) {
            let case = Case {
                nodes,
                groups: Some(groups),
                ..shape.clone()
            };
            cases.push(case.with_load_row(&row)?);
        }
    }
    Ok(cases)
}

/// The reversed placement in force, over the same ranks, one rank more, and one rank in all.
fn over_current(shape: &Case) -> Result<Vec<Case>, PlacementError> {
    let row: Vec<f64> = (0..shape.experts).map(|e| (e * e) as f64).collect();
    let mut cases = Vec::new();
    for ranks in [shape.ranks, shape.ranks + 1, 1] {
        let slots = (0..shape.experts).rev().collect();
        let layer = Placement::new(shape.experts, slots, even_offsets(shape.experts, ranks))?;
        let current = Some(ModelPlacement::new(vec![layer; shape.layers])?);
        let case = Case {
            current,
            ..shape.clone()
        };
        cases.push(case.clone().with_load_row(&row)?);
        if ranks == shape.ranks {
            for budget in [0, 1, 4] {
                let budget = MigrationBudget::Slots(budget);
                cases.push(
                    Case {
                        budget,
                        ..case.clone()
                    }
                    .with_load_row(&row)?,
                );
            }
        }
        cases.push(case);
    }
    Ok(cases)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_standing_requests_can_be_asked() {
        let cases = standing().unwrap();
        for case in &cases {
            assert_eq!(
                case.request(|r| r.num_layers()).unwrap(),
                case.layers,
                "{case}"
            );
        }
        assert!(
            cases
                .iter()
                .any(|c| c.slots.as_ref().is_some_and(|s| s.contains(&0)))
        );
        assert!(cases.iter().any(|c| c.budget == MigrationBudget::Slots(0)));
        assert!(cases.iter().any(|c| c.ranks > c.experts));
    }
}
