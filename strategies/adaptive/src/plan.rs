//! The plan of one layer from nothing.

use crate::apportion::{Apportionment, apportion, apportion_with_reserve};
use crate::baseline::Hierarchy;
use crate::exact::place_below;
use crate::exchange::{Tabu, best_exchange};
use crate::heavy::{Beam, fill_ranks, steps_to_the_end};
use crate::homes::{bring_home, home_nodes, settle};
use crate::layout::Layout;
use crate::order::{self, longest_first};
use crate::pack::{Slack, pack};
use crate::pairs::Pairs;
use crate::ranks::Ranks;
use crate::recount::recount;
use crate::repair::without_duplicates;
use crate::swap::{Choice, Descent, Links, Reach, Swaps, Work};

/// How good a plan has to be, and how much work may go into it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effort {
    /// Distance from the bound at which a layer is good enough.
    pub(crate) tolerance: f64,
    /// The same if experts have a home node.
    pub(crate) node_tolerance: f64,
    /// Pairs that are looked at.
    pub(crate) work: usize,
    /// Exchanges without an improvement after which a start is given up.
    pub(crate) patience: usize,
    /// Load, as part of the mean of a rank, by which a rank may be heavier if that connects ranks.
    pub(crate) connect: f64,
}

/// One layer.
#[derive(Clone, Debug)]
pub(crate) struct Layer<'a> {
    pub(crate) ranks: &'a Ranks,
    /// Load of each expert, `[E]`, not all zero.
    pub(crate) weights: &'a [f64],
    pub(crate) num_groups: Option<usize>,
    /// How DeepSeek's balancer would go about it, if it can.
    pub(crate) baseline: Option<Hierarchy>,
}

/// The parts of the spare slots that starts hold back.
const RESERVES: [f64; 3] = [0.125, 0.25, 0.5];
/// The part of what is above the target that counts as an improvement.
const LEAST_PROGRESS: f64 = 0.05;
/// As many times longer is searched for a plan without experts twice on a rank that is as good as one
/// with.
const MORE_PATIENCE: usize = 16;
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
/// The same for a complete search.
const EXACT_WORK: usize = 16;
/// How many times as much may be given up to connect ranks by the last replicas that can.
const AT_LAST: f64 = 8.0;
/// Busiest ranks whose swaps are looked at before an exchange is.
const DEPTH: usize = 4;

impl<'a> Layer<'a> {
    /// Places the layer.
    pub(crate) fn plan(&self, effort: &Effort) -> Layout<'a> {
        let load = order::single_precision(self.weights);
        let live = self.ranks.live().count();
        let num_slots = self.ranks.num_slots();
        let sorted = order::experts(&load);
        let given = apportion(&load, &sorted, num_slots, live);
        let order = longest_first(&load, &sorted, &given);
        let bound = self.ranks.bound(self.weights, &given.counts);
        let homes = self.homes();
        let baseline = self
            .baseline
            .map(|b| Layout::new(self.ranks, self.weights, b.place(&load, &given, &order)));
        let limit = baseline.as_ref().map_or(f64::INFINITY, Layout::largest);
        let tolerance = if homes.is_some() {
            effort.node_tolerance
        } else {
            effort.tolerance
        };
        let target = (bound * (1.0 + tolerance)).min(limit);
        let search = Search {
            layer: self,
            effort,
            homes: homes.as_deref(),
            bound,
            target,
        };

        let mut work = Work::new(effort.work);
        let pairs = Pairs {
            weights: self.weights,
            load: &load,
            sorted: &sorted,
            num_ranks: self.ranks.len(),
            limit: target,
        };
        let are_alike = homes.is_none() && self.ranks.are_alike();
        let loose = are_alike.then(|| pairs.loosen(&given, &order)).flatten();
        let (first, longest_first) = loose.as_ref().map_or((&given, &order), |(g, o)| (g, o));
        let begin = Begin {
            load: &load,
            sorted: &sorted,
            given: first,
            order: longest_first,
        };
        let near = homes
            .as_ref()
            .and_then(|homes| search.near_home(homes, &mut work));
        let is_near = near.as_ref().is_some_and(|near| near.largest() <= target);
        let mut best = search.best(begin, near, &mut work);
        if let Some(baseline) = baseline.filter(|_| best.largest() > limit) {
            best = search.not_below(best, baseline, &given);
        }
        if let Some(homes) = homes.as_ref().filter(|_| !is_near) {
            let limit = best.largest().max(target);
            bring_home(&mut best, homes, limit, &mut Work::new(effort.work));
        }
        best
    }

    /// A quick plan: the first start, without exchanges.
    pub(crate) fn sketch(&self, effort: &Effort) -> Layout<'a> {
        self.plan(&Effort {
            patience: 0,
            ..*effort
        })
    }

    /// Where a search from a layout gets, at the latest when no rank is above the target.
    pub(crate) fn search_on(&self, slots: &[u32], target: f64, effort: &Effort) -> Layout<'a> {
        let homes = self.homes();
        let search = Search {
            layer: self,
            effort,
            homes: homes.as_deref(),
            bound: target,
            target,
        };
        let mut layout = Layout::new(self.ranks, self.weights, slots.to_vec());
        search.go_on(&mut layout, &mut Work::new(effort.work));
        layout
    }

    fn homes(&self) -> Option<Vec<u32>> {
        let groups = self.num_groups.filter(|_| self.ranks.num_nodes() > 1)?;
        Some(home_nodes(self.weights, groups, self.ranks))
    }
}

