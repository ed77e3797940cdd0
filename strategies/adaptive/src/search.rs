//! Swaps between the heaviest rank and the others.

use crate::state::State;

/// A swap of two slots and the larger cost of the two ranks after it.
#[derive(Clone, Copy, Debug)]
struct Swap {
    at: usize,
    other: usize,
    cost: f64,
}

/// Which slots a swap may touch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Movable {
    /// Only experts with one replica: the graph of replicas stays as it is.
    Singles,
    /// Every slot.
    All,
}

/// Swaps slots of the heaviest rank with others until every rank costs at most `target`.
///
/// Of the ranks from the lightest on, the first swap that brings both ranks below the target is taken,
/// else the one after which the larger of the two is smallest. Returns whether the target is met.
pub(crate) fn descend(state: &mut State, target: f64, movable: Movable, work_limit: u64) -> bool {
    while state.worst() > target {
        if state.work >= work_limit {
            return false;
        }
        let Some((rank, other, swap)) = best_swap(state, target, movable) else {
            return false;
        };
        apply(state, rank, other, swap);
    }
    true
}

fn best_swap(state: &mut State, target: f64, movable: Movable) -> Option<(usize, usize, Swap)> {
    let rank = *state.order.last()? as usize;
    let mut best: Option<(usize, Swap)> = None;
    // Smaller gains are rounding, and could go round in circles.
    let mut limit = state.cost(rank) * (1.0 - 1e-9);
    for i in 0..state.order.len() - 1 {
        let other = state.order[i] as usize;
        // The cost of both ranks cannot fall below the level of their common load.
        let level = (state.rank_load[rank] + state.rank_load[other])
            / (1.0 / state.pace[rank] + 1.0 / state.pace[other]);
        if level >= limit {
            break;
        }
        state.work += 1;
        let found = match movable {
            Movable::Singles => best_single(state, rank, other, limit),
            Movable::All => best_any(state, rank, other, limit),
        };
        if let Some(swap) = found {
            limit = swap.cost;
            best = Some((other, swap));
            if limit <= target {
                break;
            }
        }
    }
    best.map(|(other, swap)| (rank, other, swap))
}

/// Two pointers over the unreplicated experts of both ranks, which lie by falling load.
fn best_single(state: &State, rank: usize, other: usize, limit: f64) -> Option<Swap> {
    let singles = |r: usize| (state.slots(r).start + state.multi[r] as usize, state.slots(r).end);
    let ((i_start, i_end), (j_start, j_end)) = (singles(rank), singles(other));
    let (load, other_load) = (state.rank_load[rank], state.rank_load[other]);
    let (pace, other_pace) = (state.pace[rank], state.pace[other]);
    let ideal = (load * pace - other_load * other_pace) / (pace + other_pace);
    let mut best = Swap { at: 0, other: 0, cost: limit };
    let mut j = j_start;
    for i in i_start..i_end {
        let value = state.value[i];
        while j < j_end && state.value[j] > value - ideal {
            j += 1;
        }
        // state.value[j] shifts at least the ideal load, the slot before it less.
        for k in j.saturating_sub(1).max(j_start)..(j + 1).min(j_end) {
            let shift = value - state.value[k];
            let cost = ((load - shift) * pace).max((other_load + shift) * other_pace);
            if cost < best.cost {
                best = Swap { at: i, other: k, cost };
            }
        }
    }
    (best.cost < limit).then_some(best)
}

/// All pairs of slots that leave no expert twice on a rank.
fn best_any(state: &State, rank: usize, other: usize, limit: f64) -> Option<Swap> {
    let (load, other_load) = (state.rank_load[rank], state.rank_load[other]);
    let (pace, other_pace) = (state.pace[rank], state.pace[other]);
    let mut best = Swap { at: 0, other: 0, cost: limit };
    for i in state.slots(rank) {
        let (value, expert) = (state.value[i], state.slot[i]);
        let twice = state.count[expert as usize] > 1 && state.holds(other, expert);
        if twice {
            continue;
        }
        for k in state.slots(other) {
            let shift = value - state.value[k];
            let cost = ((load - shift) * pace).max((other_load + shift) * other_pace);
            if cost < best.cost
                && (state.count[state.slot[k] as usize] == 1 || !state.holds(rank, state.slot[k]))
            {
                best = Swap { at: i, other: k, cost };
            }
        }
    }
    (best.cost < limit).then_some(best)
}

fn apply(state: &mut State, rank: usize, other: usize, swap: Swap) {
    state.slot.swap(swap.at, swap.other);
    state.value.swap(swap.at, swap.other);
    for r in [rank, other] {
        state.settle_rank(r);
        state.reorder(r);
    }
}
