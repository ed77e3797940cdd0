//! The two greedy steps and their hierarchy, for one layer after another.
//!
//! Everything that is to be taken in order of its weight is one integer: the weight's bits above,
//! the index below. Weights are never negative, so that their bits are ordered as they are; and
//! ties fall to the lowest index by themselves.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// The sizes of one layer. Divisibility was checked by the caller: nodes divide groups and ranks,
/// groups divide experts, ranks divide slots.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hierarchy {
    pub(crate) groups: usize,
    pub(crate) nodes: usize,
    pub(crate) ranks: usize,
    pub(crate) slots: usize,
    pub(crate) experts: usize,
}

/// Places layers of one size; what it needs meanwhile is kept from layer to layer.
#[derive(Debug)]
pub(crate) struct Greedy {
    hierarchy: Hierarchy,
    /// The loads of all experts, `[experts]`.
    load: Vec<f32>,
    /// The experts of each node, node by node.
    experts: Vec<usize>,
    /// The loads of a node's experts.
    node_load: Vec<f32>,
    replication: Replication,
    order: Vec<u64>,
    packing: Packing,
}

impl Greedy {
    pub(crate) fn new(hierarchy: Hierarchy) -> Self {
        Self {
            hierarchy,
            load: Vec::with_capacity(hierarchy.experts),
            experts: Vec::with_capacity(hierarchy.experts),
            node_load: Vec::with_capacity(hierarchy.experts),
            replication: Replication::default(),
            order: Vec::with_capacity(hierarchy.slots),
            packing: Packing::default(),
        }
    }

    /// The logical expert of each slot, `[slots]`. One group and one node make the global mode.
    pub(crate) fn place(&mut self, load: &[f64]) -> Vec<usize> {
        let Hierarchy { nodes, ranks, .. } = self.hierarchy;
        let slots_per_node = self.hierarchy.slots / nodes;
        let experts_per_node = self.hierarchy.experts / nodes;
        let mut slots = vec![0; self.hierarchy.slots];
        self.load.clear();
        // Adding zero makes the negative zero, whose bits are out of order, the positive one.
        self.load.extend(load.iter().map(|&load| load as f32 + 0.0));
        self.assign_groups();
        for (experts, slots) in self
            .experts
            .chunks_exact(experts_per_node)
            .zip(slots.chunks_exact_mut(slots_per_node))
        {
            self.node_load.clear();
            self.node_load
                .extend(experts.iter().map(|&expert| self.load[expert]));
            let replication = &mut self.replication;
            replication.run(&self.node_load, slots_per_node);
            if slots_per_node == ranks / nodes {
                // One slot per rank: nothing to pack.
                for (slot, &replica) in slots.iter_mut().zip(&replication.replicas) {
                    *slot = experts[replica as usize];
                }
                continue;
            }
            replication.heaviest_first(&self.node_load, &mut self.order);
            self.packing.run(&self.order, ranks / nodes, |slot, item| {
                slots[slot] = experts[replication.replicas[item] as usize];
            });
        }
        slots
    }

    /// Packs expert groups onto nodes; the experts of each node in the order of their groups.
    fn assign_groups(&mut self) {
        let load = &self.load;
        let Hierarchy { groups, nodes, .. } = self.hierarchy;
        self.experts.clear();
        if groups == nodes {
            self.experts.extend(0..load.len());
            return;
        }
        let size = load.len() / groups;
        let group_load = load
            .chunks_exact(size)
            .map(|group| group.iter().sum::<f32>());
        self.order.clear();
        self.order.extend(
            group_load
                .enumerate()
                .map(|(group, load)| heavy_first(load, group)),
        );
        self.order.sort_unstable();
        self.experts.resize(load.len(), 0);
        self.packing.run(&self.order, nodes, |place, group| {
            let experts = self.experts[place * size..(place + 1) * size].iter_mut();
            experts
                .zip(group * size..)
                .for_each(|(to, expert)| *to = expert);
        });
    }
}

/// Sorts before the key of any smaller weight, and of the same weight with a larger index.
fn heavy_first(weight: f32, index: usize) -> u64 {
    u64::from(!weight.to_bits()) << 32 | index as u64
}

/// Sorts before the key of any larger weight, and of the same weight with a larger index.
fn light_first(weight: f32, index: usize) -> u64 {
    u64::from(weight.to_bits()) << 32 | index as u64
}

fn index_of(key: u64) -> usize {
    (key & u64::from(u32::MAX)) as usize
}

fn high_bits(key: u64) -> u32 {
    (key >> 32) as u32
}

