//! A start for layers in which few experts carry most of the load: counts and places of their pieces
//! are decided together, so that the pieces fill ranks.
//!
//! A beam search (Lowerre 1976) over the heavy experts, the heaviest first. An expert takes a number of
//! replicas and puts them where hardly anything is left beside them, the others onto the ranks with
//! the most room. A beginning is as good as what the quickest way to the end makes of it (the pilot
//! method, Duin and Voß 1999).

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;

use crate::layout::EMPTY;
use crate::ranks::Ranks;
use crate::swap::Work;

/// How much is tried.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Beam {
    /// Beginnings that are followed.
    width: usize,
    /// Replicas beyond the fewest possible that are tried.
    more: u32,
    /// What may stay beside a piece that fills a rank, as a part of what the rank may carry, one after
    /// the other.
    left: &'static [f64],
}

impl Beam {
    pub(crate) const WIDE: Self = Self {
        width: 8,
        more: 4,
        left: &[0.03, 0.01],
    };
    /// For what the others do not solve.
    pub(crate) const WIDEST: Self = Self {
        width: 128,
        ..Self::WIDE
    };
    pub(crate) const NARROW: Self = Self {
        width: 1,
        more: 2,
        left: &[0.03],
    };
}

/// Experts below this part of what a rank may carry are sand: it fills what is left.
const SAND: f64 = 0.01;
/// Pieces below this part are not cut further.
const CRUMB: f64 = 0.02;

/// Places a layer so that, as far as the search finds a way, the heavy experts alone bring no rank above
/// the target.
///
/// Time: O(width × more × H × (H × R + P log H)) for H heavy experts, as far as the work goes.
///
/// # Arguments
///
/// - `order` - the experts, heaviest first, `[E]`.
///
/// # Returns
///
/// The expert of each slot, no expert twice on a rank; `None` if there is no such layout on the way.
pub(crate) fn fill_ranks(
    weights: &[f64],
    order: &[u32],
    ranks: &Ranks,
    target: f64,
    beam: Beam,
    work: &mut Work,
) -> Option<Vec<u32>> {
    let mut best: Option<(Search, Found)> = None;
    for &left in beam.left {
        let search = Search::new(weights, order, ranks, target, beam, left)?;
        if let Some(found) = search.best(work)
            && best
                .as_ref()
                .is_none_or(|(_, best)| found.excess < best.excess)
        {
            best = Some((search, found));
        }
        if best.as_ref().is_some_and(|(_, best)| best.excess == 0.0) {
            break;
        }
    }
    let (search, found) = best?;
    found.slots(&search, order, weights, ranks)
}

/// The steps of one way to the end at most: what a search costs is a multiple of it.
pub(crate) fn steps_to_the_end(weights: &[f64], ranks: &Ranks, target: f64) -> usize {
    let sand = SAND * target / ranks.least_pace();
    weights.iter().filter(|&&load| load > sand).count() * ranks.len()
}

/// How the replicas of an expert choose among ranks with room for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fit {
    /// Those that they nearly fill, then those with the most room.
    Near,
    /// Those with the least room.
    Tight,
}

/// What ranks can take.
#[derive(Clone, Debug)]
struct Room {
    /// Load up to the target and rank, the most first; ranks with a free slot only.
    left: Vec<(f64, u32)>,
    /// Free slots, `[R]`.
    free: Vec<u32>,
    /// Squared load above the target on ranks without a free slot.
    excess: f64,
}

