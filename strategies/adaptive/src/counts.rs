//! How many replicas each expert gets.

use std::collections::BinaryHeap;

use crate::state::State;

/// The experts by falling load and the scratch of the apportionment.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// The experts by falling load, ties by index.
    pub(crate) by_load: Vec<u32>,
    /// Every expert from here on in `by_load` has one replica.
    pub(crate) single_from: usize,
    keys: Vec<(u64, u32)>,
    heap: BinaryHeap<Share>,
}

impl Counts {
    /// Sorts the experts by load.
    pub(crate) fn sort(&mut self, loads: &[f64]) {
        self.keys.clear();
        // The bits of a load that is not negative order as the load does.
        self.keys
            .extend(loads.iter().zip(0..).map(|(&load, e)| (!(load + 0.0).to_bits(), e)));
        self.keys.sort_unstable();
        self.by_load.clear();
        self.by_load.extend(self.keys.iter().map(|&(_, e)| e));
    }

    /// Gives every expert one replica and each spare slot to the expert whose replicas carry most.
    ///
    /// The exact minimum of the largest replica load (min-max apportionment: `replicate_experts` of
    /// DeepSeek's EPLB), here with at most `cap` replicas per expert. Returns that load.
    pub(crate) fn apportion(&mut self, state: &mut State, spare: usize, cap: u32) -> f64 {
        state.clear_counts();
        self.single_from = 0;
        self.distribute(state, spare, cap, f64::INFINITY);
        let seen = &self.by_load[..(self.single_from + 1).min(self.by_load.len())];
        seen.iter().map(|&e| state.share[e as usize]).fold(0.0, f64::max)
    }

    /// Gives each expert as few replicas as keep a replica's load at or below `most`, and each slot
    /// that is still spare to the largest replica of at most `half`. Whether there were enough.
    ///
    /// Fewer, larger replicas of the hottest experts leave slots to cut the next ones to sizes that fit
    /// beside them; apportionment alone makes more replicas above half a rank than there are ranks.
    pub(crate) fn cut(
        &mut self,
        state: &mut State,
        spare: usize,
        cap: u32,
        most: f64,
        half: f64,
    ) -> bool {
        state.clear_counts();
        self.single_from = 0;
        let mut spare = spare;
        for &expert in &self.by_load {
            let load = state.load[expert as usize];
            if load <= most {
                break;
            }
            let count = ((load / most - 1e-9).ceil() as u32).clamp(1, cap);
            if count as usize - 1 > spare {
                return false;
            }
            spare -= count as usize - 1;
            state.set_count(expert, count);
            self.single_from += 1;
        }
        let spare = self.distribute(state, spare, cap, half);
        self.distribute(state, spare, cap, f64::INFINITY);
        true
    }

    /// Gives each spare slot to the largest replica of at most `ceiling`; ties go to the expert with
    /// fewer replicas, then to the lower index. Returns the slots that nobody could take.
    fn distribute(&mut self, state: &mut State, mut spare: usize, cap: u32, ceiling: f64) -> usize {
        let entry = |state: &State, expert: u32| Share {
            load: state.share[expert as usize],
            count: state.count[expert as usize],
            expert,
        };
        self.heap.clear();
        for &expert in &self.by_load[..self.single_from] {
            if state.share[expert as usize] <= ceiling {
                self.heap.push(entry(state, expert));
            }
        }
        while spare > 0 {
            // The experts not yet looked at have one replica and fall in load: the first is enough.
            let fresh = self.by_load.get(self.single_from).map(|&e| entry(state, e));
            let next = match (self.heap.peek(), fresh) {
                (Some(old), Some(new)) if *old >= new => self.heap.pop(),
                (None, None) => None,
                (_, Some(new)) => {
                    self.single_from += 1;
                    if new.load > ceiling {
                        continue;
                    }
                    Some(new)
                }
                (Some(_), None) => self.heap.pop(),
            };
            let Some(next) = next else { break };
            if next.count < cap {
                state.set_count(next.expert, next.count + 1);
                spare -= 1;
                self.heap.push(entry(state, next.expert));
            }
        }
        spare
    }
}

#[derive(Debug, PartialEq)]
struct Share {
    load: f64,
    count: u32,
    expert: u32,
}

impl Eq for Share {}

impl PartialOrd for Share {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Share {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.load
            .total_cmp(&other.load)
            .then(other.count.cmp(&self.count))
            .then(other.expert.cmp(&self.expert))
    }
}
