//! DeepSeek's greedy, the plan that ours must never be worse than.

use crate::{heap::RankHeap, state::State};

/// The largest cost that DeepSeek's `balanced_packing` reaches with the counts of `state`: replicas by
/// falling load, each to the rank with room that carries least, whatever it already holds.
///
/// Stops with `None` once that is at least `limit`; else leaves the plan in `state`.
pub(crate) fn pack(state: &mut State, by_load: &[u32], limit: f64) -> Option<f64> {
    let share = |state: &State, e: u32| state.share[e as usize];
    let mut by_share: Vec<u32> = by_load.to_vec();
    by_share.sort_by(|&a, &b| share(state, b).total_cmp(&share(state, a)).then(a.cmp(&b)));
    state.clear_slots();
    let mut heap = RankHeap::default();
    for &rank in &state.order {
        heap.push(0.0, rank);
    }
    let mut worst = 0.0f64;
    for expert in by_share {
        for _ in 0..state.count[expert as usize] {
            let rank = heap.top()?;
            let r = rank as usize;
            state.push(r, expert);
            worst = worst.max(state.cost(r));
            if worst >= limit {
                return None;
            }
            if state.has_room(r) {
                heap.replace_top(state.cost(r), rank);
            } else {
                heap.pop();
            }
        }
    }
    Some(worst)
}

/// Takes second replicas off ranks where swaps or other replicas allow it at no higher largest cost.
pub(crate) fn undouble(state: &mut State) {
    let limit = state.worst() * (1.0 + 1e-12);
    for i in 0..state.order.len() {
        let rank = state.order[i] as usize;
        for at in state.slots(rank) {
            let expert = state.slot[at];
            if state.experts(rank).iter().filter(|&&e| e == expert).count() > 1 {
                let _ = swap_away(state, rank, at, limit) || replace(state, rank, at, limit);
            }
        }
    }
    state.settle();
}

/// Swaps a slot with one of another rank so that no expert is twice on either.
fn swap_away(state: &mut State, rank: usize, at: usize, limit: f64) -> bool {
    let (expert, value) = (state.slot[at], state.value[at]);
    for i in 0..state.order.len() {
        let other = state.order[i] as usize;
        if other == rank || state.holds(other, expert) {
            continue;
        }
        for k in state.slots(other) {
            let shift = value - state.value[k];
            if !state.holds(rank, state.slot[k])
                && (state.rank_load[rank] - shift) * state.pace[rank] <= limit
                && (state.rank_load[other] + shift) * state.pace[other] <= limit
            {
                state.slot.swap(at, k);
                state.value.swap(at, k);
                state.rank_load[rank] -= shift;
                state.rank_load[other] += shift;
                return true;
            }
        }
    }
    false
}

/// Gives a slot to an expert that is not on the rank, with all shares that change by that.
fn replace(state: &mut State, rank: usize, at: usize, limit: f64) -> bool {
    let gives = state.slot[at];
    for gains in 0..state.load.len() as u32 {
        if state.holds(rank, gains) {
            continue;
        }
        let recount = |state: &mut State, by: i64| {
            for (expert, by) in [(gives, -by), (gains, by)] {
                let count = i64::from(state.count[expert as usize]) + by;
                state.set_count(expert, count as u32);
            }
        };
        recount(state, 1);
        state.slot[at] = gains;
        let cost = |r: u32| {
            let load: f64 = state.experts(r as usize).iter().map(|&e| state.share[e as usize]).sum();
            load * state.pace[r as usize]
        };
        let fits = state.order.iter().all(|&r| cost(r) <= limit);
        if fits {
            for slot in 0..state.slot.len() {
                state.value[slot] = state.share[state.slot[slot] as usize];
            }
            for rank in 0..state.ranks() {
                state.rank_load[rank] = state.value[state.slots(rank)].iter().sum();
            }
            return true;
        }
        recount(state, -1);
        state.slot[at] = gives;
    }
    false
}
