//! Which replica of its logical expert serves a token.

mod local_first;
mod round_robin;
mod row_hash;
mod waterfill;

use std::fmt::Debug;
use std::sync::Arc;

use enum_dispatch::enum_dispatch;

pub use local_first::LocalFirst;
pub use round_robin::RoundRobin;
pub use row_hash::RowHash;
pub use waterfill::{ReplicaShares, Waterfill};

use crate::{LogicalExpert, PhysicalExpert, Rank, RoutingError, RoutingTable};

/// What a selector may look at.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct SelectContext<'a> {
    /// The table in force for this forward pass.
    pub table: &'a RoutingTable,
    /// The rank whose tokens these are.
    pub rank: Rank,
    /// Ids per token.
    pub top_k: usize,
    /// Tokens per source rank and logical expert, `[R, E]` row-major, of the step that
    /// [`SelectReplica::counts_needed`] names; the same on every rank.
    pub counts: Option<&'a [u64]>,
}

impl<'a> SelectContext<'a> {
    /// A context without counts.
    pub fn new(table: &'a RoutingTable, rank: Rank, top_k: usize) -> Self {
        Self {
            table,
            rank,
            top_k,
            counts: None,
        }
    }

    /// The same with the counts that the selector asked for.
    #[must_use]
    pub fn with_counts(mut self, counts: &'a [u64]) -> Self {
        self.counts = Some(counts);
        self
    }

    /// The replicas of a raw logical id; `None` if it names no expert.
    fn replicas(&self, id: i64) -> Option<&'a [PhysicalExpert]> {
        self.table.replicas(LogicalExpert::from_raw(id)?)
    }
}

/// Which token counts a selector needs before it can choose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum CountsNeeded {
    /// None: the choice needs no exchange between ranks.
    #[default]
    None,
    /// Those of the batch that is being routed.
    ThisStep,
    /// Those of the batch before.
    PreviousStep,
}

/// Chooses the replica that serves each routed token.
#[enum_dispatch]
pub trait SelectReplica: Debug + Send + Sync {
    /// Rewrites logical ids to physical ids.
    ///
    /// # Arguments
    ///
    /// - `topk_ids` - logical ids, `[num_tokens, top_k]` row-major. An id outside of the table
    ///   (padding, `-1`) names no expert.
    /// - `physical` - the result, same shape; `-1` where the id names no expert.
    ///
    /// # Errors
    ///
    /// If the two differ in length, or counts that the selector needs are missing.
    fn select(
        &self,
        context: &SelectContext<'_>,
        topk_ids: &[i64],
        physical: &mut [i64],
    ) -> Result<(), RoutingError>;

    /// The counts that [`SelectContext::counts`] must hold.
    fn counts_needed(&self) -> CountsNeeded {
        CountsNeeded::None
    }
}

/// The replica selectors: a closed set with a door.
///
/// ```
/// use moekit_routing::*;
///
/// let placement = Placement::from_ranks(2, &[[0, 1], [0, 1]])?;
/// let table = RoutingTable::new(placement, Topology::new(2)?, 0, 0)?;
/// let selector = ReplicaSelector::from_name("local_first")?;
/// let mut physical = [0; 4];
/// let context = SelectContext::new(&table, Rank::new(1), 2);
/// selector.select(&context, &[0, 1, 1, -1], &mut physical)?;
/// assert_eq!(physical, [2, 3, 3, -1]);
/// # Ok::<(), RoutingError>(())
/// ```
#[enum_dispatch(SelectReplica)]
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum ReplicaSelector {
    /// vLLM's hash of the row, bit-exact.
    RowHash,
    /// Each expert's replicas in turn.
    RoundRobin,
    /// A replica on this rank, else on this node, else any.
    LocalFirst,
    /// Shares of this or the previous step's tokens that level the ranks.
    Waterfill,
    /// Anything else.
    Custom(CustomSelector),
}

impl Default for ReplicaSelector {
    fn default() -> Self {
        RoundRobin.into()
    }
}

impl ReplicaSelector {
    /// The names of the selectors that a configuration can choose.
    pub const NAMES: &'static [&'static str] = &[
        "row_hash",
        "round_robin",
        "local_first",
        "waterfill",
        "waterfill_previous",
    ];

    /// The selector of a name; hyphens count as underscores.
    ///
    /// # Errors
    ///
    /// If no selector has the name; the message lists those that exist.
    pub fn from_name(name: &str) -> Result<Self, RoutingError> {
        match name.replace('-', "_").as_str() {
            "row_hash" => Ok(RowHash.into()),
            "round_robin" => Ok(RoundRobin.into()),
            "local_first" => Ok(LocalFirst.into()),
            "waterfill" => Ok(Waterfill::this_step().into()),
            "waterfill_previous" => Ok(Waterfill::previous_step().into()),
            _ => Err(RoutingError::UnknownSelector {
                name: name.to_owned(),
                known: Self::NAMES,
            }),
        }
    }
}

