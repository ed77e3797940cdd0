//! The plan of one layer from nothing.

use crate::apportion::{Apportionment, apportion};
use crate::baseline::Hierarchy;
use crate::exact::place_below;
use crate::exchange::{Tabu, best_exchange};
use crate::homes::{bring_home, home_nodes};
use crate::layout::Layout;
use crate::order::{self, longest_first};
use crate::pack::{Slack, pack};
use crate::pairs::Pairs;
use crate::ranks::Ranks;
use crate::repair::without_duplicates;
use crate::starts::Begin;
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

/// The part of what is above the target that counts as an improvement.
const LEAST_PROGRESS: f64 = 0.05;
/// As many times longer is searched for a plan without experts twice on a rank that is as good as one
/// with.
const MORE_PATIENCE: usize = 16;
/// As much more work goes into a complete search.
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
        let (first, by_load) = loose.as_ref().map_or((&given, &order), |(g, o)| (g, o));
        let begin = Begin {
            load: &load,
            sorted: &sorted,
            given: first,
            order: by_load,
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

pub(crate) struct Search<'l, 'a> {
    pub(crate) layer: &'l Layer<'a>,
    pub(crate) effort: &'l Effort,
    pub(crate) homes: Option<&'l [u32]>,
    pub(crate) bound: f64,
    pub(crate) target: f64,
}

impl<'a> Search<'_, 'a> {
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

    pub(crate) fn improve(&self, layout: &mut Layout<'a>, mut descent: Descent, work: &mut Work) {
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
    pub(crate) fn swap(
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
