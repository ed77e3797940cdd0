//! From the placement in force to a better one, by few moves.

use moekit_placement::Placement;
use moekit_routing::Rank;

use crate::exchange::{Exchanges, excess};
use crate::layout::{EMPTY, Layout};
use crate::ranks::Ranks;
use crate::undo::undo;

/// When a layer moves, and how far.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Goal {
    /// A rank may take this long before anything moves.
    pub(crate) enough: f64,
    /// What is aimed at if something moves.
    pub(crate) target: f64,
    /// Whether lost experts are brought back and nothing else is done.
    pub(crate) only_recover: bool,
}

/// A point on the way.
#[derive(Clone, Debug)]
pub(crate) struct Stop {
    /// The expert of each slot, `[P]`.
    pub(crate) slots: Vec<u32>,
    /// Experts that reach a rank which did not hold them.
    pub(crate) moved: usize,
    /// The longest time of a rank.
    pub(crate) largest: f64,
}

impl Stop {
    fn of(layout: &Layout<'_>, moved: usize) -> Self {
        Self {
            slots: layout.slots().to_vec(),
            moved,
            largest: layout.largest(),
        }
    }
}

/// What steps lower, as parts of the target: what ranks have above it. Which of these leads to the fewest
/// moves differs from layer to layer: the lower it is, the more ranks count that are not the busiest.
const AIMS: [f64; 3] = [1.0, 0.99, 0.98];

/// The way of a layer from the placement in force, cheapest gains first. At the first stop only
/// those have moved without whom experts would be lost or slots empty.
///
/// # Arguments
///
/// - `is_short` - whether only the end counts: of several ways the one that moves least.
///
/// Time: O(steps × (s² R + s P × replicas)) for s slots per rank.
///
/// # Returns
///
/// The stops, and whether the way ends with the recovery of lost experts.
pub(crate) fn way(
    ranks: &Ranks,
    weights: &[f64],
    current: &Placement,
    goal: Goal,
    is_short: bool,
) -> (Vec<Stop>, bool) {
    let held = Held::of(current, ranks);
    let mut layout = Layout::new(ranks, weights, adopt(ranks, weights, current));
    let lost = recover(&mut layout, goal.target);
    let mut begun = vec![held.stop(&layout)];
    let recovers = goal.only_recover && lost;
    if layout.largest() <= goal.enough || recovers {
        return (begun, recovers);
    }
    while let Some(slot) = repeated(&layout) {
        fill(&mut layout, slot, goal.target);
        begun.push(held.stop(&layout));
    }
    let aims = if is_short { &AIMS[..] } else { &AIMS[..1] };
    let ways = aims.iter().map(|aim| {
        let mut way = begun.clone();
        walk(
            layout.clone(),
            &held,
            goal.target,
            aim * goal.target,
            &mut way,
        );
        way
    });
    // Of those that get there the one that moves least, or else the one that gets furthest.
    let value = |way: &Vec<Stop>| {
        let end = &way[way.len() - 1];
        match end.largest <= goal.target {
            true => (goal.target, end.moved),
            false => (end.largest, usize::MAX),
        }
    };
    let best = ways.min_by(|a, b| {
        let (a, b) = (value(a), value(b));
        a.0.total_cmp(&b.0).then(a.1.cmp(&b.1))
    });
    (best.unwrap_or(begun), false)
}

/// Goes on, step by step, until no rank is above the target, and takes back what was not needed.
fn walk(mut layout: Layout<'_>, held: &Held, target: f64, aim: f64, way: &mut Vec<Stop>) {
    let mut moved = held.arrivals(&layout);
    // Every step lowers the excess; the limit is for steps that hardly do.
    for _ in 0..2 * layout.ranks.num_slots() {
        if layout.largest() <= target {
            break;
        }
        let Some(step) = best_step(&layout, held, aim) else {
            break;
        };
        step.kind.apply(&mut layout);
        moved = moved.saturating_add_signed(step.arrivals);
        way.push(Stop::of(&layout, moved));
    }
    let limit = layout.largest().max(target);
    undo(&mut layout, held, limit);
    let end = held.stop(&layout);
    if end.moved < moved {
        way.push(end);
    }
}

/// The slots of another layout with its ranks renumbered so that few experts travel: the two ranks,
/// before and after, that have the most experts in common become one, and so on. All ranks are alike.
///
/// Time: O(R² (s + log R)).
pub(crate) fn renumbered(ranks: &Ranks, slots: &[u32], held: &Held) -> Vec<u32> {
    let common = |from: usize, to: usize| {
        let stay = slots[ranks.slots(from)]
            .iter()
            .filter(|&&e| held.arrives(to, e) == 0);
        stay.count()
    };
    let mut pairs: Vec<(usize, usize, usize)> = (0..ranks.len())
        .flat_map(|from| (0..ranks.len()).map(move |to| (from, to)))
        .map(|(from, to)| (ranks.num_slots() - common(from, to), from, to))
        .collect();
    pairs.sort_unstable();
    let mut target = vec![None; ranks.len()];
    let mut taken = vec![false; ranks.len()];
    for (_, from, to) in pairs {
        if target[from].is_none() && !taken[to] {
            target[from] = Some(to);
            taken[to] = true;
        }
    }
    let mut renumbered = slots.to_vec();
    for (from, to) in target.into_iter().enumerate() {
        let to = ranks.slots(to.unwrap_or(from));
        renumbered[to].copy_from_slice(&slots[ranks.slots(from)]);
    }
    renumbered
}

