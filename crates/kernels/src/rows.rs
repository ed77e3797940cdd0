use std::ops::Range;

use half::bf16;

/// Rows of activations in the caller's own precision, row-major.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Rows<'a> {
    /// Single precision.
    F32(&'a [f32]),
    /// bfloat16; widened value by value where it is used, never as a whole.
    Bf16(&'a [bf16]),
}

impl<'a> Rows<'a> {
    /// Some of the values.
    pub(crate) fn part(self, values: Range<usize>) -> Rows<'a> {
        match self {
            Self::F32(all) => Self::F32(&all[values]),
            Self::Bf16(all) => Self::Bf16(&all[values]),
        }
    }
}

impl Rows<'_> {
    /// Values, over all rows.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::Bf16(values) => values.len(),
        }
    }

    /// Whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<'a> From<&'a [f32]> for Rows<'a> {
    fn from(values: &'a [f32]) -> Self {
        Self::F32(values)
    }
}

impl<'a> From<&'a [bf16]> for Rows<'a> {
    fn from(values: &'a [bf16]) -> Self {
        Self::Bf16(values)
    }
}

/// A value that a sum takes in as `f32`, exactly.
pub(crate) trait Widen: Copy + Send + Sync {
    fn widen(self) -> f32;
}

impl Widen for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
}

impl Widen for bf16 {
    /// Plain bit arithmetic, so that loops over it vectorize. `half` quietens NaNs besides.
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}

/// Runs a piece of code for either element type.
macro_rules! with_rows {
    ($rows:expr, $values:ident => $body:expr) => {
        match $rows {
            $crate::rows::Rows::F32($values) => $body,
            $crate::rows::Rows::Bf16($values) => $body,
        }
    };
}
pub(crate) use with_rows;
