//! Whether the load has changed.

/// A one-sided CUSUM (Page, Biometrika 41, 1954): `S = max(0, S + reference - x - slack)`, and a
/// change is reported when `S` exceeds the threshold. Small drops add up, noise within the slack
/// does not.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Cusum {
    /// How far below the reference a value may be.
    pub slack: f64,
    /// How much of what is beyond may add up.
    pub threshold: f64,
}

impl Cusum {
    /// A detector.
    pub fn new(slack: f64, threshold: f64) -> Self {
        Self { slack, threshold }
    }
}

/// The detector at work on the balancedness.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Detector {
    settings: Cusum,
    /// The best value since it was reset.
    reference: Option<f64>,
    sum: f64,
}

impl Detector {
    pub(crate) fn new(settings: Cusum) -> Self {
        Self {
            settings,
            reference: None,
            sum: 0.0,
        }
    }

    /// Begins anew, after another placement has come into force.
    pub(crate) fn reset(&mut self) {
        *self = Self::new(self.settings);
    }

    /// Takes in the next value; whether it has dropped for good.
    pub(crate) fn push(&mut self, value: f64) -> bool {
        let reference = self.reference.map_or(value, |best| best.max(value));
        self.reference = Some(reference);
        self.sum = (self.sum + reference - value - self.settings.slack).max(0.0);
        self.sum > self.settings.threshold
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_add_up_and_noise_does_not() {
        let mut detector = Detector::new(Cusum::new(0.02, 0.11));
        for value in [0.90, 0.89, 0.90, 0.885, 0.9, 0.89].repeat(20) {
            assert!(!detector.push(value));
        }
        // 0.04 below, 0.02 beyond the slack: the sum exceeds 0.11 with the sixth.
        let alarms: Vec<bool> = (0..6).map(|_| detector.push(0.86)).collect();
        assert_eq!(alarms, [false, false, false, false, false, true]);
        detector.reset();
        assert!(!detector.push(0.5), "the new normal");
    }
}
