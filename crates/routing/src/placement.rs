use serde::{Deserialize, Serialize};

use crate::error::{MAX_RANKS, MAX_SLOTS, at_most};
use crate::{LogicalExpert, PhysicalExpert, Rank, RoutingError};

/// Splits `items` over `parts` as evenly as possible; the first `items % parts` parts get one
/// more. Returns `[parts + 1]` offsets.
pub fn even_offsets(items: usize, parts: usize) -> Vec<usize> {
    let (base, rem) = match parts {
        0 => return vec![0],
        _ => (items / parts, items % parts),
    };
    (0..=parts).map(|i| i * base + i.min(rem)).collect()
}

/// Which logical expert sits in which physical slot, for one layer.
///
/// Slots are numbered rank by rank: rank `r` owns slots `rank_offsets[r]..rank_offsets[r + 1]`.
/// Every logical expert has at least one slot; ranks may hold different numbers of slots, or none.
/// A placement is validated when it is made and immutable afterwards.
///
/// ```
/// use moekit_routing::Placement;
///
/// let placement = Placement::new(3, vec![0, 1, 2, 0], vec![0, 2, 4])?;
/// assert_eq!(placement.num_ranks(), 2);
/// assert_eq!(placement.replica_counts(), [2, 1, 1]);
///
/// let lost = Placement::new(3, vec![0, 1], vec![0, 2]).unwrap_err();
/// assert!(lost.to_string().starts_with("logical expert 2 has no physical slot"));
/// # Ok::<(), moekit_routing::RoutingError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "RawPlacement", into = "RawPlacement")]
pub struct Placement {
    num_logical_experts: usize,
    physical_to_logical: Vec<LogicalExpert>,
    rank_offsets: Vec<usize>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPlacement {
    num_logical_experts: usize,
    physical_to_logical: Vec<usize>,
    rank_offsets: Vec<usize>,
}

impl TryFrom<RawPlacement> for Placement {
    type Error = RoutingError;

    fn try_from(raw: RawPlacement) -> Result<Self, RoutingError> {
        Self::new(
            raw.num_logical_experts,
            raw.physical_to_logical,
            raw.rank_offsets,
        )
    }
}

impl From<Placement> for RawPlacement {
    fn from(placement: Placement) -> Self {
        Self {
            num_logical_experts: placement.num_logical_experts,
            physical_to_logical: placement
                .physical_to_logical
                .iter()
                .map(|e| e.index())
                .collect(),
            rank_offsets: placement.rank_offsets,
        }
    }
}

impl Placement {
    /// A placement from the expert in each slot and the first slot of each rank.
    ///
    /// # Arguments
    ///
    /// - `num_logical_experts` - `E`, the rows of the gate.
    /// - `physical_to_logical` - `[P]`, the expert in each slot.
    /// - `rank_offsets` - `[R + 1]`, from 0 to `P`.
    ///
    /// # Errors
    ///
    /// If there is no expert or no rank, there are more than 2^20 slots or 2^16 ranks, an id is out
    /// of range, an expert has no slot, or the offsets do not partition the slots.
    pub fn new(
        num_logical_experts: usize,
        physical_to_logical: Vec<usize>,
        rank_offsets: Vec<usize>,
    ) -> Result<Self, RoutingError> {
        let num_slots = physical_to_logical.len();
        if num_logical_experts == 0 {
            return Err(RoutingError::NoExperts);
        }
        at_most("slots", num_slots, MAX_SLOTS)?;
        at_most("ranks", rank_offsets.len().saturating_sub(1), MAX_RANKS)?;
        if rank_offsets.len() < 2 {
            return Err(RoutingError::NoRanks);
        }
        if rank_offsets.first() != Some(&0)
            || rank_offsets.last() != Some(&num_slots)
            || !rank_offsets.is_sorted()
        {
            return Err(RoutingError::RankOffsets {
                offsets: rank_offsets,
                num_slots,
            });
        }
        // Checked before the allocation below, so that a claim of billions of experts costs nothing.
        if num_logical_experts > num_slots {
            return Err(Self::first_uncovered(
                num_logical_experts,
                &physical_to_logical,
            ));
        }
        // With a place for those that do not exist, so that nothing is decided slot by slot.
        let mut covered = vec![false; num_logical_experts + 1];
        for &expert in &physical_to_logical {
            covered[expert.min(num_logical_experts)] = true;
        }
        if covered.pop() == Some(true) {
            let mut slots = physical_to_logical.iter().copied().enumerate();
            if let Some((slot, expert)) = slots.find(|&(_, expert)| expert >= num_logical_experts) {
                return Err(RoutingError::UnknownExpert {
                    slot,
                    expert,
                    num_logical: num_logical_experts,
                });
            }
        }
        if !covered.iter().fold(true, |all, &covered| all & covered) {
            return Err(Self::first_uncovered(
                num_logical_experts,
                &physical_to_logical,
            ));
        }
        Ok(Self {
            num_logical_experts,
            physical_to_logical: physical_to_logical
                .into_iter()
                .map(LogicalExpert::new)
                .collect(),
            rank_offsets,
        })
    }

