//! Replica exchange: a slot of one replicated expert becomes a replica of another expert.

use crate::state::State;

/// A replica that is given up for another expert which makes room on its own rank for a replica of a third.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Relocation {
    /// The slot given up, on `rank`; it takes the expert of `from`.
    pub(crate) rank: usize,
    pub(crate) at: usize,
    /// The slot, on `other`, that takes a replica of `gains`.
    pub(crate) other: usize,
    pub(crate) from: usize,
    pub(crate) gains: u32,
    pub(crate) cost: f64,
}

/// A slot that changes its expert, and the largest cost of the ranks it touches afterwards.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Exchange {
    pub(crate) rank: usize,
    pub(crate) at: usize,
    pub(crate) gains: u32,
    pub(crate) cost: f64,
}

/// The ranks of an expert that gives up a replica, and what they cost then.
struct Donor {
    expert: u32,
    ranks: Vec<u32>,
    rise: f64,
}

/// Exchanges that relieve the heaviest rank and leave every rank they touch below `limit`, the best first.
///
/// Either an expert of that rank gets a replica elsewhere, or the rank gives up a replica for a
/// lighter one. At most `most` are returned.
pub(crate) fn exchanges(state: &mut State, limit: f64, most: usize) -> Vec<Exchange> {
    let Some(&rank) = state.order.last() else {
        return Vec::new();
    };
    let mut found = Vec::new();
    let donors = donors(state, limit);
    relieve_elsewhere(state, rank as usize, &donors, limit, &mut found);
    relieve_here(state, rank as usize, &donors, limit, &mut found);
    found.sort_by(|a, b| {
        a.cost.total_cmp(&b.cost).then(a.at.cmp(&b.at)).then(a.gains.cmp(&b.gains))
    });
    found.truncate(most);
    found
}

/// Applies an exchange.
pub(crate) fn apply(state: &mut State, exchange: Exchange) {
    let gives = state.slot[exchange.at];
    state.slot[exchange.at] = exchange.gains;
    recount(state, gives, exchange.gains, [exchange.rank; 2]);
}

/// Moves one replica of the counts and settles every rank that feels it.
fn recount(state: &mut State, gives: u32, gains: u32, changed: [usize; 2]) {
    state.set_count(gives, state.count[gives as usize] - 1);
    state.set_count(gains, state.count[gains as usize] + 1);
    for i in 0..state.order.len() {
        let rank = state.order[i] as usize;
        if changed.contains(&rank) || state.holds(rank, gives) || state.holds(rank, gains) {
            state.settle_rank(rank);
        }
    }
    state.settle_order();
}

/// How many of the lightest ranks a relocation may put a replica on.
const LIGHTEST: usize = 4;

/// The relocation that relieves the heaviest rank most: one of its experts gets a replica on a light rank,
/// whose lightest expert takes the slot of a replica that is given up elsewhere.
pub(crate) fn relocation(state: &mut State, limit: f64) -> Option<Relocation> {
    let heaviest = *state.order.last()? as usize;
    let donors = donors(state, limit);
    let mut best: Option<Relocation> = None;
    for i in state.slots(heaviest) {
        let gains = state.slot[i];
        let gain_ranks = ranks_of(state, gains);
        let light: Vec<usize> = state.order.iter().map(|&r| r as usize).filter(|&r| !state.holds(r, gains)).take(LIGHTEST).collect();
        for &other in &light {
            let Some(from) = state.slots(other).next_back().filter(|&k| state.count[state.slot[k] as usize] == 1) else {
                continue;
            };
            for donor in donors.iter().filter(|d| d.expert != gains) {
                state.work += 1;
                for &r in donor.ranks.iter().filter(|&&r| r as usize != other) {
                    let rank = r as usize;
                    let limit = best.map_or(limit, |b| b.cost);
                    if let (Some(cost), Some(at)) = (
                        relocated(state, donor, rank, (other, from), gains, &gain_ranks, limit),
                        slot_of(state, rank, donor.expert),
                    ) {
                        best = Some(Relocation { rank, at, other, from, gains, cost });
                    }
                }
            }
        }
    }
    best
}

/// The largest cost among the ranks a relocation touches, `None` if that is not below the limit.
fn relocated(
    state: &State,
    donor: &Donor,
    rank: usize,
    (other, from): (usize, usize),
    gains: u32,
    gain_ranks: &[u32],
    limit: f64,
) -> Option<f64> {
    let (fall, moved) = (fall(state, gains), state.value[from]);
    let after = |r: usize| {
        let mut load = state.rank_load[r];
        if r == rank {
            load += moved - state.share[donor.expert as usize];
        } else if donor.ranks.contains(&(r as u32)) {
            load += donor.rise;
        }
        if r == other {
            load += state.share[gains as usize] - fall - moved;
        } else if gain_ranks.contains(&(r as u32)) {
            load -= fall;
        }
        load * state.pace[r]
    };
    let touched = donor.ranks.iter().chain(gain_ranks).map(|&r| r as usize);
    let worst = touched.map(after).fold(after(other), f64::max);
    (worst < limit).then_some(worst)
}

