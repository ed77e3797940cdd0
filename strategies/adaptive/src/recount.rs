//! Replica counts, searched on what they do to the ranks that hold the experts.
//!
//! Where few slots hold few heavy pieces, the counts decide which pieces fill a rank together, and an
//! exchange of replicas changes all pieces of two experts at once. So a trial exchanges some replicas
//! between two experts, empties the ranks that hold them and a few others (ruin and recreate, Schrimpf et
//! al. 2000), and fills those anew, one after the other: each takes the largest piece that is left and what fills
//! it best beside it (minimum bin slack, Gupta and Ho 1999). Several replicas at once, since in the
//! linear program over all fillings of a rank most experts have the fewest replicas they can have while few have many
//! small pieces, which fill what the others leave. The search is an iterated local
//! search (Lourenço, Martin and Stützle 2003): trials that do no harm, and several whatever they do where
//! none helped for long.

use crate::draws::Draws;
use crate::layout::Layout;
use crate::slack::{Filled, NEAR, Piece, Pieces, strew};
use crate::swap::Work;

/// Experts with one replica below this part of the limit are sand: it fills what is left.
const SAND: f64 = 0.02;
/// Trials of a search, per slot.
const TRIALS: usize = 160;
/// As many times more where the load is further than a part of the target above it.
const LONGER: usize = 4;
const FAR: f64 = 0.012;
/// There the search ends after trials that did not come closer to the limit: as many as there were before, and as
/// many per slot, times the slots of a rank, over the square of the part by which the limit is above the target. The
/// further that is, the likelier no plan comes near.
const HOPE: f64 = 0.09;
/// By what part a search has come closer at least.
const CLOSER: f64 = 0.01;
/// By how much each limit is below the load that is reached.
const STEP: f64 = 0.001;
/// Trials per slot for the last step, which ends at the target, times the slots of a rank squared: with fewer
/// there are fewer ways to fill one.
const LAST: f64 = 1.0 / 3.0;
/// Trials per slot without an improvement after which some count in any case, and how many.
const PATIENCE: usize = 10;
const KICK: usize = 3;
/// How much worse than what it began with a search may end to go on from there.
const WORSE: f64 = 1.2;
/// Of ten trials, how many exchange replicas.
const EXCHANGES: usize = 7;
/// Ranks that are filled anew beside those of the two experts, at most, and one for each replica.
const OTHERS: usize = 10;
/// Of as many ranks, less one, the worst is among those.
const DRAWN: usize = 3;
/// Draws of an expert before there is taken to be none.
const TRIES: usize = 100;

/// Layouts with other replica counts: the best whose largest load is below that of this one, if the search
/// finds any, and the one that came closest to the next step, for other moves to go on from. All ranks are
/// alike, and no expert is twice on a rank.
///
/// Time: O(trials × ranks filled anew × their pieces), as far as the work goes.
///
/// # Arguments
///
/// - `target` - no limit is below.
/// - `enough` - a largest load, not below the target, at which the search ends.
pub(crate) fn recount<'a>(
    layout: &Layout<'a>,
    target: f64,
    enough: f64,
    work: &mut Work,
) -> Vec<Layout<'a>> {
    let mut search = Search::new(layout, target);
    if search.heavy.is_empty() {
        return Vec::new();
    }
    search.lower(work);
    let mut best = None;
    let (mut closest, mut begun) = (search.at.clone(), search.at.clone());
    let (mut since, mut kicks) = (0, 0);
    let mut progress = Progress::new(0, &search.at);
    let num_slots = layout.slots().len();
    for trial in 0..LONGER * TRIALS * num_slots {
        if work.is_done() || search.largest <= enough || search.is_over(trial, &progress) {
            break;
        }
        since += 1;
        if since > PATIENCE * num_slots {
            (since, kicks) = (0, KICK);
            if search.at.excess > WORSE * begun.excess {
                search.at.clone_from(&begun);
            }
            begun.clone_from(&search.at);
        }
        let mut change = None;
        if kicks > 0 || search.draws.below(10) < EXCHANGES {
            change = search.drawn_exchange();
            if change.is_none() {
                work.spend(TRIES);
                continue;
            }
        }
        let tried = search.trial(change, work);
        let is_taken = |trial: &Trial| kicks > 0 || trial.excess <= search.at.excess;
        let Some(taken) = tried.filter(is_taken) else {
            continue;
        };
        kicks = kicks.saturating_sub(1);
        if taken.excess < search.at.excess * (1.0 - NEAR) {
            since = 0;
        }
        search.take(&taken);
        if search.at.excess == 0.0 {
            best = Some(search.at.slots.clone());
            search.lower(work);
            (since, kicks) = (0, 0);
            progress = Progress::new(trial, &search.at);
            closest.clone_from(&search.at);
            begun.clone_from(&search.at);
        }
        if search.at.excess < closest.excess {
            closest.clone_from(&search.at);
            progress.note(trial, closest.excess);
        }
    }
    let found = best.into_iter().chain([closest.slots]);
    found
        .map(|slots| Layout::new(layout.ranks, layout.weights, slots))
        .collect()
}

