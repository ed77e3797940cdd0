use crate::error::{MAX_MAP_ENTRIES, at_most};
use crate::{LocalExpert, LogicalExpert, PhysicalExpert, Placement, Rank, RoutingError, Topology};

/// The entry of an expert map for an expert that the rank does not hold.
pub const NOT_LOCAL: i32 = -1;

/// What one rank's kernels need: `E` logical experts, `S` fused shared experts, `L` local slots of
/// which the last `S` are the shared experts.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RankTable {
    /// `[E + S]`: the local slot of each expert, or [`NOT_LOCAL`]. An expert with several slots on
    /// the rank maps to the first.
    pub expert_map: Vec<i32>,
    /// `[E + S + 1]`: 1 where the rank holds the expert; the last entry is the sentinel, always 0,
    /// for ids that name no expert.
    pub expert_mask: Vec<i32>,
    /// `[L]`: the expert in each local slot.
    pub local_to_global: Vec<LogicalExpert>,
}

/// Everything that follows from a [`Placement`]: computed whole, never edited.
///
/// Fused shared experts are in bounds everywhere: logical ids `E..E + S`, physical ids
/// `P..P + S` (the copy of the rank that looks them up), the last `S` local slots of each rank.
///
/// Lookups are checked: an id that is negative, out of range or not local is `None`.
///
/// ```
/// use moekit_routing::{LocalExpert, Placement, Rank, RoutingTable, Topology};
///
/// let placement = Placement::from_ranks(4, &[[0, 2], [1, 3]])?;
/// let table = RoutingTable::new(placement, Topology::new(2)?, 1, 0)?;
/// let rank = Rank::new(1);
/// assert_eq!(table.expert_map(rank), Some(&[-1, 0, -1, 1, 2][..]));
/// assert_eq!(table.expert_mask(rank), Some(&[0, 1, 0, 1, 1, 0][..]));
/// assert_eq!(table.map_global_to_local(rank, 3), Some(LocalExpert::new(1)));
/// assert_eq!(table.map_global_to_local(rank, 0), None);
/// assert_eq!(table.map_global_to_local(rank, -1), None);
/// # Ok::<(), moekit_routing::RoutingError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoutingTable {
    placement: Placement,
    topology: Topology,
    num_shared_experts: usize,
    generation: u64,
    /// `[E + S + 1]` offsets into `replicas`.
    replica_offsets: Vec<usize>,
    /// `[P + S]`: the slots of each expert, ascending.
    replicas: Vec<PhysicalExpert>,
    /// `[P]`
    owners: Vec<Rank>,
    /// `[R]`
    ranks: Vec<RankTable>,
}

impl RoutingTable {
    /// Computes the tables of a placement.
    ///
    /// # Arguments
    ///
    /// - `topology` - the ranks of the placement and their nodes.
    /// - `num_shared_experts` - `S`, shared experts fused as extra local slots of every rank.
    /// - `generation` - grows with every table of a layer; recorded load carries it.
    ///
    /// # Errors
    ///
    /// If placement and topology have different numbers of ranks, or the expert maps of all ranks
    /// together would have more than 2^28 entries.
    pub fn new(
        placement: Placement,
        topology: Topology,
        num_shared_experts: usize,
        generation: u64,
    ) -> Result<Self, RoutingError> {
        if placement.num_ranks() != topology.num_ranks() {
            return Err(RoutingError::RankCount {
                placement: placement.num_ranks(),
                topology: topology.num_ranks(),
            });
        }
        let experts = placement
            .num_logical_experts()
            .saturating_add(num_shared_experts);
        let entries = experts.saturating_mul(placement.num_ranks());
        at_most("entries of expert maps", entries, MAX_MAP_ENTRIES)?;
        let (replica_offsets, replicas) = replica_lists(&placement, num_shared_experts);
        let owners = (0..placement.num_ranks())
            .flat_map(|r| {
                let slots = placement.rank_offsets()[r + 1] - placement.rank_offsets()[r];
                std::iter::repeat_n(Rank::new(r), slots)
            })
            .collect();
        let ranks = (0..placement.num_ranks())
            .filter_map(|r| placement.experts_of(Rank::new(r)))
            .map(|experts| rank_table(placement.num_logical_experts(), experts, num_shared_experts))
            .collect();
        Ok(Self {
            placement,
            topology,
            num_shared_experts,
            generation,
            replica_offsets,
            replicas,
            owners,
            ranks,
        })
    }

