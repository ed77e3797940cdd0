//! The slots of one layer while they are being decided.

/// Replica counts, slots and rank loads of one layer.
///
/// The slots of a rank lie side by side: first those of replicated experts, then those of experts with
/// one replica; each part by falling load. A rank without slots is dead and appears in no order.
#[derive(Clone, Debug, Default)]
pub(crate) struct State {
    /// Load of each expert.
    pub(crate) load: Vec<f64>,
    /// Replicas of each expert.
    pub(crate) count: Vec<u32>,
    /// Load of one replica of each expert.
    pub(crate) share: Vec<f64>,
    /// First slot of each rank, and the number of slots at the end.
    pub(crate) start: Vec<u32>,
    /// Expert of each slot.
    pub(crate) slot: Vec<u32>,
    /// Load of each slot.
    pub(crate) value: Vec<f64>,
    /// Slots of each rank that are filled.
    pub(crate) filled: Vec<u32>,
    /// Slots of each rank that hold a replicated expert.
    pub(crate) multi: Vec<u32>,
    /// Load of each rank.
    pub(crate) rank_load: Vec<f64>,
    /// Time per unit of load of each rank: one over its speed.
    pub(crate) pace: Vec<f64>,
    /// The ranks under search (those that have slots, or a part of them) by rising cost.
    pub(crate) order: Vec<u32>,
    /// Pairs of ranks looked at so far.
    pub(crate) work: u64,
}

impl State {
    /// Takes the shape of a layer; every expert counts one replica and no slot is filled.
    pub(crate) fn reset(&mut self, loads: &[f64], slots_per_rank: &[usize], speed: Option<&[f64]>) {
        self.work = 0;
        self.load.clear();
        self.load.extend_from_slice(loads);
        self.start.clear();
        self.start.push(0);
        let mut total = 0;
        for &slots in slots_per_rank {
            total += slots as u32;
            self.start.push(total);
        }
        self.slot.clear();
        self.slot.resize(total as usize, 0);
        self.value.clear();
        self.value.resize(total as usize, 0.0);
        self.pace.clear();
        match speed {
            Some(speed) => self.pace.extend(speed.iter().map(|s| 1.0 / s)),
            None => self.pace.resize(slots_per_rank.len(), 1.0),
        }
        self.order.clear();
        self.order
            .extend((0..slots_per_rank.len() as u32).filter(|&r| slots_per_rank[r as usize] > 0));
        self.clear_counts();
        self.clear_slots();
    }

    /// Gives every expert one replica.
    pub(crate) fn clear_counts(&mut self) {
        self.count.clear();
        self.count.resize(self.load.len(), 1);
        self.share.clear();
        self.share.extend_from_slice(&self.load);
    }

    /// Empties every slot.
    pub(crate) fn clear_slots(&mut self) {
        let ranks = self.ranks();
        for list in [&mut self.filled, &mut self.multi] {
            list.clear();
            list.resize(ranks, 0);
        }
        self.rank_load.clear();
        self.rank_load.resize(ranks, 0.0);
    }

    /// Takes every slot for filled.
    pub(crate) fn fill(&mut self) {
        for rank in 0..self.ranks() {
            self.filled[rank] = self.start[rank + 1] - self.start[rank];
        }
    }

    pub(crate) fn ranks(&self) -> usize {
        self.pace.len()
    }

    pub(crate) fn set_count(&mut self, expert: u32, count: u32) {
        self.count[expert as usize] = count;
        self.share[expert as usize] = self.load[expert as usize] / f64::from(count);
    }

    pub(crate) fn has_room(&self, rank: usize) -> bool {
        self.start[rank] + self.filled[rank] < self.start[rank + 1]
    }

    /// The filled slots of a rank.
    pub(crate) fn slots(&self, rank: usize) -> std::ops::Range<usize> {
        self.start[rank] as usize..(self.start[rank] + self.filled[rank]) as usize
    }

    /// The experts on a rank.
    pub(crate) fn experts(&self, rank: usize) -> &[u32] {
        &self.slot[self.slots(rank)]
    }

    pub(crate) fn holds(&self, rank: usize, expert: u32) -> bool {
        self.experts(rank).contains(&expert)
    }

    pub(crate) fn cost(&self, rank: usize) -> f64 {
        self.rank_load[rank] * self.pace[rank]
    }

    /// The largest cost of a rank.
    pub(crate) fn worst(&self) -> f64 {
        self.order.last().map_or(0.0, |&r| self.cost(r as usize))
    }

    /// Puts a replica into the next empty slot of a rank.
    pub(crate) fn push(&mut self, rank: usize, expert: u32) {
        let at = (self.start[rank] + self.filled[rank]) as usize;
        let value = self.share[expert as usize];
        self.slot[at] = expert;
        self.value[at] = value;
        self.filled[rank] += 1;
        self.rank_load[rank] += value;
    }

    /// Recomputes loads, the order of slots and the order of ranks from the experts in the slots.
    pub(crate) fn settle(&mut self) {
        for rank in 0..self.ranks() {
            self.settle_rank(rank);
        }
        self.settle_order();
    }

    /// Sorts the ranks under search by cost.
    pub(crate) fn settle_order(&mut self) {
        let (load, pace) = (&self.rank_load, &self.pace);
        let cost = |r: u32| load[r as usize] * pace[r as usize];
        self.order
            .sort_unstable_by(|&a, &b| cost(a).total_cmp(&cost(b)).then(a.cmp(&b)));
    }

    /// Recomputes the load and the order of slots of one rank.
    pub(crate) fn settle_rank(&mut self, rank: usize) {
        let slots = self.slots(rank);
        let (mut multi, mut load) = (0, 0.0);
        for i in slots.clone() {
            let expert = self.slot[i];
            let value = self.share[expert as usize];
            let replicated = self.count[expert as usize] > 1;
            multi += u32::from(replicated);
            load += value;
            let mut j = i;
            while j > slots.start {
                let before = self.slot[j - 1];
                let ahead = self.count[before as usize] > 1;
                if ahead == replicated && self.value[j - 1] >= value || ahead && !replicated {
                    break;
                }
                self.slot[j] = before;
                self.value[j] = self.value[j - 1];
                j -= 1;
            }
            self.slot[j] = expert;
            self.value[j] = value;
        }
        self.multi[rank] = multi;
        self.rank_load[rank] = load;
    }

    /// Moves a rank to its place in the order after its load has changed.
    pub(crate) fn reorder(&mut self, rank: usize) {
        let Some(mut at) = self.order.iter().position(|&r| r as usize == rank) else {
            return;
        };
        let cost = self.cost(rank);
        let before = |s: &Self, other: u32| {
            let c = s.cost(other as usize);
            c < cost || (c == cost && (other as usize) < rank)
        };
        while at + 1 < self.order.len() && before(self, self.order[at + 1]) {
            self.order[at] = self.order[at + 1];
            at += 1;
        }
        while at > 0 && !before(self, self.order[at - 1]) {
            self.order[at] = self.order[at - 1];
            at -= 1;
        }
        self.order[at] = rank as u32;
    }
}
