//! How many replicas each expert has and which nodes hold them, where experts have a home node.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::ranks::Ranks;

/// What nodes and replicas may weigh.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits<'a> {
    /// The time that the ranks of a node may take on average.
    pub(crate) node: f64,
    /// The largest load that a rank can carry.
    pub(crate) rank: f64,
    /// The load above which the replicas of an expert are split, as a part of what a rank can carry, `[E]`.
    pub(crate) pieces: &'a [f64],
}

/// Replicas on nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Spread {
    /// Replicas of each expert, `[E]`.
    pub(crate) counts: Vec<u32>,
    /// The expert of each replica, heaviest first, `[P]`.
    pub(crate) order: Vec<u32>,
    /// The node of each of these replicas, `[P]`.
    pub(crate) nodes: Vec<u32>,
}

/// Chooses counts and nodes such that no node takes longer than its limit and little load is abroad:
///
/// 1. The largest replica is split while it is above the limit of its expert and slots are left. An expert
///    gets more replicas than its home has ranks only if a rank could not carry one, or as far as load has
///    to leave that node anyway.
/// 2. A node with too much gives replicas away, always the heaviest that is not more than it has to give.
/// 3. They go, heaviest first, to the node with the most room. If that gets too much, it gives away lighter
///    replicas of its own; if it has no free slot, the lightest.
/// 4. Slots that are left split what is at home entirely.
///
/// Time: O(N × E + P log P), and O(N + E) for each replica that leaves a node; up to `MOVES` × P do so after
/// the first ones.
///
/// # Arguments
///
/// - `homes` - the home node of each expert, `[E]`.
pub(crate) fn spread(weights: &[f64], homes: &[u32], ranks: &Ranks, limits: Limits<'_>) -> Spread {
    let mut nodes = Nodes::new(weights, homes, ranks, limits.node);
    nodes.split(ranks, limits);
    nodes.fill_homes();
    nodes.send_away(MOVES * ranks.num_slots());
    nodes.fill();
    nodes.into_spread()
}

/// The load above what the nodes may carry: it has to leave.
pub(crate) fn spill(weights: &[f64], homes: &[u32], ranks: &Ranks, node_limit: f64) -> f64 {
    let nodes = Nodes::new(weights, homes, ranks, node_limit);
    nodes.room.iter().map(|room| (-room).max(0.0)).sum()
}

/// As many times as there are slots, replicas may leave a node for a heavier one.
const MOVES: usize = 8;

/// A load whose bits are compared: loads are not negative.
fn key(load: f64) -> u64 {
    load.to_bits()
}

struct Nodes<'a> {
    weights: &'a [f64],
    homes: &'a [u32],
    /// Replicas of each expert, `[E]`.
    counts: Vec<u32>,
    /// The load of each of these replicas, `[E]`.
    shares: Vec<f64>,
    /// Experts by falling load of a replica, once the counts are known.
    heavy_first: Vec<u32>,
    /// Live ranks of each node, `[N]`: as many replicas of an expert it holds at most.
    most: Vec<u32>,
    /// Load that each node still takes; negative if it has too much, `[N]`.
    room: Vec<f64>,
    /// Free slots of each node; negative if it has too few, `[N]`.
    free: Vec<isize>,
    /// Replicas by node and expert, `[N, E]`.
    held: Vec<u32>,
    /// Load and expert of each replica that needs a node, the heaviest on top.
    guests: BinaryHeap<(u64, Reverse<u32>)>,
}

impl<'a> Nodes<'a> {
    /// All experts are at home, with one replica that takes no slot yet.
    fn new(weights: &'a [f64], homes: &'a [u32], ranks: &Ranks, limit: f64) -> Self {
        let nodes = ranks.num_nodes();
        let mut room = vec![0.0; nodes];
        let (mut most, mut free) = (vec![0; nodes], vec![0; nodes]);
        for rank in ranks.live() {
            let node = ranks.node(rank);
            room[node] += limit / ranks.pace(rank);
            free[node] += ranks.slots(rank).len() as isize;
            most[node] += 1;
        }
        for (&home, weight) in homes.iter().zip(weights) {
            room[home as usize] -= weight;
        }
        Self {
            weights,
            homes,
            counts: vec![1; weights.len()],
            shares: weights.to_vec(),
            heavy_first: Vec::new(),
            most,
            room,
            free,
            held: vec![0; nodes * weights.len()],
            guests: BinaryHeap::new(),
        }
    }

    /// The load of each replica.
    fn share(&self, expert: u32) -> f64 {
        self.shares[expert as usize]
    }

    fn add_replica(&mut self, expert: u32) {
        let count = &mut self.counts[expert as usize];
        *count += 1;
        self.shares[expert as usize] = self.weights[expert as usize] / f64::from(*count);
    }

    fn home(&self, expert: u32) -> usize {
        self.homes[expert as usize] as usize
    }

    fn held(&self, node: usize, expert: u32) -> u32 {
        self.held[node * self.weights.len() + expert as usize]
    }

