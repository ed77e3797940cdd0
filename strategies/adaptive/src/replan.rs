//! A plan from the placement in force: few slots receive a new expert.

use crate::{
    exchange::{self, Exchange},
    plan::{Frame, Planner},
    state::State,
};

/// A gain below this share is rounding.
const GAIN: f64 = 1.0 - 1e-9;
/// The share of the excess over the target that a step must take off the ranks it touches.
const STEP: f64 = 0.25;
/// How far a change may raise a rank for a moment.
const SURGE: f64 = 1.8;
/// How many such changes are tried.
const SURGES: usize = 16;

/// Which experts each rank held before.
#[derive(Clone, Debug, Default)]
pub(crate) struct Residents {
    words: usize,
    bits: Vec<u64>,
}

impl Residents {
    fn reset(&mut self, current: &[Vec<u32>], experts: usize) {
        self.words = experts.div_ceil(64);
        self.bits.clear();
        self.bits.resize(self.words * current.len(), 0);
        for (rank, list) in current.iter().enumerate() {
            for &expert in list {
                self.bits[rank * self.words + expert as usize / 64] |= 1 << (expert % 64);
            }
        }
    }

    /// 1 if the rank would have to receive the expert.
    fn news(&self, rank: usize, expert: u32) -> i64 {
        i64::from(self.bits[rank * self.words + expert as usize / 64] >> (expert % 64) & 1 == 0)
    }

    /// Slots whose expert was not on their rank.
    pub(crate) fn received(&self, state: &State) -> i64 {
        (0..state.ranks())
            .map(|r| state.experts(r).iter().map(|&e| self.news(r, e)).sum::<i64>())
            .sum()
    }
}

/// A change of one or two slots.
#[derive(Clone, Copy, Debug)]
enum Step {
    Swap(usize, usize, usize, usize),
    Exchange(Exchange),
}

/// A step, the largest cost of the ranks it touches, and the slots it adds to those that receive.
#[derive(Clone, Copy, Debug)]
struct Option_ {
    step: Step,
    cost: f64,
    received: i64,
}

impl Planner {
    /// Repairs the placement in force and improves it within the budget.
    ///
    /// Nothing moves that need not while the largest cost is within `keep` of the bound. If ranks or slots
    /// were lost or added and no budget is given, only what must move moves.
    pub(crate) fn replan(&mut self, current: &[Vec<u32>], budget: Option<usize>, frame: Frame) {
        self.residents.reset(current, self.state.load.len());
        self.adopt(current);
        self.state.settle();
        let forced = self.residents.received(&self.state);
        let target = frame.bound * (1.0 + self.settings.keep);
        let budget = match budget {
            Some(slots) => (slots as i64).max(forced),
            None if forced > 0 => forced,
            None => i64::MAX,
        };
        self.relieve(target, budget);
        while self.state.worst() > target && self.surge(target, budget) {}
        self.best.worst = f64::INFINITY;
        self.keep();
    }

    /// Takes the best steps until the target is met or none is left.
    fn relieve(&mut self, target: f64, budget: i64) {
        let mut received = self.residents.received(&self.state);
        while self.state.worst() > target && self.state.work < self.settings.work_limit {
            let Some(best) = self.best_step(target, budget - received) else {
                let worst = self.state.worst();
                let limit = worst - STEP * (worst - target);
                let Some(r) = exchange::relocation(&mut self.state, limit) else { break };
                let news = |rank, at: usize| self.residents.news(rank, self.state.slot[at]);
                let more = self.residents.news(r.rank, self.state.slot[r.from]) - news(r.rank, r.at)
                    + self.residents.news(r.other, r.gains) - news(r.other, r.from);
                if received + more > budget { break; }
                received += more;
                exchange::relocate(&mut self.state, r);
                continue;
            };
            received += best.received;
            match best.step {
                Step::Swap(rank, i, other, k) => {
                    self.state.slot.swap(i, k);
                    for r in [rank, other] {
                        self.state.settle_rank(r);
                        self.state.reorder(r);
                    }
                }
                Step::Exchange(exchange) => exchange::apply(&mut self.state, exchange),
            }
        }
    }