    fn first_uncovered(num_logical: usize, physical_to_logical: &[usize]) -> RoutingError {
        let mut held = physical_to_logical.to_vec();
        held.sort_unstable();
        held.dedup();
        let expert = held
            .iter()
            .enumerate()
            .position(|(i, &e)| i != e)
            .unwrap_or(held.len());
        RoutingError::Uncovered {
            expert,
            num_logical,
        }
    }

    /// A placement from the experts of each rank, slot by slot.
    ///
    /// # Errors
    ///
    /// As [`Placement::new`].
    pub fn from_ranks<R: AsRef<[usize]>>(
        num_logical_experts: usize,
        ranks: &[R],
    ) -> Result<Self, RoutingError> {
        let mut offsets = Vec::with_capacity(ranks.len() + 1);
        let mut slots = Vec::new();
        offsets.push(0);
        for rank in ranks {
            slots.extend_from_slice(rank.as_ref());
            offsets.push(slots.len());
        }
        Self::new(num_logical_experts, slots, offsets)
    }

    /// `E`, the number of logical experts.
    pub fn num_logical_experts(&self) -> usize {
        self.num_logical_experts
    }

    /// `P`, the number of slots over all ranks.
    pub fn num_physical_experts(&self) -> usize {
        self.physical_to_logical.len()
    }

    /// `R`, the number of ranks.
    pub fn num_ranks(&self) -> usize {
        self.rank_offsets.len() - 1
    }

    /// Slots beyond one per logical expert.
    pub fn num_redundant_experts(&self) -> usize {
        self.num_physical_experts() - self.num_logical_experts
    }

    /// The expert in each slot, `[P]`.
    pub fn physical_to_logical(&self) -> &[LogicalExpert] {
        &self.physical_to_logical
    }

    /// The first slot of each rank, `[R + 1]`.
    pub fn rank_offsets(&self) -> &[usize] {
        &self.rank_offsets
    }

    /// Number of slots of each rank, `[R]`.
    pub fn slots_per_rank(&self) -> Vec<usize> {
        self.rank_offsets.windows(2).map(|w| w[1] - w[0]).collect()
    }

    /// The slots of a rank as a range, `None` if the rank does not exist.
    pub fn slot_range(&self, rank: Rank) -> Option<std::ops::Range<usize>> {
        Some(*self.rank_offsets.get(rank.index())?..*self.rank_offsets.get(rank.index() + 1)?)
    }

    /// The experts of a rank, slot by slot, `None` if the rank does not exist.
    pub fn experts_of(&self, rank: Rank) -> Option<&[LogicalExpert]> {
        self.physical_to_logical.get(self.slot_range(rank)?)
    }

