//! Dispatch and combine of the fused MoE layer over a communicator.

mod combine;
mod message;

use std::error::Error;
use std::sync::Arc;

use moekit_fused_moe::{
    DispatchHandle, Dispatched, ExpertOutputs, FusedMoeError, HiddenRows, RankTokens, RoutedTokens,
    TokenDispatcher,
};
use moekit_routing::Rank;

use self::message::{Message, Received};
use crate::{Communicator, CommunicatorExt};

/// Carries tokens between the ranks of a [`Communicator`].
///
/// A dispatch is one variable all-to-all: every token travels once to each rank that owns one of
/// its chosen slots, with its ids and weights. A combine is one variable all-to-all back; the
/// source adds what returns in order of the ranks, or of the slots. Ranks that disagree about the
/// routing table in force, or about the shape of the layer, get an error instead of a wrong sum.
///
/// ```
/// use std::sync::Arc;
/// use moekit_fused_moe::{ExpertOutputs, RoutedTokens, Rows, TokenDispatcher};
/// use moekit_parallel::{Communicator, EpDispatcher, ThreadGroup};
/// use moekit_routing::{Placement, RoutingTable, Topology};
///
/// let placement = Placement::from_ranks(2, &[[0], [1]])?;
/// let table = RoutingTable::new(placement, Topology::new(2)?, 0, 0)?;
/// // Each rank has one token for each expert; expert e multiplies by e + 1.
/// let outputs = ThreadGroup::run(2, |comm| {
///     let rank = comm.rank().index();
///     let dispatcher = EpDispatcher::new(Arc::new(comm));
///     let tokens = RoutedTokens::new(Rows::F32(&[1.0, 2.0]), 1, &[0, 1], &[1.0; 2], 1, &table)?;
///     let dispatched = dispatcher.dispatch(&tokens)?;
///     let Rows::F32(rows) = dispatched.hidden.as_rows() else { unreachable!() };
///     let outputs = rows.iter().map(|x| x * (rank + 1) as f32).collect();
///     dispatcher.combine(ExpertOutputs::Summed(outputs), dispatched.handle)
/// })?;
/// assert_eq!(outputs, [[1.0, 4.0], [1.0, 4.0]]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct EpDispatcher {
    comm: Arc<dyn Communicator>,
}

impl EpDispatcher {
    /// A dispatcher over all ranks of a communicator.
    pub fn new(comm: Arc<dyn Communicator>) -> Self {
        Self { comm }
    }
}

/// What a combine needs to know of its dispatch.
struct Exchange {
    num_tokens: usize,
    hidden_size: usize,
    top_k: usize,
    /// What this rank sent to each rank.
    sent: Vec<RankTokens>,
    /// Rows received from each rank.
    received: Vec<usize>,
    /// Local ids of the received rows, `[num_rows, top_k]`.
    received_ids: Vec<i64>,
}

impl TokenDispatcher for EpDispatcher {
    fn rank(&self) -> Rank {
        self.comm.rank()
    }

    fn num_ranks(&self) -> usize {
        self.comm.size()
    }

    fn exchange_counts(&self, counts: &[u64]) -> Result<Vec<u64>, FusedMoeError> {
        let gathered = self
            .comm
            .all_gather_values(counts.to_vec())
            .map_err(FusedMoeError::dispatch)?;
        if let Some(rank) = gathered.counts().iter().position(|&n| n != counts.len()) {
            return Err(FusedMoeError::dispatch(format!(
                "rank {rank} counts tokens of {} experts, rank {} of {}",
                gathered.counts()[rank],
                self.rank(),
                counts.len()
            )));
        }
        Ok(gathered.concat().into_owned())
    }

    fn dispatch<'a>(&self, tokens: &RoutedTokens<'a>) -> Result<Dispatched<'a>, FusedMoeError> {
        if tokens.table.num_ranks() != self.num_ranks() {
            return Err(FusedMoeError::dispatch(format!(
                "the routing table has {} ranks, the communicator {}",
                tokens.table.num_ranks(),
                self.num_ranks()
            )));
        }
        let sent = tokens.per_rank(self.rank())?;
        let (message, lengths) = message::pack(tokens, &sent)?;
        let blocks = self
            .comm
            .all_to_all_v(message.into(), &lengths)
            .map_err(FusedMoeError::dispatch)?;

        let own = Message::of(tokens);
        let mut received = Received::new(own);
        for (source, block) in blocks.into_buffers().iter().enumerate() {
            received.add(Rank::new(source), &block.to_bytes())?;
        }
        let exchange = Exchange {
            num_tokens: tokens.num_tokens(),
            hidden_size: tokens.hidden_size,
            top_k: tokens.top_k,
            sent,
            received: received.rows_per_rank,
            received_ids: received.local_ids.clone(),
        };
        let hidden: HiddenRows<'a> = received.hidden;
        let handle = DispatchHandle::new(exchange);
        Ok(Dispatched::new(
            hidden,
            received.local_ids,
            received.weights,
            handle,
        ))
    }

    fn combine(
        &self,
        outputs: ExpertOutputs,
        handle: DispatchHandle,
    ) -> Result<Vec<f32>, FusedMoeError> {
        let exchange: Exchange = handle.downcast()?;
        match outputs {
            ExpertOutputs::Summed(values) => exchange.combine_sums(self.comm.as_ref(), values),
            ExpertOutputs::PerSlot(values) => exchange.combine_slots(self.comm.as_ref(), &values),
            other => Err(FusedMoeError::dispatch(format!("cannot combine {other:?}"))),
        }
    }

    fn abort(&self, error: &FusedMoeError) {
        self.comm.abort(&chain(error));
    }
}

/// An error and what caused it, joined by `: `.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests;
