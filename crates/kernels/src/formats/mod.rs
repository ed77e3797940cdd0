//! The weight formats: what each multiplies with, and how.
//!
//! A format that has a loop of its own is multiplied out of its panels, codes becoming numbers in
//! registers. Any other is widened to `f32` a block of a panel at a time.

mod codes;
mod floats;
mod int8;
mod scaled;
#[cfg(test)]
mod tests;

use std::ops::Range;

use moekit_quant::{ActivationQuant, CodeFormat};

pub(crate) use self::int8::{Quantize, units as int8_units};
pub(crate) use self::scaled::Scaling;
use self::scaled::{Arithmetic, Codes, Narrow, Wide};
use crate::Isa;
use crate::prepared::{Grouping, PreparedMatrix};
use crate::tile::{Dot, Tile, TileFn, multiply};

/// Bytes of a panel that all rows are multiplied by before the next ones: a part of the
/// second-level cache.
const PANEL_BLOCK: usize = 128 << 10;
/// Features of a panel whose scales are decoded at a time, and codes if they are decoded once. A
/// group that reaches across has a sum on either side, so that all loops have the same blocks.
const SCALED_BLOCK: usize = 1024;
/// The fewest features of a group; smaller ones are widened first.
const MIN_GROUP: usize = 16;
/// Values that decoded scales of a block take, and what is added to nibbles as many again: those
/// of one more group than a block has, because groups need not begin where blocks do.
pub(crate) const SCALES: usize = (SCALED_BLOCK / MIN_GROUP + 1) * crate::simd::LANES;

/// What the activations become before they meet the weights. A unit is 4 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Input {
    /// As they are, or widened: one feature per unit.
    F32,
    /// Two features per unit, the even one in the low half.
    Bf16,
    /// 8-bit integers, as [`Quantize`] writes them. Until then, and in the distance from one tile
    /// to the next, one feature per unit.
    Int8,
}

impl Input {
    pub(crate) fn features_per_unit(self) -> usize {
        match self {
            Self::F32 | Self::Int8 => 1,
            Self::Bf16 => 2,
        }
    }
}

/// A loop that reads panels of a format.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Direct {
    pub(crate) tile: TileFn,
    /// Input features of a step.
    pub(crate) features: usize,
    /// Units of a row's activations in a step.
    pub(crate) units: usize,
    /// Bytes of a panel in a step.
    pub(crate) bytes: usize,
    /// Most steps of a tile.
    pub(crate) steps: usize,
    /// The groups whose scales a tile needs.
    pub(crate) grouping: Option<Grouping>,
    /// Most rows of a tile of two panels, if there are not fewer on the instruction set.
    pub(crate) rows_of_two: usize,
    /// Another way, for many rows: to decode steps of a panel once.
    pub(crate) decoded: Option<Decoded>,
}

/// The loops for rows of more than one tile: codes become bf16 once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Decoded {
    /// That of the first tile: writes the steps of its one panel, [`DECODED`] values at most.
    pub(crate) first: unsafe fn(Isa, &Tile, *mut u8),
    /// That of the others, over what the first one has written.
    pub(crate) tile: unsafe fn(Isa, &Tile),
}

/// Most rows that panels are multiplied with out of their codes; for more, decoding once is
/// faster.
pub(crate) const DIRECT_ROWS: usize = scaled::ROWS;
/// Values of 4 bytes that a block takes as bf16.
pub(crate) const DECODED: usize = SCALED_BLOCK * crate::simd::LANES / 2;

impl Direct {
    fn new<D: Dot>() -> Self {
        Self {
            tile: multiply::<D>,
            features: D::FEATURES,
            units: D::UNITS,
            bytes: D::BYTES,
            steps: (PANEL_BLOCK / D::BYTES).max(1),
            grouping: None,
            rows_of_two: usize::MAX,
            decoded: None,
        }
    }

