//! The layouts from which the search of a layer sets out.

use crate::apportion::{Apportionment, apportion_with_reserve};
use crate::heavy::{Beam, fill_ranks, steps_to_the_end};
use crate::homes::settle;
use crate::layout::Layout;
use crate::order::{self, longest_first};
use crate::plan::Search;
use crate::recount::recount;
use crate::swap::{Choice, Links, Work};

/// The parts of the spare slots that starts hold back.
const RESERVES: [f64; 3] = [0.125, 0.25, 0.5];
/// How far above the target swaps of single experts may end and be tried once more.
const NEARLY: f64 = 0.005;
/// The part of the tolerance above the target for which counts are not searched: where loads are small
/// numbers, the last of it is often out of reach.
const ALMOST: f64 = 0.24;
/// As much more work goes into filling ranks with heavy pieces, each time.
const HEAVY_WORK: usize = 8;
/// The same for the widest search.
const WIDEST_WORK: usize = 512;
/// How often that is tried between the target and what is known.
const HALVINGS: usize = 4;
/// Steps of a way to the end up to which it is tried for the last half percent, too.
const CHEAP: usize = 10_000;
/// Up to which the widest search is tried, and counts are searched without homes.
const CHEAPEST: usize = 2_500;
/// As much more work goes into a search of counts.
const RECOUNT_WORK: usize = 64;

/// What all starts of a layer begin with.
#[derive(Clone, Copy)]
pub(crate) struct Begin<'b> {
    /// Load of each expert, `[E]`, and the experts by it.
    pub(crate) load: &'b [f32],
    pub(crate) sorted: &'b [u64],
    /// The first apportionment, and the expert of each replica, heaviest first, `[P]`.
    pub(crate) given: &'b Apportionment,
    pub(crate) order: &'b [u32],
}