    fn put(&mut self, node: usize, expert: u32) {
        self.held[node * self.weights.len() + expert as usize] += 1;
        self.room[node] -= self.share(expert);
        self.free[node] -= 1;
    }

    /// Takes a replica off a node; it needs another one.
    fn take(&mut self, node: usize, expert: u32) {
        self.held[node * self.weights.len() + expert as usize] -= 1;
        self.room[node] += self.share(expert);
        self.free[node] += 1;
        self.guests.push((key(self.share(expert)), Reverse(expert)));
    }

    /// Decides the counts.
    fn split(&mut self, ranks: &Ranks, limits: Limits<'_>) {
        let limit = |e: u32| limits.pieces[e as usize] * limits.rank;
        let live = ranks.live().count() as u32;
        let mut spare = ranks.num_slots().saturating_sub(self.weights.len());
        let mut must_leave: Vec<f64> = self.room.iter().map(|room| (-room).max(0.0)).collect();
        let loads = self.weights.iter().zip(0..);
        let large = loads.filter(|&(&load, e)| load > limit(e));
        let mut large: BinaryHeap<(u64, Reverse<u32>)> =
            large.map(|(&load, e)| (key(load), Reverse(e))).collect();
        while spare > 0
            && let Some((_, Reverse(expert))) = large.pop()
        {
            let (count, home) = (self.counts[expert as usize], self.home(expert));
            let (share, at_home) = (self.share(expert), self.most[home]);
            let next = self.weights[expert as usize] / f64::from(count + 1);
            // What one more replica, abroad, takes away from those at home.
            let leaves = if count < at_home {
                0.0
            } else {
                (share - next) * f64::from(at_home)
            };
            if count >= live || (leaves > must_leave[home] && share <= limits.rank) {
                continue;
            }
            must_leave[home] -= leaves;
            spare -= 1;
            self.add_replica(expert);
            if next > limit(expert) {
                large.push((key(next), Reverse(expert)));
            }
        }
        let shares = self.shares.iter().zip(0..);
        let mut heavy_first: Vec<(Reverse<u64>, u32)> =
            shares.map(|(&share, e)| (Reverse(key(share)), e)).collect();
        heavy_first.sort_unstable();
        self.heavy_first = heavy_first.iter().map(|&(_, e)| e).collect();
    }

    /// Puts at home what the ranks there can hold, and takes away what is too much.
    fn fill_homes(&mut self) {
        for (&home, weight) in self.homes.iter().zip(self.weights) {
            self.room[home as usize] += weight;
        }
        for expert in 0..self.weights.len() as u32 {
            let (home, count) = (self.home(expert), self.counts[expert as usize]);
            for _ in 0..count {
                self.put(home, expert);
            }
            for _ in self.most[home]..count {
                self.take(home, expert);
            }
        }
        for node in 0..self.room.len() {
            self.relieve(node, -self.room[node], f64::INFINITY);
            while self.free[node] < 0
                && let Some(lightest) = self.lightest(node, f64::INFINITY)
            {
                self.take(node, lightest);
            }
        }
    }

    /// Gives away replicas at home, heaviest first: all lighter than `below`, none of more than is left
    /// of `load`.
    fn relieve(&mut self, node: usize, mut load: f64, below: f64) {
        if load <= 0.0 {
            return;
        }
        for i in 0..self.heavy_first.len() {
            let expert = self.heavy_first[i];
            let share = self.share(expert);
            let may_leave = self.home(expert) == node && share < below;
            while may_leave && share <= load && self.held(node, expert) > 0 {
                self.take(node, expert);
                load -= share;
            }
        }
    }

    /// The lightest replica on a node, if it is below some load.
    fn lightest(&self, node: usize, below: f64) -> Option<u32> {
        let mut light_first = self.heavy_first.iter().rev();
        let lightest = *light_first.find(|&&e| self.held(node, e) > 0)?;
        Some(lightest).filter(|&e| self.share(e) < below)
    }

    /// Finds nodes for the replicas that left their home.
    ///
    /// # Arguments
    ///
    /// - `moves` - how many may leave a node for one that comes.
    fn send_away(&mut self, moves: usize) {
        let mut moves = moves;
        while let Some((_, Reverse(expert))) = self.guests.pop() {
            let share = self.share(expert);
            let Some(host) = self.host(expert, moves > 0) else {
                // Only one of several replicas is refused everywhere.
                self.counts[expert as usize] -= 1;
                continue;
            };
            let waiting = self.guests.len();
            if self.free[host] <= 0
                && let Some(lightest) = self.lightest(host, share)
            {
                self.take(host, lightest);
            }
            self.put(host, expert);
            if moves > 0 {
                self.relieve(host, share.min(-self.room[host]), share);
            }
            moves = moves.saturating_sub(self.guests.len() - waiting);
        }
    }

