//! The first placement of replicas on ranks: longest first.

use crate::{counts::Counts, heap::RankHeap, state::State};

/// Scratch of the first placement.
#[derive(Debug, Default)]
pub(crate) struct Seeder {
    heap: RankHeap,
    taken: Vec<u32>,
    replicated: Vec<u32>,
    /// Replicas that found no rank without their expert.
    pub(crate) left: Vec<u32>,
}

impl Seeder {
    /// Places what `todo` counts for each expert on `ranks`: by falling load of the replicas, each on the
    /// rank that costs least, no two of an expert on one rank.
    ///
    /// Longest processing time first (Graham 1969), in O(S log R).
    pub(crate) fn longest_first(
        &mut self,
        state: &mut State,
        counts: &Counts,
        todo: &[u32],
        ranks: &[u32],
    ) {
        self.left.clear();
        self.heap.clear();
        for &rank in ranks {
            if state.has_room(rank as usize) {
                self.heap.push(state.cost(rank as usize), rank);
            }
        }
        self.replicated.clear();
        let candidates = &counts.by_load[..counts.single_from];
        self.replicated
            .extend(candidates.iter().filter(|&&e| state.count[e as usize] > 1 && todo[e as usize] > 0));
        self.replicated.sort_unstable_by(|&a, &b| {
            let share = |e: u32| state.share[e as usize];
            share(b).total_cmp(&share(a)).then(a.cmp(&b))
        });
        let mut next = 0;
        for &expert in &counts.by_load {
            if todo[expert as usize] == 0 || state.count[expert as usize] > 1 {
                continue;
            }
            while let Some(&other) = self.replicated.get(next)
                && state.share[other as usize] >= state.load[expert as usize]
            {
                next += 1;
                self.place_replicas(state, other, todo[other as usize]);
            }
            self.place_single(state, expert);
        }
        while let Some(&other) = self.replicated.get(next) {
            next += 1;
            self.place_replicas(state, other, todo[other as usize]);
        }
    }

    /// Gives the slots that stayed empty, for want of a rank without the expert, to the experts with the
    /// largest replicas among those not yet on the rank.
    pub(crate) fn place_left(&mut self, state: &mut State, ranks: &[u32]) {
        for &expert in &self.left {
            state.set_count(expert, state.count[expert as usize] - 1);
        }
        if self.left.is_empty() {
            return;
        }
        for &rank in ranks {
            while state.has_room(rank as usize) {
                let mut best: Option<u32> = None;
                for expert in 0..state.load.len() as u32 {
                    if best.is_none_or(|b| state.share[expert as usize] > state.share[b as usize])
                        && !state.holds(rank as usize, expert)
                    {
                        best = Some(expert);
                    }
                }
                let Some(expert) = best else { break };
                state.set_count(expert, state.count[expert as usize] + 1);
                state.push(rank as usize, expert);
            }
        }
    }

    fn place_single(&mut self, state: &mut State, expert: u32) {
        let Some(rank) = self.heap.top() else {
            self.left.push(expert);
            return;
        };
        let r = rank as usize;
        state.push(r, expert);
        if state.has_room(r) {
            self.heap.replace_top(state.cost(r), rank);
        } else {
            self.heap.pop();
        }
    }

    fn place_replicas(&mut self, state: &mut State, expert: u32, count: u32) {
        self.taken.clear();
        let mut placed = 0;
        while placed < count {
            let Some(top) = self.heap.pop() else { break };
            self.taken.push(top);
            if !state.holds(top as usize, expert) {
                state.push(top as usize, expert);
                placed += 1;
            }
        }
        for _ in placed..count {
            self.left.push(expert);
        }
        for &rank in &self.taken {
            if state.has_room(rank as usize) {
                self.heap.push(state.cost(rank as usize), rank);
            }
        }
    }
}
