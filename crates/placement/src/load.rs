use std::ops::Range;

use crate::PlacementError;

/// No counter comes near; sums of loads below it stay finite.
const MAX_LOAD: f64 = 1e100;

/// Tokens routed to each logical expert of each MoE layer over some time, `[layers, experts]`.
///
/// The unit does not matter to a plan, only the proportions within a layer do.
///
/// ```
/// use moekit_placement::ExpertLoad;
///
/// let load = ExpertLoad::from_rows(&[vec![3.0, 1.0], vec![0.0, 2.0]])?;
/// assert_eq!(load.layer(1), Some(&[0.0, 2.0][..]));
/// assert!(ExpertLoad::from_rows(&[vec![f64::NAN]]).is_err());
/// # Ok::<(), moekit_placement::PlacementError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct ExpertLoad {
    num_experts: usize,
    values: Vec<f64>,
}

impl ExpertLoad {
    /// A load from row-major values.
    ///
    /// # Errors
    ///
    /// If a dimension is zero, the length does not match, or a value is negative, NaN or above 1e100.
    pub fn new(
        num_layers: usize,
        num_experts: usize,
        values: Vec<f64>,
    ) -> Result<Self, PlacementError> {
        if num_layers == 0 {
            return Err(PlacementError::NoLayers);
        }
        if num_experts == 0 {
            return Err(moekit_routing::RoutingError::NoExperts.into());
        }
        let expected = num_layers.saturating_mul(num_experts);
        if values.len() != expected {
            return Err(PlacementError::Shape {
                what: format!(
                    "number of load values for {num_layers} layers of {num_experts} experts"
                ),
                got: values.len(),
                expected,
            });
        }
        if let Some(i) = values.iter().position(|v| !((0.0..=MAX_LOAD).contains(v))) {
            return Err(PlacementError::Load {
                layer: i / num_experts,
                expert: i % num_experts,
                value: values[i],
            });
        }
        Ok(Self {
            num_experts,
            values,
        })
    }

    /// A load from one row per layer.
    ///
    /// # Errors
    ///
    /// As [`ExpertLoad::new`], and if rows differ in length.
    pub fn from_rows<R: AsRef<[f64]>>(rows: &[R]) -> Result<Self, PlacementError> {
        let num_experts = rows.first().map_or(0, |r| r.as_ref().len());
        for (layer, row) in rows.iter().enumerate() {
            if row.as_ref().len() != num_experts {
                return Err(PlacementError::Shape {
                    what: format!("number of experts in the load of layer {layer}"),
                    got: row.as_ref().len(),
                    expected: num_experts,
                });
            }
        }
        let values = rows
            .iter()
            .flat_map(|r| r.as_ref().iter().copied())
            .collect();
        Self::new(rows.len(), num_experts, values)
    }

    /// Number of MoE layers.
    pub fn num_layers(&self) -> usize {
        self.values.len() / self.num_experts
    }

    /// Number of logical experts per layer.
    pub fn num_experts(&self) -> usize {
        self.num_experts
    }

    /// The load of one layer, `[experts]`; `None` if there is no such layer.
    pub fn layer(&self, layer: usize) -> Option<&[f64]> {
        self.values.chunks_exact(self.num_experts).nth(layer)
    }

    /// The loads layer by layer, each `[experts]`.
    pub fn layers(&self) -> impl ExactSizeIterator<Item = &[f64]> {
        self.values.chunks_exact(self.num_experts)
    }
}

/// Expert loads of consecutive steps, `[steps, layers, experts]`.
#[derive(Clone, Debug, PartialEq)]
pub struct LoadTrace {
    steps: Vec<ExpertLoad>,
}

impl LoadTrace {
    /// A trace of steps of one shape.
    ///
    /// # Errors
    ///
    /// If there is no step, or shapes differ.
    pub fn new(steps: Vec<ExpertLoad>) -> Result<Self, PlacementError> {
        let Some(first) = steps.first() else {
            return Err(PlacementError::Shape {
                what: "number of steps in a load trace (at least)".to_owned(),
                got: 0,
                expected: 1,
            });
        };
        let (layers, experts) = (first.num_layers(), first.num_experts());
        for (i, step) in steps.iter().enumerate() {
            for (what, got, expected) in [
                ("layers", step.num_layers(), layers),
                ("experts", step.num_experts(), experts),
            ] {
                if got != expected {
                    return Err(PlacementError::Shape {
                        what: format!("number of {what} in step {i} of a load trace"),
                        got,
                        expected,
                    });
                }
            }
        }
        Ok(Self { steps })
    }

    /// The steps in order.
    pub fn steps(&self) -> &[ExpertLoad] {
        &self.steps
    }

    /// Number of MoE layers.
    pub fn num_layers(&self) -> usize {
        self.steps[0].num_layers()
    }

    /// Number of logical experts per layer.
    pub fn num_experts(&self) -> usize {
        self.steps[0].num_experts()
    }

    /// The load of a window of steps, summed.
    ///
    /// # Errors
    ///
    /// If the window is empty or leaves the trace.
    pub fn window(&self, window: Range<usize>) -> Result<ExpertLoad, PlacementError> {
        let steps = self.steps.get(window.clone()).filter(|s| !s.is_empty());
        let Some((first, rest)) = steps.and_then(<[_]>::split_first) else {
            return Err(PlacementError::Shape {
                what: format!(
                    "end of load window {}..{} (the trace has steps 0..{}; a window has at least one)",
                    window.start,
                    window.end,
                    self.steps.len()
                ),
                got: window.end,
                expected: self.steps.len(),
            });
        };
        let mut sum = first.clone();
        for step in rest {
            for (total, value) in sum.values.iter_mut().zip(&step.values) {
                *total += value;
            }
        }
        Ok(sum)
    }

    /// The load of all steps, summed.
    pub fn total(&self) -> ExpertLoad {
        self.window(0..self.steps.len())
            .unwrap_or_else(|_| self.steps[0].clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonsense_is_refused_with_its_place_and_value() {
        for bad in [-1.0, f64::NAN, f64::INFINITY, 2e100] {
            let error = ExpertLoad::from_rows(&[[1.0, 2.0], [3.0, bad]])
                .unwrap_err()
                .to_string();
            assert!(
                error.contains("layer 1, expert 1") && error.contains(&format!("{bad:?}")),
                "{error}"
            );
        }
        assert!(ExpertLoad::from_rows::<Vec<f64>>(&[]).is_err());
        assert!(ExpertLoad::from_rows(&[vec![]]).is_err());
        let uneven = ExpertLoad::from_rows(&[vec![1.0], vec![1.0, 2.0]])
            .unwrap_err()
            .to_string();
        assert!(
            uneven.contains("layer 1") && uneven.contains("got 2, expected 1"),
            "{uneven}"
        );
    }

    #[test]
    fn windows_add_up() {
        let step = |v| ExpertLoad::from_rows(&[[v, 1.0]]).unwrap();
        let trace = LoadTrace::new(vec![step(1.0), step(2.0), step(4.0)]).unwrap();
        assert_eq!(trace.window(1..3).unwrap().layer(0), Some(&[6.0, 2.0][..]));
        assert_eq!(trace.total().layer(0), Some(&[7.0, 3.0][..]));
        assert!(trace.window(2..4).is_err());
        assert!(trace.window(1..1).is_err());
        assert!(LoadTrace::new(vec![]).is_err());
        let other = ExpertLoad::from_rows(&[[1.0], [1.0]]).unwrap();
        let error = LoadTrace::new(vec![step(1.0), other])
            .unwrap_err()
            .to_string();
        assert!(error.contains("layers in step 1"), "{error}");
    }
}
