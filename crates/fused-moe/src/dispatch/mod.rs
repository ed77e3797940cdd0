//! Tokens to the ranks of their experts, and what became of them back.

mod local;
mod plan;

use std::any::Any;
use std::borrow::Cow;
use std::fmt;

use half::bf16;
use moekit_kernels::Rows;
use moekit_routing::{Rank, RoutingTable};

pub use self::local::Local;
pub(crate) use self::local::local_ids;
pub use self::plan::RankTokens;
use crate::FusedMoeError;

/// Carries tokens to the ranks that own their experts and the results back.
///
/// A forward pass of the layer calls [`dispatch`](Self::dispatch), computes the experts, and calls
/// [`combine`](Self::combine); before that, if the replica selector asks for it,
/// [`exchange_counts`](Self::exchange_counts). All ranks make the same calls in the same order,
/// ranks without tokens included. Everything lies in host memory.
///
/// A handle belongs to one dispatch and holds all that its combine needs, so that several
/// dispatches may be under way at a time (two halves of a batch): they are combined in the order in
/// which they were dispatched.
pub trait TokenDispatcher: fmt::Debug + Send + Sync {
    /// This rank.
    fn rank(&self) -> Rank;

    /// Ranks of the group.
    fn num_ranks(&self) -> usize;

    /// Gives every rank the token counts of all ranks.
    ///
    /// # Arguments
    ///
    /// - `counts` - tokens of this rank per logical expert, `[num_experts]`.
    ///
    /// # Returns
    ///
    /// `[num_ranks, num_experts]`, the same on every rank.
    ///
    /// # Errors
    ///
    /// If the group failed; if ranks have different numbers of experts.
    fn exchange_counts(&self, counts: &[u64]) -> Result<Vec<u64>, FusedMoeError>;

    /// Sends every token to each rank that owns one of its chosen slots, at most once to each, and
    /// receives those for the slots of this rank. [`RoutedTokens::per_rank`] says what goes where.
    ///
    /// # Errors
    ///
    /// If the group failed; if ranks have tables of different generations.
    fn dispatch<'a>(&self, tokens: &RoutedTokens<'a>) -> Result<Dispatched<'a>, FusedMoeError>;

    /// Returns the outputs of the experts of this rank to the ranks of their tokens, and adds up
    /// what comes back for the tokens of this rank: [`ExpertOutputs::Summed`] in order of the ranks
    /// that computed them, [`ExpertOutputs::PerSlot`] in order of the slots.
    ///
    /// # Returns
    ///
    /// `[num_tokens, hidden_size]` in the order of the tokens given to [`dispatch`](Self::dispatch);
    /// zeros for a token without slots.
    ///
    /// # Errors
    ///
    /// If the group failed; if the outputs are not of the shape of what was dispatched, or the
    /// handle is not one of this dispatcher.
    fn combine(
        &self,
        outputs: ExpertOutputs,
        handle: DispatchHandle,
    ) -> Result<Vec<f32>, FusedMoeError>;

    /// Tells the group that this rank has failed, so that no other waits for it. The layer calls it
    /// when a forward pass ends with an error.
    fn abort(&self, error: &FusedMoeError) {
        let _ = error;
    }
}

/// The tokens of a rank after gate and replica selection.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct RoutedTokens<'a> {
    /// `[num_tokens, hidden_size]`
    pub hidden: Rows<'a>,
    /// Values of a token.
    pub hidden_size: usize,
    /// Physical ids, `[num_tokens, top_k]`; negative where a slot is empty.
    pub physical_ids: &'a [i64],
    /// `[num_tokens, top_k]`
    pub weights: &'a [f32],
    /// Slots of a token, those of fused shared experts included.
    pub top_k: usize,
    /// The table in force for this forward pass.
    pub table: &'a RoutingTable,
}

