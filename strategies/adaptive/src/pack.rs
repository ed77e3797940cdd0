//! The layout from which a search starts: longest first, no expert twice on a rank, replicas over
//! ranks that nothing connects yet, at home if there is room.

use crate::ranks::Ranks;

/// How much lighter than the chosen rank another may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slack<'a> {
    /// Time that a rank may lie above the lightest to connect ranks.
    pub(crate) connect: f64,
    /// The home node of each expert, `[E]`, if there are expert groups.
    pub(crate) homes: Option<&'a [u32]>,
    /// The time up to which replicas stay on the ranks of their home node.
    pub(crate) target: f64,
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

struct Packing<'a> {
    ranks: &'a Ranks,
    slack: Slack<'a>,
    slots: Vec<u32>,
    /// The first free slot of each rank, `[R]`.
    filled: Vec<usize>,
    times: Vec<f64>,
    /// Ranks with room.
    open: Vec<usize>,
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
        self.slots[self.filled[rank]] = expert;
        self.filled[rank] += 1;
        self.times[rank] += share * self.ranks.pace(rank);
        if self.filled[rank] == self.ranks.slots(rank).end {
            self.open.retain(|&r| r != rank);
        }
    }

    fn is_home(&self, rank: usize, expert: u32) -> bool {
        let homes = self.slack.homes;
        homes.is_none_or(|homes| homes[expert as usize] as usize == self.ranks.node(rank))
    }

    /// The rank with room that takes the least time with a replica more; one of the home node, as
    /// long as it stays below the target there.
    fn lightest(&self, expert: u32, share: f64) -> Option<usize> {
        self.least(expert, share, |_| true)
    }

    fn least(&self, expert: u32, share: f64, fits: impl Fn(usize) -> bool) -> Option<usize> {
        let mut best = None;
        let mut best_time = f64::INFINITY;
        let mut best_abroad = true;
        for &rank in &self.open {
            let time = self.times[rank] + share * self.ranks.pace(rank);
            let abroad = time > self.slack.target || !self.is_home(rank, expert);
            let better = best.is_none() || (abroad, time) < (best_abroad, best_time);
            if better && fits(rank) {
                (best, best_time, best_abroad) = (Some(rank), time, abroad);
            }
        }
        best
    }

    /// The lightest rank without the expert; one that the expert's other replicas are not connected
    /// with, if there is such a one hardly heavier.
    fn connecting(&self, expert: u32, share: f64) -> Option<usize> {
        let placed = &self.placed[expert as usize];
        let lightest = self.least(expert, share, |rank| !placed.contains(&rank))?;
        let Some(&first) = placed.first() else {
            return Some(lightest);
        };
        let component = self.component[first];
        let limit = self.times[lightest] + self.slack.connect;
        let may_leave = !self.is_home(lightest, expert);
        let other = self.least(expert, share, |rank| {
            self.component[rank] != component
                && self.times[rank] <= limit
                && (may_leave || self.is_home(rank, expert))
        });
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
        self.put(rank, heaviest.unwrap_or(expert), share);
    }
}