/// A selector of the user's own.
#[derive(Clone, Debug)]
pub struct CustomSelector(pub Arc<dyn SelectReplica>);

impl SelectReplica for CustomSelector {
    fn select(
        &self,
        context: &SelectContext<'_>,
        topk_ids: &[i64],
        physical: &mut [i64],
    ) -> Result<(), RoutingError> {
        self.0.select(context, topk_ids, physical)
    }

    fn counts_needed(&self) -> CountsNeeded {
        self.0.counts_needed()
    }
}

/// Writes `choose(position, replicas)` for every id that names an expert, `-1` for the others.
fn for_each_id(
    context: &SelectContext<'_>,
    topk_ids: &[i64],
    physical: &mut [i64],
    mut choose: impl FnMut(usize, LogicalExpert, &[PhysicalExpert]) -> PhysicalExpert,
) -> Result<(), RoutingError> {
    if topk_ids.len() != physical.len() {
        return Err(RoutingError::Length {
            what: "the buffer of physical ids",
            got: physical.len(),
            expected: topk_ids.len(),
        });
    }
    for (position, (&id, out)) in topk_ids.iter().zip(physical).enumerate() {
        *out = match (LogicalExpert::from_raw(id), context.replicas(id)) {
            (Some(expert), Some(replicas)) => choose(position, expert, replicas).raw(),
            _ => -1,
        };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Placement, Topology};

    fn table() -> RoutingTable {
        let ranks = [vec![0, 1, 2], vec![0, 3, 0], vec![0, 1], vec![0]];
        let placement = Placement::from_ranks(4, &ranks).unwrap();
        RoutingTable::new(
            placement,
            Topology::new(4).unwrap().with_nodes(2).unwrap(),
            1,
            0,
        )
        .unwrap()
    }

    #[test]
    fn every_selector_keeps_to_the_replicas_of_the_expert() {
        let table = table();
        let ids: Vec<i64> = (-2..7).cycle().take(90).collect();
        // Every rank routes the same ids; counts are of routed experts only.
        let counts = [10; 4].repeat(4);
        for name in ReplicaSelector::NAMES {
            let selector = ReplicaSelector::from_name(name).unwrap();
            for rank in (0..4).map(Rank::new) {
                let mut physical = vec![99; ids.len()];
                let context = SelectContext::new(&table, rank, 3).with_counts(&counts);
                selector.select(&context, &ids, &mut physical).unwrap();
                for (&id, &slot) in ids.iter().zip(&physical) {
                    let expected = LogicalExpert::from_raw(id).filter(|e| e.index() < 5);
                    let got = PhysicalExpert::from_raw(slot).and_then(|p| table.logical_of(p));
                    assert_eq!(got, expected, "{name}: id {id} became slot {slot}");
                }
            }
        }
    }

    #[test]
    fn buffers_that_disagree_are_refused() {
        let table = table();
        for name in ReplicaSelector::NAMES {
            let selector = ReplicaSelector::from_name(name).unwrap();
            let counts = [1, 1, 0, 0].repeat(4);
            let context = SelectContext::new(&table, Rank::new(0), 1).with_counts(&counts);
            let error = selector.select(&context, &[0, 1], &mut [0]).unwrap_err();
            assert!(
                error.to_string().contains("physical ids has 1 entries"),
                "{name}: {error}"
            );
        }
    }

    #[test]
    fn hyphens_are_underscores() {
        let selector = ReplicaSelector::from_name("waterfill-previous").unwrap();
        assert_eq!(selector.counts_needed(), CountsNeeded::PreviousStep);
    }

    #[test]
    fn unknown_names_list_the_known_ones() {
        let error = ReplicaSelector::from_name("rowhash")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("`rowhash`") && error.contains("row_hash"),
            "{error}"
        );
    }

    #[derive(Debug)]
    struct LastReplica;

    impl SelectReplica for LastReplica {
        fn select(
            &self,
            context: &SelectContext<'_>,
            ids: &[i64],
            physical: &mut [i64],
        ) -> Result<(), RoutingError> {
            for_each_id(context, ids, physical, |_, _, replicas| {
                replicas[replicas.len() - 1]
            })
        }
    }

    #[test]
    fn the_door_is_open() {
        let table = table();
        let selector = ReplicaSelector::Custom(CustomSelector(Arc::new(LastReplica)));
        let mut physical = [0];
        let context = SelectContext::new(&table, Rank::new(0), 1);
        selector.select(&context, &[0], &mut physical).unwrap();
        assert_eq!(physical, [8]);
    }
}