impl Room {
    /// Puts `count` replicas of this load onto as many ranks; `None` if fewer ranks have a free slot.
    ///
    /// Time: O(R).
    fn take(&self, load: f64, count: usize, fit: Fit, near: f64) -> Option<Self> {
        let (left, open) = (&self.left, self.left.len());
        if count > open {
            return None;
        }
        // Those before `fitting` can take a replica, those from `first` on are filled by it.
        let fitting = left.partition_point(|&(room, _)| room >= load);
        let first = match fit {
            Fit::Near => left[..fitting].partition_point(|&(room, _)| room > load + near),
            Fit::Tight => 0,
        };
        let filled = (fitting - first).min(count);
        let tight = fitting - filled..fitting;
        let others = count - filled;
        // Others come from the front, past those that are filled.
        let is_chosen = |i: usize| {
            tight.contains(&i)
                || if i < tight.start {
                    i < others
                } else {
                    i - filled < others
                }
        };
        let mut after = Self {
            left: Vec::with_capacity(open),
            free: self.free.clone(),
            excess: self.excess,
        };
        let mut stay = (0..open).filter(|&i| !is_chosen(i)).peekable();
        for i in (0..open).filter(|&i| is_chosen(i)) {
            let (room, rank) = (left[i].0 - load, left[i].1);
            let free = &mut after.free[rank as usize];
            *free -= 1;
            if *free == 0 {
                after.excess += square_below_zero(room);
                continue;
            }
            while let Some(stays) = stay.next_if(|&stays| left[stays].0 >= room) {
                after.left.push(left[stays]);
            }
            after.left.push((room, rank));
        }
        after.left.extend(stay.map(|stays| left[stays]));
        Some(after)
    }

    fn excess(&self) -> f64 {
        let open = self.left.iter();
        self.excess + open.map(|&(room, _)| square_below_zero(room)).sum::<f64>()
    }
}

fn square_below_zero(room: f64) -> f64 {
    let over = room.min(0.0);
    over * over
}

/// How many replicas an expert has, and where.
#[derive(Clone, Copy, Debug)]
struct Choice {
    expert: u32,
    count: u32,
    fit: Fit,
}

/// The heaviest experts have their places, the others not yet.
#[derive(Clone, Debug)]
struct Beginning {
    room: Room,
    /// Slots beyond those that the other experts need.
    spare: u32,
    choices: Vec<Choice>,
    /// What the quickest way to the end leaves above the target.
    excess: f64,
}

/// All heavy experts in the order in which they are placed.
struct Found {
    choices: Vec<Choice>,
    /// What is above the target.
    excess: f64,
}

struct Search {
    /// Loads of the heavy experts, falling.
    loads: Vec<f64>,
    /// The fewest replicas of each that can stay below the target.
    fewest: Vec<u32>,
    start: Room,
    spare: u32,
    near: f64,
    crumb: f64,
    beam: Beam,
}

impl Search {
    fn new(
        weights: &[f64],
        order: &[u32],
        ranks: &Ranks,
        target: f64,
        beam: Beam,
        left: f64,
    ) -> Option<Self> {
        let capacity = |rank| target / ranks.pace(rank);
        let most = target / ranks.least_pace();
        let sorted = order.iter().map(|&e| weights[e as usize]);
        let loads: Vec<f64> = sorted.take_while(|&load| load > SAND * most).collect();
        let fewest = loads
            .iter()
            .map(|load| (load / most).ceil().max(1.0) as u32);
        let fewest: Vec<u32> = fewest.collect();
        let needed: usize = fewest.iter().map(|&n| n as usize).sum();
        let sand = weights.len() - loads.len();
        let spare = ranks.num_slots().checked_sub(needed + sand)?;
        let free = (0..ranks.len()).map(|rank| ranks.slots(rank).len() as u32);
        let mut room: Vec<(f64, u32)> = ranks
            .live()
            .map(|rank| (capacity(rank), rank as u32))
            .collect();
        room.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        Some(Self {
            loads,
            fewest,
            start: Room {
                left: room,
                free: free.collect(),
                excess: 0.0,
            },
            spare: spare as u32,
            near: left * most,
            crumb: CRUMB * most,
            beam,
        })
    }

    fn take(&self, room: &Room, choice: &Choice) -> Option<Room> {
        let share = self.loads[choice.expert as usize] / f64::from(choice.count);
        room.take(share, choice.count as usize, choice.fit, self.near)
    }