    fn scaled<C: Codes>(input: Input, grouping: Grouping) -> Self {
        match input {
            Input::Bf16 => Self::scaled_by::<C, Narrow>(grouping),
            Input::F32 | Input::Int8 => Self::scaled_by::<C, Wide>(grouping),
        }
    }

    fn scaled_by<C: Codes, A: Arithmetic>(grouping: Grouping) -> Self {
        Self {
            tile: scaled::multiply::<C, A>,
            features: scaled::FEATURES,
            units: A::UNITS,
            bytes: C::BYTES,
            steps: SCALED_BLOCK / scaled::FEATURES,
            grouping: Some(grouping),
            rows_of_two: scaled::ROWS_OF_TWO,
            decoded: Some(Decoded {
                first: scaled::multiply_and_keep::<C, A>,
                tile: scaled::multiply_decoded::<A>,
            }),
        }
    }

    /// The lengths of the groups of some steps, and their features.
    pub(crate) fn scaling(&self, start: usize, steps: usize) -> (Scaling, Range<usize>) {
        let first = start * self.features;
        let features = first..first + steps * self.features;
        let scaling = self.grouping.map_or(Scaling::NONE, |grouping| Scaling {
            first: grouping.rest(first) / self.features,
            group: grouping.group / self.features,
            ..Scaling::NONE
        });
        (scaling, features)
    }

    /// The loop over weights that have been widened to `f32`.
    pub(crate) fn widened() -> Self {
        Self::new::<floats::F32>()
    }
}

/// What a matrix multiplies with.
///
/// # Arguments
///
/// - `narrow` - whether activations are in bf16.
/// - `quant` - how they are quantized, if they are.
pub(crate) fn input(
    matrix: &PreparedMatrix,
    narrow: bool,
    quant: Option<ActivationQuant>,
) -> Input {
    let layout = matrix.layout();
    match quant {
        Some(quant) if int8::multiplies(layout, quant) => Input::Int8,
        None if narrow && direct(matrix, Input::Bf16).is_some() => Input::Bf16,
        _ => Input::F32,
    }
}

/// The loop over panels of a matrix, `None` if its weights must be widened first.
pub(crate) fn direct(matrix: &PreparedMatrix, input: Input) -> Option<Direct> {
    let layout = matrix.layout();
    if layout.is_plain() {
        match (layout.codes, input) {
            (CodeFormat::F32, Input::F32) => return Some(Direct::new::<floats::F32>()),
            (CodeFormat::F16, Input::F32) => return Some(Direct::new::<floats::F16>()),
            (CodeFormat::BF16, Input::F32) => return Some(Direct::new::<floats::WidenedBf16>()),
            (CodeFormat::BF16, Input::Bf16) => return Some(Direct::new::<floats::Bf16>()),
            _ => {}
        }
    }
    let grouping = layout.grouping(scaled::FEATURES)?;
    if input == Input::Int8 {
        return Some(Direct {
            tile: int8::multiply,
            features: int8::FEATURES,
            units: 1,
            bytes: int8::BYTES,
            // The sums of a row are integers until all products are in them.
            steps: usize::MAX,
            grouping: Some(grouping),
            rows_of_two: usize::MAX,
            decoded: None,
        });
    }
    if grouping.group < MIN_GROUP && !grouping.is_one() {
        return None;
    }
    match (layout.codes, layout.zero_points) {
        (CodeFormat::F8E4M3, None) => Some(Direct::scaled::<codes::E4m3>(input, grouping)),
        (CodeFormat::I8 | CodeFormat::I8Offset, None) if input == Input::Bf16 => {
            Some(Direct::scaled::<codes::Int8>(input, grouping))
        }
        (CodeFormat::F4E2M1, None) => Some(Direct::scaled::<codes::E2m1>(input, grouping)),
        (CodeFormat::I4Offset, None) => Some(Direct::scaled::<codes::Int4>(input, grouping)),
        (CodeFormat::I4Offset, Some(_)) if matrix.has_nibble_zero_points() => {
            Some(Direct::scaled::<codes::Int4Asymmetric>(input, grouping))
        }
        _ => None,
    }
}
