//! Descent by exchanging what is in two slots.

use std::cmp::Ordering;

use crate::layout::Layout;
use crate::minimum::smallest;

/// Which swaps are tried.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Swaps {
    /// Only of experts with one replica: leaves as it is what replicas connect.
    pub(crate) singles: bool,
    /// Only within a node.
    pub(crate) within_nodes: bool,
    /// How many of the busiest ranks are looked at.
    pub(crate) depth: usize,
}

/// The pairs that a search may still look at: a limit on work, not on time, so that results do not
/// depend on the machine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Work(usize);

impl Work {
    pub(crate) fn new(limit: usize) -> Self {
        Self(limit)
    }

    pub(crate) fn spend(&mut self, pairs: usize) {
        self.0 = self.0.saturating_sub(pairs);
    }

    pub(crate) fn is_done(self) -> bool {
        self.0 == 0
    }
}

/// A swap has to take at least this part of what the busier rank has above the target.
const LEAST_STEP: f64 = 0.05;

/// Swaps until no rank is above the target, nothing helps, or the work is done. Every swap lowers the
/// larger of two loads, so it ends. Whether no rank is above the target.
pub(crate) fn descend(layout: &mut Layout<'_>, target: f64, swaps: Swaps, work: &mut Work) -> bool {
    let mut order: Vec<usize> = layout.ranks.live().collect();
    let mut values = Vec::new();
    while !work.is_done() {
        sort_by_time(&mut order, layout.times());
        let above = order
            .iter()
            .rev()
            .take_while(|&&rank| layout.times()[rank] > target);
        let above = above.count();
        if above == 0 {
            return true;
        }
        let swap = (0..above.min(swaps.depth)).find_map(|i| {
            let (busy, lighter) = order[..order.len() - i].split_last()?;
            best_swap(layout, *busy, lighter, target, swaps, work, &mut values)
        });
        let Some((a, b)) = swap else { return false };
        layout.swap(a, b);
    }
    false
}

/// Ranks by rising time, the first of equal ones last. The order is nearly right already.
fn sort_by_time(order: &mut [usize], times: &[f64]) {
    let after =
        |a: usize, b: usize| times[a].total_cmp(&times[b]).then(b.cmp(&a)) == Ordering::Greater;
    for i in 1..order.len() {
        let rank = order[i];
        let mut at = i;
        while at > 0 && after(order[at - 1], rank) {
            order[at] = order[at - 1];
            at -= 1;
        }
        order[at] = rank;
    }
}

/// The best swap between a busy rank and the lightest rank with which it gets below the target, or
/// with which the larger of the two loads becomes smallest.
///
/// # Arguments
///
/// - `lighter` - ranks by rising time.
/// - `values` - room for one value per slot of a rank.
fn best_swap(
    layout: &Layout<'_>,
    busy: usize,
    lighter: &[usize],
    target: f64,
    swaps: Swaps,
    work: &mut Work,
    values: &mut Vec<f64>,
) -> Option<(usize, usize)> {
    let ranks = layout.ranks;
    let (time, pace) = (layout.times()[busy], ranks.pace(busy));
    let mut least = time - LEAST_STEP * (time - target);
    let mut best = None;
    for &light in lighter {
        let (light_time, light_pace) = (layout.times()[light], ranks.pace(light));
        let even = (time / pace + light_time / light_pace) / (1.0 / pace + 1.0 / light_pace);
        if even >= least {
            break;
        }
        if swaps.within_nodes && ranks.node(light) != ranks.node(busy) {
            continue;
        }
        let (from, to) = (ranks.slots(busy), ranks.slots(light));
        work.spend(from.len() * to.len());
        let lights = layout.shares_of(light);
        values.resize(lights.len(), 0.0);
        for (a, &heavy_share) in from.zip(layout.shares_of(busy)) {
            let after = |light_share: f64| {
                let less = heavy_share - light_share;
                larger(time - less * pace, light_time + less * light_pace)
            };
            let mine = layout.expert(a);
            // All at once, as most rows hold nothing.
            values
                .iter_mut()
                .zip(lights)
                .for_each(|(v, &light_share)| *v = after(light_share));
            if smallest(values.as_slice(), f64::INFINITY) >= least
                || swaps.singles && layout.count(mine) > 1
                || layout.holds(light, mine)
            {
                continue;
            }
            for (b, &value) in to.clone().zip(&*values) {
                let theirs = layout.expert(b);
                if value < least
                    && !(swaps.singles && layout.count(theirs) > 1)
                    && !layout.holds(busy, theirs)
                {
                    (least, best) = (value, Some((a, b)));
                }
            }
            if least <= target {
                break;
            }
        }
        if least <= target {
            break;
        }
    }
    best
}

/// Without a rule for NaN, which never occurs, this is one instruction.
fn larger(a: f64, b: f64) -> f64 {
    if a > b { a } else { b }
}
