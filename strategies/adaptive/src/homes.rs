//! The home node of each expert group, and how much leaves it.

use crate::layout::Layout;
use crate::ranks::Ranks;
use crate::swap::{Choice, Descent, Links, Reach, Swaps, Work};

/// The home node of each expert, `[E]`: groups go to nodes so that as little load as possible exceeds
/// what a node can carry. Heaviest group first onto the node with the most room, then moves and
/// exchanges of groups as long as they help.
///
/// Time: O(rounds × G² ) for G groups, a handful of rounds.
pub(crate) fn home_nodes(weights: &[f64], num_groups: usize, ranks: &Ranks) -> Vec<u32> {
    let size = weights.len() / num_groups;
    let loads: Vec<f64> = weights
        .chunks(size)
        .map(|group| group.iter().sum())
        .collect();
    let mut nodes = Nodes::new(ranks, loads.iter().sum(), size);
    let mut order: Vec<usize> = (0..num_groups).collect();
    order.sort_by(|&a, &b| loads[b].total_cmp(&loads[a]));
    let mut home = vec![0; num_groups];
    for group in order {
        home[group] = nodes.roomiest();
        nodes.add(home[group], loads[group], 1);
    }
    nodes.improve(&loads, &mut home);
    home.iter()
        .flat_map(|&node| std::iter::repeat_n(node as u32, size))
        .collect()
}

/// What nodes carry and could carry.
struct Nodes {
    /// Load that a node still takes; negative if it has too much.
    room: Vec<f64>,
    /// Groups that still fit into its slots.
    groups: Vec<isize>,
}

impl Nodes {
    fn new(ranks: &Ranks, total: f64, group_size: usize) -> Self {
        let mut speed = vec![0.0; ranks.num_nodes()];
        let mut slots = vec![0; ranks.num_nodes()];
        for rank in ranks.live() {
            speed[ranks.node(rank)] += 1.0 / ranks.pace(rank);
            slots[ranks.node(rank)] += ranks.slots(rank).len();
        }
        let all: f64 = speed.iter().sum();
        Self {
            room: speed.iter().map(|s| total * s / all).collect(),
            groups: slots.iter().map(|&n| (n / group_size) as isize).collect(),
        }
    }

    fn add(&mut self, node: usize, load: f64, groups: isize) {
        self.room[node] -= load;
        self.groups[node] -= groups;
    }

    fn roomiest(&self) -> usize {
        let better = |&a: &usize, &b: &usize| {
            let fits = (self.groups[a] > 0).cmp(&(self.groups[b] > 0));
            fits.then(self.room[a].total_cmp(&self.room[b]))
                .then(b.cmp(&a))
        };
        (0..self.room.len()).max_by(better).unwrap_or_default()
    }

    /// Load too much on a node if it carried this much more, and its square, which breaks ties.
    fn spill(&self, node: usize, more: f64) -> (f64, f64) {
        let over = (more - self.room[node]).max(0.0);
        (over, (self.room[node] - more).powi(2))
    }

    /// Whether it helps that `node` gives `load` to `other`.
    fn helps(&self, node: usize, other: usize, load: f64) -> bool {
        let sum = |a: (f64, f64), b: (f64, f64)| (a.0 + b.0, a.1 + b.1);
        let before = sum(self.spill(node, 0.0), self.spill(other, 0.0));
        let after = sum(self.spill(node, -load), self.spill(other, load));
        let scale = (self.room[node].abs() + self.room[other].abs() + load.abs()) * 1e-9;
        after.0 < before.0 - scale || (after.0 <= before.0 && after.1 < before.1 * (1.0 - 1e-9))
    }

    fn improve(&mut self, loads: &[f64], home: &mut [usize]) {
        const ROUNDS: usize = 16;
        for _ in 0..ROUNDS {
            let mut changed = false;
            for a in 0..home.len() {
                for node in 0..self.room.len() {
                    if node != home[a]
                        && self.groups[node] > 0
                        && self.helps(home[a], node, loads[a])
                    {
                        self.add(home[a], -loads[a], -1);
                        self.add(node, loads[a], 1);
                        home[a] = node;
                        changed = true;
                    }
                }
                for b in 0..a {
                    let more = loads[a] - loads[b];
                    if home[a] != home[b] && self.helps(home[a], home[b], more) {
                        self.add(home[a], -more, 0);
                        self.add(home[b], more, 0);
                        home.swap(a, b);
                        changed = true;
                    }
                }
            }
            if !changed {
                return;
            }
        }
    }
}

/// The load away from home.
pub(crate) fn abroad(layout: &Layout<'_>, homes: &[u32]) -> f64 {
    let ranks = layout.ranks;
    let slots = ranks.live().flat_map(|rank| {
        let is_abroad = move |&e: &u32| homes[e as usize] as usize != ranks.node(rank);
        let held = layout.experts_of(rank).iter().zip(layout.shares_of(rank));
        held.filter(move |(e, _)| is_abroad(e))
    });
    slots.map(|(_, share)| share).sum()
}

