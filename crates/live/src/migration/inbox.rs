//! What a rank receives: pieces that become experts, which are verified beside the forward passes.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use moekit_fused_moe::PreparedExpert;

use super::{Here, finished};
use crate::expert::{ExpertError, ExpertId, decode};
use crate::frame::Piece;
use crate::task::Task;

type Verified = Vec<(ExpertId, Arc<PreparedExpert>)>;

/// Experts that have arrived in part, or wait to be verified.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    parts: BTreeMap<ExpertId, Part>,
    verifying: Option<Task<Result<Verified, ExpertError>>>,
}

#[derive(Debug, Default)]
struct Part {
    total: usize,
    bytes: Vec<u8>,
}

impl Inbox {
    /// Takes in a piece, which must continue what is there.
    pub(super) fn receive(&mut self, piece: &Piece, staging: u64) -> Result<(), String> {
        if piece.total as u64 > staging {
            return Err(format!(
                "{} takes {} bytes, the staging budget is {staging}",
                piece.id, piece.total
            ));
        }
        let part = self.parts.entry(piece.id).or_default();
        if part.bytes.is_empty() {
            part.total = piece.total;
            let reserved = part.bytes.try_reserve_exact(piece.total);
            reserved
                .map_err(|_| format!("no memory for the {} bytes of {}", piece.total, piece.id))?;
        }
        let end = piece.offset.checked_add(piece.bytes.len());
        if (piece.total, piece.offset) != (part.total, part.bytes.len())
            || end.is_none_or(|end| end > piece.total)
        {
            return Err(format!(
                "bytes {}..{end:?} of {} of {} arrived, expected them from {} of {} on",
                piece.offset,
                piece.total,
                piece.id,
                part.bytes.len(),
                part.total
            ));
        }
        part.bytes.extend_from_slice(&piece.bytes);
        Ok(())
    }

    /// Verifies experts whose last byte has come; those that are found whole and unchanged.
    ///
    /// # Arguments
    ///
    /// - `expected` - whether an expert is to come to this rank.
    pub(super) fn verify(
        &mut self,
        expected: impl Fn(ExpertId) -> bool,
        here: &Here<'_>,
    ) -> Result<Verified, String> {
        let mut verified = Vec::new();
        loop {
            if let Some(task) = &self.verifying {
                let Some(experts) = finished(task, here)? else {
                    return Ok(verified);
                };
                verified.extend(experts.map_err(|error| error.to_string())?);
                self.verifying = None;
            }
            let is_whole = |_: &ExpertId, part: &mut Part| part.bytes.len() == part.total;
            let whole: Vec<_> = self.parts.extract_if(.., is_whole).collect();
            if whole.is_empty() {
                return Ok(verified);
            }
            if let Some((id, _)) = whole.iter().find(|(id, _)| !expected(*id)) {
                return Err(format!("{id} arrived, but is not to come"));
            }
            let verify = move || {
                let one = |(id, part): (ExpertId, Part)| {
                    let expert = decode(id, &Bytes::from(part.bytes))?;
                    Ok((id, Arc::new(expert)))
                };
                whole.into_iter().map(one).collect()
            };
            self.verifying = Some(Task::spawn("verifying experts", here.step, verify)?);
        }
    }

    /// Finds fault with an expert of which all bytes have been sent, but not arrived.
    pub(super) fn check_whole(&self, id: ExpertId) -> Result<(), String> {
        let missing = |got, expected| {
            let what = id.to_string();
            Err(ExpertError::Length {
                what,
                got,
                expected,
            }
            .to_string())
        };
        match self.parts.get(&id) {
            Some(part) if part.bytes.len() < part.total => missing(part.bytes.len(), part.total),
            None if self.verifying.is_none() => Err(format!("{id} was sent, but has not arrived")),
            _ => Ok(()),
        }
    }
}
