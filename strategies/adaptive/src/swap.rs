//! Descent by exchanging what is in two slots.

use crate::lanes::fold_lanes;
use crate::layout::{Layout, ROUNDING};

/// Which swaps are tried.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Swaps<'h> {
    pub(crate) links: Links,
    pub(crate) choice: Choice,
    pub(crate) reach: Reach<'h>,
    /// How many of the busiest ranks are looked at.
    pub(crate) depth: usize,
}

/// Which of several swaps that take away as much is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    /// The first that is found.
    First,
    /// The one that leaves the two ranks most even.
    Even,
}

/// What becomes of the connections that replicas make between ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Links {
    /// Only experts with one replica are swapped: the connections stay.
    Kept,
    /// Anything.
    Free,
}

impl Links {
    fn allow(self, layout: &Layout<'_>, slots: [usize; 2]) -> bool {
        let links = |slot: usize| layout.count(layout.expert(slot)) > 1;
        match self {
            Self::Kept => !slots.into_iter().any(links),
            Self::Free => true,
        }
    }
}

/// Between which ranks experts are swapped.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Reach<'h> {
    /// Any two.
    All,
    /// Those of a node.
    Node,
    /// Those of a node, and others if that brings hardly more load away from its home than the busy
    /// rank gets rid of. The home node of each expert, `[E]`.
    Home(&'h [u32]),
}

/// Load that leaves its home, as a multiple of what a busy rank gets rid of.
const MOST_AWAY: f64 = 1.5;

impl Reach<'_> {
    /// Whether the experts in two slots may be swapped, the heavier of which is given first.
    fn allows(self, layout: &Layout<'_>, slots: [usize; 2]) -> bool {
        let ranks = layout.ranks;
        let nodes = slots.map(|slot| ranks.node(ranks.rank_of(slot)));
        if nodes[0] == nodes[1] {
            return true;
        }
        match self {
            Self::All => true,
            Self::Node => false,
            Self::Home(homes) => {
                let shares = slots.map(|slot| layout.share_of(slot));
                let homes = slots.map(|slot| homes[layout.expert(slot) as usize] as usize);
                let away = |i: usize, node: usize| if homes[i] == node { 0.0 } else { shares[i] };
                let before = away(0, nodes[0]) + away(1, nodes[1]);
                let after = away(0, nodes[1]) + away(1, nodes[0]);
                after - before <= MOST_AWAY * (shares[0] - shares[1])
            }
        }
    }
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

/// Places that are looked at together.
const AT_ONCE: usize = 8;

/// The parts of what the busier rank has above the target that a swap takes away: as much as it can.
const STEPS: [f64; 4] = [1.0, 0.5, 0.2, 0.05];

/// The slots of a layout, sorted, so that few pairs of them have to be looked at, and what is looked at
/// of each pair side by side.
#[derive(Clone, Debug)]
pub(crate) struct Descent {
    /// Slots by falling load, `[P]`.
    slots: Vec<u32>,
    /// The loads of `slots`.
    shares: Vec<f64>,
    /// The times of the ranks of `slots`.
    times: Vec<f64>,
    /// The pace of those ranks.
    paces: Vec<f64>,
    /// Their nodes; numbers as the times are, so that both are compared at once.
    nodes: Vec<f64>,
    /// The place of each slot in `slots`, `[P]`.
    places: Vec<u32>,
}

impl Descent {
    /// # Arguments
    ///
    /// - `slots` - all slots.
    pub(crate) fn new(layout: &Layout<'_>, mut slots: Vec<u32>) -> Self {
        slots.sort_by(|&a, &b| {
            let share = |slot: u32| layout.share_of(slot as usize);
            share(b).total_cmp(&share(a))
        });
        Self::nearly_sorted(layout, slots)
    }

    /// The same of slots that are nearly in the order of falling load.
    pub(crate) fn nearly_sorted(layout: &Layout<'_>, slots: Vec<u32>) -> Self {
        let num_slots = slots.len();
        let mut descent = Self {
            slots,
            shares: vec![0.0; num_slots],
            times: vec![0.0; num_slots],
            paces: vec![0.0; num_slots],
            nodes: vec![0.0; num_slots],
            places: vec![0; num_slots],
        };
        descent.resort(layout);
        descent
    }

    /// Takes note of loads that changed. Most did not, so that the order is nearly right.
    pub(crate) fn resort(&mut self, layout: &Layout<'_>) {
        insertion_sort(&mut self.slots, |&a, &b| {
            layout.share_of(b as usize) > layout.share_of(a as usize)
        });
        self.note(layout);
    }

