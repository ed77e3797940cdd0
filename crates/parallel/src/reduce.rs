//! Reductions whose result does not depend on who is first.

use std::fmt;

use bytemuck::Pod;

use crate::{Buffer, CommError};

/// How values of different ranks become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ReduceOp {
    /// `((x_0 + x_1) + x_2) + ...` in rank order. Integers that overflow are an error.
    Sum,
    /// The largest; the lowest rank's among equals; NaN if any value is NaN.
    Max,
}

/// The type of the values of a reduction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ElementType {
    /// `f32`
    F32,
    /// `f64`
    F64,
    /// `u64`
    U64,
}

impl ElementType {
    /// Bytes per value.
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F64 | Self::U64 => 8,
        }
    }
}

impl fmt::Display for ReduceOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sum => "sum",
            Self::Max => "max",
        })
    }
}

impl fmt::Display for ElementType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F64 => "f64",
            Self::U64 => "u64",
        })
    }
}

mod sealed {
    pub trait Arithmetic: PartialOrd + Copy {
        /// `None` if the sum does not fit.
        fn plus(self, other: Self) -> Option<Self>;
    }

    impl Arithmetic for f32 {
        fn plus(self, other: Self) -> Option<Self> {
            Some(self + other)
        }
    }

    impl Arithmetic for f64 {
        fn plus(self, other: Self) -> Option<Self> {
            Some(self + other)
        }
    }

    impl Arithmetic for u64 {
        fn plus(self, other: Self) -> Option<Self> {
            self.checked_add(other)
        }
    }
}

/// A type that ranks can reduce: `f32`, `f64` and `u64`.
pub trait Reducible: Pod + Send + Sync + sealed::Arithmetic {
    /// The name of the type in [`Communicator::all_reduce`](crate::Communicator::all_reduce).
    const ELEMENT: ElementType;
}

impl Reducible for f32 {
    const ELEMENT: ElementType = ElementType::F32;
}

impl Reducible for f64 {
    const ELEMENT: ElementType = ElementType::F64;
}

impl Reducible for u64 {
    const ELEMENT: ElementType = ElementType::U64;
}

/// Reduces one buffer per rank, all of the same length, a multiple of the element's size.
pub(crate) fn reduce_in_rank_order(
    buffers: Vec<Buffer>,
    element: ElementType,
    op: ReduceOp,
) -> Result<Buffer, CommError> {
    match element {
        ElementType::F32 => reduce::<f32>(buffers, op),
        ElementType::F64 => reduce::<f64>(buffers, op),
        ElementType::U64 => reduce::<u64>(buffers, op),
    }
}

fn reduce<T: Reducible>(buffers: Vec<Buffer>, op: ReduceOp) -> Result<Buffer, CommError> {
    let mut ranks = buffers.into_iter();
    let first = ranks.next().unwrap_or_default();
    if ranks.len() == 0 {
        return Ok(first);
    }
    let mut result = first.whole_values::<T>().into_owned();
    for buffer in ranks {
        let values = buffer.whole_values::<T>();
        for (index, (total, &value)) in result.iter_mut().zip(values.iter()).enumerate() {
            *total = match op {
                ReduceOp::Sum => total.plus(value).ok_or(CommError::Overflow {
                    index,
                    element: T::ELEMENT,
                })?,
                ReduceOp::Max => larger(*total, value),
            };
        }
    }
    Ok(Buffer::from_vec(result))
}

/// `f32::max` would lose a NaN, and may return either of two zeros.
fn larger<T: PartialOrd + Copy>(a: T, b: T) -> T {
    let a_is_nan = a.partial_cmp(&a).is_none();
    if a_is_nan || a >= b { a } else { b }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all<T: Reducible>(ranks: &[&[T]], op: ReduceOp) -> Result<Vec<T>, CommError> {
        let buffers = ranks.iter().map(|r| Buffer::from_vec(r.to_vec()));
        let result = reduce_in_rank_order(buffers.collect(), T::ELEMENT, op)?;
        Ok(result.view::<T>()?.into_owned())
    }

    #[test]
    fn sums_from_the_lowest_rank_on() {
        // Any other order of these gives another sum.
        let ranks: [&[f32]; 3] = [&[1e8, 1.0], &[1.0, 1e8], &[-1e8, -1e8]];
        assert_eq!(all(&ranks, ReduceOp::Sum).unwrap(), [0.0, 0.0]);
        assert_eq!(1e8f32 - 1e8 + 1.0, 1.0);
        let ranks: [&[f64]; 3] = [&[1e16], &[-1e16], &[1.0]];
        assert_eq!(all(&ranks, ReduceOp::Sum).unwrap(), [1.0]);
    }

    #[test]
    fn max_keeps_nan_and_the_first_of_equals() {
        let ranks: [&[f32]; 3] = [
            &[1.0, f32::NAN, 2.0, -0.0, 0.0],
            &[3.0, 1.0, f32::NAN, 0.0, -0.0],
            &[2.0, 5.0, 4.0, -0.0, -0.0],
        ];
        let max = all(&ranks, ReduceOp::Max).unwrap();
        assert_eq!(max[0], 3.0);
        assert!(max[1].is_nan() && max[2].is_nan());
        assert!(max[3].is_sign_negative() && max[4].is_sign_positive());
    }

    #[test]
    fn integers_that_overflow_are_an_error() {
        let ranks: [&[u64]; 2] = [&[1, u64::MAX], &[2, 1]];
        assert_eq!(
            all(&ranks, ReduceOp::Sum).unwrap_err(),
            CommError::Overflow {
                index: 1,
                element: ElementType::U64
            }
        );
        assert_eq!(all(&ranks, ReduceOp::Max).unwrap(), [2, u64::MAX]);
    }
}
