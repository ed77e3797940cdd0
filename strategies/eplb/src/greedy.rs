//! The two greedy steps and their hierarchy, for several layers at a time.

use std::ops::Range;

use moekit_placement::order::{HeaviestFirst, single_precision};

use crate::packing::Packing;
use crate::replication::Replication;

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

/// Layers that are placed together.
const TOGETHER: usize = 4;

/// Places layers of one size; what it needs meanwhile is kept from layer to layer.
#[derive(Debug)]
pub(crate) struct Greedy {
    hierarchy: Hierarchy,
    layers: [Layer; TOGETHER],
    packing: Packing,
}

/// A layer that is being placed.
#[derive(Debug, Default)]
struct Layer {
    /// The loads of all experts, `[experts]`.
    load: Vec<f32>,
    /// The loads of all expert groups, `[groups]`, and their order.
    group_load: Vec<f32>,
    groups: HeaviestFirst,
    /// The experts of each node, node by node.
    experts: Vec<usize>,
    /// The loads of a node's experts.
    node_load: Vec<f32>,
    replication: Replication,
    /// The keys of a node's replicas, the heaviest first.
    order: Vec<u64>,
    /// The logical expert of each slot, `[slots]`.
    slots: Vec<usize>,
}

impl Greedy {
    pub(crate) fn new(hierarchy: Hierarchy) -> Self {
        Self {
            hierarchy,
            layers: Default::default(),
            packing: Packing::default(),
        }
    }

    /// The logical expert of each slot, `[slots]`, of every layer. One group and one node make the
    /// global mode.
    pub(crate) fn place(&mut self, loads: &[&[f64]]) -> Vec<Vec<usize>> {
        let mut placed = Vec::with_capacity(loads.len());
        let (together, rest) = loads.as_chunks::<TOGETHER>();
        for &loads in together {
            placed.extend(self.place_together(loads));
        }
        for &load in rest {
            placed.extend(self.place_together([load]));
        }
        placed
    }

    fn place_together<const N: usize>(&mut self, loads: [&[f64]; N]) -> [Vec<usize>; N] {
        let Hierarchy { nodes, ranks, .. } = self.hierarchy;
        let slots_per_node = self.hierarchy.slots / nodes;
        let layers = &mut self.layers[..N];
        for (layer, load) in layers.iter_mut().zip(loads) {
            layer.begin(load, self.hierarchy, &mut self.packing);
        }
        for node in 0..nodes {
            let slots = node * slots_per_node..(node + 1) * slots_per_node;
            for layer in layers.iter_mut() {
                layer.replicate(node, self.hierarchy);
            }
            if slots_per_node == ranks / nodes {
                // One slot per rank: nothing to pack.
                for layer in layers.iter_mut() {
                    (layer.slots[slots.clone()].iter_mut().zip(0..))
                        .for_each(|(slot, replica)| *slot = replica);
                }
            } else {
                let orders: [Vec<u64>; N] =
                    std::array::from_fn(|n| std::mem::take(&mut layers[n].order));
                let each: [&[u64]; N] = orders.each_ref().map(Vec::as_slice);
                self.packing.run(each, ranks / nodes, |n, slot, replica| {
                    layers[n].slots[slots.start + slot] = replica;
                });
                for (layer, order) in layers.iter_mut().zip(orders) {
                    layer.order = order;
                }
            }
            for layer in layers.iter_mut() {
                layer.name_experts(node, slots.clone(), self.hierarchy);
            }
        }
        std::array::from_fn(|n| std::mem::take(&mut layers[n].slots))
    }
}

impl Layer {
    fn begin(&mut self, load: &[f64], hierarchy: Hierarchy, packing: &mut Packing) {
        single_precision(load, &mut self.load);
        self.slots = vec![0; hierarchy.slots];
        self.assign_groups(hierarchy, packing);
    }

    /// Packs expert groups onto nodes; the experts of each node in the order of their groups.
    fn assign_groups(&mut self, hierarchy: Hierarchy, packing: &mut Packing) {
        let Hierarchy { groups, nodes, .. } = hierarchy;
        self.experts.clear();
        if groups == nodes {
            self.experts.extend(0..self.load.len());
            return;
        }
        let size = self.load.len() / groups;
        self.group_load.clear();
        self.group_load.resize(groups, 0.0);
        // Each sum in its order, but side by side: an addition waits for the one before.
        for expert in 0..size {
            let loads = self.load[expert..].iter().step_by(size);
            (self.group_load.iter_mut().zip(loads)).for_each(|(sum, load)| *sum += load);
        }
        self.experts.resize(self.load.len(), 0);
        let order = self.groups.sort(&self.group_load);
        packing.run([order], nodes, |_, place, group| {
            let experts = self.experts[place * size..(place + 1) * size].iter_mut();
            experts
                .zip(group * size..)
                .for_each(|(to, expert)| *to = expert);
        });
    }

    /// Gives the experts of a node its slots, and sorts their replicas.
    fn replicate(&mut self, node: usize, hierarchy: Hierarchy) {
        let per_node = hierarchy.experts / hierarchy.nodes;
        let experts = &self.experts[node * per_node..(node + 1) * per_node];
        self.node_load.clear();
        let load = experts.iter().map(|&expert| self.load[expert]);
        self.node_load.extend(load);
        let slots = hierarchy.slots / hierarchy.nodes;
        self.replication.run(&self.node_load, slots);
        self.replication
            .heaviest_first(&self.node_load, &mut self.order);
    }

    /// Puts experts in place of the replicas in a node's slots.
    fn name_experts(&mut self, node: usize, slots: Range<usize>, hierarchy: Hierarchy) {
        let first = node * (hierarchy.experts / hierarchy.nodes);
        for slot in &mut self.slots[slots] {
            *slot = self.experts[first + self.replication.replicas[*slot] as usize];
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
        assert_eq!(Greedy::new(sizes).place(&[&[1.0; 6]]), [[0, 3, 1, 4, 2, 5]]);
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
                Greedy::new(sizes).place(&[&[hot, 1.0, 1.0, 1.0]]),
                [[0, 3, 1, 2]]
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
        assert_eq!(
            Greedy::new(sizes).place(&[&[1.0, 5.0, 3.0]]),
            [[0, 1, 2, 1]]
        );
    }

    proptest! {
        #[test]
        fn it_is_the_algorithm_of_its_authors(
            (nodes, ranks, groups, size) in (1usize..4, 1usize..5, 1usize..4, 1usize..4),
            more in 0usize..3,
            loads in prop::collection::vec(prop::collection::vec(0u16..9, 27), 1..7),
            scale in 0.001f64..1e6,
        ) {
            let (ranks, groups) = (ranks * nodes, groups * nodes);
            let experts = groups * size;
            let slots = (experts.div_ceil(ranks) + more) * ranks;
            let sizes = Hierarchy { groups, nodes, ranks, slots, experts };
            let loads: Vec<Vec<f64>> = loads
                .iter()
                .map(|load| {
                    let load = load.iter().cycle().take(experts);
                    load.map(|&n| f64::from(n) * scale).collect()
                })
                .collect();
            let layers: Vec<&[f64]> = loads.iter().map(Vec::as_slice).collect();
            let placed = Greedy::new(sizes).place(&layers);
            for (load, placed) in layers.iter().zip(placed) {
                let narrow: Vec<f32> = load.iter().map(|&load| load as f32).collect();
                prop_assert_eq!(placed, plain::place(sizes, &narrow));
            }
        }
    }
}