    fn best(&self, work: &mut Work) -> Option<Found> {
        let mut beginnings = vec![Beginning {
            room: self.start.clone(),
            spare: self.spare,
            choices: Vec::new(),
            excess: f64::INFINITY,
        }];
        let mut best: Option<Found> = None;
        for expert in 0..self.loads.len() {
            let mut next: Vec<Beginning> = Vec::new();
            for before in &beginnings {
                for mut after in self.choices(before, expert) {
                    let is_known = |other: &Beginning| {
                        other.spare == after.spare && are_alike(&other.room, &after.room)
                    };
                    if next.iter().any(is_known) {
                        continue;
                    }
                    let Some(found) = self.to_the_end(&after, work) else {
                        continue;
                    };
                    after.excess = found.excess;
                    if best.as_ref().is_none_or(|best| found.excess < best.excess) {
                        best = Some(found);
                    }
                    next.push(after);
                    let is_done = |best: &Found| best.excess == 0.0;
                    if work.is_done() || best.as_ref().is_some_and(is_done) {
                        return best;
                    }
                }
            }
            next.sort_by(|a, b| a.excess.total_cmp(&b.excess));
            next.truncate(self.beam.width);
            beginnings = next;
        }
        best
    }

    /// What can become of a beginning with the next expert.
    fn choices(&self, before: &Beginning, expert: usize) -> impl Iterator<Item = Beginning> {
        let counts = (0..=self.beam.more.min(before.spare)).filter_map(move |more| {
            let count = self.fewest[expert] + more;
            let share = self.loads[expert] / f64::from(count);
            (more == 0 || share >= self.crumb).then_some((more, count))
        });
        counts.flat_map(move |(more, count)| {
            [Fit::Near, Fit::Tight].into_iter().filter_map(move |fit| {
                let choice = Choice {
                    expert: expert as u32,
                    count,
                    fit,
                };
                let room = self.take(&before.room, &choice)?;
                let choices = before.choices.iter().copied().chain([choice]);
                Some(Beginning {
                    room,
                    spare: before.spare - more,
                    choices: choices.collect(),
                    excess: f64::INFINITY,
                })
            })
        })
    }

    /// The quickest way to the end: the slots that are left to the largest pieces, the pieces longest
    /// first.
    fn to_the_end(&self, beginning: &Beginning, work: &mut Work) -> Option<Found> {
        let from = beginning.choices.len();
        let mut room = beginning.room.clone();
        let mut choices = beginning.choices.clone();
        for (expert, count) in self.apportion(from, beginning.spare) {
            work.spend(room.left.len());
            let choice = Choice {
                expert: expert as u32,
                count,
                fit: Fit::Near,
            };
            room = self.take(&room, &choice)?;
            choices.push(choice);
        }
        Some(Found {
            choices,
            excess: room.excess(),
        })
    }

    /// The experts from one on with their counts, by falling load per replica.
    fn apportion(&self, from: usize, spare: u32) -> Vec<(usize, u32)> {
        let mut counts = self.fewest[from..].to_vec();
        // Loads are not negative, so that their bits are ordered as they are.
        let key = |i: usize, count: u32| {
            let share = self.loads[from + i] / f64::from(count);
            (share.to_bits(), Reverse(i))
        };
        let keys = counts.iter().enumerate().map(|(i, &count)| key(i, count));
        let mut shares: BinaryHeap<_> = keys.collect();
        for _ in 0..spare {
            let Some(mut top) = shares.peek_mut() else {
                break;
            };
            let i = top.1.0;
            counts[i] += 1;
            if (counts[i] as usize) < self.start.left.len() {
                *top = key(i, counts[i]);
            } else {
                PeekMut::pop(top);
            }
        }
        let mut sorted: Vec<usize> = (0..counts.len()).collect();
        sorted.sort_by_key(|&i| Reverse(key(i, counts[i])));
        let counts = sorted.into_iter().map(|i| (from + i, counts[i]));
        counts.collect()
    }
}