/// Where a search is.
#[derive(Clone, Debug)]
struct State {
    /// The expert of each slot, `[P]`.
    slots: Vec<u32>,
    /// Replicas of each expert, `[E]`.
    counts: Vec<u32>,
    /// Load up to the limit, `[R]`.
    room: Vec<f64>,
    /// What is above the limit, squared and summed over the ranks.
    excess: f64,
}

/// Where a search has got anywhere.
#[derive(Clone, Copy, Debug)]
struct Progress {
    /// The trial at which the limit was lowered.
    lowered: usize,
    /// The last one that came closer to that limit, and how close.
    closer: usize,
    excess: f64,
}

impl Progress {
    /// The limit has just been lowered.
    fn new(trial: usize, at: &State) -> Self {
        Self {
            lowered: trial,
            closer: trial,
            excess: at.excess,
        }
    }

    fn note(&mut self, trial: usize, excess: f64) {
        if excess < self.excess * (1.0 - CLOSER) {
            (self.closer, self.excess) = (trial, excess);
        }
    }
}

/// Some replicas of an expert that another one gets.
#[derive(Clone, Copy, Debug)]
struct Exchange {
    lost: u32,
    gained: u32,
    count: u32,
}

impl Exchange {
    /// The count of an expert afterwards.
    fn apply(self, expert: u32, count: u32) -> u32 {
        match expert {
            e if e == self.lost => count - self.count,
            e if e == self.gained => count + self.count,
            _ => count,
        }
    }
}

/// Ranks that are filled anew.
struct Trial {
    change: Option<Exchange>,
    ranks: Vec<usize>,
    filled: Vec<Filled>,
    /// What all ranks have above the limit then.
    excess: f64,
}

struct Search<'l, 'a> {
    layout: &'l Layout<'a>,
    target: f64,
    /// The largest load of the last layout that kept to its limit.
    largest: f64,
    /// What no rank is to exceed next.
    limit: f64,
    at: State,
    /// Experts that are no sand.
    heavy: Vec<u32>,
    slots_per_rank: usize,
    draws: Draws,
    /// Replicas that have no place yet, `[E]`; none between trials.
    left: Vec<u32>,
}

impl<'l, 'a> Search<'l, 'a> {
    fn new(layout: &'l Layout<'a>, target: f64) -> Self {
        let experts = 0..layout.weights.len() as u32;
        let sand = SAND * layout.largest();
        let is_heavy = |&e: &u32| layout.weights[e as usize] > sand;
        Self {
            layout,
            target,
            largest: layout.largest(),
            limit: layout.largest(),
            at: State {
                slots: layout.slots().to_vec(),
                counts: experts.clone().map(|e| layout.count(e)).collect(),
                room: Vec::new(),
                excess: 0.0,
            },
            heavy: experts.filter(is_heavy).collect(),
            slots_per_rank: layout.ranks.slots(0).len(),
            draws: Draws::new(),
            left: vec![0; layout.weights.len()],
        }
    }

    fn num_ranks(&self) -> usize {
        self.layout.ranks.len()
    }

    fn held(&self, rank: usize) -> &[u32] {
        &self.at.slots[self.layout.ranks.slots(rank)]
    }

    fn count(&self, expert: u32) -> u32 {
        self.at.counts[expert as usize]
    }

    /// Whether there were enough trials, in all and since the search has got anywhere.
    fn is_over(&self, trials: usize, progress: &Progress) -> bool {
        let num_slots = self.at.slots.len();
        let above = self.limit / self.target - 1.0;
        if above >= FAR {
            let hope = HOPE * (self.slots_per_rank * num_slots) as f64 / above.powi(2);
            return trials - progress.closer > progress.closer + hope as usize;
        }
        let is_last = above <= 0.0;
        let last = LAST * (self.slots_per_rank.pow(2) * num_slots) as f64;
        trials >= TRIALS * num_slots || is_last && (trials - progress.lowered) as f64 >= last
    }

    /// The load of a replica.
    fn share(&self, expert: u32) -> f64 {
        self.layout.share_among(expert, self.count(expert))
    }

    /// The fewest replicas of an expert that are not above the limit.
    fn fewest(&self, expert: u32) -> u32 {
        let load = self.layout.weights[expert as usize];
        (load / self.limit).ceil().max(1.0) as u32
    }

