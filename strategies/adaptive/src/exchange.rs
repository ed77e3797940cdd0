//! Giving a slot of one expert to another: the replica counts are judged on what the ranks carry.

use crate::layout::{EMPTY, Layout, ROUNDING};
use crate::swap::Work;

/// A slot and the expert that it gets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Exchange {
    pub(crate) slot: usize,
    pub(crate) expert: u32,
    /// By how much the excess over the target changes; less is better.
    pub(crate) change: f64,
}

/// Experts whose counts changed lately: those that got a replica keep it for a while, those that lost
/// one get none (tabu search, Glover 1989).
#[derive(Clone, Debug)]
pub(crate) struct Tabu {
    now: u32,
    tenure: u32,
    no_gain: Vec<u32>,
    no_loss: Vec<u32>,
}

impl Tabu {
    pub(crate) fn new(num_experts: usize) -> Self {
        Self {
            now: 1,
            tenure: (num_experts as u32 / 4).clamp(2, 8),
            no_gain: vec![0; num_experts],
            no_loss: vec![0; num_experts],
        }
    }

    pub(crate) fn note(&mut self, lost: u32, gained: u32) {
        self.no_gain[lost as usize] = self.now + self.tenure;
        self.no_loss[gained as usize] = self.now + self.tenure;
        self.now += 1;
    }

    fn may_gain(&self, expert: u32) -> bool {
        self.no_gain[expert as usize] <= self.now
    }

    fn may_lose(&self, expert: u32) -> bool {
        self.no_loss[expert as usize] <= self.now
    }
}

/// The square of what a rank has above the target.
pub(crate) fn excess(time: f64, target: f64) -> f64 {
    let over = (time - target).max(0.0);
    over * over
}

/// Slots and ranks of every expert's replicas, expert by expert.
struct Replicas {
    first: Vec<u32>,
    /// Slot and rank, by expert and slot.
    held: Vec<(u32, u32)>,
    /// A bit for each rank that holds an expert, `words` of them for each expert.
    bits: Vec<u64>,
    words: usize,
}

impl Replicas {
    fn of(layout: &Layout<'_>) -> Self {
        let num_experts = layout.weights.len();
        let mut first = vec![0; num_experts + 1];
        for e in 0..num_experts {
            first[e + 1] = first[e] + layout.count(e as u32);
        }
        let mut next = first.clone();
        let mut held = vec![(0, 0); layout.ranks.num_slots()];
        let words = layout.ranks.len().div_ceil(u64::BITS as usize);
        let mut bits = vec![0; num_experts * words];
        for rank in layout.ranks.live() {
            for (slot, &expert) in layout.ranks.slots(rank).zip(layout.experts_of(rank)) {
                if expert != EMPTY {
                    held[next[expert as usize] as usize] = (slot as u32, rank as u32);
                    next[expert as usize] += 1;
                    bits[expert as usize * words + rank / 64] |= 1 << (rank % 64);
                }
            }
        }
        Self {
            first,
            held,
            bits,
            words,
        }
    }

    /// Whether a rank holds an expert.
    fn is_on(&self, expert: u32, rank: usize) -> bool {
        self.bits[expert as usize * self.words + rank / 64] >> (rank % 64) & 1 != 0
    }

    /// Whether a rank holds both experts.
    fn meet(&self, a: u32, b: u32) -> bool {
        let bits = |expert: u32| &self.bits[expert as usize * self.words..][..self.words];
        bits(a).iter().zip(bits(b)).any(|(a, b)| a & b != 0)
    }

    fn of_expert(&self, expert: u32) -> &[(u32, u32)] {
        let e = expert as usize;
        &self.held[self.first[e] as usize..self.first[e + 1] as usize]
    }
}

/// The exchange around a busy rank after which the squared excess over the target, summed over the
/// ranks, is smallest; it may be larger than before. Either an expert of the busy rank gets a
/// replica elsewhere, or a replica leaves it for a lighter one.
///
/// Time: O(s × (replicas + E)) for the s slots of the rank, and more for the few that may be best.
pub(crate) fn best_exchange(
    layout: &Layout<'_>,
    busy: usize,
    target: f64,
    tabu: &Tabu,
    work: &mut Work,
) -> Option<Exchange> {
    let search = Exchanges::of(layout, target);
    let mut best: Option<Exchange> = None;
    search.around(busy, &mut |slot, rank, expert, least| {
        work.spend(1);
        let may_be_best = |change: f64| best.is_none_or(|best| change < best.change);
        let is_allowed = || tabu.may_lose(layout.expert(slot)) && tabu.may_gain(expert);
        let most = best.map_or(f64::INFINITY, |best| best.change);
        if may_be_best(least)
            && is_allowed()
            && search.can_take(rank, expert)
            && !search.changes_by_more(slot, rank, expert, least, most)
        {
            let change = search.change(slot, rank, expert);
            if may_be_best(change) {
                best = Some(Exchange {
                    slot,
                    expert,
                    change,
                });
            }
        }
    });
    best
}

/// What exchanges do to the excess over a target.
pub(crate) struct Exchanges<'l, 'a> {
    layout: &'l Layout<'a>,
    target: f64,
    replicas: Replicas,
    live: u32,
    /// The load of each replica of an expert, `[E]`.
    shares: Vec<f64>,
    /// The same with one more.
    come: Vec<f64>,
    /// The same with one less.
    gone: Vec<f64>,
    /// How the excess changes where an expert sits already if it gets one more, `[E]`.
    relief: Vec<f64>,
    /// How the excess changes where an expert sits if it gets one less and all of them stay, `[E]`.
    burden: Vec<f64>,
    /// More than the rounding error of a change.
    rounding: f64,
    /// Slots and ranks of the experts that have several replicas.
    several: Vec<(usize, usize)>,
}

