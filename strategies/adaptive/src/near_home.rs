//! The search of a layer whose experts have a home node: little load leaves it.

use crate::draws::Draws;
use crate::homes::{abroad, bring_home, settle};
use crate::layout::Layout;
use crate::plan::Search;
use crate::spread::{Limits, Spread, spill, spread};
use crate::swap::{Choice, Descent, Links, Reach, Swaps, Work};

/// The loads above which replicas are split, as parts of what a rank can carry: the same for all experts
/// first. Which packs best is seen only on the ranks.
const PIECES: [f64; 4] = [0.5, 0.6, 0.7, 0.4];
/// As many times they are drawn for each expert, from here to a whole rank.
const DRAWN: usize = 40;
const LEAST_PIECE: f64 = 0.35;
/// After as many starts, exchanges follow on the nearest one that swaps left above the target.
const TURN: usize = 2;
/// Load abroad beyond what has to leave, as a part of all, with which nothing else is tried.
const NEAR_ENOUGH: f64 = 0.01;
/// The part of what balance may cost that a node may be above its part of the load. The ranks of a node
/// need the rest.
const OF_NODE: f64 = 0.5;
/// As much more work goes into all of this.
const NEAR_WORK: usize = 4;

/// Busiest ranks whose swaps are looked at: exchanges go on where those fail.
const DEPTH: usize = 1;

impl<'a> Search<'_, 'a> {
    /// A layout with little load away from home, and no rank above the target if such a one is found.
    ///
    /// Counts and nodes are chosen first, for one limit of the replicas after the other; ranks are filled and
    /// evened out by swaps that hardly bring load away from home. Now and then exchanges of replicas with such
    /// swaps follow, from the nearest layout on that swaps left above the target; where all of that fails,
    /// whatever that brings abroad.
    pub(crate) fn near_home(&self, homes: &[u32], work: &mut Work) -> Option<Layout<'a>> {
        let (ranks, weights) = (self.layer.ranks, self.layer.weights);
        let node = self.bound * (1.0 + OF_NODE * self.effort.node_tolerance);
        let rank = self.target / ranks.least_pace();
        let must_leave = spill(weights, homes, ranks, node);
        let enough = must_leave + NEAR_ENOUGH * weights.iter().sum::<f64>();
        let mut near = NearHome {
            search: self,
            homes,
            work: Work::new(NEAR_WORK.saturating_mul(self.effort.work)),
            found: None,
            above: Vec::new(),
            lowest: None,
        };
        let mut draws = Draws::new();
        let num_drawn = if self.effort.patience > 0 { DRAWN } else { 0 };
        let alike = PIECES.map(|piece| vec![piece; weights.len()]);
        let drawn = (0..num_drawn).map(|_| drawn_pieces(weights.len(), &mut draws));
        let mut tried: Vec<Spread> = Vec::new();
        for (pieces, start) in alike.into_iter().chain(drawn).zip(1..) {
            let limits = Limits {
                node,
                rank,
                pieces: &pieces,
            };
            let spread = spread(weights, homes, ranks, limits);
            if !tried.contains(&spread) {
                near.start(&spread);
                tried.push(spread);
            }
            if near.abroad() > enough && start % TURN == 0 {
                near.exchange(enough);
            }
            if near.abroad() <= enough || near.work.is_done() {
                break;
            }
        }
        while near.abroad() > enough && near.exchange(f64::INFINITY) {}
        near.into_layout(work)
    }
}

/// A limit for each expert, `[E]`.
fn drawn_pieces(num_experts: usize, draws: &mut Draws) -> Vec<f64> {
    const STEPS: usize = 100;
    let mut part = || draws.below(STEPS) as f64 / STEPS as f64;
    let pieces = (0..num_experts).map(|_| LEAST_PIECE + (1.0 - LEAST_PIECE) * part());
    pieces.collect()
}