    /// A change that raises some rank for a moment and pays once other steps have followed.
    fn surge(&mut self, target: f64, budget: i64) -> bool {
        let worst = self.state.worst();
        self.undo.clone_from(&self.state);
        if let Some(far) = exchange::relocation(&mut self.state, worst * SURGE) {
            exchange::relocate(&mut self.state, far);
            if self.pays(worst, target, budget) {
                return true;
            }
        }
        for kick in exchange::exchanges(&mut self.state, worst * SURGE, SURGES) {
            if self.state.work >= self.settings.work_limit {
                return false;
            }
            self.undo.clone_from(&self.state);
            exchange::apply(&mut self.state, kick);
            if self.pays(worst, target, budget) {
                return true;
            }
        }
        false
    }

    /// Whether steps from here lead below `worst` within the budget; goes back if not.
    fn pays(&mut self, worst: f64, target: f64, budget: i64) -> bool {
        // relieve() and what it calls leave self.undo alone.
        self.relieve(target, budget);
        if self.state.worst() < worst * GAIN && self.residents.received(&self.state) <= budget {
            return true;
        }
        std::mem::swap(&mut self.state, &mut self.undo);
        self.state.work = self.undo.work;
        false
    }

    /// The step that relieves the heaviest rank: of those that meet the target the one with fewest
    /// receptions, else the one with most gain per reception.
    fn best_step(&mut self, target: f64, budget: i64) -> Option<Option_> {
        let worst = self.state.worst();
        let limit = worst - STEP * (worst - target);
        let mut best: Option<Option_> = None;
        let mut consider = |option: Option_| {
            if option.received <= budget && best.as_ref().is_none_or(|b| better(&option, b, worst, target)) {
                best = Some(option);
            }
        };
        let rank = *self.state.order.last()? as usize;
        let state = &mut self.state;
        for o in 0..state.order.len() - 1 {
            let other = state.order[o] as usize;
            state.work += 1;
            if state.cost(other) >= limit {
                break;
            }
            for i in state.slots(rank) {
                let a = state.slot[i];
                if state.holds(other, a) {
                    continue;
                }
                for k in state.slots(other) {
                    let shift = state.value[i] - state.value[k];
                    let cost = ((state.rank_load[rank] - shift) * state.pace[rank])
                        .max((state.rank_load[other] + shift) * state.pace[other]);
                    let b = state.slot[k];
                    if cost < limit && !state.holds(rank, b) {
                        let news = |r, e| self.residents.news(r, e);
                        let received =
                            news(rank, b) + news(other, a) - news(rank, a) - news(other, b);
                        consider(Option_ { step: Step::Swap(rank, i, other, k), cost, received });
                    }
                }
            }
        }
        for exchange in exchange::exchanges(state, limit, usize::MAX) {
            let gives = state.slot[exchange.at];
            let received = self.residents.news(exchange.rank, exchange.gains)
                - self.residents.news(exchange.rank, gives);
            consider(Option_ { step: Step::Exchange(exchange), cost: exchange.cost, received });
        }
        best
    }

