//! All replica counts of a small layer.

use crate::{
    plan::{Frame, Planner},
    search::{Movable, descend},
};

/// The most vectors of counts that are tried.
const MOST_VECTORS: u64 = 4096;

impl Planner {
    /// Tries every vector of counts that could beat the best placement, if they are few.
    ///
    /// An expert with fewer than `load / worst` replicas could not, so only the slots beyond these minima
    /// are free to be given away.
    pub(crate) fn enumerate(&mut self, frame: Frame, target: f64) {
        let most = self.best.worst / frame.bound * frame.room;
        let experts = self.state.load.len();
        let least: Vec<u32> =
            self.state.load.iter().map(|load| (load / most).floor() as u32 + 1).collect();
        let needed: usize = least.iter().map(|&c| c as usize).sum();
        let Some(free) = (frame.spare + experts).checked_sub(needed) else {
            return;
        };
        if vectors(free as u64, experts as u64) > MOST_VECTORS {
            return;
        }
        let mut counts = least.clone();
        self.give_away(&mut counts, 0, free as u32, frame, target);
    }

    /// Gives `free` more replicas to the experts from place `from` of the order by load on, in every way.
    fn give_away(&mut self, counts: &mut [u32], from: usize, free: u32, frame: Frame, target: f64) {
        if self.best.worst <= target || self.state.work >= self.settings.work_limit {
            return;
        }
        let Some(&expert) = self.counts.by_load.get(from) else {
            return;
        };
        let e = expert as usize;
        if from + 1 == self.counts.by_load.len() {
            counts[e] += free;
            if counts[e] <= frame.cap {
                self.place(counts, target);
            }
            counts[e] -= free;
            return;
        }
        let kept = counts[e];
        for extra in 0..=free.min(frame.cap.saturating_sub(kept)) {
            counts[e] = kept + extra;
            self.give_away(counts, from + 1, free - extra, frame, target);
        }
        counts[e] = kept;
    }

    /// Longest first and swaps with these counts.
    fn place(&mut self, counts: &[u32], target: f64) {
        let state = &mut self.state;
        for (expert, &count) in (0..).zip(counts) {
            state.set_count(expert, count);
        }
        state.clear_slots();
        state.order.clone_from(&self.live);
        state.work += 1;
        self.counts.single_from = counts.len();
        self.seeder.longest_first(state, &self.counts, counts, &self.live);
        if self.seeder.left.is_empty() {
            state.settle();
            descend(state, target, Movable::All, self.settings.work_limit);
            self.keep();
        }
    }
}

/// The ways to give `free` things to `takers`, at most a large number.
fn vectors(free: u64, takers: u64) -> u64 {
    (1..takers).try_fold(1u64, |ways, i| ways.checked_mul(free + i).map(|w| w / i)).unwrap_or(u64::MAX)
}