/// Applies a relocation.
pub(crate) fn relocate(state: &mut State, relocation: Relocation) {
    let gives = state.slot[relocation.at];
    state.slot[relocation.at] = state.slot[relocation.from];
    state.slot[relocation.from] = relocation.gains;
    recount(state, gives, relocation.gains, [relocation.rank, relocation.other]);
}

/// The ranks under search that hold an expert.
fn ranks_of(state: &State, expert: u32) -> Vec<u32> {
    state.order.iter().copied().filter(|&r| state.holds(r as usize, expert)).collect()
}

/// The replicated experts of which at most one rank would pass the limit with a replica less.
fn donors(state: &mut State, limit: f64) -> Vec<Donor> {
    let mut donors = Vec::new();
    for expert in 0..state.load.len() as u32 {
        let count = state.count[expert as usize];
        if count < 2 {
            continue;
        }
        let rise = state.load[expert as usize] / f64::from(count - 1) - state.share[expert as usize];
        let ranks = ranks_of(state, expert);
        let over = ranks.iter().filter(|&&r| over(state, r as usize, rise, limit)).count();
        state.work += 1;
        if over <= 1 && ranks.len() == count as usize {
            donors.push(Donor { expert, ranks, rise });
        }
    }
    donors
}

fn over(state: &State, rank: usize, rise: f64, limit: f64) -> bool {
    (state.rank_load[rank] + rise) * state.pace[rank] >= limit
}

fn fall(state: &State, expert: u32) -> f64 {
    let count = f64::from(state.count[expert as usize]);
    state.load[expert as usize] / (count * (count + 1.0))
}

/// The largest cost among the ranks an exchange touches, `None` if that is not below the limit.
fn outcome(
    state: &State,
    donor: &Donor,
    rank: usize,
    gains: u32,
    gain_ranks: &[u32],
    limit: f64,
) -> Option<f64> {
    let fall = fall(state, gains);
    let here = state.rank_load[rank] - state.share[donor.expert as usize] + state.share[gains as usize] - fall;
    let mut worst = here * state.pace[rank];
    let on = |list: &[u32], r: u32| list.contains(&r);
    for &r in donor.ranks.iter().filter(|&&r| r as usize != rank) {
        let relief = if on(gain_ranks, r) { fall } else { 0.0 };
        worst = worst.max((state.rank_load[r as usize] + donor.rise - relief) * state.pace[r as usize]);
    }
    for &r in gain_ranks.iter().filter(|&&r| !on(&donor.ranks, r)) {
        worst = worst.max((state.rank_load[r as usize] - fall) * state.pace[r as usize]);
    }
    (worst < limit).then_some(worst)
}

fn slot_of(state: &State, rank: usize, expert: u32) -> Option<usize> {
    state.slots(rank).find(|&i| state.slot[i] == expert)
}

fn relieve_elsewhere(
    state: &mut State,
    heaviest: usize,
    donors: &[Donor],
    limit: f64,
    found: &mut Vec<Exchange>,
) {
    let cap = state.order.len() as u32;
    for i in state.slots(heaviest) {
        let gains = state.slot[i];
        if state.count[gains as usize] >= cap {
            continue;
        }
        let gain_ranks = ranks_of(state, gains);
        for donor in donors.iter().filter(|d| d.expert != gains) {
            state.work += 1;
            for &r in donor.ranks.iter().filter(|r| !gain_ranks.contains(r)) {
                let rank = r as usize;
                if let (Some(cost), Some(at)) = (
                    outcome(state, donor, rank, gains, &gain_ranks, limit),
                    slot_of(state, rank, donor.expert),
                ) {
                    found.push(Exchange { rank, at, gains, cost });
                }
            }
        }
    }
}

fn relieve_here(
    state: &mut State,
    heaviest: usize,
    donors: &[Donor],
    limit: f64,
    found: &mut Vec<Exchange>,
) {
    let cap = state.order.len() as u32;
    for donor in donors.iter().filter(|d| d.ranks.contains(&(heaviest as u32))) {
        let Some(at) = slot_of(state, heaviest, donor.expert) else {
            continue;
        };
        for gains in 0..state.load.len() as u32 {
            let share = state.share[gains as usize] - fall(state, gains);
            if share >= state.share[donor.expert as usize]
                || state.count[gains as usize] >= cap
                || state.holds(heaviest, gains)
            {
                continue;
            }
            state.work += 1;
            let gain_ranks = ranks_of(state, gains);
            if let Some(cost) = outcome(state, donor, heaviest, gains, &gain_ranks, limit) {
                found.push(Exchange { rank: heaviest, at, gains, cost });
            }
        }
    }
}