    /// The placement that the tables follow from.
    pub fn placement(&self) -> &Placement {
        &self.placement
    }

    /// The ranks and nodes.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// Grows with every table of a layer.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// `E`, routed logical experts.
    pub fn num_logical_experts(&self) -> usize {
        self.placement.num_logical_experts()
    }

    /// `P`, routed slots over all ranks.
    pub fn num_physical_experts(&self) -> usize {
        self.placement.num_physical_experts()
    }

    /// `S`, fused shared experts.
    pub fn num_shared_experts(&self) -> usize {
        self.num_shared_experts
    }

    /// `R`, ranks of the EP group.
    pub fn num_ranks(&self) -> usize {
        self.placement.num_ranks()
    }

    /// The tables of one rank, `None` if the rank does not exist.
    pub fn rank(&self, rank: Rank) -> Option<&RankTable> {
        self.ranks.get(rank.index())
    }

    /// See [`RankTable::expert_map`].
    pub fn expert_map(&self, rank: Rank) -> Option<&[i32]> {
        self.rank(rank).map(|t| t.expert_map.as_slice())
    }

    /// See [`RankTable::expert_mask`].
    pub fn expert_mask(&self, rank: Rank) -> Option<&[i32]> {
        self.rank(rank).map(|t| t.expert_mask.as_slice())
    }

    /// See [`RankTable::local_to_global`].
    pub fn local_to_global(&self, rank: Rank) -> Option<&[LogicalExpert]> {
        self.rank(rank).map(|t| t.local_to_global.as_slice())
    }

    /// Local slots of a rank, shared experts included.
    pub fn num_local_experts(&self, rank: Rank) -> Option<usize> {
        self.rank(rank).map(|t| t.local_to_global.len())
    }

    /// The first local slot of an expert on a rank; `None` if the id is negative or out of range
    /// or the expert is not there.
    pub fn map_global_to_local(&self, rank: Rank, id: i64) -> Option<LocalExpert> {
        let local = *self.expert_map(rank)?.get(usize::try_from(id).ok()?)?;
        LocalExpert::from_raw(i64::from(local))
    }

    /// All slots of an expert, ascending; `None` if there is no such expert.
    pub fn replicas(&self, expert: LogicalExpert) -> Option<&[PhysicalExpert]> {
        let start = *self.replica_offsets.get(expert.index())?;
        let end = *self.replica_offsets.get(expert.index() + 1)?;
        self.replicas.get(start..end)
    }

    /// The first slot of every expert, `[E + S]`.
    pub fn global_to_physical(&self) -> Vec<PhysicalExpert> {
        self.replica_offsets[..self.replica_offsets.len() - 1]
            .iter()
            .map(|&start| self.replicas[start])
            .collect()
    }

    /// The expert in every slot, `[P + S]`.
    pub fn physical_to_global(&self) -> Vec<LogicalExpert> {
        let shared = (0..self.num_shared_experts)
            .map(|s| LogicalExpert::new(self.num_logical_experts() + s));
        self.placement
            .physical_to_logical()
            .iter()
            .copied()
            .chain(shared)
            .collect()
    }

    /// How many slots every expert has, `[E + S]`; a fused shared expert has one, on every rank.
    pub fn replica_counts(&self) -> Vec<usize> {
        self.replica_offsets
            .windows(2)
            .map(|w| w[1] - w[0])
            .collect()
    }