/// Exchanges all that ranks of two nodes hold as long as less load is abroad afterwards: ranks that are alike
/// carry what they carried.
///
/// Time: O(R × slots of a rank), and O(R²) for each exchange.
pub(crate) fn settle(layout: &mut Layout<'_>, homes: &[u32]) {
    let ranks = layout.ranks;
    let at_home = |rank: usize| {
        let mut loads = vec![0.0; ranks.num_nodes()];
        let held = layout.experts_of(rank).iter().zip(layout.shares_of(rank));
        for (&e, share) in held {
            loads[homes[e as usize] as usize] += share;
        }
        loads
    };
    let mut at_home: Vec<Vec<f64>> = (0..ranks.len()).map(at_home).collect();
    let live: Vec<usize> = ranks.live().collect();
    while let Some((_, a, b)) = best_exchange_of_ranks(&at_home, &live, ranks) {
        at_home.swap(a, b);
        for (a, b) in ranks.slots(a).zip(ranks.slots(b)) {
            layout.swap(a, b);
        }
    }
}

/// The two ranks whose exchange brings most home, with what it brings.
///
/// # Arguments
///
/// - `at_home` - the load of what a rank holds that would be at home on each node, `[R, N]`.
fn best_exchange_of_ranks(
    at_home: &[Vec<f64>],
    live: &[usize],
    ranks: &Ranks,
) -> Option<(f64, usize, usize)> {
    let are_alike = |a: usize, b: usize| {
        ranks.slots(a).len() == ranks.slots(b).len() && ranks.pace(a) == ranks.pace(b)
    };
    let pairs = live.iter().enumerate().flat_map(|(i, &a)| {
        let others = live[..i].iter().filter(move |&&b| are_alike(a, b));
        others.map(move |&b| {
            let (here, there) = (ranks.node(a), ranks.node(b));
            let before = at_home[a][here] + at_home[b][there];
            let after = at_home[a][there] + at_home[b][here];
            // What rounding adds is no gain.
            (after - before - before.max(after) * 1e-9, a, b)
        })
    });
    pairs
        .filter(|&(gain, ..)| gain > 0.0)
        .max_by(|x, y| x.0.total_cmp(&y.0))
}

/// As many exchanges that need swaps fail in a row before no more are tried.
const TRIALS: usize = 4;

/// Exchanges experts that are abroad with ones of their home node, as long as less load is abroad
/// afterwards and no rank gets above the limit, if need be after swaps within the two nodes.
///
/// Time: O(rounds × slots abroad × slots of a node), and a descent for each exchange that is tried because it
/// brings more home than those that need none.
pub(crate) fn bring_home(layout: &mut Layout<'_>, homes: &[u32], limit: f64, work: &mut Work) {
    const ROUNDS: usize = 4;
    let ranks = layout.ranks;
    let mut descent = Descent::new(layout, (0..ranks.num_slots() as u32).collect());
    let mut trials = TRIALS;
    for _ in 0..ROUNDS {
        let is_abroad = |l: &Layout<'_>, slot: usize| {
            homes[l.expert(slot) as usize] as usize != ranks.node(ranks.rank_of(slot))
        };
        let mut abroad: Vec<usize> = (0..ranks.num_slots())
            .filter(|&slot| is_abroad(layout, slot))
            .collect();
        abroad.sort_by(|&a, &b| layout.share_of(b).total_cmp(&layout.share_of(a)));
        let mut changed = false;
        for slot in abroad {
            if is_abroad(layout, slot) {
                changed |=
                    bring_one_home(layout, &mut descent, slot, homes, limit, &mut trials, work);
            }
        }
        if !changed {
            return;
        }
    }
}

/// Brings the expert of a slot abroad home, if that is possible.
fn bring_one_home(
    layout: &mut Layout<'_>,
    descent: &mut Descent,
    slot: usize,
    homes: &[u32],
    limit: f64,
    trials: &mut usize,
    work: &mut Work,
) -> bool {
    for way in ways_home(layout, slot, homes, limit) {
        if way.fits {
            descent.swap(layout, slot, way.slot);
            return true;
        }
        if *trials == 0 || work.is_done() {
            continue;
        }
        *trials -= 1;
        let (mut candidate, mut after) = (layout.clone(), descent.clone());
        after.swap(&mut candidate, slot, way.slot);
        let swaps = Swaps {
            links: Links::Free,
            choice: Choice::First,
            reach: Reach::Node,
            depth: 1,
        };
        if after.run(&mut candidate, limit, swaps, work) {
            *trials = TRIALS;
            (*layout, *descent) = (candidate, after);
            return true;
        }
    }
    false
}

