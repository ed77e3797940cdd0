mod quota;
mod rounding;
mod shares;
#[cfg(test)]
mod tests;

use std::sync::{Mutex, PoisonError};

use super::{CountsNeeded, SelectContext, SelectReplica, for_each_id};
use crate::{PhysicalExpert, RoutingError};
use quota::Quotas;
use shares::ShareSettings;

pub use shares::ReplicaShares;

/// Each replica's share of its expert's tokens follows from the counts of a step, so that the
/// busiest rank has as little to do as any split allows: see [`ReplicaShares`].
///
/// With the counts [of this step](Self::this_step) the shares are exact: over all ranks every slot
/// gets exactly its share. That costs one exchange of counts before the dispatch, which it is the
/// layer's business to make; from there on every rank derives the same shares by itself. With those
/// [of the step before](Self::previous_step) the exchange can overlap with other work, and every
/// rank applies the proportions of that step to the tokens that it has now.
///
/// Each rank serves its own tokens first, each node its own next: of the splits that give every
/// slot its share, none keeps more tokens on their rank.
///
/// A selector remembers the last step, where the next split begins. It forgets when the routing
/// table changes; ranks that route the same steps under a table agree, a clone included.
#[derive(Debug)]
pub struct Waterfill {
    step: Step,
    settings: ShareSettings,
    state: Mutex<Option<Box<State>>>,
}

/// Whose counts the shares follow from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    This,
    Previous,
}

/// What is kept from step to step, under one routing table.
#[derive(Clone, Debug)]
struct State {
    shares: ReplicaShares,
    quotas: Quotas,
    /// Tokens of each logical expert on all ranks, `[E]`.
    totals: Vec<u64>,
    /// Tokens of each logical expert on this rank, `[E]`.
    own: Vec<u64>,
    /// How many of this rank's tokens each replica of a spread expert has yet to get.
    quota: Vec<u64>,
    /// For each logical expert, the place of its replica in turn; [`SINGLE`] if it has one rank.
    turn: Vec<u32>,
}

const SINGLE: u32 = u32::MAX;

impl Clone for Waterfill {
    fn clone(&self) -> Self {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        Self {
            step: self.step,
            settings: self.settings,
            state: Mutex::new(state.clone()),
        }
    }
}

impl Waterfill {
    /// Shares from the counts of the batch that is being routed.
    pub fn this_step() -> Self {
        Self::new(Step::This)
    }

    /// Shares from the counts of the batch before.
    pub fn previous_step() -> Self {
        Self::new(Step::Previous)
    }

    fn new(step: Step) -> Self {
        Self {
            step,
            settings: ShareSettings::default(),
            state: Mutex::new(None),
        }
    }

    /// See [`ReplicaShares::with_tolerance`].
    ///
    /// # Errors
    ///
    /// If it is not at least 0 and below 1.
    pub fn with_tolerance(mut self, tolerance: f64) -> Result<Self, RoutingError> {
        self.settings = self.settings.with_tolerance(tolerance)?;
        Ok(self)
    }

    /// See [`ReplicaShares::with_max_sweeps`].
    #[must_use]
    pub fn with_max_sweeps(mut self, max_sweeps: usize) -> Self {
        self.settings.max_sweeps = max_sweeps;
        self
    }

    /// The counts that the selector asked for, `[R, E]`.
    fn counts<'a>(&self, context: &SelectContext<'a>) -> Result<&'a [u64], RoutingError> {
        let (selector, step) = match self.step {
            Step::This => ("waterfill", "this step"),
            Step::Previous => ("waterfill_previous", "the previous step"),
        };
        let missing = RoutingError::MissingCounts { selector, step };
        let counts = context.counts.ok_or(missing)?;
        let expected = context.table.num_ranks() * context.table.num_logical_experts();
        if counts.len() != expected {
            return Err(RoutingError::Length {
                what: "the token counts of all ranks",
                got: counts.len(),
                expected,
            });
        }
        Ok(counts)
    }
}