    /// Lowers the limit below the largest load, to the target at most. Experts whose replicas are above it get
    /// more, whatever that does: no trial that changes one count alone would.
    fn lower(&mut self, work: &mut Work) {
        let load = |rank| self.held(rank).iter().map(|&e| self.share(e)).sum();
        let loads: Vec<f64> = (0..self.num_ranks()).map(load).collect();
        self.largest = loads.iter().copied().fold(0.0, f64::max);
        self.limit = (self.largest * (1.0 - STEP)).max(self.target);
        self.at.room = loads.iter().map(|load| self.limit - load).collect();
        self.at.excess = excess(&self.at.room);
        for _ in 0..TRIES {
            let Some(gained) = self.too_large() else {
                break;
            };
            let change = self.drawn_loser(gained).map(|lost| Exchange {
                lost,
                gained,
                count: 1,
            });
            if change.is_some()
                && let Some(trial) = self.trial(change, work)
            {
                self.take(&trial);
            }
        }
    }

    /// An expert whose replicas are above the limit.
    fn too_large(&self) -> Option<u32> {
        let mut heavy = self.heavy.iter().copied();
        heavy.find(|&e| self.share(e) > self.limit && (self.count(e) as usize) < self.num_ranks())
    }

    /// An expert with replicas to spare. Drawn by slot, so that those with many come up more often.
    fn drawn_loser(&mut self, gained: u32) -> Option<u32> {
        for _ in 0..TRIES {
            let expert = self.at.slots[self.draws.below(self.at.slots.len())];
            if expert != gained && self.count(expert) > self.fewest(expert) {
                return Some(expert);
            }
        }
        None
    }

    /// A heavy expert that is not everywhere, drawn by slot or from all.
    fn drawn_winner(&mut self) -> Option<u32> {
        for i in 0..TRIES {
            let expert = match i % 2 {
                0 => self.at.slots[self.draws.below(self.at.slots.len())],
                _ => self.heavy[self.draws.below(self.heavy.len())],
            };
            let is_sand = self.layout.weights[expert as usize] <= SAND * self.limit;
            if !is_sand && (self.count(expert) as usize) < self.num_ranks() {
                return Some(expert);
            }
        }
        None
    }

    /// A drawn exchange, of one replica or of several; `None` if no expert can spare one.
    fn drawn_exchange(&mut self) -> Option<Exchange> {
        let gained = self.drawn_winner()?;
        let lost = self.drawn_loser(gained)?;
        let spare = self.count(lost) - self.fewest(lost);
        let most = spare.min(self.num_ranks() as u32 - self.count(gained));
        let count = match self.draws.below(2) {
            0 => 1,
            _ => 1 + self.draws.below(most as usize) as u32,
        };
        Some(Exchange {
            lost,
            gained,
            count,
        })
    }

    /// Fills the ranks of the two experts and some others anew; `None` if that leaves pieces of one expert
    /// for the same rank.
    fn trial(&mut self, change: Option<Exchange>, work: &mut Work) -> Option<Trial> {
        let num_ranks = self.num_ranks();
        let is_changed = |e: &u32| change.is_some_and(|c| *e == c.lost || *e == c.gained);
        let mut is_open: Vec<bool> = (0..num_ranks)
            .map(|rank| self.held(rank).iter().any(is_changed))
            .collect();
        let fewest = change.map_or(3, |change| 1 + change.count as usize);
        for _ in 0..fewest + self.draws.below(OTHERS) {
            let mut rank = self.draws.below(num_ranks);
            for _ in 0..self.draws.below(DRAWN) {
                let other = self.draws.below(num_ranks);
                if self.at.room[other].abs() > self.at.room[rank].abs() {
                    rank = other;
                }
            }
            is_open[rank] = true;
        }
        let ranks: Vec<usize> = (0..num_ranks).filter(|&rank| is_open[rank]).collect();
        let filled = self.fill(&ranks, change, work)?;
        let mut room = self.at.room.clone();
        for (&rank, filled) in ranks.iter().zip(&filled) {
            room[rank] = filled.room;
        }
        Some(Trial {
            change,
            ranks,
            filled,
            excess: excess(&room),
        })
    }

    fn take(&mut self, trial: &Trial) {
        for (&rank, filled) in trial.ranks.iter().zip(&trial.filled) {
            self.at.room[rank] = filled.room;
            self.at.slots[self.layout.ranks.slots(rank)].copy_from_slice(&filled.experts);
        }
        if let Some(change) = trial.change {
            for e in [change.lost, change.gained] {
                self.at.counts[e as usize] = change.apply(e, self.count(e));
            }
        }
        self.at.excess = trial.excess;
    }