    /// The rank that owns a slot, `None` if the slot does not exist.
    pub fn owner(&self, slot: PhysicalExpert) -> Option<Rank> {
        (slot.index() < self.num_physical_experts())
            .then(|| Rank::new(self.rank_offsets.partition_point(|&o| o <= slot.index()) - 1))
    }

    /// How many slots each logical expert has, `[E]`.
    pub fn replica_counts(&self) -> Vec<usize> {
        let mut counts = vec![0; self.num_logical_experts];
        for expert in &self.physical_to_logical {
            counts[expert.index()] += 1;
        }
        counts
    }

    /// Slots that repeat an expert which an earlier slot of the same rank holds already. Such a
    /// slot costs memory and can take no load off its rank.
    pub fn duplicates_on_a_rank(&self) -> usize {
        let mut last_rank = vec![usize::MAX; self.num_logical_experts];
        let mut duplicates = 0;
        for rank in 0..self.num_ranks() {
            for expert in
                &self.physical_to_logical[self.rank_offsets[rank]..self.rank_offsets[rank + 1]]
            {
                duplicates += usize::from(last_rank[expert.index()] == rank);
                last_rank[expert.index()] = rank;
            }
        }
        duplicates
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_parts_get_the_remainder() {
        assert_eq!(even_offsets(8, 3), [0, 3, 6, 8]);
        assert_eq!(even_offsets(2, 4), [0, 1, 2, 2, 2]);
        assert_eq!(even_offsets(5, 0), [0]);
    }

    #[test]
    fn empty_ranks_are_legal_and_own_nothing() -> Result<(), RoutingError> {
        let p = Placement::new(2, vec![0, 1], vec![0, 0, 1, 1, 2, 2])?;
        assert_eq!(p.num_ranks(), 5);
        assert_eq!(p.owner(PhysicalExpert::new(0)), Some(Rank::new(1)));
        assert_eq!(p.owner(PhysicalExpert::new(1)), Some(Rank::new(3)));
        assert_eq!(p.owner(PhysicalExpert::new(2)), None);
        assert_eq!(p.experts_of(Rank::new(4)), Some(&[][..]));
        assert_eq!(p.experts_of(Rank::new(5)), None);
        Ok(())
    }

    #[test]
    fn duplicates_are_counted_per_rank() -> Result<(), RoutingError> {
        let p = Placement::from_ranks(2, &[vec![0, 0, 1, 0], vec![1, 0]])?;
        assert_eq!(p.duplicates_on_a_rank(), 2);
        Ok(())
    }

    #[test]
    fn nonsense_is_refused_with_its_values() {
        let message = |r: Result<Placement, RoutingError>| r.unwrap_err().to_string();
        assert!(
            message(Placement::new(0, vec![], vec![0, 0])).contains("at least 1 logical expert")
        );
        assert!(message(Placement::new(1, vec![0], vec![0])).contains("at least 1 rank"));
        assert!(
            message(Placement::new(2, vec![0, 2], vec![0, 2]))
                .contains("slot 1 holds logical expert 2")
        );
        assert!(message(Placement::new(1, vec![0, 0], vec![0, 2, 1, 2])).contains("[0, 2, 1, 2]"));
        assert!(message(Placement::new(1, vec![0, 0], vec![0, 1])).contains("number of slots (2)"));
        assert!(
            message(Placement::new(usize::MAX, vec![0], vec![0, 1]))
                .contains("logical expert 1 has no")
        );
    }

    #[test]
    fn serde_validates() {
        let good = Placement::new(2, vec![1, 0], vec![0, 1, 2]).unwrap();
        let text = serde_json::to_string(&good).unwrap();
        assert_eq!(serde_json::from_str::<Placement>(&text).unwrap(), good);
        let bad = r#"{"num_logical_experts":3,"physical_to_logical":[1,0],"rank_offsets":[0,1,2]}"#;
        assert!(
            serde_json::from_str::<Placement>(bad)
                .unwrap_err()
                .to_string()
                .contains("expert 2")
        );
    }
}
