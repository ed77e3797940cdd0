//! The placement strategy `snake`: experts by falling load, dealt to ranks in a zig-zag.
//!
//! Rank 0 takes the heaviest expert, rank 1 the next, ... the last rank takes two in a row, and
//! back. It is quick, and fair as long as no few experts carry most of the load.

use moekit_placement::{
    Capabilities, ModelPlacement, Placement, PlacementError, PlacementRequest, PlacementStrategy,
    register_strategy, typetag,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which experts the redundant slots repeat.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Redundant {
    /// Each the one with the largest load per replica.
    #[default]
    Hottest,
    /// All of them in turn.
    InTurn,
}

/// Experts by falling load (without a load: in order), dealt to ranks in a zig-zag.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Snake {
    /// Which experts the redundant slots repeat.
    pub redundant: Redundant,
}

#[typetag::serde(name = "snake")]
impl PlacementStrategy for Snake {
    fn place(&self, request: &PlacementRequest<'_>) -> Result<ModelPlacement, PlacementError> {
        let experts = request.num_logical_experts();
        let unknown = vec![1.0; experts];
        let layers = (0..request.num_layers())
            .map(|layer| {
                let load = request.load().and_then(|load| load.layer(layer));
                let replicas = self.replicas(load.unwrap_or(&unknown), request.num_slots());
                let ranks = deal(replicas, request.slots_per_rank());
                Ok(Placement::from_ranks(experts, &ranks)?)
            })
            .collect::<Result<_, PlacementError>>()?;
        ModelPlacement::new(layers)
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::default();
        capabilities.uses_load = true;
        capabilities
    }
}

register_strategy! {
    Snake,
    name: "snake",
    summary: "Experts by falling load, dealt to ranks in a zig-zag",
    example: Snake::default(),
}

impl Snake {
    /// The expert of every slot to deal, by falling load per replica.
    fn replicas(&self, load: &[f64], num_slots: usize) -> Vec<usize> {
        let mut counts = vec![1usize; load.len()];
        let share = |counts: &[usize], expert: usize| load[expert] / counts[expert] as f64;
        for spare in 0..num_slots - load.len() {
            let expert = match self.redundant {
                Redundant::InTurn => spare % load.len(),
                // `max_by` takes the last of equals, and ties go to the lowest expert.
                Redundant::Hottest => (0..load.len())
                    .rev()
                    .max_by(|&a, &b| share(&counts, a).total_cmp(&share(&counts, b)))
                    .unwrap_or(0),
            };
            counts[expert] += 1;
        }
        let mut order: Vec<usize> = (0..load.len()).collect();
        order.sort_by(|&a, &b| share(&counts, b).total_cmp(&share(&counts, a)));
        order
            .into_iter()
            .flat_map(|expert| std::iter::repeat_n(expert, counts[expert]))
            .collect()
    }
}

/// Each rank in turn takes the first replica that is left of an expert that it does not hold, or
/// the first at all; every second round goes backwards.
fn deal(mut replicas: Vec<usize>, slots_per_rank: &[usize]) -> Vec<Vec<usize>> {
    let mut ranks = vec![Vec::new(); slots_per_rank.len()];
    let rounds = slots_per_rank.iter().copied().max().unwrap_or(0);
    for round in 0..rounds {
        let mut turn: Vec<usize> = (0..ranks.len())
            .filter(|&r| slots_per_rank[r] > round)
            .collect();
        if round % 2 == 1 {
            turn.reverse();
        }
        for rank in turn {
            let new = replicas
                .iter()
                .position(|expert| !ranks[rank].contains(expert));
            ranks[rank].push(replicas.remove(new.unwrap_or(0)));
        }
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snake_turns_at_the_last_rank() {
        assert_eq!(
            deal(vec![5, 4, 3, 2, 1, 0], &[2, 2, 2]),
            [[5, 0], [4, 1], [3, 2]]
        );
        assert_eq!(
            deal(vec![3, 2, 1, 0], &[0, 1, 3]),
            [vec![], vec![3], vec![2, 1, 0]]
        );
    }

    #[test]
    fn a_rank_prefers_an_expert_that_it_lacks() {
        assert_eq!(deal(vec![0, 0, 0, 1], &[2, 2]), [[0, 0], [0, 1]]);
    }

    #[test]
    fn the_hottest_experts_are_repeated() {
        let snake = Snake::default();
        assert_eq!(snake.replicas(&[1.0, 9.0, 4.0], 6), [1, 1, 1, 2, 2, 0]);
        assert_eq!(snake.replicas(&[0.0, 0.0], 4), [0, 0, 0, 1]);
        let in_turn = Snake {
            redundant: Redundant::InTurn,
        };
        assert_eq!(in_turn.replicas(&[1.0, 9.0, 4.0], 5), [1, 1, 2, 0, 0]);
    }
}