/// What each rank held, in ascending order.
pub(crate) struct Held(Vec<Vec<u32>>);

impl Held {
    pub(crate) fn of(current: &Placement, ranks: &Ranks) -> Self {
        let experts = |rank| {
            let mut held: Vec<u32> = experts_of(current, rank).collect();
            held.sort_unstable();
            held
        };
        Self((0..ranks.len()).map(experts).collect())
    }

    pub(crate) fn of_rank(&self, rank: usize) -> &[u32] {
        &self.0[rank]
    }

    pub(crate) fn stop(&self, layout: &Layout<'_>) -> Stop {
        Stop::of(layout, self.arrivals(layout))
    }

    /// 1 if the expert would have to travel to the rank.
    pub(crate) fn arrives(&self, rank: usize, expert: u32) -> isize {
        isize::from(self.0[rank].binary_search(&expert).is_err())
    }

    /// Experts that reach a rank which did not hold them.
    pub(crate) fn arrivals(&self, layout: &Layout<'_>) -> usize {
        let arrivals = |rank| {
            let mut experts = layout.experts_of(rank).to_vec();
            experts.sort_unstable();
            experts.dedup();
            experts
                .into_iter()
                .filter(|&e| self.arrives(rank, e) > 0)
                .count()
        };
        layout.ranks.live().map(arrivals).sum()
    }
}

fn experts_of(current: &Placement, rank: usize) -> impl Iterator<Item = u32> + '_ {
    let experts = current.experts_of(Rank::new(rank)).unwrap_or_default();
    experts.iter().map(|e| e.index() as u32)
}

/// The placement in force in the slots that there are now: experts stay in their slots; new slots are
/// empty; of slots that are gone the least needed experts leave.
fn adopt(ranks: &Ranks, weights: &[f64], current: &Placement) -> Vec<u32> {
    let mut counts = vec![0u32; weights.len()];
    for rank in ranks.live() {
        experts_of(current, rank).for_each(|e| counts[e as usize] += 1);
    }
    let mut slots = vec![EMPTY; ranks.num_slots()];
    for rank in ranks.live() {
        let mut held: Vec<u32> = experts_of(current, rank).collect();
        while held.len() > ranks.slots(rank).len() {
            // Repeated on the rank, then replicated elsewhere, then the lightest.
            let need = |i: usize| {
                let e = held[i] as usize;
                let share = weights[e] / f64::from(counts[e]);
                (!held[..i].contains(&held[i]), counts[e] == 1, share)
            };
            let least = (0..held.len()).min_by(|&a, &b| {
                let (a, b) = (need(a), need(b));
                (a.0, a.1).cmp(&(b.0, b.1)).then(a.2.total_cmp(&b.2))
            });
            let gone = held.remove(least.unwrap_or_default());
            counts[gone as usize] -= 1;
        }
        for (slot, expert) in ranks.slots(rank).zip(held) {
            slots[slot] = expert;
        }
    }
    slots
}

/// Brings back experts that sit nowhere, then fills slots that are still empty. Whether any expert was
/// lost.
fn recover(layout: &mut Layout<'_>, target: f64) -> bool {
    let mut lost: Vec<u32> = (0..layout.weights.len() as u32)
        .filter(|&e| layout.count(e) == 0)
        .collect();
    lost.sort_by(|&a, &b| layout.weights[b as usize].total_cmp(&layout.weights[a as usize]));
    let mut empty = layout.slots().iter().filter(|&&e| e == EMPTY).count();
    for &expert in &lost {
        let is_free = |l: &Layout<'_>, slot: usize| match l.expert(slot) {
            EMPTY => true,
            e => empty == 0 && l.count(e) > 1,
        };
        if let Some(slot) = best_slot(layout, expert, target, is_free) {
            layout.replace(slot, expert);
            empty = empty.saturating_sub(1);
        }
    }
    while let Some(slot) = emptiest(layout) {
        fill(layout, slot, target);
    }
    !lost.is_empty()
}

/// Gives a slot to the expert that its rank lacks and that takes the most excess away.
fn fill(layout: &mut Layout<'_>, slot: usize, target: f64) {
    let rank = layout.ranks.rank_of(slot);
    let exchanges = Exchanges::of(layout, layout.largest().min(target));
    let lacks = (0..layout.weights.len() as u32).filter(|&e| !layout.holds(rank, e));
    if let Some((expert, _)) = least(lacks.map(|e| (e, exchanges.change(slot, rank, e)))) {
        layout.replace(slot, expert);
    }
}

