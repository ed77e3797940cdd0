//! The bytes that travel in a dispatch: per destination a header, local ids, weights and rows.

use std::borrow::Cow;

use bytemuck::{Pod, pod_collect_to_vec};
use half::bf16;
use moekit_fused_moe::{FusedMoeError, HiddenRows, RankTokens, RoutedTokens, Rows};
use moekit_routing::Rank;

/// What sender and receiver must agree on, and the number of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(super) struct Message {
    generation: u64,
    hidden_size: u64,
    top_k: u64,
    /// Bytes of a value: 4 for f32, 2 for bf16.
    value_size: u64,
    num_rows: u64,
}

impl Message {
    /// The header of the messages of these tokens, without rows.
    pub(super) fn of(tokens: &RoutedTokens<'_>) -> Self {
        Self {
            generation: tokens.table.generation(),
            hidden_size: tokens.hidden_size as u64,
            top_k: tokens.top_k as u64,
            value_size: match tokens.hidden {
                Rows::Bf16(_) => 2,
                _ => 4,
            },
            num_rows: 0,
        }
    }
}

/// The messages to all ranks, one behind the other, and the length of each.
pub(super) fn pack(
    tokens: &RoutedTokens<'_>,
    per_rank: &[RankTokens],
) -> Result<(Vec<u8>, Vec<usize>), FusedMoeError> {
    let header = Message::of(tokens);
    let mut bytes = Vec::new();
    let mut lengths = Vec::with_capacity(per_rank.len());
    for rank in per_rank {
        let start = bytes.len();
        let header = Message {
            num_rows: rank.tokens.len() as u64,
            ..header
        };
        bytes.extend_from_slice(bytemuck::bytes_of(&header));
        bytes.extend_from_slice(bytemuck::cast_slice(&rank.local_ids));
        bytes.extend_from_slice(bytemuck::cast_slice(&rank.weights));
        match tokens.hidden {
            Rows::F32(values) => put_rows(&mut bytes, values, tokens.hidden_size, &rank.tokens),
            Rows::Bf16(values) => put_rows(&mut bytes, values, tokens.hidden_size, &rank.tokens),
            other => return Err(FusedMoeError::dispatch(format!("cannot send {other:?}"))),
        }
        lengths.push(bytes.len() - start);
    }
    Ok((bytes, lengths))
}

fn put_rows<T: Pod>(bytes: &mut Vec<u8>, values: &[T], width: usize, tokens: &[usize]) {
    for &token in tokens {
        bytes.extend_from_slice(bytemuck::cast_slice(
            &values[token * width..(token + 1) * width],
        ));
    }
}

/// The rows for the experts of this rank, in order of the ranks that sent them.
pub(super) struct Received {
    header: Message,
    pub(super) rows_per_rank: Vec<usize>,
    pub(super) local_ids: Vec<i64>,
    pub(super) weights: Vec<f32>,
    pub(super) hidden: HiddenRows<'static>,
}

impl Received {
    /// Nothing yet; `header` says what this rank sends, and so what it expects.
    pub(super) fn new(header: Message) -> Self {
        let hidden = match header.value_size {
            2 => HiddenRows::Bf16(Cow::Owned(Vec::new())),
            _ => HiddenRows::F32(Cow::Owned(Vec::new())),
        };
        Self {
            header,
            rows_per_rank: Vec::new(),
            local_ids: Vec::new(),
            weights: Vec::new(),
            hidden,
        }
    }

    /// Takes in the message of the next rank.
    pub(super) fn add(&mut self, source: Rank, bytes: &[u8]) -> Result<(), FusedMoeError> {
        let broken = || {
            FusedMoeError::dispatch(format!(
                "the message of {} bytes from rank {source} is not one of dispatch",
                bytes.len()
            ))
        };
        let (header, rest) = bytes
            .split_at_checked(size_of::<Message>())
            .ok_or_else(broken)?;
        let header: Message = bytemuck::pod_read_unaligned(header);
        self.check(source, header)?;

        let rows = usize::try_from(header.num_rows).map_err(|_| broken())?;
        let slots = (header.top_k as usize)
            .checked_mul(rows)
            .ok_or_else(broken)?;
        let (ids, rest) = part::<i64>(rest, slots).ok_or_else(broken)?;
        let (weights, rest) = part::<f32>(rest, slots).ok_or_else(broken)?;
        let values = (header.hidden_size as usize)
            .checked_mul(rows)
            .ok_or_else(broken)?;
        let rest = match &mut self.hidden {
            HiddenRows::F32(hidden) => take::<f32>(hidden.to_mut(), rest, values),
            HiddenRows::Bf16(hidden) => take::<bf16>(hidden.to_mut(), rest, values),
            _ => None,
        };
        if rest.is_none_or(|rest| !rest.is_empty()) {
            return Err(broken());
        }
        self.local_ids.extend(ids);
        self.weights.extend(weights);
        self.rows_per_rank.push(rows);
        Ok(())
    }

    fn check(&self, source: Rank, header: Message) -> Result<(), FusedMoeError> {
        let own = self.header;
        for (what, theirs, ours) in [
            (
                "the routing table of generation",
                header.generation,
                own.generation,
            ),
            ("a hidden size of", header.hidden_size, own.hidden_size),
            ("slots per token:", header.top_k, own.top_k),
            ("bytes per value:", header.value_size, own.value_size),
        ] {
            if theirs != ours {
                return Err(FusedMoeError::dispatch(format!(
                    "rank {source} dispatches with {what} {theirs}, this rank with {ours}"
                )));
            }
        }
        Ok(())
    }
}

/// The first `count` values, wherever they are aligned, and the bytes behind them.
fn part<T: Pod>(bytes: &[u8], count: usize) -> Option<(Vec<T>, &[u8])> {
    let (values, rest) = bytes.split_at_checked(count.checked_mul(size_of::<T>())?)?;
    Some((pod_collect_to_vec(values), rest))
}

/// Appends the first `count` values; returns the bytes behind them.
fn take<'a, T: Pod>(out: &mut Vec<T>, bytes: &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (values, rest) = bytes.split_at_checked(count.checked_mul(size_of::<T>())?)?;
    match bytemuck::try_cast_slice(values) {
        Ok(aligned) => out.extend_from_slice(aligned),
        Err(_) => out.extend(
            values
                .chunks_exact(size_of::<T>())
                .map(bytemuck::pod_read_unaligned::<T>),
        ),
    }
    Some(rest)
}
