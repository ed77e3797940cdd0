//! How the tokens of a step fall on the slots of their experts.

mod off_node;
mod selector;
#[cfg(test)]
mod tests;
mod waterfill;

use std::fmt::Debug;
use std::time::{Duration, Instant};

use moekit_routing::RoutingTable;

pub use self::off_node::{off_node_blind, off_node_nearest};
pub use self::selector::SelectorSplit;
pub use self::waterfill::WaterfillSplit;
use crate::EvalError;

/// One layer in one step.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct SplitContext<'a> {
    /// The layer.
    pub layer: usize,
    /// The tables of the placement in force. Their generation changes with the placement.
    pub table: &'a RoutingTable,
    /// Tokens per logical expert in this step, `[E]`.
    pub counts: &'a [f64],
    /// The same of the step before, `[E]`.
    pub previous: &'a [f64],
}

impl<'a> SplitContext<'a> {
    /// A context of layer 0 whose previous step is this one.
    pub fn new(table: &'a RoutingTable, counts: &'a [f64]) -> Self {
        Self {
            layer: 0,
            table,
            counts,
            previous: counts,
        }
    }
}

/// What a split makes of one layer in one step.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct SlotLoads {
    /// Tokens per slot, `[P]`; those of an expert's slots sum to its count.
    pub loads: Vec<f64>,
    /// Tokens that are served on another node than the one they came from.
    pub off_node: f64,
    /// What one rank spends on the decision.
    pub time: Duration,
}

impl SlotLoads {
    /// A split.
    pub fn new(loads: Vec<f64>, off_node: f64, time: Duration) -> Self {
        Self {
            loads,
            off_node,
            time,
        }
    }
}

/// Splits the tokens of each expert over its slots.
///
/// The model of where tokens come from: every rank brings the same share of every expert's
/// tokens, as in data-parallel attention over a mixed batch. [`off_node_blind`] and
/// [`off_node_nearest`] follow from it.
pub trait TokenSplit: Debug {
    /// The name in reports.
    fn name(&self) -> &str;

    /// Splits one layer of one step.
    ///
    /// # Errors
    ///
    /// If the counts do not fit the table, or are not what the split needs.
    fn split(&mut self, context: &SplitContext<'_>) -> Result<SlotLoads, EvalError>;
}

/// Every slot of an expert gets the same number of tokens, fractions included: what replica
/// selectors do on average, and what planners assume.
#[derive(Clone, Copy, Debug, Default)]
pub struct EqualSplit;

impl TokenSplit for EqualSplit {
    fn name(&self) -> &str {
        "equal"
    }

    fn split(&mut self, context: &SplitContext<'_>) -> Result<SlotLoads, EvalError> {
        check_counts(context.table, context.counts)?;
        let start = Instant::now();
        let placement = context.table.placement();
        let per_slot: Vec<f64> = placement
            .replica_counts()
            .into_iter()
            .zip(context.counts)
            .map(|(slots, count)| count / slots as f64)
            .collect();
        let slots = placement.physical_to_logical();
        let loads: Vec<f64> = slots.iter().map(|e| per_slot[e.index()]).collect();
        let time = start.elapsed();
        let off_node = off_node_blind(context.table, &loads);
        Ok(SlotLoads::new(loads, off_node, time))
    }
}

/// The tokens of an expert in a step that is split into whole ones.
fn whole(count: f64) -> Result<u64, EvalError> {
    if count.fract() != 0.0 || !(0.0..=LARGEST_WHOLE).contains(&count) {
        let what = "the load of an expert in a step that is split into whole tokens";
        let expected = "a whole number of tokens, at most 2^53";
        return Err(EvalError::setting(what, count, expected));
    }
    Ok(count as u64)
}

/// Up to here every whole number is an `f64`.
const LARGEST_WHOLE: f64 = (1u64 << 53) as f64;

fn check_counts(table: &RoutingTable, counts: &[f64]) -> Result<(), EvalError> {
    if counts.len() == table.num_logical_experts() {
        return Ok(());
    }
    let expected = format!("{}, as the table has", table.num_logical_experts());
    Err(EvalError::setting(
        "the number of experts in the load",
        counts.len(),
        expected,
    ))
}
