//! The weight formats: what each multiplies with, and how.
//!
//! A format that has a [`Dot`] of its own is multiplied out of its panels, codes becoming numbers
//! in registers. Any other is widened to `f32` a block of a panel at a time.

mod floats;

use moekit_quant::CodeFormat;

use crate::prepared::Layout;
use crate::tile::{Dot, TileFn, multiply};

/// What the activations become before they meet the weights. A unit is 4 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Input {
    /// As they are, or widened: one feature per unit.
    F32,
    /// Two features per unit, the even one in the low half.
    Bf16,
}

impl Input {
    pub(crate) fn features_per_unit(self) -> usize {
        match self {
            Self::F32 => 1,
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
    /// Bytes of a panel in a step.
    pub(crate) bytes: usize,
}

impl Direct {
    fn new<D: Dot>() -> Self {
        Self {
            tile: multiply::<D>,
            features: D::FEATURES,
            bytes: D::BYTES,
        }
    }

    /// The loop over weights that have been widened to `f32`.
    pub(crate) fn widened() -> Self {
        Self::new::<floats::F32>()
    }
}

/// What a layout multiplies with, if activations are in bf16 or in `f32`.
pub(crate) fn input(layout: &Layout, narrow: bool) -> Input {
    match layout.codes {
        CodeFormat::BF16 if narrow && layout.is_plain() => Input::Bf16,
        _ => Input::F32,
    }
}

/// The loop over panels of a layout, `None` if its weights must be widened first.
pub(crate) fn direct(layout: &Layout, input: Input) -> Option<Direct> {
    if !layout.is_plain() {
        return None;
    }
    match (layout.codes, input) {
        (CodeFormat::F32, Input::F32) => Some(Direct::new::<floats::F32>()),
        (CodeFormat::F16, Input::F32) => Some(Direct::new::<floats::F16>()),
        (CodeFormat::BF16, Input::F32) => Some(Direct::new::<floats::WidenedBf16>()),
        (CodeFormat::BF16, Input::Bf16) => Some(Direct::new::<floats::Bf16>()),
        _ => None,
    }
}