impl<'a> RoutedTokens<'a> {
    /// Checks that the lengths agree.
    ///
    /// # Errors
    ///
    /// If they do not.
    pub fn new(
        hidden: Rows<'a>,
        hidden_size: usize,
        physical_ids: &'a [i64],
        weights: &'a [f32],
        top_k: usize,
        table: &'a RoutingTable,
    ) -> Result<Self, FusedMoeError> {
        let tokens = hidden.len().checked_div(hidden_size).unwrap_or(0);
        let slots = tokens.checked_mul(top_k);
        let shape =
            |what, got: usize, width| Err(FusedMoeError::shape(what, &[got], [tokens, width]));
        if tokens.checked_mul(hidden_size) != Some(hidden.len()) {
            return shape("hidden", hidden.len(), hidden_size);
        }
        if slots != Some(physical_ids.len()) {
            return shape("physical_ids", physical_ids.len(), top_k);
        }
        if slots != Some(weights.len()) {
            return shape("weights", weights.len(), top_k);
        }
        Ok(Self {
            hidden,
            hidden_size,
            physical_ids,
            weights,
            top_k,
            table,
        })
    }

    /// Tokens.
    pub fn num_tokens(&self) -> usize {
        self.hidden.len().checked_div(self.hidden_size).unwrap_or(0)
    }
}

/// Rows of activations, borrowed or owned.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum HiddenRows<'a> {
    /// Single precision.
    F32(Cow<'a, [f32]>),
    /// bfloat16.
    Bf16(Cow<'a, [bf16]>),
}

impl HiddenRows<'_> {
    /// The rows.
    pub fn as_rows(&self) -> Rows<'_> {
        match self {
            Self::F32(values) => Rows::F32(values),
            Self::Bf16(values) => Rows::Bf16(values),
        }
    }
}

impl<'a> TryFrom<Rows<'a>> for HiddenRows<'a> {
    type Error = FusedMoeError;

    fn try_from(rows: Rows<'a>) -> Result<Self, FusedMoeError> {
        match rows {
            Rows::F32(values) => Ok(Self::F32(values.into())),
            Rows::Bf16(values) => Ok(Self::Bf16(values.into())),
            other => Err(FusedMoeError::Dtype {
                got: format!("{other:?}"),
            }),
        }
    }
}

/// Rows for the experts of this rank, from all ranks.
#[derive(Debug)]
#[non_exhaustive]
pub struct Dispatched<'a> {
    /// `[num_rows, hidden_size]`
    pub hidden: HiddenRows<'a>,
    /// Local ids, `[num_rows, top_k]`; negative where a slot is empty or on another rank.
    pub local_ids: Cow<'a, [i64]>,
    /// `[num_rows, top_k]`
    pub weights: Cow<'a, [f32]>,
    /// For [`TokenDispatcher::combine`].
    pub handle: DispatchHandle,
}

impl<'a> Dispatched<'a> {
    /// Rows and their handle.
    pub fn new(
        hidden: HiddenRows<'a>,
        local_ids: impl Into<Cow<'a, [i64]>>,
        weights: impl Into<Cow<'a, [f32]>>,
        handle: DispatchHandle,
    ) -> Self {
        Self {
            hidden,
            local_ids: local_ids.into(),
            weights: weights.into(),
            handle,
        }
    }
}

/// What a dispatcher remembers of a dispatch until its combine.
pub struct DispatchHandle(Box<dyn Any + Send>);

impl DispatchHandle {
    /// Wraps a value that only the dispatcher knows.
    pub fn new(value: impl Any + Send) -> Self {
        Self(Box::new(value))
    }

    /// The value.
    ///
    /// # Errors
    ///
    /// If it is of another type: the handle of another dispatcher.
    pub fn downcast<T: Any>(self) -> Result<T, FusedMoeError> {
        match self.0.downcast() {
            Ok(value) => Ok(*value),
            Err(_) => Err(FusedMoeError::dispatch(format!(
                "the handle is not the {} of this dispatcher",
                std::any::type_name::<T>()
            ))),
        }
    }
}

impl fmt::Debug for DispatchHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DispatchHandle")
    }
}

/// What the experts of a rank made of the rows that were dispatched to it, router weights included.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum ExpertOutputs {
    /// Per row the sum over its slots on this rank, `[num_rows, hidden_size]`.
    Summed(Vec<f32>),
    /// Per row and slot, `[num_rows, top_k, hidden_size]`, zeros for slots that are not here. More
    /// to send, but the sum does not depend on which ranks the experts are on.
    PerSlot(Vec<f32>),
}

