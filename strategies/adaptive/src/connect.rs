//! Replicas as links between ranks.
//!
//! Within one step the weights stay where they are; only the split of each expert's tokens over its
//! replicas can follow the counts. Tokens move between two ranks when replicas link them, directly or by
//! other ranks, so the best split of a step is the better the better the graph of replicas is connected.

use crate::state::State;

/// How full, in shares of the largest rank cost, linking may make a rank.
const LINKED_SHARE: f64 = 0.8;

/// Scratch of the linking.
#[derive(Debug, Default)]
pub(crate) struct Linker {
    fresh: Vec<u32>,
    /// Linked ranks in the order they joined, each with its tree.
    joined: Vec<(u32, u32)>,
    size: Vec<u32>,
}

impl Linker {
    /// Places replicated experts so that their replicas span the ranks as one tree, or as few trees of
    /// like size as the replicas allow; takes what it places out of `todo`. Ends when every rank is reached.
    ///
    /// The hottest experts come first and so sit in the middle of a tree, where most tokens have to
    /// pass; each next expert joins at the rank that holds least replicas and joined first, which keeps
    /// the paths short. No rank is filled beyond a share of `target` by that.
    pub(crate) fn link(
        &mut self,
        state: &mut State,
        by_load: &[u32],
        todo: &mut [u32],
        ranks: &[u32],
        target: f64,
    ) {
        self.fresh.clear();
        self.fresh.extend(ranks.iter().rev().filter(|&&r| state.has_room(r as usize)));
        let links: usize = by_load
            .iter()
            .map(|&e| (todo[e as usize] as usize).saturating_sub(1))
            .sum();
        let trees = self.fresh.len().saturating_sub(links).max(1);
        self.joined.clear();
        self.size.clear();
        self.size.resize(trees, 0);
        for &expert in by_load {
            if self.fresh.is_empty() {
                break;
            }
            let count = todo[expert as usize] as usize;
            if count < 2 {
                continue;
            }
            let Some(tree) = (0..trees).min_by_key(|&t| (self.size[t], t)) else {
                break;
            };
            let joint = self.joint(state, tree, expert, target);
            let new = count - usize::from(joint.is_some());
            if new > self.fresh.len() || joint.is_none() && self.size[tree] > 0 {
                continue;
            }
            if let Some(rank) = joint {
                state.push(rank as usize, expert);
            }
            for rank in self.fresh.split_off(self.fresh.len() - new).into_iter().rev() {
                state.push(rank as usize, expert);
                self.joined.push((rank, tree as u32));
            }
            self.size[tree] += new as u32;
            todo[expert as usize] = 0;
        }
    }

    fn joint(&self, state: &State, tree: usize, expert: u32, target: f64) -> Option<u32> {
        let share = state.share[expert as usize];
        let most = LINKED_SHARE * target;
        let mut best: Option<u32> = None;
        for &(rank, of) in &self.joined {
            let r = rank as usize;
            if of as usize != tree || state.start[r] + state.filled[r] + 1 >= state.start[r + 1] {
                continue;
            }
            if state.cost(r) + share * state.pace[r] < most
                && best.is_none_or(|b| state.filled[r] < state.filled[b as usize])
            {
                best = Some(rank);
            }
        }
        best
    }
}
