//! The two greedy steps and their hierarchy, for one layer.

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

impl Hierarchy {
    /// The logical expert of each slot, `[slots]`. One group and one node make the global mode.
    pub(crate) fn place(&self, load: &[f32]) -> Vec<usize> {
        let mut slots = Vec::with_capacity(self.slots);
        for experts in self.experts_of_nodes(load) {
            let node_load: Vec<f32> = experts.iter().map(|&e| load[e]).collect();
            let (replicas, counts) = replicate(&node_load, self.slots / self.nodes);
            let per_replica: Vec<f32> = replicas
                .iter()
                .map(|&e| node_load[e] / counts[e] as f32)
                .collect();
            let packs = pack(&per_replica, self.ranks / self.nodes);
            slots.extend(
                packs
                    .iter()
                    .flatten()
                    .map(|&replica| experts[replicas[replica]]),
            );
        }
        slots
    }

    /// Packs expert groups onto nodes; the experts of each node in the order of their groups.
    fn experts_of_nodes(&self, load: &[f32]) -> Vec<Vec<usize>> {
        let size = self.experts / self.groups;
        let group_loads: Vec<f32> = load.chunks(size).map(|group| group.iter().sum()).collect();
        pack(&group_loads, self.nodes)
            .into_iter()
            .map(|groups| {
                groups
                    .into_iter()
                    .flat_map(|g| g * size..(g + 1) * size)
                    .collect()
            })
            .collect()
    }
}

/// Spreads `n` weighted items over `packs` packs of `n / packs` items each: heaviest first, each
/// onto the lightest pack with room. Returns the items of each pack in the order they came.
fn pack(weights: &[f32], packs: usize) -> Vec<Vec<usize>> {
    let room = weights.len() / packs;
    if room == 1 {
        return (0..packs).map(|item| vec![item]).collect();
    }
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by(|&a, &b| weights[b].total_cmp(&weights[a]));
    let mut items = vec![Vec::with_capacity(room); packs];
    // A full pack weighs infinitely much, so that the minimum never falls on it.
    let mut pack_weights = vec![0f32; packs];
    for item in order {
        let lightest = first_min(&pack_weights);
        items[lightest].push(item);
        pack_weights[lightest] = match items[lightest].len() == room {
            true => f32::INFINITY,
            false => pack_weights[lightest] + weights[item],
        };
    }
    items
}

/// Gives each slot beyond one per expert to the expert with the largest load per replica.
/// Returns the expert of each slot and the replicas of each expert.
fn replicate(load: &[f32], slots: usize) -> (Vec<usize>, Vec<usize>) {
    let mut replicas: Vec<usize> = (0..load.len()).collect();
    let mut counts = vec![1; load.len()];
    let mut per_replica = load.to_vec();
    for _ in load.len()..slots {
        let busiest = first_max(&per_replica);
        replicas.push(busiest);
        counts[busiest] += 1;
        per_replica[busiest] = load[busiest] / counts[busiest] as f32;
    }
    (replicas, counts)
}

/// Index of the smallest value, the first of equal ones.
fn first_min(values: &[f32]) -> usize {
    let mut best = 0;
    for (i, value) in values.iter().enumerate() {
        if *value < values[best] {
            best = i;
        }
    }
    best
}

/// Index of the largest value, the first of equal ones.
fn first_max(values: &[f32]) -> usize {
    let mut best = 0;
    for (i, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = i;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_go_to_the_lowest_index() {
        assert_eq!(pack(&[1.0; 6], 3), [[0, 3], [1, 4], [2, 5]]);
        assert_eq!(
            replicate(&[2.0, 2.0, 1.0], 6),
            (vec![0, 1, 2, 0, 1, 0], vec![3, 2, 1])
        );
    }

    #[test]
    fn packs_hold_equally_many_even_if_one_item_outweighs_all() {
        let packs = pack(&[100.0, 1.0, 1.0, 1.0], 2);
        assert_eq!(packs, [[0, 3], [1, 2]]);
    }

    #[test]
    fn single_item_packs_keep_their_order() {
        assert_eq!(pack(&[1.0, 5.0, 3.0], 3), [[0], [1], [2]]);
    }
}