#[cfg(test)]
mod tests {
    use moekit_routing::{Placement, Topology};

    use super::*;

    fn table(ranks: &[Vec<usize>]) -> RoutingTable {
        let placement = Placement::from_ranks(2, ranks).unwrap();
        RoutingTable::new(placement, Topology::new(ranks.len()).unwrap(), 1, 0).unwrap()
    }

    #[test]
    fn lengths_must_agree() {
        let table = table(&[vec![0, 1]]);
        let hidden = [0.0_f32; 6];
        let error = |width, ids: &[i64], weights: &[f32]| {
            let hidden = Rows::F32(&hidden);
            RoutedTokens::new(hidden, width, ids, weights, 2, &table)
                .unwrap_err()
                .to_string()
        };
        assert!(error(4, &[0; 2], &[0.0; 2]).starts_with("hidden has shape [6]"));
        assert!(error(0, &[], &[]).starts_with("hidden has shape [6]"));
        assert!(
            error(3, &[0; 3], &[0.0; 4]).contains("physical_ids has shape [3], expected [2, 2]")
        );
        assert!(error(3, &[0; 4], &[0.0; 5]).contains("weights has shape [5]"));
    }

    #[test]
    fn shared_slots_stay_and_unknown_ones_are_refused() {
        let table = table(&[vec![0], vec![1], vec![]]);
        let hidden = [0.0_f32; 1];
        let tokens = |ids| RoutedTokens::new(Rows::F32(&hidden), 1, ids, &[0.5; 3], 3, &table);
        let plan = tokens(&[1, 2, -1]).unwrap().per_rank(Rank::new(2)).unwrap();
        assert!(plan[0].tokens.is_empty());
        assert_eq!(
            (&plan[1].tokens[..], &plan[1].local_ids[..]),
            (&[0][..], &[0, -1, -1][..])
        );
        assert_eq!(
            (&plan[2].tokens[..], &plan[2].local_ids[..]),
            (&[0][..], &[-1, 0, -1][..])
        );
        assert_eq!(plan[2].weights, [0.0, 0.5, 0.0]);
        let error = tokens(&[3, 0, 0])
            .unwrap()
            .per_rank(Rank::new(0))
            .unwrap_err()
            .to_string();
        assert!(error.contains("physical id 3 of token 0"), "{error}");
    }

    #[test]
    fn one_rank_moves_nothing_and_checks_all() {
        let table = table(&[vec![1, 0]]);
        let hidden = [1.0_f32, 2.0];
        let tokens =
            RoutedTokens::new(Rows::F32(&hidden), 1, &[1, 2, -1, 0], &[0.5; 4], 2, &table).unwrap();
        let dispatched = Local.dispatch(&tokens).unwrap();
        assert!(matches!(
            dispatched.hidden,
            HiddenRows::F32(Cow::Borrowed(_))
        ));
        assert_eq!(*dispatched.local_ids, [1, 2, -1, 0]);
        let per_slot = ExpertOutputs::PerSlot(vec![1.0, 2.0, 0.0, 4.0]);
        assert_eq!(
            Local.combine(per_slot, dispatched.handle).unwrap(),
            [3.0, 4.0]
        );

        let handle = || Local.dispatch(&tokens).unwrap().handle;
        for outputs in [
            ExpertOutputs::Summed(vec![0.0]),
            ExpertOutputs::PerSlot(vec![0.0; 2]),
        ] {
            assert!(Local.combine(outputs, handle()).is_err());
        }
        let foreign = DispatchHandle::new("another dispatcher's");
        let error = Local
            .combine(ExpertOutputs::Summed(vec![0.0; 2]), foreign)
            .unwrap_err();
        assert!(error.to_string().contains("not the"), "{error}");
        let unknown =
            RoutedTokens::new(Rows::F32(&hidden), 1, &[0, 0, 9, 0], &[0.5; 4], 2, &table).unwrap();
        let error = Local.dispatch(&unknown).unwrap_err().to_string();
        assert!(error.contains("physical id 9"), "{error}");
    }
}