/// Whether ranks have as much room, whichever they are.
fn are_alike(a: &Room, b: &Room) -> bool {
    let pairs = a.left.iter().zip(&b.left);
    let slots = |room: &Room, rank: u32| room.free[rank as usize];
    a.left.len() == b.left.len()
        && pairs
            .into_iter()
            .all(|(&(x, r), &(y, q))| x == y && slots(a, r) == slots(b, q))
}

impl Found {
    /// Takes all choices anew and fills what is left with sand, the heaviest first onto the rank with the
    /// most room.
    fn slots(
        &self,
        search: &Search,
        order: &[u32],
        weights: &[f64],
        ranks: &Ranks,
    ) -> Option<Vec<u32>> {
        let mut filled: Vec<usize> = (0..ranks.len())
            .map(|rank| ranks.slots(rank).start)
            .collect();
        let mut slots = vec![EMPTY; ranks.num_slots()];
        let mut put = |rank: usize, expert: u32| {
            slots[filled[rank]] = expert;
            filled[rank] += 1;
        };
        let mut room = search.start.clone();
        for choice in &self.choices {
            let after = search.take(&room, choice)?;
            let taken = room.free.iter().zip(&after.free);
            for (rank, _) in taken
                .enumerate()
                .filter(|(_, (before, after))| after < before)
            {
                put(rank, order[choice.expert as usize]);
            }
            room = after;
        }
        for &expert in &order[search.loads.len()..] {
            let most = room
                .left
                .iter_mut()
                .reduce(|a, b| if b.0 > a.0 { b } else { a })?;
            most.0 -= weights[expert as usize];
            let rank = most.1 as usize;
            put(rank, expert);
            room.free[rank] -= 1;
            let free = &room.free;
            room.left.retain(|&(_, rank)| free[rank as usize] > 0);
        }
        (!slots.contains(&EMPTY)).then_some(slots)
    }
}

#[cfg(test)]
mod tests {
    use moekit_placement::Topology;

    use super::*;
    use crate::layout::Layout;

    fn filled(weights: &[f64], slots: &[usize], target: f64, work: usize) -> Option<Vec<f64>> {
        let topology = Topology::new(slots.len()).unwrap();
        let ranks = Ranks::new(slots, &topology, &[]);
        let order: Vec<u32> = (0..weights.len() as u32).collect();
        let mut work = Work::new(work);
        let slots = fill_ranks(weights, &order, &ranks, target, Beam::WIDE, &mut work)?;
        let layout = Layout::new(&ranks, weights, slots);
        for rank in ranks.live() {
            let mut held = layout.experts_of(rank).to_vec();
            held.sort_unstable();
            held.dedup();
            assert_eq!(held.len(), ranks.slots(rank).len(), "twice on a rank");
        }
        assert!((0..weights.len() as u32).all(|e| layout.count(e) > 0));
        Some(layout.times().to_vec())
    }

    #[test]
    fn pieces_fill_ranks_exactly() {
        // Four replicas of the first and of the last, 0.8 and 0.2, and two of the others; the best
        // apportionment has pieces of 0.53, three of which do not go with 0.5.
        let weights = [3.2, 1.0, 1.0, 0.8];
        let times = filled(&weights, &[2; 6], 1.0 + 1e-9, 100_000).unwrap();
        assert!(times.iter().all(|time| *time <= 1.0 + 1e-9), "{times:?}");
    }

    #[test]
    fn ranks_may_differ_and_the_work_may_end() {
        let weights = [3.0, 2.0, 1.0, 0.5, 0.001, 0.001];
        for work in [1, 100_000] {
            let times = filled(&weights, &[4, 0, 3, 2, 1], 2.0, work).unwrap();
            assert_eq!(times[1], 0.0);
        }
        assert_eq!(filled(&weights, &[3, 2], 2.0, 100_000), None);
    }
}
