use moekit_placement::Placement;
use moekit_routing::Rank;

/// Reorders the slots of each rank so that an expert that the rank holds already stays where it
/// is; the others fill the free slots in their order. This saves copies within a rank, not
/// transfers. It is vLLM's `preserve_intragpu_slots`; a rank whose number of slots changed is
/// left alone.
pub(crate) fn preserve_slots(slots: &mut [usize], rank_offsets: &[usize], current: &Placement) {
    for (rank, range) in rank_offsets.windows(2).enumerate() {
        let new = &mut slots[range[0]..range[1]];
        let Some(old) = current
            .experts_of(Rank::new(rank))
            .filter(|old| old.len() == new.len())
        else {
            continue;
        };
        let mut left: Vec<Option<usize>> = new.iter().copied().map(Some).collect();
        let kept: Vec<Option<usize>> = old
            .iter()
            .map(|expert| {
                left.iter_mut()
                    .find(|e| **e == Some(expert.index()))?
                    .take()
            })
            .collect();
        let mut rest = left.into_iter().flatten();
        for (slot, kept) in new.iter_mut().zip(kept) {
            if let Some(expert) = kept.or_else(|| rest.next()) {
                *slot = expert;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_copy_is_kept_once() {
        let current = Placement::from_ranks(4, &[vec![0, 1, 1, 2], vec![3]]).unwrap();
        let mut slots = [1, 3, 0, 1, 2];
        preserve_slots(&mut slots, &[0, 4, 5], &current);
        assert_eq!(slots, [0, 1, 1, 3, 2]);
    }
}
