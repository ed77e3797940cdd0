//! The layout from which a search starts: longest first, no expert twice on a rank, replicas over
//! ranks that nothing connects yet.

use crate::lanes::fold_lanes;
use crate::lightest::Lightest;
use crate::ranks::Ranks;

/// How much lighter than the chosen rank another may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slack<'a> {
    /// Time that a rank may lie above the lightest to connect ranks.
    pub(crate) connect: f64,
    /// The same if hardly more replicas are to come than it takes to connect all.
    pub(crate) connect_at_last: f64,
    /// The node of each replica in the order, `[P]`, if it is decided.
    pub(crate) nodes: Option<&'a [u32]>,
}

/// What sits where.
#[derive(Clone, Debug)]
pub(crate) struct Packed {
    /// The expert of each slot, `[P]`.
    pub(crate) slots: Vec<u32>,
    /// The slots in the order in which they were filled, `[P]`.
    pub(crate) order: Vec<u32>,
}

/// Packs replicas onto ranks.
///
/// # Arguments
///
/// - `order` - the expert of each replica, heaviest first. There are as many as slots.
///
/// # Returns
///
/// A layout whose counts may differ from `counts` where the last replicas fit nowhere else; every
/// expert has a slot.
///
/// Time: O(P log R + replicas × R) if all ranks are as fast and no nodes are decided, for then the
/// lightest is known; else O(P × R).
pub(crate) fn pack(
    weights: &[f64],
    counts: &[u32],
    order: &[u32],
    ranks: &Ranks,
    slack: Slack<'_>,
) -> Packed {
    let mut packing = Packing {
        ranks,
        slack,
        slots: vec![0; ranks.num_slots()],
        order: Vec::with_capacity(ranks.num_slots()),
        filled: ranks.offsets()[..ranks.len()].to_vec(),
        times: vec![f64::INFINITY; ranks.len()],
        open: Lightest::new(ranks.len()),
        component: (0..ranks.len() as u32).collect(),
        parts: ranks.live().count(),
        left: order.len().saturating_sub(weights.len()),
        first: vec![NOWHERE; weights.len()],
        apart: Vec::with_capacity(ranks.len()),
    };
    for rank in ranks.live() {
        packing.times[rank] = 0.0;
        packing.open.set(rank, 0.0);
    }
    for (i, &expert) in order.iter().enumerate() {
        let count = counts[expert as usize];
        let share = weights[expert as usize] / f64::from(count);
        let node = slack.nodes.map(|nodes| nodes[i] as usize);
        let rank = match count {
            1 => packing.lightest(expert, share, node),
            _ => packing.connecting(expert, share, node),
        };
        match rank {
            Some(rank) => packing.put(rank, expert, share),
            None => packing.make_room(expert, share, weights),
        }
        if let Some(rank) = rank.filter(|_| count > 1) {
            packing.connect(expert, rank);
        }
    }
    Packed {
        slots: packing.slots,
        order: packing.order,
    }
}

/// In place of a rank: the expert is on none yet.
const NOWHERE: u32 = u32::MAX;

struct Packing<'a> {
    ranks: &'a Ranks,
    slack: Slack<'a>,
    slots: Vec<u32>,
    /// The slots that are filled, as they were.
    order: Vec<u32>,
    /// The first free slot of each rank, `[R]`.
    filled: Vec<usize>,
    /// The time of each rank with room, infinite for the others, `[R]`.
    times: Vec<f64>,
    open: Lightest,
    /// The lowest of the ranks that replicas connect with each rank.
    component: Vec<u32>,
    /// How many sets of connected ranks there are.
    parts: usize,
    /// Replicas to come beyond the first of their expert.
    left: usize,
    /// The rank of each expert's first replica, of those that have several, `[E]`.
    first: Vec<u32>,
    /// Scratch memory of `lightest_apart`.
    apart: Vec<f64>,
}

