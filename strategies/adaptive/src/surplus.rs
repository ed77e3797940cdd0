//! Ranks with more slots than there are experts.

use crate::ranks::Ranks;

/// The expert of each slot of `all`, given those of `used`, in which no rank has more slots than there
/// are experts. Such a rank holds every expert already; what is left repeats the lightest ones, which
/// shifts the least load.
pub(crate) fn fill(used: &Ranks, slots: Vec<u32>, all: &Ranks, weights: &[f64]) -> Vec<u32> {
    if used.num_slots() == all.num_slots() {
        return slots;
    }
    let mut lightest: Vec<u32> = (0..weights.len() as u32).collect();
    lightest.sort_by(|&a, &b| weights[a as usize].total_cmp(&weights[b as usize]));
    let filled = |rank: usize| {
        let held = slots[used.slots(rank)].iter();
        let more = all.slots(rank).len() - used.slots(rank).len();
        held.chain(lightest.iter().cycle().take(more)).copied()
    };
    (0..all.len()).flat_map(filled).collect()
}

#[cfg(test)]
mod tests {
    use moekit_placement::Topology;

    use super::*;

    #[test]
    fn the_lightest_are_repeated() {
        let topology = Topology::new(2).unwrap();
        let (used, all) = (
            Ranks::new(&[2, 1], &topology, &[]),
            Ranks::new(&[5, 1], &topology, &[]),
        );
        assert_eq!(
            fill(&used, vec![0, 1, 0], &all, &[2.0, 1.0]),
            [0, 1, 1, 0, 1, 0]
        );
    }
}
