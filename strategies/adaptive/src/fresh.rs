//! A plan from nothing.

use crate::{
    exchange::{self, Exchange},
    greedy,
    plan::{Frame, Planner},
    search::{Movable, descend},
};

/// Sizes of the largest replica that are tried, from the smallest possible to a whole rank.
const CUTS: usize = 16;
/// How many of them are searched to the end.
const DEEP_CUTS: usize = 3;
/// A first placement this close to the target is searched at once.
const PROMISING: f64 = 1.02;
/// Exchanges of which the best is taken back if swaps after it do not make it an improvement.
const KICKS: usize = 16;
/// How far above the largest cost such an exchange may raise a rank.
const KICK_HEIGHTS: [f64; 2] = [1.1, 1.3];
/// A gain below this share is rounding.
const GAIN: f64 = 1.0 - 1e-9;

impl Planner {
    /// Seeds a placement, searches by swaps, then by other counts, then by replica exchange, each only
    /// as far as the ones before leave the target unmet.
    pub(crate) fn fresh(&mut self, frame: Frame) {
        let target = frame.bound * (1.0 + self.settings.epsilon);
        self.best.worst = f64::INFINITY;
        self.build(frame);
        self.swap(target);
        if self.best.worst > target {
            self.try_cuts(frame, target);
        }
        if self.best.worst > target {
            self.restore();
            self.exchange(target);
        }
        if self.best.worst > target {
            self.enumerate(frame, target);
        }
        self.outdo_greedy(frame);
    }

    /// Seeds a placement with the counts in force.
    fn build(&mut self, frame: Frame) {
        let state = &mut self.state;
        state.clear_slots();
        state.order.clone_from(&self.live);
        state.work += state.slot.len() as u64 / 16;
        self.todo.clone_from(&state.count);
        let replicated = &self.counts.by_load[..self.counts.single_from];
        self.linker.link(state, replicated, &mut self.todo, &self.live, frame.bound);
        self.seeder.longest_first(state, &self.counts, &self.todo, &self.live);
        self.seeder.place_left(state, &self.live);
        state.settle();
    }

    fn swap(&mut self, target: f64) {
        let limit = self.settings.work_limit;
        // Experts with one replica first: the replicas keep the ranks linked.
        if !descend(&mut self.state, target, Movable::Singles, limit) {
            descend(&mut self.state, target, Movable::All, limit);
        }
        self.keep();
    }

    /// Fewer, larger replicas of the hottest experts, by rising size.
    fn try_cuts(&mut self, frame: Frame, target: f64) {
        self.counts.apportion(&mut self.state, frame.spare, frame.cap);
        let least = self.state.share.iter().copied().fold(0.0, f64::max);
        let size = |k: usize| least + (0.99 * frame.room - least) * k as f64 / CUTS as f64;
        let mut later: Vec<(f64, usize)> = Vec::new();
        let mut searched = 0;
        for k in 1..=CUTS {
            if searched == DEEP_CUTS || !self.cut(frame, size(k)) {
                continue;
            }
            let worst = self.state.worst();
            if worst > PROMISING * target {
                later.push((worst, k));
                continue;
            }
            searched += 1;
            self.swap(target);
            if self.best.worst <= target {
                return;
            }
        }
        later.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        for &(_, k) in later.iter().take(DEEP_CUTS - searched) {
            self.cut(frame, size(k));
            self.swap(target);
            if self.best.worst <= target {
                return;
            }
        }
    }

    /// Seeds a placement with replicas of at most `most`; whether there are slots enough.
    fn cut(&mut self, frame: Frame, most: f64) -> bool {
        let half = 0.5 * frame.room;
        let fits = most < frame.room
            && self.counts.cut(&mut self.state, frame.spare, frame.cap, most, half);
        if fits {
            self.build(frame);
        }
        fits
    }

    /// Exchanges replicas while that, with swaps after it, lowers the largest cost.
    fn exchange(&mut self, target: f64) {
        let limit = self.settings.work_limit;
        while self.state.worst() > target && self.state.work < limit {
            let worst = self.state.worst();
            if let Some(&better) = exchange::exchanges(&mut self.state, worst * GAIN, 1).first() {
                exchange::apply(&mut self.state, better);
                descend(&mut self.state, target, Movable::All, limit);
            } else if !self.kick(target) {
                break;
            }
        }
        self.keep();
    }

    /// The first exchange that is an improvement once swaps have followed it.
    fn kick(&mut self, target: f64) -> bool {
        let worst = self.state.worst();
        let mut tried = 0;
        for height in KICK_HEIGHTS {
            let kicks = exchange::exchanges(&mut self.state, worst * height, tried + KICKS);
            for &kick in kicks.iter().skip(tried) {
                if self.attempt(kick, target, worst) {
                    return true;
                }
                if self.state.work >= self.settings.work_limit {
                    return false;
                }
            }
            tried = kicks.len();
        }
        false
    }

    fn attempt(&mut self, kick: Exchange, target: f64, worst: f64) -> bool {
        self.undo.clone_from(&self.state);
        exchange::apply(&mut self.state, kick);
        descend(&mut self.state, target, Movable::All, self.settings.work_limit);
        let better = self.state.worst() < worst * GAIN;
        if !better {
            std::mem::swap(&mut self.state, &mut self.undo);
            self.state.work = self.undo.work;
        }
        better
    }

    /// Makes sure that the plan is at least as good as DeepSeek's greedy.
    fn outdo_greedy(&mut self, frame: Frame) {
        self.counts.apportion(&mut self.state, frame.spare, u32::MAX);
        self.state.order.clone_from(&self.live);
        let Some(rival) = greedy::pack(&mut self.state, &self.counts.by_load, self.best.worst) else {
            return;
        };
        std::mem::swap(&mut self.state, &mut self.undo);
        self.state.clone_from(&self.undo);
        self.restore();
        self.swap(rival);
        if self.best.worst > rival {
            std::mem::swap(&mut self.state, &mut self.undo);
            self.state.settle();
            greedy::undouble(&mut self.state);
            self.keep();
        }
    }
}
