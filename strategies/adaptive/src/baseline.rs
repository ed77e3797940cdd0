//! What DeepSeek's load balancer would reach, so that this one never falls behind it.
//!
//! The algorithm of <https://github.com/deepseek-ai/EPLB>: see `moekit-strategy-eplb`, whose results
//! this reproduces, ties and rounding included.

use crate::apportion::{Apportionment, apportion};
use crate::lightest::Lightest;
use crate::order::{self, longest_first};

/// The sizes of a layer. Nodes divide groups and ranks, groups divide experts, ranks divide slots;
/// one group and one node without a hierarchy.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hierarchy {
    pub(crate) groups: usize,
    pub(crate) nodes: usize,
    pub(crate) ranks: usize,
    pub(crate) slots: usize,
}

impl Hierarchy {
    /// The expert of each slot, `[P]`.
    ///
    /// # Arguments
    ///
    /// - `given`, `order` - the apportionment over all slots and its replicas, longest first, if no
    ///   limit of replicas changed them.
    pub(crate) fn place(&self, load: &[f32], given: &Apportionment, order: &[u32]) -> Vec<u32> {
        if self.nodes == 1 && self.groups == 1 && !given.is_limited {
            return pack(
                order,
                |&e| load[e as usize] / given.counts[e as usize] as f32,
                self.ranks,
            );
        }
        let size = load.len() / self.groups;
        let group_loads: Vec<f32> = load.chunks(size).map(|group| group.iter().sum()).collect();
        let mut groups: Vec<u32> = (0..self.groups as u32).collect();
        groups.sort_by(|&a, &b| group_loads[b as usize].total_cmp(&group_loads[a as usize]));
        let homes = pack(&groups, |&g| group_loads[g as usize], self.nodes);
        let mut slots = Vec::with_capacity(self.slots);
        for groups in homes.chunks(self.groups / self.nodes) {
            let experts: Vec<usize> = groups
                .iter()
                .flat_map(|&g| g as usize * size..(g as usize + 1) * size)
                .collect();
            let node_load: Vec<f32> = experts.iter().map(|&e| load[e]).collect();
            let sorted = order::experts(&node_load);
            let given = apportion(&node_load, &sorted, self.slots / self.nodes, usize::MAX);
            let order = longest_first(&node_load, &sorted, &given);
            let share = |&e: &u32| node_load[e as usize] / given.counts[e as usize] as f32;
            let packed = pack(&order, share, self.ranks / self.nodes);
            slots.extend(packed.into_iter().map(|e| experts[e as usize] as u32));
        }
        slots
    }
}

/// Puts each item onto the lightest of `packs` equally large packs that has room. Returns the items
/// pack by pack.
fn pack(items: &[u32], weight: impl Fn(&u32) -> f32, packs: usize) -> Vec<u32> {
    let room = items.len() / packs;
    let mut packed = vec![0; items.len()];
    let mut filled = vec![0; packs];
    let mut weights = vec![0f32; packs];
    let mut open = Lightest::new(packs);
    (0..packs).for_each(|pack| open.set(pack, 0.0));
    for item in items {
        let lightest = open.rank().unwrap_or_default();
        packed[lightest * room + filled[lightest]] = *item;
        filled[lightest] += 1;
        weights[lightest] += weight(item);
        match filled[lightest] < room {
            true => open.set(lightest, weights[lightest].into()),
            false => open.close(lightest),
        }
    }
    packed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_deepseeks_example() {
        let load = [
            90., 132., 40., 61., 104., 165., 39., 4., 73., 56., 183., 86.,
        ];
        let hierarchy = Hierarchy {
            groups: 4,
            nodes: 2,
            ranks: 8,
            slots: 16,
        };
        let sorted = order::experts(&load);
        let given = apportion(&load, &sorted, 16, usize::MAX);
        let slots = hierarchy.place(&load, &given, &longest_first(&load, &sorted, &given));
        assert_eq!(slots, [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1]);
    }
}