impl SelectReplica for Waterfill {
    fn select(
        &self,
        context: &SelectContext<'_>,
        topk_ids: &[i64],
        physical: &mut [i64],
    ) -> Result<(), RoutingError> {
        let counts = self.counts(context)?;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.as_ref().is_none_or(|s| !s.shares.fits(context.table)) {
            *state = Some(Box::new(State::new(context, self.settings)));
        }
        let Some(state) = state.as_mut() else {
            return Ok(());
        };
        state.count(topk_ids);
        state.share(counts)?;
        if self.step == Step::This {
            state.check_own(context, counts)?;
        }
        state.deal(context, counts, self.step);
        for_each_id(
            context,
            topk_ids,
            physical,
            |_, expert, replicas| match state.turn.get_mut(expert.index()) {
                None | Some(&mut SINGLE) => replicas[0],
                Some(turn) => {
                    while state.quota[*turn as usize] == 0 {
                        *turn += 1;
                    }
                    state.quota[*turn as usize] -= 1;
                    PhysicalExpert::new(state.shares.replicas[*turn as usize].slot as usize)
                }
            },
        )
    }

    fn counts_needed(&self) -> CountsNeeded {
        match self.step {
            Step::This => CountsNeeded::ThisStep,
            Step::Previous => CountsNeeded::PreviousStep,
        }
    }
}

impl State {
    fn new(context: &SelectContext<'_>, settings: ShareSettings) -> Self {
        let shares = ReplicaShares::with_settings(context.table, settings);
        let experts = context.table.num_logical_experts();
        let most = shares.spread.iter().map(|s| s.range().len()).max();
        Self {
            quotas: Quotas::new(context.table.num_ranks(), most.unwrap_or(0)),
            totals: vec![0; experts],
            own: vec![0; experts],
            quota: vec![0; shares.replicas.len()],
            turn: vec![SINGLE; experts],
            shares,
        }
    }

    /// Counts this rank's tokens.
    fn count(&mut self, topk_ids: &[i64]) {
        self.own.fill(0);
        for &id in topk_ids {
            let own = usize::try_from(id).ok().and_then(|e| self.own.get_mut(e));
            if let Some(count) = own {
                *count += 1;
            }
        }
    }

    /// Splits the tokens of all ranks.
    fn share(&mut self, counts: &[u64]) -> Result<(), RoutingError> {
        self.totals.fill(0);
        for rank in counts.chunks_exact(self.totals.len()) {
            for (total, count) in self.totals.iter_mut().zip(rank) {
                *total = total.saturating_add(*count);
            }
        }
        self.shares.split(&self.totals)?;
        Ok(())
    }

    /// Refuses counts that are not those of the batch: shares of other tokens would not hold.
    fn check_own(&self, context: &SelectContext<'_>, counts: &[u64]) -> Result<(), RoutingError> {
        let (rank, experts) = (context.rank.index(), self.own.len());
        let known = counts.chunks_exact(experts).nth(rank).unwrap_or_default();
        if known == self.own {
            return Ok(());
        }
        let differ = |expert: &usize| known.get(*expert) != Some(&self.own[*expert]);
        let expert = (0..experts).find(differ).unwrap_or(0);
        Err(RoutingError::OtherCounts {
            rank,
            expert,
            counted: known.get(expert).copied().unwrap_or(0),
            routed: self.own[expert],
        })
    }

    /// What each replica serves of this rank's tokens.
    fn deal(&mut self, context: &SelectContext<'_>, counts: &[u64], step: Step) {
        let (rank, experts) = (context.rank.index(), self.own.len());
        for spread in &self.shares.spread {
            let (expert, range) = (spread.expert as usize, spread.range());
            self.turn[expert] = spread.start;
            let own = self.own[expert];
            if own == 0 {
                continue;
            }
            let replicas = &self.shares.replicas[range.clone()];
            let quota = &mut self.quota[range.clone()];
            let column = counts.iter().skip(expert).step_by(experts).copied();
            let shares = self.shares.shares();
            let share = replicas.iter().map(|r| shares[r.slot as usize]);
            self.quotas.deal(
                context.table.topology(),
                rank,
                column,
                replicas,
                share,
                quota,
            );
            if step == Step::Previous {
                let fractions = &self.shares.fractions[range];
                self.quotas.scale(own, fractions, [rank, expert], quota);
            }
        }
    }
}