    /// What some ranks hold if they are emptied, replicas are exchanged, and all is put back.
    fn fill(
        &mut self,
        ranks: &[usize],
        change: Option<Exchange>,
        work: &mut Work,
    ) -> Option<Vec<Filled>> {
        let mut experts = Vec::with_capacity(ranks.len() * self.slots_per_rank);
        for &rank in ranks {
            for slot in self.layout.ranks.slots(rank) {
                let e = self.at.slots[slot];
                if self.left[e as usize] == 0 {
                    experts.push(e);
                }
                self.left[e as usize] += 1;
            }
        }
        // One that gains replicas and sits on no such rank cannot be: all of its ranks are among them.
        let after = |e: u32, count| change.map_or(count, |change| change.apply(e, count));
        let pieces = experts.iter().map(|&expert| Piece {
            load: self
                .layout
                .share_among(expert, after(expert, self.count(expert))),
            left: after(expert, self.left[expert as usize]),
            expert,
        });
        let sand = SAND * self.limit;
        let (mut light, mut of): (Vec<Piece>, Vec<Piece>) =
            pieces.partition(|piece| piece.left == 1 && piece.load < sand);
        for &e in &experts {
            self.left[e as usize] = 0;
        }
        of.sort_by(|a, b| b.load.total_cmp(&a.load));
        light.sort_by(|a, b| b.load.total_cmp(&a.load));
        let mut pieces = Pieces::new(of);
        let filled = self.pack(&mut pieces, ranks.len());
        work.spend(pieces.looked_at + ranks.len());
        let mut filled = filled?;
        strew(&light, &mut filled, self.slots_per_rank)?;
        Some(filled)
    }

    /// Fills rank after rank; `None` if that leaves pieces of one expert for the same rank.
    fn pack(&self, pieces: &mut Pieces, num_ranks: usize) -> Option<Vec<Filled>> {
        let mut packed: Vec<Filled> = Vec::with_capacity(num_ranks);
        while !pieces.of.is_empty() {
            let ranks = num_ranks - packed.len();
            let spread = pieces.of.iter().all(|piece| piece.left as usize <= ranks);
            if ranks == 0 || !spread {
                return None;
            }
            let chosen = pieces.choose(self.limit, ranks, self.slots_per_rank)?;
            // The same again as often as there are such pieces.
            let often = chosen.iter().map(|&i| pieces.of[i].left).min()?;
            let filled = Filled {
                room: self.limit - chosen.iter().map(|&i| pieces.of[i].load).sum::<f64>(),
                experts: chosen.iter().map(|&i| pieces.of[i].expert).collect(),
            };
            pieces.take(&chosen, often);
            packed.extend(std::iter::repeat_n(filled, often as usize));
        }
        packed.resize_with(num_ranks, || Filled {
            room: self.limit,
            experts: Vec::new(),
        });
        Some(packed)
    }
}

/// What is above the limit, squared and summed over the ranks.
fn excess(room: &[f64]) -> f64 {
    let over = room.iter().map(|room| room.min(0.0));
    over.map(|over| over * over).sum()
}

#[cfg(test)]
mod tests {
    use moekit_placement::Topology;

    use super::*;
    use crate::ranks::Ranks;

    #[test]
    fn counts_change_until_pieces_fill_ranks() {
        // The load is that of six ranks, the counts leave some with hardly anything.
        let topology = Topology::new(6).unwrap();
        let ranks = Ranks::new(&[3; 6], &topology, &[]);
        let weights = [
            2.4, 1.2, 0.8, 0.6, 0.5, 0.3, 0.2, 0.001, 0.001, 0.001, 0.001,
        ];
        let slots = vec![0, 6, 7, 0, 5, 8, 0, 9, 10, 1, 3, 7, 1, 3, 8, 2, 4, 9];
        let layout = Layout::new(&ranks, &weights, slots);
        let before = layout.largest();
        let found = recount(&layout, 1.0, 1.0, &mut Work::new(10_000_000)).swap_remove(0);
        assert!(
            found.largest() < before * 0.95,
            "{} {before}",
            found.largest()
        );
        for rank in 0..6 {
            let mut held = found.experts_of(rank).to_vec();
            held.sort_unstable();
            held.dedup();
            assert_eq!(held.len(), 3, "twice on a rank");
        }
        assert!((0..weights.len() as u32).all(|e| found.count(e) > 0));
    }

    #[test]
    fn without_work_or_replicas_nothing_changes() {
        let topology = Topology::new(2).unwrap();
        let ranks = Ranks::new(&[2; 2], &topology, &[]);
        let whole = Layout::new(&ranks, &[4.0, 1.0, 1.0, 1.0], vec![0, 1, 2, 3]);
        let found = recount(&whole, 1.0, 1.0, &mut Work::new(1_000));
        assert!(found.iter().all(|layout| layout.largest() >= 5.0));
        let split = Layout::new(&ranks, &[4.0, 1.0, 1.0], vec![0, 1, 0, 2]);
        let found = recount(&split, 1.0, 1.0, &mut Work::new(0));
        assert!(found.iter().all(|layout| layout.largest() >= 3.0));
    }
}
