//! The two greedy steps and their hierarchy, for several layers at a time.

use std::array;

use moekit_placement::order::single_precision;

use crate::packing::Packing;
use crate::replication::Replication;
use crate::tournament::lists;

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

/// Layers that are placed together: as many as there are games in turn of a
/// [tournament](crate::tournament).
const TOGETHER: usize = 3;

/// Places layers of one size; what it needs meanwhile is kept from layer to layer.
///
/// Arrays are of all layers that are placed together, layer by layer.
#[derive(Debug)]
pub(crate) struct Greedy {
    hierarchy: Hierarchy,
    /// The loads of all experts, `[experts]` each.
    loads: [Vec<f32>; TOGETHER],
    /// The loads of expert groups, and the groups, `[layers, groups]`.
    group_loads: Vec<f32>,
    groups: Vec<u32>,
    /// The groups of each node, node by node, `[layers, groups]`.
    homes: Vec<u32>,
    onto_nodes: Packing,
    /// The experts of each node, node by node, `[layers, experts]`, and their loads.
    experts: Vec<u32>,
    expert_loads: Vec<f32>,
    replication: Replication,
    onto_ranks: Packing,
    /// The logical expert of each slot, `[layers, slots]`.
    slots: Vec<u32>,
}

impl Greedy {
    pub(crate) fn new(hierarchy: Hierarchy) -> Self {
        let Hierarchy {
            groups,
            nodes,
            ranks,
            slots,
            experts,
        } = hierarchy;
        Self {
            hierarchy,
            loads: Default::default(),
            group_loads: Vec::new(),
            groups: (0..groups as u32).collect::<Vec<_>>().repeat(TOGETHER),
            homes: Vec::new(),
            onto_nodes: Packing::new(groups, nodes),
            experts: Vec::new(),
            expert_loads: Vec::new(),
            replication: Replication::new(experts / nodes, slots / nodes),
            onto_ranks: Packing::new(slots / nodes, ranks / nodes),
            slots: Vec::new(),
        }
    }

    /// The logical expert of each slot, `[slots]`, of every layer. One group and one node make the
    /// global mode.
    pub(crate) fn place(&mut self, loads: &[&[f64]]) -> Vec<Vec<usize>> {
        let mut placed = Vec::with_capacity(loads.len());
        for loads in loads.chunks(TOGETHER) {
            for (&load, to) in loads.iter().zip(&mut self.loads) {
                single_precision(load, to);
            }
            self.place_together(loads.len());
            let layers = self.slots.chunks_exact(self.hierarchy.slots);
            placed.extend(layers.map(|slots| slots.iter().map(|&e| e as usize).collect()));
        }
        placed
    }

    fn place_together(&mut self, layers: usize) {
        self.assign_groups(layers);
        self.list_experts(layers);
        self.replication.run(&self.expert_loads, &self.experts);
        let Replication {
            replicas, loads, ..
        } = &self.replication;
        self.slots.resize(replicas.len(), 0);
        self.onto_ranks.run(loads, replicas, &mut self.slots);
    }

    /// Packs expert groups onto nodes.
    fn assign_groups(&mut self, layers: usize) {
        let Hierarchy { groups, nodes, .. } = self.hierarchy;
        let names = &self.groups[..layers * groups];
        self.homes.resize(names.len(), 0);
        if groups == nodes {
            self.homes.copy_from_slice(names);
            return;
        }
        self.group_loads.resize(layers * groups, 0.0);
        let sums = self.group_loads.chunks_exact_mut(groups);
        (sums.zip(&self.loads)).for_each(|(sums, loads)| sum_groups(loads, sums));
        self.onto_nodes
            .run(&self.group_loads, names, &mut self.homes);
    }

    /// Lists the experts of each node, in the order of their groups there.
    fn list_experts(&mut self, layers: usize) {
        let Hierarchy {
            groups, experts, ..
        } = self.hierarchy;
        let size = experts / groups;
        self.experts.clear();
        self.expert_loads.clear();
        let homes = self.homes.chunks_exact(groups);
        for (homes, loads) in homes.zip(&self.loads[..layers]) {
            for &group in homes {
                let group = group as usize * size..(group as usize + 1) * size;
                self.experts.extend(group.start as u32..group.end as u32);
                self.expert_loads.extend_from_slice(&loads[group]);
            }
        }
    }
}

/// The load of each group, `[groups]`, of those of its experts.
fn sum_groups(loads: &[f32], sums: &mut [f32]) {
    let size = loads.len() / sums.len();
    let (eights, rest) = sums.as_chunks_mut::<8>();
    let (eights_loads, rest_loads) = loads.split_at(8 * eights.len() * size);
    // Each sum in its order, but side by side: an addition waits for the one before.
    for (first, eight) in (0..).step_by(8).zip(eights) {
        let groups = lists::<_, 8>(eights_loads, size, first);
        *eight = (0..size).fold([0.0; 8], |sums, expert| {
            array::from_fn(|group| sums[group] + groups[group][expert])
        });
    }
    for (sum, loads) in rest.iter_mut().zip(rest_loads.chunks_exact(size)) {
        *sum = loads.iter().fold(0.0, |sum, load| sum + load);
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

    /// Trees of all sizes, those whose size the compiler does not know too.
    #[test]
    fn it_is_the_algorithm_of_its_authors_in_any_size() {
        for (nodes, ranks, experts) in [
            (1, 7, 20),
            (4, 32, 256),
            (1, 100, 130),
            (2, 180, 300),
            (1, 600, 700),
            (1, 3, 1100),
        ] {
            let (groups, slots) = (nodes, (experts / ranks + 2) * ranks);
            let sizes = Hierarchy {
                groups,
                nodes,
                ranks,
                slots,
                experts,
            };
            let loads = [1, 37, 4099, 70_001].map(|step| -> Vec<f64> {
                let load = |e: usize| (e * step % 1013 % (step + 3)) as f64;
                (0..experts).map(load).collect()
            });
            let layers: Vec<&[f64]> = loads.iter().map(Vec::as_slice).collect();
            let placed = Greedy::new(sizes).place(&layers);
            for (load, placed) in layers.iter().zip(placed) {
                let narrow: Vec<f32> = load.iter().map(|&load| load as f32).collect();
                assert_eq!(placed, plain::place(sizes, &narrow), "{sizes:?}");
            }
        }
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
