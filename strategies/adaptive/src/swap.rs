//! Descent by exchanging what is in two slots.

use crate::layout::Layout;

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

/// The parts of what the busier rank has above the target that a swap takes away: as much as it can.
const STEPS: [f64; 4] = [1.0, 0.5, 0.2, 0.05];

/// Ranks and slots of a layout, sorted, so that few pairs of slots have to be looked at.
#[derive(Clone, Debug)]
pub(crate) struct Descent {
    /// Slots by falling load, `[P]`.
    slots: Vec<u32>,
    /// The loads of `slots`.
    shares: Vec<f64>,
    /// The place of each slot in `slots`, `[P]`.
    places: Vec<u32>,
}

impl Descent {
    /// # Arguments
    ///
    /// - `slots` - all slots; the nearer to the order of falling load, the sooner it is done.
    pub(crate) fn new(layout: &Layout<'_>, mut slots: Vec<u32>) -> Self {
        let num_slots = slots.len();
        slots.sort_by(|&a, &b| {
            let share = |slot: u32| layout.share_of(slot as usize);
            share(b).total_cmp(&share(a))
        });
        let mut descent = Self {
            slots,
            shares: vec![0.0; num_slots],
            places: vec![0; num_slots],
        };
        descent.note_places(layout);
        descent
    }

    /// Takes note of loads that changed. Most did not, so that the order is nearly right.
    pub(crate) fn resort(&mut self, layout: &Layout<'_>) {
        insertion_sort(&mut self.slots, |&a, &b| {
            layout.share_of(b as usize) > layout.share_of(a as usize)
        });
        self.note_places(layout);
    }

    fn note_places(&mut self, layout: &Layout<'_>) {
        for (place, (&slot, share)) in self.slots.iter().zip(&mut self.shares).enumerate() {
            *share = layout.share_of(slot as usize);
            self.places[slot as usize] = place as u32;
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
            let Some(busiest) = busiest_below(layout, f64::INFINITY, target) else {
                return true;
            };
            let lightest = layout.ranks.live().map(|rank| layout.times()[rank]);
            let lightest = lightest.fold(f64::INFINITY, f64::min);
            let mut busy = Some(busiest);
            let mut swap = None;
            for _ in 0..swaps.depth {
                let Some(rank) = busy.filter(|_| swap.is_none()) else {
                    break;
                };
                swap = self.best_swap(layout, rank, lightest, target, swaps, work);
                busy = busiest_below(layout, layout.times()[rank], target);
            }
            let Some((a, b)) = swap else { return false };
            self.swap(layout, a, b);
        }
        false
    }

    /// Exchanges what is in two slots.
    pub(crate) fn swap(&mut self, layout: &mut Layout<'_>, a: usize, b: usize) {
        layout.swap(a, b);
        let (at, other) = (self.places[a], self.places[b]);
        self.slots.swap(at as usize, other as usize);
        self.places.swap(a, b);
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
        let (mut best, mut least_value) = (None, f64::INFINITY);
        for a in ranks.slots(busy) {
            let (mine, share) = (layout.expert(a), layout.share_of(a));
            if swaps.links == Links::Kept && layout.count(mine) > 1 {
                continue;
            }
            let after = self.places[a] as usize + 1;
            let lighter = self.shares[after..].iter().zip(&self.slots[after..]);
            for (&other, &b) in lighter.skip_while(|&(&other, _)| other > share - least) {
                let (less, b) = (share - other, b as usize);
                if less > most {
                    break;
                }
                work.spend(1);
                let light = ranks.rank_of(b);
                let light_time = layout.times()[light] + less * ranks.pace(light);
                let fits = light_time <= limit
                    && swaps.reach.allows(layout, [a, b])
                    && !layout.holds(light, mine)
                    && !layout.holds(busy, layout.expert(b))
                    && swaps.links.allow(layout, [a, b]);
                if !fits {
                    continue;
                }
                if swaps.choice == Choice::First {
                    return Some((a, b));
                }
                let left = layout.times()[busy] - less * ranks.pace(busy);
                let value = left.max(light_time);
                if value < least_value {
                    (best, least_value) = (Some((a, b)), value);
                }
            }
        }
        best
    }
}

/// The busiest rank that is less busy than `time`, the first of equal ones; `None` if it is not above
/// the target.
fn busiest_below(layout: &Layout<'_>, time: f64, target: f64) -> Option<usize> {
    let mut most = target;
    let mut busiest = None;
    for (rank, &t) in layout.times().iter().enumerate() {
        if t > most && t < time {
            (most, busiest) = (t, Some(rank));
        }
    }
    busiest
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