/// A slot that repeats an expert of its rank.
fn repeated(layout: &Layout<'_>) -> Option<usize> {
    layout.ranks.live().find_map(|rank| {
        let held = layout.experts_of(rank);
        let repeats = (1..held.len()).find(|&i| held[..i].contains(&held[i]))?;
        Some(layout.ranks.slots(rank).start + repeats)
    })
}

/// An empty slot of the rank with the least to do.
fn emptiest(layout: &Layout<'_>) -> Option<usize> {
    let empty = (0..layout.ranks.num_slots()).filter(|&slot| layout.expert(slot) == EMPTY);
    least(empty.map(|slot| (slot, layout.times()[layout.ranks.rank_of(slot)])))
        .map(|(slot, _)| slot)
}

/// The slot in which an expert does the least harm.
fn best_slot(
    layout: &Layout<'_>,
    expert: u32,
    target: f64,
    is_free: impl Fn(&Layout<'_>, usize) -> bool,
) -> Option<usize> {
    let exchanges = Exchanges::of(layout, target);
    let free = (0..layout.ranks.num_slots()).filter(|&slot| is_free(layout, slot));
    let costs = free.map(|slot| {
        let rank = layout.ranks.rank_of(slot);
        // Of slots without harm, one on the lightest rank.
        let time = layout.times()[rank] + layout.weights[expert as usize] * layout.ranks.pace(rank);
        (
            slot,
            exchanges.change(slot, rank, expert) + 1e-6 * time * time,
        )
    });
    least(costs).map(|(slot, _)| slot)
}

/// The item with the smallest value, the first of equal ones.
fn least<T>(items: impl Iterator<Item = (T, f64)>) -> Option<(T, f64)> {
    items.fold(None, |best, item| match best {
        Some((_, value)) if item.1 >= value => best,
        _ => Some(item),
    })
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    /// Of what is in two slots.
    Swap(usize, usize),
    /// Of what is in a slot by another expert.
    Replace(usize, u32),
}

impl Kind {
    pub(crate) fn apply(self, layout: &mut Layout<'_>) {
        match self {
            Self::Swap(a, b) => layout.swap(a, b),
            Self::Replace(slot, expert) => layout.replace(slot, expert),
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Step {
    kind: Kind,
    /// Change of the number of experts that travel.
    arrivals: isize,
    /// Excess that goes, per arrival.
    worth: f64,
}

/// The swap or exchange around the busiest rank that takes the most excess away per arrival.
fn best_step(layout: &Layout<'_>, held: &Held, target: f64) -> Option<Step> {
    let busy = layout.busiest();
    let mut best: Option<Step> = None;
    let consider = |best: &mut Option<Step>, kind: Kind, change: f64, arrivals: isize| {
        // What costs nothing is worth more, but not everything.
        let worth = -change / (arrivals as f64).max(0.5);
        if worth > best.map_or(0.0, |best| best.worth) {
            *best = Some(Step {
                kind,
                arrivals,
                worth,
            });
        }
    };
    let exchanges = Exchanges::of(layout, target);
    exchanges.around(busy, &mut |slot, rank, expert, least| {
        // Most are no candidates, whatever they cost.
        if -least <= 0.5 * best.map_or(0.0, |best| best.worth) || !exchanges.can_take(rank, expert)
        {
            return;
        }
        let arrivals = held.arrives(rank, expert) - held.arrives(rank, layout.expert(slot));
        consider(
            &mut best,
            Kind::Replace(slot, expert),
            exchanges.change(slot, rank, expert),
            arrivals,
        );
    });
    let ranks = layout.ranks;
    let time = layout.times()[busy];
    let before = excess(time, target);
    for light in ranks.live().filter(|&rank| rank != busy) {
        let (light_time, pace) = (layout.times()[light], ranks.pace(light));
        let light_before = excess(light_time, target);
        for (a, &more) in ranks.slots(busy).zip(layout.shares_of(busy)) {
            let mine = layout.expert(a);
            if layout.holds(light, mine) {
                continue;
            }
            let come = held.arrives(light, mine) - held.arrives(busy, mine);
            for (b, &less) in ranks.slots(light).zip(layout.shares_of(light)) {
                let load = more - less;
                let change = excess(time - load * ranks.pace(busy), target) - before
                    + excess(light_time + load * pace, target)
                    - light_before;
                // Most pairs are no candidates, whatever they cost.
                if load <= 0.0 || -change <= 0.5 * best.map_or(0.0, |best| best.worth) {
                    continue;
                }
                let theirs = layout.expert(b);
                if !layout.holds(busy, theirs) {
                    let go = held.arrives(busy, theirs) - held.arrives(light, theirs);
                    consider(&mut best, Kind::Swap(a, b), change, come + go);
                }
            }
        }
    }
    best
}
