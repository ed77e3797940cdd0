use moekit_routing::{PhysicalExpert, Rank, RoutingTable};

use super::{DispatchHandle, Dispatched, ExpertOutputs, RoutedTokens, TokenDispatcher};
use crate::FusedMoeError;

/// The dispatcher of a group of one rank: nothing moves, nothing is copied.
#[derive(Clone, Copy, Debug, Default)]
pub struct Local;

/// What [`Local`] checks the outputs against.
struct LocalHandle {
    num_tokens: usize,
    top_k: usize,
    hidden_size: usize,
}

impl TokenDispatcher for Local {
    fn rank(&self) -> Rank {
        Rank::new(0)
    }

    fn num_ranks(&self) -> usize {
        1
    }

    fn exchange_counts(&self, counts: &[u64]) -> Result<Vec<u64>, FusedMoeError> {
        Ok(counts.to_vec())
    }

    fn dispatch<'a>(&self, tokens: &RoutedTokens<'a>) -> Result<Dispatched<'a>, FusedMoeError> {
        let local_ids = local_ids(tokens.table, self.rank(), tokens.physical_ids)?;
        let handle = LocalHandle {
            num_tokens: tokens.num_tokens(),
            top_k: tokens.top_k,
            hidden_size: tokens.hidden_size,
        };
        let handle = DispatchHandle::new(handle);
        Ok(Dispatched::new(
            tokens.hidden.try_into()?,
            local_ids,
            tokens.weights,
            handle,
        ))
    }

    fn combine(
        &self,
        outputs: ExpertOutputs,
        handle: DispatchHandle,
    ) -> Result<Vec<f32>, FusedMoeError> {
        let LocalHandle {
            num_tokens,
            top_k,
            hidden_size,
        } = handle.downcast()?;
        match outputs {
            ExpertOutputs::Summed(values) if values.len() == num_tokens * hidden_size => Ok(values),
            ExpertOutputs::Summed(values) => Err(FusedMoeError::shape(
                "the output of the experts",
                &[values.len()],
                [num_tokens, hidden_size],
            )),
            ExpertOutputs::PerSlot(values) => {
                if values.len() != num_tokens * top_k * hidden_size {
                    let expected = [num_tokens, top_k, hidden_size];
                    let got = [values.len()];
                    return Err(FusedMoeError::shape(
                        "the output of the slots",
                        &got,
                        expected,
                    ));
                }
                let mut sums = vec![0.0; num_tokens * hidden_size];
                let width = hidden_size.max(1);
                let tokens = values.chunks(top_k.max(1) * width);
                for (sum, slots) in sums.chunks_mut(width).zip(tokens) {
                    for slot in slots.chunks(width) {
                        sum.iter_mut()
                            .zip(slot)
                            .for_each(|(sum, term)| *sum += term);
                    }
                }
                Ok(sums)
            }
        }
    }
}

/// Physical ids to those of a rank that owns all slots.
pub(crate) fn local_ids(
    table: &RoutingTable,
    rank: Rank,
    physical_ids: &[i64],
) -> Result<Vec<i64>, FusedMoeError> {
    let local = |&id: &i64| {
        let Some(physical) = PhysicalExpert::from_raw(id) else {
            return Ok(-1);
        };
        let local = table.local_index(rank, physical);
        local.map(|l| l.raw()).ok_or_else(|| {
            FusedMoeError::dispatch(format!(
                "physical id {id} is not a slot of rank {rank}, which has {}",
                table.num_local_experts(rank).unwrap_or(0)
            ))
        })
    };
    physical_ids.iter().map(local).collect()
}
