use super::rounding::Rounding;
use crate::error::at_most;
use crate::{LogicalExpert, Placement, RoutingError, RoutingTable};

/// Tokens of a step, at most: whole numbers that an `f64` holds exactly.
const MAX_TOKENS: u64 = 1 << 53;

/// How far the split overshoots a block's own optimum. Successive over-relaxation: what one expert
/// gives up, its neighbours will give up as well, so that a step a little too long is on average
/// the better one; 1 is plain block-coordinate descent, below 2 it converges.
const RELAXATION: f64 = 1.5;

/// Sweeps from one look at the distance from the optimum to the next.
const SWEEPS_PER_CHECK: usize = 4;

/// How many of a step's tokens each replica serves: water-filling over the replicas of a placement.
///
/// The split minimizes the sum of the squared rank loads, `min sum_r (base_r + sum_e x_er)²` over
/// `x_er >= 0`, `sum_r x_er = counts_e`: the rank loads that solve it are the least majorized ones,
/// so that the busiest rank carries as little as any split allows (Veinott 1971; Megiddo 1974 on
/// lexicographically optimal flows). It is found by block-coordinate descent with over-relaxation:
/// expert by expert, its tokens are poured over its ranks like water over a floor of what the ranks
/// carry besides. Experts that sit on one rank only are part of the floor from the start. It ends
/// when a set of ranks proves that no split is better by more than the tolerance (the ranks that
/// the tokens of the busiest one can reach), or after a number of sweeps; never by time. Fractions
/// are rounded by largest remainder, errors of one expert carried on to the next.
///
/// The split begins with the last one's proportions, so that of two splits under one table the
/// second depends on both counts. Whoever splits the same counts in the same order gets the same
/// shares, on any machine. Of several replicas on one rank the first serves all.
///
/// Time: O(experts + sweeps × replicas). Memory is reused from split to split.
///
/// ```
/// use moekit_routing::{Placement, ReplicaShares, RoutingTable, Topology};
///
/// // Expert 0 is on both ranks; rank 1 must carry expert 2 as well.
/// let placement = Placement::from_ranks(3, &[[0, 1], [0, 2]])?;
/// let table = RoutingTable::new(placement, Topology::new(2)?, 0, 0)?;
/// let mut shares = ReplicaShares::new(&table);
/// assert_eq!(shares.split(&[4, 1, 3])?, [3, 1, 1, 3]);
/// # Ok::<(), moekit_routing::RoutingError>(())
/// ```
#[derive(Clone, Debug)]
pub struct ReplicaShares {
    pub(super) settings: ShareSettings,
    placement: Placement,
    generation: u64,
    /// Experts on one rank.
    single: Vec<Single>,
    /// Experts on several ranks.
    pub(super) spread: Vec<Spread>,
    /// Their replicas, expert by expert, ranks ascending.
    pub(super) replicas: Vec<Replica>,
    /// `[R + 1]` offsets into `on_rank`.
    rank_offsets: Vec<u32>,
    /// The spread experts on each rank.
    on_rank: Vec<u32>,
    /// Each replica's part of its expert's tokens, as last known.
    pub(super) fractions: Vec<f64>,
    /// Tokens of each replica.
    tokens: Vec<f64>,
    /// Tokens of each rank, `[R]`.
    loads: Vec<f64>,
    /// What an expert's ranks carry besides it, as long as the largest number of replicas.
    floor: Vec<f64>,
    reach: Reach,
    rounding: Rounding,
    /// The result, `[P]`.
    split: Vec<u64>,
}

/// When a split is good enough.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct ShareSettings {
    pub(super) tolerance: f64,
    pub(super) max_sweeps: usize,
}

