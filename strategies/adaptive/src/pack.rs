//! The layout from which a search starts: longest first, no expert twice on a rank, replicas over
//! ranks that nothing connects yet, at home if there is room.

use crate::minimum::first_smallest;
use crate::ranks::Ranks;

/// How much lighter than the chosen rank another may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slack<'a> {
    /// Time that a rank may lie above the lightest to connect ranks.
    pub(crate) connect: f64,
    /// The home node of each expert, `[E]`, if there are expert groups.
    pub(crate) homes: Option<&'a [u32]>,
    /// What a node carries at most, as a multiple of its part of the load.
    pub(crate) node_limit: f64,
}

/// Packs replicas onto ranks.
///
/// # Arguments
///
/// - `order` - the expert of each replica, heaviest first. There are as many as slots.
///
/// # Returns
///
/// The expert of each slot, `[P]`. Counts may differ from `counts` where the last replicas fit
/// nowhere else; every expert has a slot.
///
/// Time: O(P × R).
pub(crate) fn pack(
    weights: &[f64],
    counts: &[u32],
    order: &[u32],
    ranks: &Ranks,
    slack: Slack<'_>,
) -> Vec<u32> {
    let mut packing = Packing {
        ranks,
        slack,
        slots: vec![0; ranks.num_slots()],
        filled: ranks.offsets()[..ranks.len()].to_vec(),
        times: vec![0.0; ranks.len()],
        open: ranks.live().collect(),
        candidates: vec![0.0; ranks.len()],
        room: slack.homes.map_or_else(Vec::new, |homes| {
            room_for_guests(weights, homes, ranks, slack.node_limit)
        }),
        component: (0..ranks.len()).collect(),
        placed: vec![Vec::new(); weights.len()],
    };
    for &expert in order {
        let count = counts[expert as usize];
        let share = weights[expert as usize] / f64::from(count);
        let rank = match count {
            1 => packing.lightest(expert, share),
            _ => packing.connecting(expert, share),
        };
        match rank {
            Some(rank) => packing.put(rank, expert, share),
            None => packing.make_room(expert, share, weights),
        }
        if let Some(rank) = rank.filter(|_| count > 1) {
            packing.connect(expert, rank);
        }
    }
    packing.slots
}

/// The load that each node could carry beyond that of the experts at home there, `[N]`.
fn room_for_guests(weights: &[f64], homes: &[u32], ranks: &Ranks, limit: f64) -> Vec<f64> {
    let mut room = vec![0.0; ranks.num_nodes()];
    let speed: f64 = ranks.live().map(|rank| 1.0 / ranks.pace(rank)).sum();
    let total: f64 = weights.iter().sum();
    for rank in ranks.live() {
        room[ranks.node(rank)] += limit * total / ranks.pace(rank) / speed;
    }
    for (&home, weight) in homes.iter().zip(weights) {
        room[home as usize] -= weight;
    }
    room
}

struct Packing<'a> {
    ranks: &'a Ranks,
    slack: Slack<'a>,
    slots: Vec<u32>,
    /// The first free slot of each rank, `[R]`.
    filled: Vec<usize>,
    times: Vec<f64>,
    /// Ranks with room.
    open: Vec<usize>,
    /// The time of each rank with one replica more, infinite where it cannot go.
    candidates: Vec<f64>,
    /// Load that each node can take from others; negative if it has to give some away. `[N]` with
    /// homes, else empty.
    room: Vec<f64>,
    /// The lowest of the ranks that replicas connect with each rank.
    component: Vec<usize>,
    /// Ranks of each replicated expert.
    placed: Vec<Vec<usize>>,
}