    /// The node for a replica: home, if it has room again, else the one with the most room. A node without
    /// a free slot takes it if a lighter replica may leave.
    fn host(&self, expert: u32, may_leave: bool) -> Option<usize> {
        let share = self.share(expert);
        let takes = |&node: &usize| {
            self.held(node, expert) < self.most[node]
                && (self.free[node] > 0 || (may_leave && self.lightest(node, share).is_some()))
        };
        let value = |node: usize| {
            let has_room = self.room[node] >= share;
            let is_home = node == self.home(expert);
            (has_room, has_room && is_home, self.free[node] > 0)
        };
        let better = |&a: &usize, &b: &usize| {
            let values = value(a).cmp(&value(b));
            let room = self.room[a].total_cmp(&self.room[b]);
            values.then(room).then(b.cmp(&a))
        };
        (0..self.room.len()).filter(takes).max_by(better)
    }

    /// Fills the slots that are left: with the largest replicas of experts that are at home entirely, or
    /// else with the lightest of any.
    fn fill(&mut self) {
        for node in 0..self.room.len() {
            let experts = 0..self.weights.len() as u32;
            let is_whole =
                |&e: &u32| self.home(e) == node && self.held(node, e) == self.counts[e as usize];
            let whole = experts.clone().filter(is_whole);
            let mut whole: BinaryHeap<(u64, Reverse<u32>)> =
                whole.map(|e| (key(self.share(e)), Reverse(e))).collect();
            while self.free[node] > 0 {
                let takes = |&e: &u32| self.held(node, e) < self.most[node];
                let largest = std::iter::from_fn(|| whole.pop()).map(|(_, Reverse(e))| e);
                let lightest = || {
                    let any = experts.clone().filter(takes);
                    any.min_by_key(|&e| key(self.share(e)))
                };
                let found = { largest }.find(takes);
                let is_whole = found.is_some();
                let Some(expert) = found.or_else(lightest) else {
                    break;
                };
                self.add_replica(expert);
                self.held[node * self.weights.len() + expert as usize] += 1;
                self.free[node] -= 1;
                if is_whole {
                    whole.push((key(self.share(expert)), Reverse(expert)));
                }
            }
        }
    }

    fn into_spread(self) -> Spread {
        let mut replicas = Vec::with_capacity(self.weights.len());
        for (node, held) in (0..).zip(self.held.chunks(self.weights.len())) {
            for (expert, &held) in (0..).zip(held) {
                let replica = (Reverse(key(self.share(expert))), expert, node);
                replicas.extend(std::iter::repeat_n(replica, held as usize));
            }
        }
        replicas.sort_unstable();
        Spread {
            order: replicas.iter().map(|&(_, expert, _)| expert).collect(),
            nodes: replicas.iter().map(|&(.., node)| node).collect(),
            counts: self.counts,
        }
    }
}

#[cfg(test)]
mod tests {
    use moekit_placement::Topology;

    use super::*;

    fn ranks(slots: &[usize], nodes: usize) -> Ranks {
        let topology = Topology::new(slots.len()).unwrap();
        Ranks::new(slots, &topology.with_nodes(nodes).unwrap(), &[])
    }

    /// Load of each node, `[N]`.
    fn loads(spread: &Spread, weights: &[f64], nodes: usize) -> Vec<f64> {
        let mut loads = vec![0.0; nodes];
        for (&e, &node) in spread.order.iter().zip(&spread.nodes) {
            loads[node as usize] += weights[e as usize] / f64::from(spread.counts[e as usize]);
        }
        loads
    }

    #[test]
    fn what_must_leave_goes_where_room_is() {
        let ranks = ranks(&[3; 4], 2);
        let weights = [6.0, 4.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0];
        let homes = [0, 0, 0, 0, 1, 1, 1, 1];
        let limits = Limits {
            node: 4.0,
            rank: 4.0,
            pieces: &[1.0; 8],
        };
        assert_eq!(spill(&weights, &homes, &ranks, limits.node), 4.0);
        let spread = spread(&weights, &homes, &ranks, limits);
        // 6 has to be split; 4 of the 12 leave, no more.
        assert_eq!(spread.counts.iter().sum::<u32>(), 12);
        assert_eq!(loads(&spread, &weights, 2), [8.0, 8.0]);
        assert!(spread.counts[0] >= 2);
    }

    #[test]
    fn nothing_leaves_without_need() {
        let ranks = ranks(&[3, 3, 2, 0], 2);
        let weights = [9.0, 1.0, 1.0, 1.0, 2.0, 2.0];
        let homes = [0, 0, 0, 0, 1, 1];
        let limits = Limits {
            node: 7.0,
            rank: 7.0,
            pieces: &[0.1; 6],
        };
        let spread = spread(&weights, &homes, &ranks, limits);
        assert_eq!(loads(&spread, &weights, 2), [12.0, 4.0]);
        let on = |n: u32| spread.nodes.iter().filter(|&&node| node == n).count();
        assert_eq!((on(0), on(1)), (6, 2));
        assert_eq!(spread.counts[0], 2);
    }
}
