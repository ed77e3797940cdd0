//! What a rank sends: experts that are encoded beside the forward passes, and cut into pieces.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use moekit_fused_moe::PreparedExpert;
use moekit_routing::Rank;

use super::schedule::Slot;
use super::{Here, finished};
use crate::expert::{ExpertError, ExpertId, encode};
use crate::frame::Piece;
use crate::task::Task;

/// Experts of a rank that are to be sent, in the order of their positions.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    queue: VecDeque<Outgoing>,
    encoding: Option<Task<Result<BTreeMap<ExpertId, Bytes>, ExpertError>>>,
}

#[derive(Debug)]
struct Outgoing {
    slot: Slot,
    bytes: Option<Bytes>,
    sent: usize,
}

impl Outgoing {
    fn id(&self) -> ExpertId {
        ExpertId {
            layer: self.slot.layer,
            expert: self.slot.expert,
        }
    }

    /// How many of the bytes are due when the window ends there.
    fn due(&self, end: u64, length: usize) -> usize {
        let Range { start, end: last } = self.slot.positions;
        if last <= end {
            return length;
        }
        let due = usize::try_from(end.saturating_sub(start)).unwrap_or(usize::MAX);
        due.min(length)
    }
}

impl Outbox {
    /// Adds what lies behind all that is there.
    pub(super) fn add(&mut self, slots: Vec<Slot>) {
        let outgoing = |slot| Outgoing {
            slot,
            bytes: None,
            sent: 0,
        };
        self.queue.extend(slots.into_iter().map(outgoing));
    }

    /// Keeps what lies in the window and the one behind it encoded.
    pub(super) fn encode(&mut self, window: &Range<u64>, here: &Here<'_>) -> Result<(), String> {
        let horizon = window.end.saturating_add(window.end - window.start);
        loop {
            if let Some(task) = &self.encoding {
                let Some(encoded) = finished(task, here)? else {
                    return Ok(());
                };
                let encoded = encoded.map_err(|error| error.to_string())?;
                self.encoding = None;
                for outgoing in self.queue.iter_mut().filter(|o| o.bytes.is_none()) {
                    outgoing.bytes = encoded.get(&outgoing.id()).cloned();
                }
            }
            let near = self.queue.iter();
            let near = near.take_while(|o| o.slot.positions.start < horizon);
            let wanted: Vec<ExpertId> = near
                .filter(|o| o.bytes.is_none())
                .map(Outgoing::id)
                .collect();
            if wanted.is_empty() {
                return Ok(());
            }
            let experts = held(wanted, here)?;
            let encode = move || {
                let one = |(id, weights): (ExpertId, Arc<PreparedExpert>)| {
                    encode(id, &weights).map(|bytes| (id, bytes))
                };
                experts.into_iter().map(one).collect()
            };
            self.encoding = Some(Task::spawn("encoding experts", here.step, encode)?);
        }
    }

    /// What goes out in this exchange, and whether all that is due in the window then has.
    pub(super) fn pieces(&mut self, window: &Range<u64>) -> (Vec<(Rank, Piece)>, bool) {
        let mut budget = usize::try_from(window.end - window.start).unwrap_or(usize::MAX);
        let (mut pieces, mut complete) = (Vec::new(), true);
        let near = self.queue.iter_mut();
        for outgoing in near.take_while(|o| o.slot.positions.start < window.end) {
            let Some(bytes) = &outgoing.bytes else {
                complete = false;
                continue;
            };
            let due = outgoing.due(window.end, bytes.len());
            let end = due.min(outgoing.sent.saturating_add(budget));
            if end > outgoing.sent {
                let piece = Piece {
                    id: outgoing.id(),
                    offset: outgoing.sent,
                    total: bytes.len(),
                    bytes: bytes.slice(outgoing.sent..end),
                };
                pieces.push((outgoing.slot.to, piece));
            }
            budget -= end - outgoing.sent;
            outgoing.sent = end;
            complete &= end == due;
        }
        let done = |o: &Outgoing| o.bytes.as_ref().is_some_and(|bytes| o.sent == bytes.len());
        self.queue.retain(|outgoing| !done(outgoing));
        (pieces, complete)
    }
}

/// The weights of experts that this rank holds, each once.
fn held(
    wanted: Vec<ExpertId>,
    here: &Here<'_>,
) -> Result<BTreeMap<ExpertId, Arc<PreparedExpert>>, String> {
    let mut layers: BTreeMap<usize, BTreeMap<_, _>> = BTreeMap::new();
    let find = |id: ExpertId| {
        let layer = layers
            .entry(id.layer)
            .or_insert_with(|| here.layers[id.layer].held().into_iter().collect());
        let weights = layer.get(&id.expert).cloned();
        let weights = weights.ok_or_else(|| format!("{id} is to be sent, but not held"))?;
        Ok((id, weights))
    };
    wanted.into_iter().map(find).collect()
}

#[cfg(test)]
mod tests {
    use moekit_routing::LogicalExpert;

    use super::*;

    /// An expert of `length` bytes in a slot of 10 positions.
    fn outgoing(expert: usize, start: u64, length: usize) -> Outgoing {
        Outgoing {
            slot: Slot {
                layer: 0,
                expert: LogicalExpert::new(expert),
                to: Rank::new(expert % 2),
                positions: start..start + 10,
            },
            bytes: Some(Bytes::from(vec![0; length])),
            sent: 0,
        }
    }

    fn lengths(pieces: &[(Rank, Piece)]) -> Vec<(usize, usize, usize)> {
        let one = |(_, p): &(Rank, Piece)| (p.id.expert.index(), p.offset, p.bytes.len());
        pieces.iter().map(one).collect()
    }

    #[test]
    fn a_window_takes_the_end_of_one_expert_and_the_begin_of_another() {
        let mut outbox = Outbox::default();
        outbox
            .queue
            .extend([outgoing(0, 0, 10), outgoing(1, 10, 8), outgoing(2, 30, 10)]);
        let (pieces, complete) = outbox.pieces(&(0..14));
        assert_eq!(
            (lengths(&pieces), complete),
            (vec![(0, 0, 10), (1, 0, 4)], true)
        );
        // The window has not moved on: nothing is sent twice.
        let (pieces, complete) = outbox.pieces(&(0..14));
        assert_eq!((lengths(&pieces), complete), (vec![], true));
        let (pieces, _) = outbox.pieces(&(14..28));
        assert_eq!(lengths(&pieces), [(1, 4, 4)]);
        let (pieces, complete) = outbox.pieces(&(28..42));
        assert_eq!((lengths(&pieces), complete), (vec![(2, 0, 10)], true));
        assert!(outbox.queue.is_empty());
    }

    #[test]
    fn what_is_not_encoded_or_larger_than_its_slot_holds_the_window() {
        let mut outbox = Outbox::default();
        let late = Outgoing {
            bytes: None,
            ..outgoing(0, 0, 0)
        };
        outbox.queue.extend([late, outgoing(1, 10, 25)]);
        let (pieces, complete) = outbox.pieces(&(0..20));
        assert_eq!((lengths(&pieces), complete), (vec![(1, 0, 20)], false));
        outbox.queue[0].bytes = Some(Bytes::from_static(&[0; 10]));
        let (pieces, complete) = outbox.pieces(&(0..20));
        assert_eq!(
            (lengths(&pieces), complete),
            (vec![(0, 0, 10), (1, 20, 5)], true)
        );
    }
}