impl Default for ShareSettings {
    fn default() -> Self {
        Self {
            tolerance: 1e-3,
            max_sweeps: 200,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Single {
    expert: u32,
    rank: u32,
    slot: u32,
}

/// An expert on several ranks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spread {
    pub(super) expert: u32,
    /// Its replicas: a range of the list of all.
    pub(super) start: u32,
    pub(super) end: u32,
}

impl Spread {
    pub(super) fn range(self) -> std::ops::Range<usize> {
        self.start as usize..self.end as usize
    }
}

/// The first slot of an expert on a rank.
#[derive(Clone, Copy, Debug)]
pub(super) struct Replica {
    pub(super) rank: u32,
    pub(super) slot: u32,
}

/// Ranks and experts that a search has reached.
#[derive(Clone, Debug, Default)]
struct Reach {
    ranks: Vec<bool>,
    experts: Vec<bool>,
    queue: Vec<u32>,
}

impl ReplicaShares {
    /// Shares over the replicas of a table, equal ones at first.
    pub fn new(table: &RoutingTable) -> Self {
        Self::with_settings(table, ShareSettings::default())
    }

    pub(super) fn with_settings(table: &RoutingTable, settings: ShareSettings) -> Self {
        let (num_ranks, num_slots) = (table.num_ranks(), table.num_physical_experts());
        let (mut single, mut spread) = (Vec::new(), Vec::new());
        let mut replicas: Vec<Replica> = Vec::new();
        for expert in (0..table.num_logical_experts()).map(LogicalExpert::new) {
            let start = replicas.len();
            for &slot in table.replicas(expert).unwrap_or_default() {
                let rank = table.owner(slot).unwrap_or_default().index() as u32;
                if replicas[start..]
                    .last()
                    .is_none_or(|last| last.rank != rank)
                {
                    let slot = slot.index() as u32;
                    replicas.push(Replica { rank, slot });
                }
            }
            let expert = expert.index() as u32;
            if let [Replica { rank, slot }] = replicas[start..] {
                replicas.truncate(start);
                single.push(Single { expert, rank, slot });
            } else {
                let (start, end) = (start as u32, replicas.len() as u32);
                spread.push(Spread { expert, start, end });
            }
        }
        let (rank_offsets, on_rank) = experts_by_rank(&spread, &replicas, num_ranks);
        let most = spread.iter().map(|s| s.range().len()).max().unwrap_or(0);
        let equal = |s: &Spread| std::iter::repeat_n(1.0 / s.range().len() as f64, s.range().len());
        Self {
            settings,
            placement: table.placement().clone(),
            generation: table.generation(),
            fractions: spread.iter().flat_map(equal).collect(),
            tokens: vec![0.0; replicas.len()],
            loads: vec![0.0; num_ranks],
            floor: vec![0.0; most],
            reach: Reach {
                ranks: vec![false; num_ranks],
                experts: vec![false; spread.len()],
                queue: Vec::with_capacity(num_ranks),
            },
            rounding: Rounding::new(num_ranks, most),
            split: vec![0; num_slots],
            single,
            spread,
            replicas,
            rank_offsets,
            on_rank,
        }
    }

    /// The distance from the optimum at which a split is good enough: the busiest rank carries at
    /// most `1 / (1 - tolerance)` times the least possible, before rounding. 0.001 unless set.
    ///
    /// # Errors
    ///
    /// If it is not at least 0 and below 1.
    pub fn with_tolerance(mut self, tolerance: f64) -> Result<Self, RoutingError> {
        self.settings = self.settings.with_tolerance(tolerance)?;
        Ok(self)
    }

    /// The most sweeps over all experts that a split makes, good enough or not; 200 unless set.
    #[must_use]
    pub fn with_max_sweeps(mut self, max_sweeps: usize) -> Self {
        self.settings.max_sweeps = max_sweeps;
        self
    }

    /// Whether these are shares over the replicas of this table: same generation, same placement.
    pub fn fits(&self, table: &RoutingTable) -> bool {
        self.generation == table.generation() && self.placement == *table.placement()
    }

    /// Tokens of each slot, `[P]`, as last split.
    pub fn shares(&self) -> &[u64] {
        &self.split
    }

    /// Splits a step's tokens.
    ///
    /// # Arguments
    ///
    /// - `counts` - tokens per logical expert over all ranks, `[E]`.
    ///
    /// # Returns
    ///
    /// Tokens of each slot, `[P]`; those of an expert's slots sum to its count.
    ///
    /// # Errors
    ///
    /// If there is not one count per expert, or more than 2^53 tokens.
    pub fn split(&mut self, counts: &[u64]) -> Result<&[u64], RoutingError> {
        let experts = self.placement.num_logical_experts();
        if counts.len() != experts {
            return Err(RoutingError::Length {
                what: "the token counts of a step",
                got: counts.len(),
                expected: experts,
            });
        }
        let total = counts.iter().fold(0u64, |sum, &n| sum.saturating_add(n));
        let tokens = usize::try_from(total).unwrap_or(usize::MAX);
        at_most("tokens of a step", tokens, MAX_TOKENS as usize)?;
        self.pour(counts);
        self.descend(total);
        self.rounding.start(&self.loads);
        for spread in &self.spread {
            let range = spread.range();
            let count = counts[spread.expert as usize];
            let (replicas, tokens) = (&self.replicas[range.clone()], &self.tokens[range.clone()]);
            self.rounding
                .expert(count, replicas, tokens, &mut self.split);
            if count > 0 {
                for (fraction, tokens) in self.fractions[range].iter_mut().zip(tokens) {
                    *fraction = tokens / count as f64;
                }
            }
        }
        self.rounding
            .level(&self.spread, &self.replicas, &mut self.split);
        Ok(&self.split)
    }

    /// Loads the ranks: experts on one rank whole, the others as in the last split.
    fn pour(&mut self, counts: &[u64]) {
        self.loads.fill(0.0);
        for single in &self.single {
            let count = counts[single.expert as usize];
            self.split[single.slot as usize] = count;
            self.loads[single.rank as usize] += count as f64;
        }
        for spread in &self.spread {
            let count = counts[spread.expert as usize] as f64;
            for at in spread.range() {
                self.tokens[at] = count * self.fractions[at];
                self.loads[self.replicas[at].rank as usize] += self.tokens[at];
            }
        }
    }

    /// Sweeps until the split is good enough.
    fn descend(&mut self, total: u64) {
        let mean = total as f64 / self.loads.len() as f64;
        for sweep in 0..self.settings.max_sweeps {
            if sweep % SWEEPS_PER_CHECK == 0 && self.is_good_enough(mean) {
                return;
            }
            for at in 0..self.spread.len() {
                match self.replicas[self.spread[at].range()] {
                    [a, b] => self.level_two(self.spread[at].start as usize, a, b),
                    _ => self.level_many(self.spread[at]),
                }
            }
        }
    }

    /// [`level_many`](Self::level_many) for two replicas, the most frequent number.
    fn level_two(&mut self, at: usize, a: Replica, b: Replica) {
        let (a, b) = (a.rank as usize, b.rank as usize);
        let [x, y] = [self.tokens[at], self.tokens[at + 1]];
        let wanted = 0.5 * RELAXATION * (self.loads[b] - self.loads[a]);
        let moved = wanted.clamp(-x, y);
        self.tokens[at] = x + moved;
        self.tokens[at + 1] = y - moved;
        self.loads[a] += moved;
        self.loads[b] -= moved;
    }

    /// Pours an expert's tokens anew, a little too far.
    fn level_many(&mut self, spread: Spread) {
        let replicas = &self.replicas[spread.range()];
        let tokens = &mut self.tokens[spread.range()];
        let floor = &mut self.floor[..replicas.len()];
        let mut count = 0.0;
        for ((floor, replica), tokens) in floor.iter_mut().zip(replicas).zip(&*tokens) {
            *floor = self.loads[replica.rank as usize] - tokens;
            count += tokens;
        }
        if count <= 0.0 {
            return;
        }
        let level = water_level(floor, count);
        let mut overdrawn = false;
        for (floor, tokens) in floor.iter_mut().zip(&*tokens) {
            let best = (level - *floor).max(0.0);
            let further = tokens + RELAXATION * (best - tokens);
            overdrawn |= further < 0.0;
            *floor = -further;
        }
        // The nearest split without negative shares is a pouring as well.
        let level = if overdrawn {
            water_level(floor, count)
        } else {
            0.0
        };
        for ((floor, replica), tokens) in floor.iter().zip(replicas).zip(tokens) {
            let new = (level - floor).max(0.0);
            self.loads[replica.rank as usize] += new - *tokens;
            *tokens = new;
        }
    }

    /// Whether the busiest rank is within the tolerance of the optimum: of the mean over all ranks,
    /// or over the ranks that its tokens can reach. The tokens on those can go nowhere else, so that
    /// their mean is a lower bound.
    fn is_good_enough(&mut self, mean: f64) -> bool {
        let least = 1.0 - self.settings.tolerance;
        let (mut busiest, mut max) = (0, 0.0);
        for (rank, &load) in self.loads.iter().enumerate() {
            if load > max {
                (busiest, max) = (rank, load);
            }
        }
        max * least <= mean || max * least <= self.mean_within_reach(busiest)
    }

    /// The mean load of the ranks to which tokens of `rank` could go, and theirs, and so on.
    fn mean_within_reach(&mut self, rank: usize) -> f64 {
        let reach = &mut self.reach;
        reach.ranks.fill(false);
        reach.experts.fill(false);
        reach.queue.clear();
        reach.queue.push(rank as u32);
        reach.ranks[rank] = true;
        let (mut head, mut sum) = (0, 0.0);
        while let Some(&rank) = reach.queue.get(head) {
            head += 1;
            let rank = rank as usize;
            sum += self.loads[rank];
            let experts = self.rank_offsets[rank] as usize..self.rank_offsets[rank + 1] as usize;
            for &expert in &self.on_rank[experts] {
                let range = self.spread[expert as usize].range();
                let replicas = &self.replicas[range.clone()];
                let here = replicas.iter().zip(&self.tokens[range]);
                let serves = |(replica, tokens): (&Replica, &f64)| {
                    replica.rank as usize == rank && *tokens > 0.0
                };
                if reach.experts[expert as usize] || !here.into_iter().any(serves) {
                    continue;
                }
                reach.experts[expert as usize] = true;
                for replica in replicas {
                    if !std::mem::replace(&mut reach.ranks[replica.rank as usize], true) {
                        reach.queue.push(replica.rank);
                    }
                }
            }
        }
        sum / head as f64
    }
}

impl ShareSettings {
    pub(super) fn with_tolerance(mut self, tolerance: f64) -> Result<Self, RoutingError> {
        if !(0.0..1.0).contains(&tolerance) {
            return Err(RoutingError::Tolerance {
                got: tolerance.to_string(),
            });
        }
        self.tolerance = tolerance;
        Ok(self)
    }
}

/// The spread experts of each rank, ascending: `[R + 1]` offsets and positions in `spread`.
fn experts_by_rank(
    spread: &[Spread],
    replicas: &[Replica],
    num_ranks: usize,
) -> (Vec<u32>, Vec<u32>) {
    let mut offsets = vec![0u32; num_ranks + 1];
    for replica in replicas {
        offsets[replica.rank as usize + 1] += 1;
    }
    for rank in 0..num_ranks {
        offsets[rank + 1] += offsets[rank];
    }
    let mut next = offsets.clone();
    let mut experts = vec![0; replicas.len()];
    for (expert, spread) in spread.iter().enumerate() {
        for replica in &replicas[spread.range()] {
            let next = &mut next[replica.rank as usize];
            experts[*next as usize] = expert as u32;
            *next += 1;
        }
    }
    (offsets, experts)
}

/// The level `l` with `sum max(0, l - floor) = amount`, by dropping what stands out of the water
/// until nothing does (Michelot 1986). `amount` is positive.
fn water_level(floor: &[f64], amount: f64) -> f64 {
    let (mut sum, mut under) = (floor.iter().sum::<f64>(), floor.len());
    loop {
        let level = (amount + sum) / under as f64;
        let (mut next_sum, mut next_under) = (0.0, 0);
        for &height in floor {
            if height < level {
                next_sum += height;
                next_under += 1;
            }
        }
        // In exact arithmetic the count never grows; in floats it might, by turns for ever.
        if next_under >= under || next_under == 0 {
            return level;
        }
        (sum, under) = (next_sum, next_under);
    }
}