/// An exchange with a slot of the home node.
struct WayHome {
    slot: usize,
    /// Load that is abroad no more.
    gain: f64,
    /// Whether no rank gets above the limit.
    fits: bool,
}

/// The best ways home of the expert in a slot abroad, by falling gain up to the first that fits. In all
/// of them the nodes could carry what they get.
fn ways_home(layout: &Layout<'_>, slot: usize, homes: &[u32], limit: f64) -> Vec<WayHome> {
    const MOST: usize = 4;
    let ranks = layout.ranks;
    let (rank, expert) = (ranks.rank_of(slot), layout.expert(slot));
    let (share, home) = (layout.share_of(slot), homes[expert as usize] as usize);
    let node = ranks.node(rank);
    let room = |node: usize| -> f64 {
        let of_node = ranks.live().filter(|&rank| ranks.node(rank) == node);
        of_node
            .map(|rank| (limit - layout.times()[rank]) / ranks.pace(rank))
            .sum()
    };
    let (room_at_home, room_here) = (room(home), room(node));
    let mut ways = Vec::new();
    for other in ranks.live().filter(|&other| ranks.node(other) == home) {
        if layout.holds(other, expert) {
            continue;
        }
        for (at, &theirs) in ranks.slots(other).zip(layout.shares_of(other)) {
            let their_expert = layout.expert(at);
            let their_home = homes[their_expert as usize] as usize;
            let abroad = |node: usize| if their_home == node { 0.0 } else { theirs };
            let gain = share + abroad(home) - abroad(node);
            let more = share - theirs;
            let could = more <= room_at_home && -more <= room_here;
            if gain > share * 1e-9 && could && !layout.holds(rank, their_expert) {
                let fits = layout.times()[other] + more * ranks.pace(other) <= limit
                    && layout.times()[rank] - more * ranks.pace(rank) <= limit;
                ways.push(WayHome {
                    slot: at,
                    gain,
                    fits,
                });
            }
        }
    }
    ways.sort_by(|a, b| b.gain.total_cmp(&a.gain));
    let end = ways
        .iter()
        .position(|way| way.fits)
        .map_or(MOST, |at| at + 1);
    // Of those that need swaps the best few, and the one that needs none.
    if end > MOST {
        ways.swap(MOST, end - 1);
    }
    ways.truncate(end.min(MOST + 1));
    ways
}

#[cfg(test)]
mod tests {
    use moekit_placement::Topology;

    use super::*;

    #[test]
    fn groups_fill_nodes_evenly() {
        let topology = Topology::new(4).unwrap().with_nodes(2).unwrap();
        let ranks = Ranks::new(&[4; 4], &topology, &[]);
        // Longest first ends with 5 + 3 and 4 + 3 + 3; 5 + 4 and 3 + 3 + 3 are even.
        let weights = [5., 4., 3., 3., 3.].map(|w| [w / 2.0; 2]).concat();
        let homes = home_nodes(&weights, 5, &ranks);
        let load = |n| {
            (0..10)
                .filter(|&e| homes[e] == n)
                .map(|e| weights[e])
                .sum::<f64>()
        };
        assert_eq!((load(0), load(1)), (9.0, 9.0));
        assert!(homes.chunks(2).all(|group| group[0] == group[1]));
    }

    #[test]
    fn experts_go_home_if_loads_allow() {
        let topology = Topology::new(2).unwrap().with_nodes(2).unwrap();
        let ranks = Ranks::new(&[2, 2], &topology, &[]);
        let weights = [1.0, 2.0, 1.5, 2.5];
        let homes = [0, 0, 1, 1];
        let mut layout = Layout::new(&ranks, &weights, vec![0, 3, 1, 2]);
        bring_home(&mut layout, &homes, 3.6, &mut Work::new(100));
        assert_eq!(layout.experts_of(0), [0, 3], "the limit holds");
        bring_home(&mut layout, &homes, 4.0, &mut Work::new(100));
        assert_eq!(layout.experts_of(0), [0, 1]);
    }

    #[test]
    fn whole_ranks_go_home() {
        let topology = Topology::new(4).unwrap().with_nodes(2).unwrap();
        let ranks = Ranks::new(&[2, 2, 2, 1], &topology, &[]);
        let weights = [1.0, 2.0, 1.5, 2.5, 3.0, 0.5, 0.1];
        let homes = [0, 0, 1, 1, 0, 1, 1];
        let slots = vec![2, 3, 5, 6, 0, 1, 4];
        let mut layout = Layout::new(&ranks, &weights, slots);
        let before = layout.largest();
        settle(&mut layout, &homes);
        // The last rank is like no other: it stays abroad.
        assert_eq!(layout.slots(), [0, 1, 5, 6, 2, 3, 4]);
        assert_eq!(abroad(&layout, &homes), 3.6);
        assert_eq!(layout.largest(), before);
    }
}