impl Packing<'_> {
    fn held(&self, rank: usize) -> &[u32] {
        &self.slots[self.ranks.slots(rank).start..self.filled[rank]]
    }

    /// The time of a rank with a replica more.
    fn with(&self, rank: usize, share: f64) -> f64 {
        self.times[rank] + share * self.ranks.pace(rank)
    }

    fn put(&mut self, rank: usize, expert: u32, share: f64) {
        self.slots[self.filled[rank]] = expert;
        self.order.push(self.filled[rank] as u32);
        self.filled[rank] += 1;
        if self.filled[rank] < self.ranks.slots(rank).end {
            self.times[rank] = self.with(rank, share);
            self.open.set(rank, self.times[rank]);
        } else {
            self.times[rank] = f64::INFINITY;
            self.open.close(rank);
        }
    }

    /// The rank with room that takes the least time with a replica more: of the node, if one is given and
    /// has such a rank.
    fn lightest(&self, expert: u32, share: f64, node: Option<usize>) -> Option<usize> {
        let anywhere = || self.lightest_of(expert, share, 0..self.ranks.len());
        if let Some(node) = node {
            let there = self.lightest_of(expert, share, self.ranks.on(node));
            return there.or_else(anywhere);
        }
        let is_new = self.first[expert as usize] == NOWHERE;
        let takes = |&rank: &usize| is_new || !self.held(rank).contains(&expert);
        let known = self.open.rank().filter(|_| self.ranks.are_as_fast());
        known.filter(takes).or_else(anywhere)
    }

    /// The lightest of some ranks, ascending, which lacks the expert.
    fn lightest_of(
        &self,
        expert: u32,
        share: f64,
        ranks: impl Iterator<Item = usize>,
    ) -> Option<usize> {
        let mut least = f64::INFINITY;
        let mut lightest = None;
        for rank in ranks {
            let time = self.with(rank, share);
            if time < least && !self.held(rank).contains(&expert) {
                (least, lightest) = (time, Some(rank));
            }
        }
        lightest
    }

    /// The lightest rank that is not in a component and lacks the expert.
    fn lightest_apart(&mut self, expert: u32, share: f64, component: u32) -> Option<usize> {
        let mut times = std::mem::take(&mut self.apart);
        times.clear();
        times.extend((0..self.ranks.len()).map(|rank| {
            let time = self.with(rank, share);
            if self.component[rank] == component {
                f64::INFINITY
            } else {
                time
            }
        }));
        let lightest = loop {
            let least = fold_lanes(&times, f64::INFINITY, |a, b| if b < a { b } else { a });
            let first = times.iter().position(|&time| time == least);
            match first.filter(|_| least < f64::INFINITY) {
                Some(rank) if self.held(rank).contains(&expert) => times[rank] = f64::INFINITY,
                found => break found,
            }
        };
        self.apart = times;
        lightest
    }

    /// The lightest rank without the expert; one that the expert's other replicas are not connected
    /// with, if there is such a one hardly heavier.
    fn connecting(&mut self, expert: u32, share: f64, node: Option<usize>) -> Option<usize> {
        let lightest = self.lightest(expert, share, node)?;
        let first = self.first[expert as usize];
        if first == NOWHERE || self.parts == 1 {
            return Some(lightest);
        }
        // One less than there are parts connects them; with fewer all is in vain.
        let slack = if (self.parts - 1..=self.parts).contains(&self.left) {
            self.slack.connect_at_last
        } else {
            self.slack.connect
        };
        self.left = self.left.saturating_sub(1);
        let component = self.component[first as usize];
        let connecting = match node {
            Some(_) => {
                let ranks = self.ranks.on(self.ranks.node(lightest));
                let others = ranks.filter(|&rank| self.component[rank] != component);
                self.lightest_of(expert, share, others)
            }
            None => self.lightest_apart(expert, share, component),
        };
        let Some(connecting) = connecting else {
            return Some(lightest);
        };
        let (least, time) = (self.with(lightest, share), self.with(connecting, share));
        let pays = time <= least + slack;
        Some(if pays { connecting } else { lightest })
    }

    /// Notes that a replica of the expert is on a rank now.
    fn connect(&mut self, expert: u32, rank: usize) {
        let first = &mut self.first[expert as usize];
        if *first == NOWHERE {
            *first = rank as u32;
        }
        let (a, b) = (self.component[*first as usize], self.component[rank]);
        if a != b {
            self.parts -= 1;
            for component in &mut self.component {
                if *component == a.max(b) {
                    *component = a.min(b);
                }
            }
        }
    }

    /// Puts a replica whose expert every rank with room holds already: moves another one there, or
    /// else gives the slot to another expert.
    fn make_room(&mut self, expert: u32, share: f64, weights: &[f64]) {
        let mut ranks = self.ranks.live();
        let Some(rank) = ranks.find(|&rank| self.times[rank] < f64::INFINITY) else {
            return;
        };
        for other in 0..self.ranks.len() {
            if other == rank || self.held(other).contains(&expert) {
                continue;
            }
            let from = self.ranks.slots(other).start;
            let movable = |e: &u32| !self.held(rank).contains(e);
            if let Some(i) = self.held(other).iter().position(movable) {
                let moved = std::mem::replace(&mut self.slots[from + i], expert);
                self.put(rank, moved, share);
                if self.first[moved as usize] != NOWHERE {
                    self.connect(moved, rank);
                }
                return;
            }
        }
        let missing = (0..weights.len() as u32).filter(|e| !self.held(rank).contains(e));
        let heaviest = missing.max_by(|&a, &b| {
            weights[a as usize]
                .total_cmp(&weights[b as usize])
                .then(b.cmp(&a))
        });
        let instead = heaviest.unwrap_or(expert);
        self.put(rank, instead, share);
        self.connect(instead, rank);
    }
}
