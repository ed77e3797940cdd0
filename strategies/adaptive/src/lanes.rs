//! Smallest and largest of many numbers.

/// Folds numbers in several lanes at once, then the lanes: for what does not depend on the order. One
/// after the other, each would wait for the one before.
pub(crate) fn fold_lanes(values: &[f64], start: f64, fold: impl Fn(f64, f64) -> f64) -> f64 {
    let mut lanes = [start; 8];
    let (chunks, rest) = values.as_chunks::<8>();
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane = fold(*lane, value);
        }
    }
    lanes.iter().chain(rest).copied().fold(start, fold)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_counts() {
        for n in 0..20 {
            let values: Vec<f64> = (0..n).map(f64::from).collect();
            let max = fold_lanes(&values, -1.0, |a, b| if b > a { b } else { a });
            assert_eq!(max, f64::from(n) - 1.0);
        }
    }
}