/// What all starts of a layer begin with.
#[derive(Clone, Copy)]
struct Begin<'b> {
    /// Load of each expert, `[E]`, and the experts by it.
    load: &'b [f32],
    sorted: &'b [u64],
    /// The first apportionment, and the expert of each replica, heaviest first, `[P]`.
    given: &'b Apportionment,
    order: &'b [u32],
}

pub(crate) struct Search<'l, 'a> {
    pub(crate) layer: &'l Layer<'a>,
    pub(crate) effort: &'l Effort,
    homes: Option<&'l [u32]>,
    pub(crate) bound: f64,
    pub(crate) target: f64,
}

impl<'a> Search<'_, 'a> {
    /// The best layout of all starts.
    ///
    /// # Arguments
    ///
    /// - `near` - in place of the first one, a layout near home.
    fn best(&self, begin: Begin<'_>, near: Option<Layout<'a>>, work: &mut Work) -> Layout<'a> {
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
        if other.largest() >= best.largest() {
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
    fn reserve_starts(&self, best: Layout<'a>, begin: Begin<'_>, work: &mut Work) -> Layout<'a> {
        let Begin { load, sorted, .. } = begin;
        let ranks = self.layer.ranks;
        let (num_slots, live) = (ranks.num_slots(), ranks.live().count());
        let mut best = best;
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
    fn with_other_counts(&self, best: Layout<'a>) -> Layout<'a> {
        let ranks = self.layer.ranks;
        let is_far = best.largest() > self.target * (1.0 + NEARLY);
        let is_cheap = steps_to_the_end(self.layer.weights, ranks, self.target) <= CHEAP;
        let enough = self.target * (1.0 + ALMOST * self.effort.tolerance);
        let may_gain = is_far || (is_cheap && best.largest() > enough);
        if !ranks.are_alike() || !may_gain {
            return best;
        }
        let mut more = Work::new(RECOUNT_WORK.saturating_mul(self.effort.work));
        let mut best = best;
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
    fn heavy_start(&self, first: Layout<'a>, sorted: &[u64]) -> Layout<'a> {
        let (ranks, weights) = (self.layer.ranks, self.layer.weights);
        let largest = first.largest();
        let steps = steps_to_the_end(weights, ranks, self.target);
        let is_cheap = steps <= CHEAP;
        if !is_cheap && largest <= self.target * (1.0 + NEARLY) {
            return first;
        }
        let order: Vec<u32> = sorted.iter().map(|&key| order::index_of(key)).collect();
        let (mut low, mut high) = (self.target, largest);
        let mut best = first;
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

    /// The layout from which swaps start.
    ///
    /// # Arguments
    ///
    /// - `order`, `nodes` - the expert of each replica, heaviest first, and its node if that is decided,
    ///   `[P]`.
    pub(crate) fn start(
        &self,
        counts: &[u32],
        order: &[u32],
        nodes: Option<&[u32]>,
    ) -> (Layout<'a>, Descent) {
        let (ranks, weights) = (self.layer.ranks, self.layer.weights);
        let connect = self.effort.connect * self.bound;
        let slack = Slack {
            connect,
            connect_at_last: AT_LAST * connect,
            nodes,
        };
        let packed = pack(weights, counts, order, ranks, slack);
        let layout = Layout::new(ranks, weights, packed.slots);
        let descent = Descent::nearly_sorted(&layout, packed.order);
        (layout, descent)
    }

    /// Improves a layout of which nothing is known.
    pub(crate) fn go_on(&self, layout: &mut Layout<'a>, work: &mut Work) {
        let slots = (0..layout.slots().len() as u32).collect();
        let descent = Descent::new(layout, slots);
        self.improve(layout, descent, work);
    }

    fn improve(&self, layout: &mut Layout<'a>, mut descent: Descent, work: &mut Work) {
        let links = [Links::Kept, Links::Free];
        if !self.swap(layout, &mut descent, &links, Choice::First, work) {
            let swaps = self.reaches().map(|reach| Swaps {
                links: Links::Free,
                choice: Choice::First,
                reach,
                depth: DEPTH,
            });
            let swaps: Vec<Swaps<'_>> = swaps.collect();
            self.exchange(layout, descent, &swaps, work);
        }
    }

    /// A layout that is no worse than the baseline: without experts twice on a rank if the search
    /// finds one, else with as few as it finds.
    fn not_below(
        &self,
        best: Layout<'a>,
        baseline: Layout<'a>,
        given: &Apportionment,
    ) -> Layout<'a> {
        let limit = baseline.largest();
        if let Some(layout) = self.below_without_duplicates(&best, &baseline, given) {
            return layout;
        }
        let partly = without_duplicates(baseline, limit);
        if partly.largest() < best.largest() {
            partly
        } else {
            best
        }
    }

    /// A layout without experts twice on a rank that is as good as the baseline. Homes are given up if
    /// there is none that keeps to them.
    fn below_without_duplicates(
        &self,
        best: &Layout<'a>,
        baseline: &Layout<'a>,
        given: &Apportionment,
    ) -> Option<Layout<'a>> {
        let (ranks, weights) = (self.layer.ranks, self.layer.weights);
        let limit = baseline.largest();
        let effort = Effort {
            patience: self.effort.patience.saturating_mul(MORE_PATIENCE),
            ..*self.effort
        };
        let patient = Search {
            effort: &effort,
            target: limit,
            ..*self
        };
        let mut work = Work::new(self.effort.work);
        for mut layout in [
            without_duplicates(baseline.clone(), f64::INFINITY),
            best.clone(),
        ] {
            patient.go_on(&mut layout, &mut work);
            if layout.largest() <= limit {
                return Some(layout);
            }
        }
        let work = EXACT_WORK.saturating_mul(self.effort.work);
        place_below(ranks, weights, &given.counts, limit, work)
    }

    /// Swaps, those first that cost least: within nodes, and those that keep what replicas connect.
    fn swap(
        &self,
        layout: &mut Layout<'a>,
        descent: &mut Descent,
        links: &[Links],
        choice: Choice,
        work: &mut Work,
    ) -> bool {
        let within = self.homes.map(|_| Reach::Node).into_iter();
        within.chain(self.reaches()).any(|reach| {
            links.iter().any(|&links| {
                let swaps = Swaps {
                    links,
                    choice,
                    reach,
                    depth: DEPTH,
                };
                descent.run(layout, self.target, swaps, work)
            })
        })
    }

    /// How far experts may go, from what costs least on.
    fn reaches(&self) -> impl Iterator<Item = Reach<'_>> + use<'_, 'a> {
        self.homes.map(Reach::Home).into_iter().chain([Reach::All])
    }

    /// Exchanges replicas and swaps after each exchange, also uphill, until no rank is above the
    /// target, some exchanges in a row brought nothing, or the work is done; leaves the best layout
    /// that was seen.
    pub(crate) fn exchange(
        &self,
        layout: &mut Layout<'a>,
        mut descent: Descent,
        swaps: &[Swaps<'_>],
        work: &mut Work,
    ) {
        // Less is no progress.
        let least = LEAST_PROGRESS * self.effort.tolerance * self.bound;
        let mut tabu = Tabu::new(layout.weights.len());
        let mut at = layout.clone();
        let mut since = 0;
        while since < self.effort.patience && !work.is_done() {
            let busiest = at.busiest();
            let Some(found) = best_exchange(&at, busiest, self.target, &tabu, work) else {
                return;
            };
            tabu.note(at.expert(found.slot), found.expert);
            at.replace(found.slot, found.expert);
            descent.resort(&at);
            let mut swaps = swaps.iter();
            let reached = swaps.any(|&swaps| descent.run(&mut at, self.target, swaps, work));
            since += 1;
            let before = layout.largest();
            let gain = before - at.largest();
            if gain > 0.0 {
                layout.clone_from(&at);
                if gain > least.max(LEAST_PROGRESS * (before - self.target)) {
                    since = 0;
                }
            }
            if reached {
                return;
            }
        }
    }
}