    /// The expert in a slot, `None` if the slot does not exist.
    pub fn logical_of(&self, slot: PhysicalExpert) -> Option<LogicalExpert> {
        let routed = self.num_physical_experts();
        match slot.index().checked_sub(routed) {
            None => self
                .placement
                .physical_to_logical()
                .get(slot.index())
                .copied(),
            Some(s) if s < self.num_shared_experts => {
                Some(LogicalExpert::new(self.num_logical_experts() + s))
            }
            Some(_) => None,
        }
    }

    /// The rank that owns a routed slot. `None` if the slot does not exist, or belongs to a fused
    /// shared expert, which every rank owns.
    pub fn owner(&self, slot: PhysicalExpert) -> Option<Rank> {
        self.owners.get(slot.index()).copied()
    }

    /// The local index of a slot on a rank; `None` if the rank does not own it.
    pub fn local_index(&self, rank: Rank, slot: PhysicalExpert) -> Option<LocalExpert> {
        let range = self.placement.slot_range(rank)?;
        if range.contains(&slot.index()) {
            return Some(LocalExpert::new(slot.index() - range.start));
        }
        let shared = slot.index().checked_sub(self.num_physical_experts())?;
        (shared < self.num_shared_experts).then(|| LocalExpert::new(range.len() + shared))
    }

    /// The slot of a local index, `None` if the rank has no such local slot.
    pub fn physical_of(&self, rank: Rank, local: LocalExpert) -> Option<PhysicalExpert> {
        let range = self.placement.slot_range(rank)?;
        if local.index() < range.len() {
            return Some(PhysicalExpert::new(range.start + local.index()));
        }
        let shared = local.index() - range.len();
        (shared < self.num_shared_experts)
            .then(|| PhysicalExpert::new(self.num_physical_experts() + shared))
    }
}

/// Offsets `[E + S + 1]` and slots `[P + S]`, by counting sort.
fn replica_lists(placement: &Placement, num_shared: usize) -> (Vec<usize>, Vec<PhysicalExpert>) {
    let mut offsets = vec![0];
    let mut total = 0;
    for count in placement
        .replica_counts()
        .into_iter()
        .chain(std::iter::repeat_n(1, num_shared))
    {
        total += count;
        offsets.push(total);
    }
    let mut next = offsets.clone();
    let mut replicas = vec![PhysicalExpert::default(); total];
    let shared = (0..num_shared).map(|s| LogicalExpert::new(placement.num_logical_experts() + s));
    let experts = placement
        .physical_to_logical()
        .iter()
        .copied()
        .chain(shared);
    for (slot, expert) in experts.enumerate() {
        replicas[next[expert.index()]] = PhysicalExpert::new(slot);
        next[expert.index()] += 1;
    }
    (offsets, replicas)
}