/// Gives each slot beyond one per expert to the expert with the largest load per replica.
#[derive(Debug, Default)]
struct Replication {
    /// The expert of each replica: every expert once, then those with more, in the order in which
    /// they got them.
    replicas: Vec<u32>,
    /// Replicas of each expert.
    counts: Vec<u32>,
    /// The experts, heaviest first.
    sorted: Vec<u64>,
    /// How many of them have several replicas: the heaviest do.
    num_several: usize,
    /// Experts with several replicas, by load per replica.
    several: BinaryHeap<Reverse<u64>>,
    /// Their replicas.
    shared: Vec<u64>,
}

impl Replication {
    fn run(&mut self, load: &[f32], slots: usize) {
        self.replicas.clear();
        self.replicas.extend(0..load.len() as u32);
        self.counts.clear();
        self.counts.resize(load.len(), 1);
        self.sorted.clear();
        let keys = load.iter().enumerate();
        self.sorted
            .extend(keys.map(|(expert, &load)| heavy_first(load, expert)));
        self.sorted.sort_unstable();
        self.several.clear();
        self.num_several = 0;
        for _ in load.len()..slots {
            // The busiest is either the heaviest expert with one replica or one with several.
            let of_single = self.sorted.get(self.num_several).copied();
            let of_several = self.several.peek().map(|top| top.0);
            let several_first = of_several.is_some_and(|key| of_single.is_none_or(|s| key < s));
            let busiest = if several_first { of_several } else { of_single };
            let busiest = index_of(busiest.unwrap_or_default());
            self.replicas.push(busiest as u32);
            self.counts[busiest] += 1;
            let share = heavy_first(load[busiest] / self.counts[busiest] as f32, busiest);
            if several_first {
                if let Some(mut top) = self.several.peek_mut() {
                    top.0 = share;
                }
            } else {
                self.num_several += 1;
                self.several.push(Reverse(share));
            }
        }
    }

    /// All replicas, the heaviest first: those of experts with several merged into the others,
    /// which are sorted already.
    fn heaviest_first(&mut self, load: &[f32], order: &mut Vec<u64>) {
        let (several, single) = self.sorted.split_at(self.num_several);
        let first = several.iter().map(|&key| (index_of(key), index_of(key)));
        let more = self.replicas.iter().enumerate().skip(load.len());
        let more = more.map(|(replica, &expert)| (replica, expert as usize));
        self.shared.clear();
        self.shared
            .extend(first.chain(more).map(|(replica, expert)| {
                heavy_first(load[expert] / self.counts[expert] as f32, replica)
            }));
        self.shared.sort_unstable();
        order.clear();
        let mut single = single.iter().copied().peekable();
        for &shared in &self.shared {
            while let Some(key) = single.next_if(|&key| key < shared) {
                order.push(key);
            }
            order.push(shared);
        }
        order.extend(single);
    }
}

/// Spreads weighted items over packs of equal size: heaviest first, each onto the lightest pack
/// with room.
#[derive(Debug, Default)]
struct Packing {
    /// A tree of matches between packs: the lightest with room at 1, the two that the winner at `i`
    /// comes from at `2 i` and `2 i + 1`. It needs no branch that depends on the weights.
    lightest: Vec<u64>,
    /// Items in each pack.
    filled: Vec<u32>,
}