/// Swaps within nodes, then those that bring hardly more load away from home than a busy rank gets rid of.
fn swaps_near(homes: &[u32]) -> [Swaps<'_>; 4] {
    let swaps = |reach, links| Swaps {
        links,
        choice: Choice::First,
        reach,
        depth: DEPTH,
    };
    let home = Reach::Home(homes);
    [
        swaps(Reach::Node, Links::Kept),
        swaps(Reach::Node, Links::Free),
        swaps(home, Links::Kept),
        swaps(home, Links::Free),
    ]
}

/// Where swaps ended above the target.
struct Above<'a> {
    abroad: f64,
    layout: Layout<'a>,
    descent: Descent,
}

/// The layouts of all starts.
struct NearHome<'s, 'l, 'a> {
    search: &'s Search<'l, 'a>,
    homes: &'s [u32],
    work: Work,
    /// The layout with the least load abroad of those that reach the target.
    found: Option<(f64, Layout<'a>)>,
    above: Vec<Above<'a>>,
    /// The layout with the smallest largest load of those where exchanges failed.
    lowest: Option<Layout<'a>>,
}

impl<'a> NearHome<'_, '_, 'a> {
    /// The least load abroad of a layout that reaches the target.
    fn abroad(&self) -> f64 {
        let found = self.found.as_ref();
        found.map_or(f64::INFINITY, |&(abroad, _)| abroad)
    }

    /// Fills ranks and evens them out by swaps.
    fn start(&mut self, spread: &Spread) {
        let search = self.search;
        let nodes = Some(&*spread.nodes);
        let (mut layout, mut descent) = search.start(&spread.counts, &spread.order, nodes);
        let mut swaps = swaps_near(self.homes).into_iter();
        if swaps.any(|swaps| descent.run(&mut layout, search.target, swaps, &mut self.work)) {
            self.note(layout);
        } else {
            self.above.push(Above {
                abroad: abroad(&layout, self.homes),
                layout,
                descent,
            });
        }
    }

    /// Exchanges replicas from the start with the least load abroad on, if that is less than what is found
    /// and no more than `most`: exchanges hardly ever bring load home. Whether there was such a start.
    fn exchange(&mut self, most: f64) -> bool {
        let starts = self.above.iter().map(|above| above.abroad).zip(0..);
        let Some((abroad, nearest)) = starts.min_by(|a, b| a.0.total_cmp(&b.0)) else {
            return false;
        };
        if abroad >= self.abroad() || abroad > most {
            return false;
        }
        let Above {
            mut layout,
            descent,
            ..
        } = self.above.swap_remove(nearest);
        let [_, node, _, home] = swaps_near(self.homes);
        let search = self.search;
        search.exchange(&mut layout, descent, &[node, home], &mut self.work);
        if layout.largest() <= search.target {
            self.note(layout);
        } else {
            let is_lower = |lowest: &Layout<'_>| layout.largest() < lowest.largest();
            if self.lowest.as_ref().is_none_or(is_lower) {
                self.lowest = Some(layout);
            }
        }
        true
    }

    /// What is nearest to home, or a layout that is below the target at any price, if that is found.
    fn into_layout(self, work: &mut Work) -> Option<Layout<'a>> {
        if let Some((_, found)) = self.found {
            return Some(found);
        }
        let (search, mut layout) = (self.search, self.lowest?);
        search.go_on(&mut layout, work);
        settle(&mut layout, self.homes);
        if layout.largest() <= search.target {
            bring_home(&mut layout, self.homes, search.target, work);
        }
        Some(layout)
    }

    /// Brings home what can be, and keeps the layout if it is better.
    fn note(&mut self, mut layout: Layout<'a>) {
        bring_home(&mut layout, self.homes, self.search.target, &mut self.work);
        let abroad = abroad(&layout, self.homes);
        if abroad < self.abroad() {
            self.found = Some((abroad, layout));
        }
    }
}
