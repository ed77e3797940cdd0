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
