//! The search of a layer whose experts have a home node: little load leaves it.

use crate::homes::{abroad, bring_home};
use crate::layout::Layout;
use crate::plan::Search;
use crate::spread::{Limits, Spread, spill, spread};
use crate::swap::{Choice, Descent, Links, Reach, Swaps, Work};

/// The loads above which replicas are split, as parts of what a rank can carry. Which packs best is seen
/// only on the ranks.
const PIECES: [f64; 4] = [0.5, 0.6, 0.7, 0.4];
/// Load abroad beyond what has to leave, as a part of all, with which nothing else is tried.
const NEAR_ENOUGH: f64 = 0.01;
/// The part of what balance may cost that a node may be above its part of the load. The ranks of a node
/// need the rest.
const OF_NODE: f64 = 0.5;

/// Busiest ranks whose swaps are looked at: exchanges go on where those fail.
const DEPTH: usize = 1;

impl<'a> Search<'_, 'a> {
    /// A layout with little load away from home, and no rank above the target if such a one is found.
    ///
    /// Counts and nodes are chosen first, for several limits of a replica; ranks are filled and evened out by
    /// swaps that hardly bring load away from home. Where those fail, exchanges of replicas with such
    /// swaps follow, and where these fail for all limits, whatever that brings abroad.
    pub(crate) fn near_home(&self, homes: &[u32], work: &mut Work) -> Option<Layout<'a>> {
        let (ranks, weights) = (self.layer.ranks, self.layer.weights);
        let mut limits = Limits {
            node: self.bound * (1.0 + OF_NODE * self.effort.node_tolerance),
            rank: self.target / ranks.least_pace(),
            piece: 1.0,
        };
        let must_leave = spill(weights, homes, ranks, limits.node);
        let enough = must_leave + NEAR_ENOUGH * weights.iter().sum::<f64>();
        let mut nearest = Nearest {
            homes,
            target: self.target,
            work: Work::new(self.effort.work),
            found: None,
        };
        let mut above: Vec<(f64, Layout<'a>, Descent)> = Vec::new();
        let mut tried: Vec<Spread> = Vec::new();
        for piece in PIECES {
            limits.piece = piece;
            let spread = spread(weights, homes, ranks, limits);
            if tried.contains(&spread) {
                continue;
            }
            let (mut layout, mut descent) =
                self.start(&spread.counts, &spread.order, Some(&spread.nodes));
            tried.push(spread);
            let reached = swaps_near(homes)
                .into_iter()
                .any(|swaps| descent.run(&mut layout, self.target, swaps, &mut nearest.work));
            if !reached {
                above.push((abroad(&layout, homes), layout, descent));
            } else if nearest.note(layout) <= enough {
                break;
            }
        }
        above.sort_by(|a, b| a.0.total_cmp(&b.0));
        for (abroad, layout, descent) in &mut above {
            // Exchanges hardly ever bring load home.
            if nearest.abroad() <= enough.max(*abroad) {
                break;
            }
            let [_, node, _, home] = swaps_near(homes);
            self.exchange(layout, descent.clone(), &[node, home], &mut nearest.work);
            if layout.largest() <= self.target {
                nearest.note(layout.clone());
            }
        }
        if let Some((_, found)) = nearest.found {
            return Some(found);
        }
        let above = above.into_iter().map(|(_, layout, _)| layout);
        let mut layout = above.min_by(|a, b| a.largest().total_cmp(&b.largest()))?;
        self.go_on(&mut layout, work);
        if layout.largest() <= self.target {
            bring_home(&mut layout, homes, self.target, work);
        }
        Some(layout)
    }
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

/// The layout with the least load abroad of those that reach the target.
struct Nearest<'h, 'a> {
    homes: &'h [u32],
    target: f64,
    work: Work,
    found: Option<(f64, Layout<'a>)>,
}

impl<'a> Nearest<'_, 'a> {
    /// Brings home what can be, and keeps the layout if it is better. The least load abroad.
    fn note(&mut self, mut layout: Layout<'a>) -> f64 {
        bring_home(&mut layout, self.homes, self.target, &mut self.work);
        let abroad = abroad(&layout, self.homes);
        if abroad < self.abroad() {
            self.found = Some((abroad, layout));
        }
        self.abroad()
    }

    fn abroad(&self) -> f64 {
        let found = self.found.as_ref();
        found.map_or(f64::INFINITY, |&(abroad, _)| abroad)
    }
}
