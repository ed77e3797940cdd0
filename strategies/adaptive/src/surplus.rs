//! Ranks with more slots than there are experts.

use crate::ranks::Ranks;

/// The expert of each slot of `all`, given those of `used`, in which no rank has more slots than there
/// are experts. What is left repeats the lightest experts of the rank, which moves nothing and shifts the
/// least load; the lightest of all where the rank has no other slot.
pub(crate) fn fill(used: &Ranks, slots: Vec<u32>, all: &Ranks, weights: &[f64]) -> Vec<u32> {
    if used.num_slots() == all.num_slots() {
        return slots;
    }
    let mut lightest: Vec<u32> = (0..weights.len() as u32).collect();
    lightest.sort_by(|&a, &b| weights[a as usize].total_cmp(&weights[b as usize]));
    let filled = |rank: usize| {
        let held = &slots[used.slots(rank)];
        let more = all.slots(rank).len() - held.len();
        let own: Vec<u32> = match held.is_empty() {
            true => lightest.clone(),
            false => lightest
                .iter()
                .copied()
                .filter(|e| held.contains(e))
                .collect(),
        };
        let repeated: Vec<u32> = own.into_iter().cycle().take(more).collect();
        held.iter().copied().chain(repeated)
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
        // A placement in force may hold an expert twice where another would fit.
        assert_eq!(
            fill(&used, vec![0, 0, 1], &all, &[2.0, 1.0]),
            [0, 0, 0, 0, 0, 1]
        );
    }
}
