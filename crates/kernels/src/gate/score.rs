use moekit_quant::ScoringFunction;

use crate::KernelError;

/// A scoring function that this crate computes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Scoring {
    Softmax,
    Sigmoid,
    SqrtSoftplus,
}

impl Scoring {
    pub(super) fn new(function: ScoringFunction) -> Result<Self, KernelError> {
        match function {
            ScoringFunction::Softmax => Ok(Self::Softmax),
            ScoringFunction::Sigmoid => Ok(Self::Sigmoid),
            ScoringFunction::SqrtSoftplus => Ok(Self::SqrtSoftplus),
            other => Err(KernelError::Gate(format!(
                "the scoring function {other:?} is not known; known are Softmax, Sigmoid, SqrtSoftplus"
            ))),
        }
    }

    /// Logits to scores, in place; softmax runs over the values given.
    pub(super) fn apply(self, values: &mut [f32]) {
        match self {
            Self::Softmax => softmax(values),
            Self::Sigmoid => values
                .iter_mut()
                .for_each(|v| *v = 1.0 / (1.0 + (-*v).exp())),
            Self::SqrtSoftplus => values
                .iter_mut()
                .for_each(|v| *v = (v.max(0.0) + (-v.abs()).exp().ln_1p()).sqrt()),
        }
    }
}

/// `exp(l - max l) / sum`. The largest of NaN and numbers is taken of the numbers, so that the NaN
/// reaches the sum and with it every score.
pub(super) fn softmax(values: &mut [f32]) {
    let max = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for value in values.iter_mut() {
        *value = (*value - max).exp();
        sum += *value;
    }
    values.iter_mut().for_each(|v| *v /= sum);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        let near = |got: &[f32], want: &[f32]| {
            for (got, want) in got.iter().zip(want) {
                assert!((got - want).abs() < 1e-6, "{got} {want}");
            }
        };
        // Python: math.exp(i) / sum, 1 / (1 + math.exp(-i)), math.sqrt(math.log(1 + math.exp(i)))
        let logits = [-1.0, 0.0, 2.0];
        let mut values = logits;
        Scoring::Softmax.apply(&mut values);
        near(&values, &[0.042_010_065, 0.114_195_2, 0.843_794_7]);
        let mut values = logits;
        Scoring::Sigmoid.apply(&mut values);
        near(&values, &[0.268_941_43, 0.5, 0.880_797_1]);
        let mut values = logits;
        Scoring::SqrtSoftplus.apply(&mut values);
        near(&values, &[0.559_697_85, 0.832_554_6, 1.458_399]);
    }

    #[test]
    fn extreme_logits_stay_finite() {
        for scoring in [Scoring::Softmax, Scoring::Sigmoid, Scoring::SqrtSoftplus] {
            let mut values = [-1e30, -200.0, 0.0, 200.0, 1e30];
            scoring.apply(&mut values);
            assert!(
                values.iter().all(|v| v.is_finite() && *v >= 0.0),
                "{scoring:?} {values:?}"
            );
        }
    }
}