impl<'l, 'a> Exchanges<'l, 'a> {
    pub(crate) fn of(layout: &'l Layout<'a>, target: f64) -> Self {
        let mut search = Self {
            layout,
            target,
            replicas: Replicas::of(layout),
            live: layout.ranks.live().count() as u32,
            shares: Vec::new(),
            come: Vec::new(),
            gone: Vec::new(),
            relief: Vec::new(),
            burden: Vec::new(),
            rounding: 0.0,
            several: Vec::new(),
        };
        let experts = 0..layout.weights.len() as u32;
        let with = |change: i32| -> Vec<f64> {
            let count = |e| layout.count(e).saturating_add_signed(change);
            let each = experts.clone();
            each.map(|e| layout.share_among(e, count(e))).collect()
        };
        (search.shares, search.come, search.gone) = (with(0), with(1), with(-1));
        let rises = |after: &[f64]| -> Vec<f64> {
            let rise = |e: u32| {
                let more = after[e as usize] - search.shares[e as usize];
                let held = search.replicas.of_expert(e).iter();
                held.map(|&(_, rank)| search.rise(rank as usize, more))
                    .sum()
            };
            experts.clone().map(rise).collect()
        };
        (search.relief, search.burden) = (rises(&search.come), rises(&search.gone));
        let largest = layout.largest().max(target);
        search.rounding = ROUNDING * f64::from(search.live) * largest * largest;
        for rank in layout.ranks.live() {
            for (slot, &expert) in layout.ranks.slots(rank).zip(layout.experts_of(rank)) {
                if expert != EMPTY && layout.count(expert) > 1 {
                    search.several.push((slot, rank));
                }
            }
        }
        search
    }

    /// By how much the excess of a rank rises with a load.
    fn rise(&self, rank: usize, load: f64) -> f64 {
        let time = self.layout.times()[rank];
        let after = time + load * self.layout.ranks.pace(rank);
        excess(after, self.target) - excess(time, self.target)
    }

    /// Calls `visit(slot, rank, expert, least)` for every exchange that takes load off a busy rank: of
    /// a slot elsewhere that an expert of the rank could get, and of a slot of the rank that a lighter
    /// replica could get. The excess changes by `least` or more. Whether the rank can take the
    /// expert is not looked at.
    pub(crate) fn around(&self, busy: usize, visit: &mut dyn FnMut(usize, usize, u32, f64)) {
        let layout = self.layout;
        // What other replicas of the expert that leaves get on top cannot be below nothing.
        let least = |slot: usize, rank: usize, expert: u32| {
            let load = self.come[expert as usize] - layout.share_of(slot);
            self.relief[expert as usize] + self.rise(rank, load)
        };
        for &expert in layout.experts_of(busy) {
            for &(slot, rank) in self.several.iter().filter(|&&(_, rank)| rank != busy) {
                visit(slot, rank, expert, least(slot, rank, expert));
            }
        }
        for &(slot, _) in self.several.iter().filter(|&&(_, rank)| rank == busy) {
            for expert in 0..layout.weights.len() as u32 {
                if self.come[expert as usize] < layout.share_of(slot) {
                    visit(slot, busy, expert, least(slot, busy, expert));
                }
            }
        }
    }

    /// Whether a rank lacks an expert that is not everywhere.
    pub(crate) fn can_take(&self, rank: usize, expert: u32) -> bool {
        self.layout.count(expert) < self.live && !self.replicas.is_on(expert, rank)
    }

    /// Whether the excess changes by more than `most`, and certainly by `least`, if the slot, on this rank,
    /// gets the expert. Less work than the change itself: known only of two experts that meet nowhere.
    fn changes_by_more(
        &self,
        slot: usize,
        rank: usize,
        expert: u32,
        least: f64,
        most: f64,
    ) -> bool {
        let lost = self.layout.expert(slot);
        if lost == EMPTY || self.replicas.meet(lost, expert) {
            return false;
        }
        let rise = self.gone[lost as usize] - self.shares[lost as usize];
        let elsewhere = self.burden[lost as usize] - self.rise(rank, rise);
        least + elsewhere > most + self.rounding
    }

    /// What happens to the excess if the slot, on this rank, gets the expert.
    pub(crate) fn change(&self, slot: usize, rank: usize, expert: u32) -> f64 {
        let layout = self.layout;
        let come = self.come[expert as usize];
        let drop = self.shares[expert as usize] - come;
        let lost = Some(layout.expert(slot)).filter(|&lost| lost != EMPTY);
        let (share, rise, losing) = match lost {
            None => (0.0, 0.0, &[][..]),
            Some(lost) => {
                let share = self.shares[lost as usize];
                let rise = self.gone[lost as usize] - share;
                (share, rise, self.replicas.of_expert(lost))
            }
        };
        let gaining = self.replicas.of_expert(expert);
        let mut change = self.rise(rank, come - share);
        for &(other, r) in losing {
            if other as usize != slot {
                let both = self.replicas.is_on(expert, r as usize);
                change += self.rise(r as usize, if both { rise - drop } else { rise });
            }
        }
        for &(_, r) in gaining {
            if !lost.is_some_and(|lost| self.replicas.is_on(lost, r as usize)) {
                change += self.rise(r as usize, -drop);
            }
        }
        change
    }
}