fn rank_table(num_logical: usize, experts: &[LogicalExpert], num_shared: usize) -> RankTable {
    let shared = (0..num_shared).map(|s| LogicalExpert::new(num_logical + s));
    let local_to_global: Vec<_> = experts.iter().copied().chain(shared).collect();
    let mut expert_map = vec![NOT_LOCAL; num_logical + num_shared];
    // Backwards, so that the first of several slots of one expert is the one that stays.
    for (local, expert) in local_to_global.iter().enumerate().rev() {
        expert_map[expert.index()] = i32::try_from(local).unwrap_or(NOT_LOCAL);
    }
    let mut expert_mask: Vec<i32> = expert_map
        .iter()
        .map(|&local| i32::from(local != NOT_LOCAL))
        .collect();
    expert_mask.push(0);
    RankTable {
        expert_map,
        expert_mask,
        local_to_global,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn table(ranks: &[Vec<usize>], experts: usize, shared: usize) -> RoutingTable {
        let placement = Placement::from_ranks(experts, ranks).unwrap();
        RoutingTable::new(placement, Topology::new(ranks.len()).unwrap(), shared, 7).unwrap()
    }

    #[test]
    fn duplicates_on_a_rank_map_to_the_first() {
        let t = table(&[vec![1, 0, 1], vec![0]], 2, 1);
        assert_eq!(t.expert_map(Rank::new(0)), Some(&[1, 0, 3][..]));
        assert_eq!(t.expert_map(Rank::new(1)), Some(&[0, -1, 1][..]));
        assert_eq!(t.replica_counts(), [2, 2, 1]);
        assert_eq!(t.global_to_physical(), [1, 0, 4].map(PhysicalExpert::new));
        assert_eq!(t.owner(PhysicalExpert::new(3)), Some(Rank::new(1)));
        assert_eq!(
            t.owner(PhysicalExpert::new(4)),
            None,
            "every rank owns a shared expert"
        );
    }

    #[test]
    fn ranks_of_another_topology_are_refused() {
        let placement = Placement::from_ranks(1, &[[0], [0]]).unwrap();
        let error = RoutingTable::new(placement, Topology::new(3).unwrap(), 0, 0).unwrap_err();
        assert_eq!(
            error,
            RoutingError::RankCount {
                placement: 2,
                topology: 3
            }
        );
    }

    /// Any number of experts, ranks, extra slots and shared experts, uneven on purpose.
    fn any_table() -> impl Strategy<Value = RoutingTable> {
        (1usize..20, 1usize..9, 0usize..3)
            .prop_flat_map(|(experts, ranks, shared)| {
                let extra = prop::collection::vec(0..experts, 0..12);
                let cuts = prop::collection::vec(0usize..1000, ranks - 1);
                (Just((experts, shared)), extra, cuts)
            })
            .prop_map(|((experts, shared), extra, cuts)| {
                let slots: Vec<usize> = extra.iter().copied().chain(0..experts).collect();
                let mut offsets: Vec<usize> = cuts.iter().map(|c| c % (slots.len() + 1)).collect();
                offsets.extend([0, slots.len()]);
                offsets.sort_unstable();
                let ranks = offsets.len() - 1;
                let placement = Placement::new(experts, slots, offsets).unwrap();
                RoutingTable::new(placement, Topology::new(ranks).unwrap(), shared, 0).unwrap()
            })
    }

    proptest! {
        #[test]
        fn maps_are_inverse_to_each_other(t in any_table()) {
            let total = t.num_logical_experts() + t.num_shared_experts();
            for e in (0..total).map(LogicalExpert::new) {
                let replicas = t.replicas(e).unwrap();
                prop_assert!(!replicas.is_empty() && replicas.is_sorted());
                for &slot in replicas {
                    prop_assert_eq!(t.logical_of(slot), Some(e));
                }
            }
            for r in (0..t.num_ranks()).map(Rank::new) {
                let tables = t.rank(r).unwrap();
                prop_assert_eq!(tables.expert_map.len(), total);
                prop_assert_eq!(tables.expert_mask.len(), total + 1);
                prop_assert_eq!(tables.expert_mask[total], 0);
                for local in 0..tables.local_to_global.len() {
                    let slot = t.physical_of(r, LocalExpert::new(local)).unwrap();
                    prop_assert_eq!(t.local_index(r, slot), Some(LocalExpert::new(local)));
                    prop_assert_eq!(t.logical_of(slot), Some(tables.local_to_global[local]));
                }
                for id in -3..total as i64 + 3 {
                    let local = t.map_global_to_local(r, id);
                    let inside = (0..total as i64).contains(&id);
                    let held = inside && tables.expert_mask[id as usize] == 1;
                    prop_assert_eq!(local.is_some(), held);
                    if let Some(local) = local {
                        prop_assert_eq!(tables.local_to_global[local.index()].raw(), id);
                    }
                }
            }
            let owned: usize = (0..t.num_ranks()).map(|r| t.num_local_experts(Rank::new(r)).unwrap()).sum();
            prop_assert_eq!(owned, t.num_physical_experts() + t.num_ranks() * t.num_shared_experts());
        }
    }
}