    fn note(&mut self, layout: &Layout<'_>) {
        let ranks = layout.ranks;
        for place in 0..self.slots.len() {
            let slot = self.slots[place] as usize;
            let rank = ranks.rank_of(slot);
            self.shares[place] = layout.share_of(slot);
            self.times[place] = layout.times()[rank];
            self.paces[place] = ranks.pace(rank);
            self.nodes[place] = ranks.node(rank) as f64;
            self.places[slot] = place as u32;
        }
    }

    /// Swaps until no rank is above the target, nothing helps, or the work is done. Every swap lowers
    /// the larger of two loads, so it ends. Whether no rank is above the target.
    pub(crate) fn run(
        &mut self,
        layout: &mut Layout<'_>,
        target: f64,
        swaps: Swaps<'_>,
        work: &mut Work,
    ) -> bool {
        while !work.is_done() {
            let mut busy = busiest_below(layout.times(), f64::INFINITY, target);
            if busy.is_none() {
                return true;
            }
            let lightest = layout.lightest();
            let mut swap = None;
            for _ in 0..swaps.depth {
                let Some(rank) = busy else { break };
                swap = self.best_swap(layout, rank, lightest, target, swaps, work);
                if swap.is_some() {
                    break;
                }
                busy = busiest_below(layout.times(), layout.times()[rank], target);
            }
            let Some((a, b)) = swap else { return false };
            self.swap(layout, a, b);
        }
        false
    }

    /// Exchanges what is in two slots.
    pub(crate) fn swap(&mut self, layout: &mut Layout<'_>, a: usize, b: usize) {
        layout.swap(a, b);
        let (at, other) = (self.places[a] as usize, self.places[b] as usize);
        self.slots.swap(at, other);
        self.paces.swap(at, other);
        self.nodes.swap(at, other);
        self.places.swap(a, b);
        for slot in [a, b] {
            let rank = layout.ranks.rank_of(slot);
            for &place in &self.places[layout.ranks.slots(rank)] {
                self.times[place as usize] = layout.times()[rank];
            }
        }
    }

    /// A swap that takes away what a busy rank has above the target, or else half of it, or at least a
    /// little, and leaves the other rank no busier than that.
    fn best_swap(
        &self,
        layout: &Layout<'_>,
        busy: usize,
        lightest: f64,
        target: f64,
        swaps: Swaps<'_>,
        work: &mut Work,
    ) -> Option<(usize, usize)> {
        let over = layout.times()[busy] - target;
        let limits = STEPS.map(|part| target + (1.0 - part) * over);
        limits
            .into_iter()
            .find_map(|limit| self.swap_below(layout, busy, lightest, limit, swaps, work))
    }

    /// A swap after which neither a busy rank nor the other one is above a limit.
    fn swap_below(
        &self,
        layout: &Layout<'_>,
        busy: usize,
        lightest: f64,
        limit: f64,
        swaps: Swaps<'_>,
        work: &mut Work,
    ) -> Option<(usize, usize)> {
        let ranks = layout.ranks;
        // What has to leave, and what the lightest rank could take.
        let least = (layout.times()[busy] - limit) / ranks.pace(busy);
        let most = (limit - lightest) / ranks.least_pace();
        let search = Fit::new(layout, busy, limit, most, swaps.reach);
        let (mut best, mut least_value) = (None, f64::INFINITY);
        for a in ranks.slots(busy) {
            let (mine, share) = (layout.expert(a), layout.share_of(a));
            if swaps.links == Links::Kept && layout.count(mine) > 1 {
                continue;
            }
            let mut next = self.first_at_most(self.places[a] as usize + 1, share - least);
            loop {
                let place = self.first_fit(next, share, &search);
                work.spend(place - next);
                let Some(&light_time) = self
                    .times
                    .get(place)
                    .filter(|_| share - self.shares[place] <= search.most)
                else {
                    if search.most < most {
                        let rest = &self.shares[place..];
                        work.spend(rest.partition_point(|&other| share - other <= most));
                    }
                    break;
                };
                work.spend(1);
                next = place + 1;
                let b = self.slots[place] as usize;
                let light = ranks.rank_of(b);
                let may_swap = swaps.reach.allows(layout, [a, b])
                    && !layout.holds(light, mine)
                    && !layout.holds(busy, layout.expert(b))
                    && swaps.links.allow(layout, [a, b]);
                if !may_swap {
                    continue;
                }
                if swaps.choice == Choice::First {
                    return Some((a, b));
                }
                let less = share - self.shares[place];
                let left = layout.times()[busy] - less * ranks.pace(busy);
                let value = left.max(light_time + less * self.paces[place]);
                if value < least_value {
                    (best, least_value) = (Some((a, b)), value);
                }
            }
        }
        best
    }