impl<'a> Search<'_, 'a> {
    /// The best layout of all starts.
    ///
    /// # Arguments
    ///
    /// - `near` - in place of the first one, a layout near home.
    pub(crate) fn best(
        &self,
        begin: Begin<'_>,
        near: Option<Layout<'a>>,
        work: &mut Work,
    ) -> Layout<'a> {
        let first = near.unwrap_or_else(|| self.from(begin.given, begin.order, work));
        if first.largest() <= self.target || self.effort.patience == 0 {
            return first;
        }
        if let Some(homes) = self.homes {
            let best = self.reserve_starts(first, begin, work);
            return self.beyond_homes(best, begin, homes);
        }
        let best = self.heavy_start(first, begin.sorted);
        let best = self.reserve_starts(best, begin, work);
        self.with_other_counts(best)
    }

    /// The layout, or one that comes closer to the target without homes: `node_tolerance` says how much
    /// balance they may cost.
    fn beyond_homes(&self, best: Layout<'a>, begin: Begin<'_>, homes: &[u32]) -> Layout<'a> {
        if best.largest() <= self.target {
            return best;
        }
        let homeless = Search {
            homes: None,
            ..*self
        };
        let mut work = Work::new(self.effort.work);
        let other = homeless.from(begin.given, begin.order, &mut work);
        let mut other = homeless.reserve_starts(other, begin, &mut work);
        if steps_to_the_end(self.layer.weights, self.layer.ranks, self.target) <= CHEAPEST {
            other = homeless.with_other_counts(other);
        }
        // Where nothing reaches the target, homes may cost as much as where something does.
        let gain = best.largest() - other.largest();
        if other.largest() > self.target && gain <= self.effort.node_tolerance * self.bound {
            return best;
        }
        settle(&mut other, homes);
        other
    }

    /// The best layout on the way from one apportionment.
    fn from(&self, given: &Apportionment, order: &[u32], work: &mut Work) -> Layout<'a> {
        let (mut layout, mut descent) = self.start(&given.counts, order, None);
        if self.homes.is_none() {
            let kept = &[Links::Kept];
            if self.swap(&mut layout, &mut descent, kept, Choice::First, work) {
                return layout;
            }
            // A second try is cheaper than what comes next, and leaves the ranks connected.
            if layout.largest() <= self.target * (1.0 + NEARLY) {
                let (mut other, mut descent) = self.start(&given.counts, order, None);
                if self.swap(&mut other, &mut descent, kept, Choice::Even, work) {
                    return other;
                }
            }
        }
        self.improve(&mut layout, descent, work);
        layout
    }

    /// The layout, or the best one of starts that hold back some of the spare slots, if it is better.
    fn reserve_starts(
        &self,
        mut best: Layout<'a>,
        begin: Begin<'_>,
        work: &mut Work,
    ) -> Layout<'a> {
        let Begin { load, sorted, .. } = begin;
        let ranks = self.layer.ranks;
        let (num_slots, live) = (ranks.num_slots(), ranks.live().count());
        for reserve in RESERVES {
            let reserve = ((num_slots - load.len()) as f64 * reserve) as usize;
            if best.largest() <= self.target || reserve == 0 || work.is_done() {
                continue;
            }
            let given = apportion_with_reserve(load, sorted, num_slots, live, reserve);
            if given.extras.len() + load.len() == num_slots {
                let order = longest_first(load, sorted, &given);
                let other = self.from(&given, &order, work);
                if other.largest() < best.largest() {
                    best = other;
                }
            }
        }
        best
    }

    /// A layout whose counts are searched on what a packing makes of them, if it is better and the target
    /// is far.
    fn with_other_counts(&self, mut best: Layout<'a>) -> Layout<'a> {
        let ranks = self.layer.ranks;
        let is_far = best.largest() > self.target * (1.0 + NEARLY);
        let is_cheap = steps_to_the_end(self.layer.weights, ranks, self.target) <= CHEAP;
        let enough = self.target * (1.0 + ALMOST * self.effort.tolerance);
        let may_gain = is_far || (is_cheap && best.largest() > enough);
        if !ranks.are_alike() || !may_gain {
            return best;
        }
        let mut more = Work::new(RECOUNT_WORK.saturating_mul(self.effort.work));
        for mut layout in recount(&best, self.target, enough, &mut more) {
            self.go_on(&mut layout, &mut Work::new(self.effort.work));
            if layout.largest() < best.largest() {
                best = layout;
            }
        }
        best
    }

    /// The layout, or a better one on the way from heavy experts whose pieces fill ranks up to some load: the
    /// target, and if that fails what lies between it and the largest load so far, halved a few times.
    fn heavy_start(&self, mut best: Layout<'a>, sorted: &[u64]) -> Layout<'a> {
        let (ranks, weights) = (self.layer.ranks, self.layer.weights);
        let largest = best.largest();
        let steps = steps_to_the_end(weights, ranks, self.target);
        let is_cheap = steps <= CHEAP;
        if !is_cheap && largest <= self.target * (1.0 + NEARLY) {
            return best;
        }
        let order: Vec<u32> = sorted.iter().map(|&key| order::index_of(key)).collect();
        let (mut low, mut high) = (self.target, largest);
        let mut fill = |limit: f64, beam: Beam, work: usize| {
            let mut more = Work::new(work.saturating_mul(self.effort.work));
            let Some(slots) = fill_ranks(weights, &order, ranks, limit, beam, &mut more) else {
                return f64::INFINITY;
            };
            let mut layout = Layout::new(ranks, weights, slots);
            self.go_on(&mut layout, &mut Work::new(self.effort.work));
            let reached = layout.largest();
            if reached < best.largest() {
                best = layout;
            }
            reached
        };
        if is_cheap {
            high = fill(low, Beam::WIDE, HEAVY_WORK).min(high);
            if steps <= CHEAPEST && high > low * (1.0 + self.effort.tolerance) {
                high = fill(low, Beam::WIDEST, WIDEST_WORK).min(high);
            }
        }
        for _ in 0..HALVINGS {
            if high <= low * (1.0 + self.effort.tolerance) {
                break;
            }
            let limit = low + (high - low) / 2.0;
            let reached = fill(limit, Beam::NARROW, HEAVY_WORK);
            high = reached.min(high);
            if reached > limit {
                low = limit;
            }
        }
        best
    }
}