    /// Takes over what fits of the placement in force; every expert gets a slot and every slot an expert.
    fn adopt(&mut self, current: &[Vec<u32>]) {
        let state = &mut self.state;
        state.clear_slots();
        let mut count = vec![0u32; state.load.len()];
        let mut lists: Vec<Vec<u32>> = current.to_vec();
        for (rank, list) in lists.iter_mut().enumerate() {
            if state.start[rank] == state.start[rank + 1] {
                list.clear();
            }
            for &expert in list.iter() {
                count[expert as usize] += 1;
            }
        }
        for (rank, list) in lists.iter_mut().enumerate() {
            let slots = (state.start[rank + 1] - state.start[rank]) as usize;
            while list.len() > slots {
                // The replica whose loss raises the others least; an only replica comes last.
                let loss = |e: u32| match count[e as usize] {
                    1 => f64::INFINITY,
                    c => state.load[e as usize] / f64::from(c * (c - 1)),
                };
                let least = (0..list.len()).min_by(|&a, &b| {
                    let load = |i: usize| state.load[list[i] as usize];
                    loss(list[a]).total_cmp(&loss(list[b])).then(load(a).total_cmp(&load(b)))
                });
                let Some(at) = least else { break };
                count[list[at] as usize] -= 1;
                list.remove(at);
            }
        }
        for (rank, list) in lists.iter().enumerate() {
            for &expert in list {
                state.push(rank, expert);
            }
        }
        for (expert, &c) in (0..).zip(&count) {
            state.set_count(expert, c.max(1));
        }
        for rank in 0..lists.len() {
            state.settle_rank(rank);
        }
        for i in 0..self.counts.by_load.len() {
            let expert = self.counts.by_load[i];
            if count[expert as usize] == 0 {
                house(state, expert);
            }
        }
        fill_up(state);
    }
}

fn better(a: &Option_, b: &Option_, worst: f64, target: f64) -> bool {
    let (a_meets, b_meets) = (a.cost <= target, b.cost <= target);
    if a_meets != b_meets {
        return a_meets;
    }
    if a_meets {
        return (a.received, a.cost) < (b.received, b.cost);
    }
    let rate = |o: &Option_| (worst - o.cost) / (o.received.max(0) as f64 + 0.25);
    rate(a) > rate(b)
}

/// Finds a slot for an expert that has none: an empty one, else that of a replica.
fn house(state: &mut State, expert: u32) {
    let load = state.load[expert as usize];
    let empty = state
        .order
        .iter()
        .copied()
        .filter(|&r| state.has_room(r as usize))
        .min_by(|&a, &b| {
            let cost = |r: u32| (state.rank_load[r as usize] + load) * state.pace[r as usize];
            cost(a).total_cmp(&cost(b)).then(a.cmp(&b))
        });
    if let Some(rank) = empty {
        state.push(rank as usize, expert);
        return;
    }
    let mut best: Option<(f64, usize, usize)> = None;
    for i in 0..state.order.len() {
        let rank = state.order[i] as usize;
        for at in state.slots(rank) {
            let gives = state.slot[at];
            let count = state.count[gives as usize];
            if count < 2 {
                continue;
            }
            let share = state.share[gives as usize];
            let rise = share / f64::from(count - 1);
            let here = (state.rank_load[rank] - share + load) * state.pace[rank];
            let cost = state
                .order
                .iter()
                .map(|&r| r as usize)
                .filter(|&r| r != rank && state.holds(r, gives))
                .map(|r| (state.rank_load[r] + rise) * state.pace[r])
                .fold(here, f64::max);
            if best.is_none_or(|(c, r, _)| cost < c || cost == c && rank < r) {
                best = Some((cost, rank, at));
            }
        }
    }
    if let Some((_, rank, at)) = best {
        let gives = state.slot[at];
        state.slot[at] = expert;
        state.set_count(gives, state.count[gives as usize] - 1);
        for r in 0..state.ranks() {
            if r == rank || state.holds(r, gives) {
                state.settle_rank(r);
            }
        }
    }
}

/// Gives each empty slot to the largest replica not yet on its rank.
fn fill_up(state: &mut State) {
    while let Some(&rank) = state
        .order
        .iter()
        .filter(|&&r| state.has_room(r as usize))
        .min_by(|&&a, &&b| state.cost(a as usize).total_cmp(&state.cost(b as usize)).then(a.cmp(&b)))
    {
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
        for r in 0..state.ranks() {
            if state.holds(r, expert) {
                state.settle_rank(r);
            }
        }
    }
}