impl Packing<'_> {
    fn held(&self, rank: usize) -> &[u32] {
        &self.slots[self.ranks.slots(rank).start..self.filled[rank]]
    }

    fn put(&mut self, rank: usize, expert: u32, share: f64) {
        if let Some(homes) = self.slack.homes {
            self.room[homes[expert as usize] as usize] += share;
            self.room[self.ranks.node(rank)] -= share;
        }
        self.slots[self.filled[rank]] = expert;
        self.filled[rank] += 1;
        self.times[rank] += share * self.ranks.pace(rank);
        if self.filled[rank] == self.ranks.slots(rank).end {
            self.open.retain(|&r| r != rank);
        }
    }

    /// The rank with room that takes the least time with a replica more.
    fn lightest(&mut self, expert: u32, share: f64) -> Option<usize> {
        self.consider(expert, share);
        self.least(expert, share)
    }

    /// Makes every rank with room a candidate.
    fn consider(&mut self, expert: u32, share: f64) {
        self.candidates.fill(f64::INFINITY);
        for &rank in &self.open {
            self.candidates[rank] = self.times[rank] + share * self.ranks.pace(rank);
        }
        for &rank in &self.placed[expert as usize] {
            self.candidates[rank] = f64::INFINITY;
        }
    }

    /// The lightest candidate. With homes: one of the home node, unless it has to give load away and
    /// another node has room for it.
    fn least(&self, expert: u32, share: f64) -> Option<usize> {
        let Some(homes) = self.slack.homes else {
            return first_smallest(&self.candidates, f64::INFINITY);
        };
        let home = homes[expert as usize] as usize;
        // A node gives away what it has too much, and takes a replica if at least half of it is wanted.
        let hosts = |node: usize| node != home && self.room[node] >= share / 2.0;
        let guest = match self.room[home] <= -share {
            true => self.lightest_of(hosts),
            false => None,
        };
        guest
            .or_else(|| self.lightest_of(|node| node == home))
            .or_else(|| self.lightest_of(hosts))
            .or_else(|| self.lightest_of(|_| true))
    }

    /// The lightest candidate of some nodes.
    fn lightest_of(&self, nodes: impl Fn(usize) -> bool) -> Option<usize> {
        let candidates = self.open.iter().map(|&rank| (rank, self.candidates[rank]));
        let fit =
            candidates.filter(|&(rank, time)| time < f64::INFINITY && nodes(self.ranks.node(rank)));
        fit.min_by(|a, b| a.1.total_cmp(&b.1)).map(|(rank, _)| rank)
    }

    /// The lightest rank without the expert; one that the expert's other replicas are not connected
    /// with, if there is such a one hardly heavier.
    fn connecting(&mut self, expert: u32, share: f64) -> Option<usize> {
        let lightest = self.lightest(expert, share)?;
        let Some(&first) = self.placed[expert as usize].first() else {
            return Some(lightest);
        };
        let component = self.component[first];
        let limit = self.candidates[lightest] + self.slack.connect;
        let node = self.ranks.node(lightest);
        for rank in 0..self.ranks.len() {
            let time = &mut self.candidates[rank];
            let elsewhere = self.slack.homes.is_some() && self.ranks.node(rank) != node;
            if self.component[rank] == component || *time > limit || elsewhere {
                *time = f64::INFINITY;
            }
        }
        let other = self.least(expert, share);
        other.or(Some(lightest))
    }

    /// Notes that a replica of the expert is on a rank now.
    fn connect(&mut self, expert: u32, rank: usize) {
        let placed = &mut self.placed[expert as usize];
        placed.push(rank);
        let (a, b) = (self.component[placed[0]], self.component[rank]);
        for component in &mut self.component {
            if *component == a.max(b) {
                *component = a.min(b);
            }
        }
    }

    /// Puts a replica whose expert every rank with room holds already: moves another one there, or
    /// else gives the slot to another expert.
    fn make_room(&mut self, expert: u32, share: f64, weights: &[f64]) {
        let Some(&rank) = self.open.first() else {
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
                let placed = &mut self.placed[moved as usize];
                if let Some(at) = placed.iter().position(|&r| r == other) {
                    placed.remove(at);
                    self.connect(moved, rank);
                }
                self.placed[expert as usize].push(other);
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
        self.placed[instead as usize].push(rank);
    }
}