    /// The first place from some place on whose load is not above `most`. Mostly it is near.
    fn first_at_most(&self, from: usize, most: f64) -> usize {
        const NEAR: usize = 4;
        if self.shares.last().is_none_or(|&lightest| lightest > most) {
            return self.shares.len();
        }
        let mut at = from;
        for shares in self.shares[from..]
            .as_chunks::<AT_ONCE>()
            .0
            .iter()
            .take(NEAR)
        {
            if shares[AT_ONCE - 1] <= most {
                return at + shares.iter().filter(|&&other| other > most).count();
            }
            at += AT_ONCE;
        }
        at + self.shares[at..].partition_point(|&other| other > most)
    }

    /// The first place from some place on that fits a load of `share` for its own, or else the first that
    /// is lighter by more than the most, if not the end.
    fn first_fit(&self, from: usize, share: f64, fit: &Fit) -> usize {
        // A rank that is not looked at never stays within the limit.
        let after = |time: f64, other: f64, pace: f64, node: f64| {
            let time = time + (share - other) * pace;
            if fit.node.is_none_or(|n| n == node) {
                time
            } else {
                f64::INFINITY
            }
        };
        let mut at = from;
        // Several at a time, as long as nothing happens among them: a branch for each would cost more.
        let chunks = self.shares[from..].as_chunks::<AT_ONCE>().0.iter();
        let chunks = chunks.zip(self.times[from..].as_chunks::<AT_ONCE>().0);
        let chunks = chunks.zip(self.paces[from..].as_chunks::<AT_ONCE>().0);
        let chunks = chunks.zip(self.nodes[from..].as_chunks::<AT_ONCE>().0);
        for (((shares, times), paces), nodes) in chunks {
            let then = std::array::from_fn(|i| after(times[i], shares[i], paces[i], nodes[i]));
            if share - shares[AT_ONCE - 1] > fit.most || least(then) <= fit.limit {
                break;
            }
            at += AT_ONCE;
        }
        let ends = |&place: &usize| {
            let other = self.shares[place];
            let then = after(
                self.times[place],
                other,
                self.paces[place],
                self.nodes[place],
            );
            then <= fit.limit || share - other > fit.most
        };
        (at..self.shares.len())
            .find(ends)
            .unwrap_or(self.shares.len())
    }
}

/// What is asked of the rank that gets a heavier expert.
struct Fit {
    /// The time that it may reach.
    limit: f64,
    /// No rank can take more load than this.
    most: f64,
    /// The node that it has to be on, if any.
    node: Option<f64>,
}

impl Fit {
    fn new(layout: &Layout<'_>, busy: usize, limit: f64, most: f64, reach: Reach<'_>) -> Self {
        let (most, node) = match reach {
            Reach::Node => {
                let node = layout.ranks.node(busy);
                let room = limit - layout.lightest_on(node) + ROUNDING * limit;
                (
                    most.min(room / layout.ranks.least_pace()),
                    Some(node as f64),
                )
            }
            Reach::All | Reach::Home(_) => (most, None),
        };
        Self { limit, most, node }
    }
}

/// The smallest of some numbers. By halves, so that they need not wait for each other.
fn least(mut values: [f64; AT_ONCE]) -> f64 {
    let mut half = AT_ONCE / 2;
    while half > 0 {
        for i in 0..half {
            let (a, b) = (values[i], values[i + half]);
            values[i] = if a < b { a } else { b };
        }
        half /= 2;
    }
    values[0]
}

/// The busiest rank that is less busy than `time`, the first of equal ones; `None` if it is not above
/// the target.
fn busiest_below(times: &[f64], time: f64, target: f64) -> Option<usize> {
    let most = fold_lanes(
        times,
        target,
        |most, t| if t > most && t < time { t } else { most },
    );
    (most > target).then(|| times.iter().position(|&t| t == most))?
}

/// Sorts what is nearly sorted already.
fn insertion_sort<T: Copy>(items: &mut [T], after: impl Fn(&T, &T) -> bool) {
    for i in 1..items.len() {
        let item = items[i];
        let mut at = i;
        while at > 0 && after(&items[at - 1], &item) {
            items[at] = items[at - 1];
            at -= 1;
        }
        items[at] = item;
    }
}
