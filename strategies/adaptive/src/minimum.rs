//! The smallest of many values.

/// Lanes of their own, so that the compiler compares several at a time.
const LANES: usize = 8;

/// The smallest value, or `none` if there is none below it.
pub(crate) fn smallest<T: Copy + PartialOrd>(values: &[T], none: T) -> T {
    // Without a rule for NaN, which never occurs, this is one instruction.
    let smaller = |a: T, b: T| if b < a { b } else { a };
    let mut lanes = [none; LANES];
    let chunks = values.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane = smaller(*lane, value);
        }
    }
    lanes.iter().chain(rest).copied().fold(none, smaller)
}

/// Index of the smallest value, the first of equal ones; `None` if all are `none` or above.
pub(crate) fn first_smallest<T: Copy + PartialOrd>(values: &[T], none: T) -> Option<usize> {
    let least = smallest(values, none);
    if least >= none {
        return None;
    }
    values.iter().position(|&value| value == least)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_equal_ones() {
        let mut values = vec![3.0; 21];
        assert_eq!(first_smallest(&values, f64::INFINITY), Some(0));
        values[17] = 2.0;
        values[20] = 2.0;
        assert_eq!(first_smallest(&values, f64::INFINITY), Some(17));
        assert_eq!(first_smallest(&[f32::INFINITY], f32::INFINITY), None);
        assert_eq!(smallest(&[], 7.0), 7.0);
    }
}