impl Packing {
    /// Packs the items of `order` (keys by [`heavy_first`]) and tells the place of each: pack by
    /// pack, in the order in which they came.
    fn run(&mut self, order: &[u64], packs: usize, mut put: impl FnMut(usize, usize)) {
        let room = order.len() / packs;
        let leaves = packs.next_power_of_two();
        let (lightest, filled) = (&mut self.lightest, &mut self.filled);
        lightest.clear();
        // The first pack wins every match against an equal one: at depth d, each 2^d-th.
        let mut depth = 1;
        lightest.push(u64::MAX);
        while depth <= leaves {
            let step = leaves / depth;
            lightest.extend((0..depth).map(|i| match i * step < packs {
                true => light_first(0.0, i * step),
                false => u64::MAX,
            }));
            depth *= 2;
        }
        filled.clear();
        filled.resize(packs, 0);
        let mut first = light_first(0.0, 0);
        for &item in order {
            let pack = index_of(first);
            put(pack * room + filled[pack] as usize, index_of(item));
            filled[pack] += 1;
            let weight = f32::from_bits(high_bits(first)) + f32::from_bits(!high_bits(item));
            let is_full = filled[pack] as usize == room;
            let key = if is_full {
                u64::MAX
            } else {
                light_first(weight, pack)
            };
            // The next item need not wait for the way up: its pack is this one or the best of the
            // others.
            let (mut winner, mut others) = (key, u64::MAX);
            let mut at = leaves + pack;
            while at > 1 {
                lightest[at] = winner;
                let other = lightest[at ^ 1];
                others = others.min(other);
                winner = winner.min(other);
                at /= 2;
            }
            first = key.min(others);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The algorithm as its authors wrote it: a scan for every item.
    mod plain {
        use super::Hierarchy;

        pub(super) fn place(sizes: Hierarchy, load: &[f32]) -> Vec<usize> {
            let size = sizes.experts / sizes.groups;
            let group_loads: Vec<f32> = load.chunks(size).map(|g| g.iter().sum()).collect();
            let mut slots = Vec::new();
            for groups in pack(&group_loads, sizes.nodes) {
                let experts: Vec<usize> = groups
                    .into_iter()
                    .flat_map(|g| g * size..(g + 1) * size)
                    .collect();
                let node_load: Vec<f32> = experts.iter().map(|&e| load[e]).collect();
                let (replicas, counts) = replicate(&node_load, sizes.slots / sizes.nodes);
                let weights: Vec<f32> = replicas
                    .iter()
                    .map(|&e| node_load[e] / counts[e] as f32)
                    .collect();
                let packs = pack(&weights, sizes.ranks / sizes.nodes);
                slots.extend(
                    packs
                        .concat()
                        .into_iter()
                        .map(|replica| experts[replicas[replica]]),
                );
            }
            slots
        }

        fn pack(weights: &[f32], packs: usize) -> Vec<Vec<usize>> {
            let room = weights.len() / packs;
            let mut order: Vec<usize> = (0..weights.len()).collect();
            if room > 1 {
                order.sort_by(|&a, &b| weights[b].total_cmp(&weights[a]));
            }
            let mut items = vec![Vec::new(); packs];
            let mut pack_weights = vec![0f32; packs];
            for (turn, item) in order.into_iter().enumerate() {
                let open = (0..packs).filter(|&p| items[p].len() < room);
                let lightest = open.min_by(|&a, &b| pack_weights[a].total_cmp(&pack_weights[b]));
                let pack = if room == 1 { turn } else { lightest.unwrap() };
                items[pack].push(item);
                pack_weights[pack] += weights[item];
            }
            items
        }

        fn replicate(load: &[f32], slots: usize) -> (Vec<usize>, Vec<usize>) {
            let mut replicas: Vec<usize> = (0..load.len()).collect();
            let mut counts = vec![1; load.len()];
            for _ in load.len()..slots {
                let share = |e: usize| load[e] / counts[e] as f32;
                let later = |a: &usize, b: &usize| share(*a).total_cmp(&share(*b)).then(b.cmp(a));
                let busiest = (0..load.len()).max_by(later).unwrap();
                replicas.push(busiest);
                counts[busiest] += 1;
            }
            (replicas, counts)
        }
    }

    #[test]
    fn ties_go_to_the_lowest_index() {
        let sizes = Hierarchy {
            groups: 1,
            nodes: 1,
            ranks: 3,
            slots: 6,
            experts: 6,
        };
        assert_eq!(Greedy::new(sizes).place(&[1.0; 6]), [0, 3, 1, 4, 2, 5]);
        let mut replication = Replication::default();
        replication.run(&[2.0, 2.0, 1.0], 6);
        assert_eq!(replication.replicas, [0, 1, 2, 0, 1, 0]);
        assert_eq!(replication.counts, [3, 2, 1]);
    }

    #[test]
    fn packs_hold_equally_many_even_if_one_item_outweighs_all() {
        let sizes = Hierarchy {
            groups: 1,
            nodes: 1,
            ranks: 2,
            slots: 4,
            experts: 4,
        };
        for hot in [100.0, 1e300] {
            assert_eq!(
                Greedy::new(sizes).place(&[hot, 1.0, 1.0, 1.0]),
                [0, 3, 1, 2]
            );
        }
    }

    #[test]
    fn one_slot_per_rank_keeps_the_order() {
        let sizes = Hierarchy {
            groups: 1,
            nodes: 1,
            ranks: 4,
            slots: 4,
            experts: 3,
        };
        assert_eq!(Greedy::new(sizes).place(&[1.0, 5.0, 3.0]), [0, 1, 2, 1]);
    }

    proptest! {
        #[test]
        fn it_is_the_algorithm_of_its_authors(
            (nodes, ranks, groups, size) in (1usize..4, 1usize..5, 1usize..4, 1usize..4),
            more in 0usize..3,
            loads in prop::collection::vec(prop::collection::vec(0u16..9, 27), 1..4),
            scale in 0.001f64..1e6,
        ) {
            let (ranks, groups) = (ranks * nodes, groups * nodes);
            let experts = groups * size;
            let slots = (experts.div_ceil(ranks) + more) * ranks;
            let sizes = Hierarchy { groups, nodes, ranks, slots, experts };
            // The same planner for several layers.
            let mut greedy = Greedy::new(sizes);
            for load in loads {
                let load = load.iter().cycle().take(experts);
                let load: Vec<f64> = load.map(|&n| f64::from(n) * scale).collect();
                let narrow: Vec<f32> = load.iter().map(|&load| load as f32).collect();
                prop_assert_eq!(greedy.place(&load), plain::place(sizes, &narrow));
            }
        }
    }
}
