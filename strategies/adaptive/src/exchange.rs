//! Replica exchange: a slot of one replicated expert becomes a replica of another expert.

use crate::state::State;

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
    state.set_count(gives, state.count[gives as usize] - 1);
    state.set_count(exchange.gains, state.count[exchange.gains as usize] + 1);
    for i in 0..state.order.len() {
        let rank = state.order[i] as usize;
        if rank == exchange.rank || state.holds(rank, gives) || state.holds(rank, exchange.gains) {
            state.settle_rank(rank);
        }
    }
    state.settle_order();
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
