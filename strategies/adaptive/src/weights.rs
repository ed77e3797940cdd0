//! The load that is planned for.

use std::borrow::Cow;

use moekit_placement::{LoadTrace, PlacementRequest};

/// The load of each expert of a layer, `[E]`: the observed one, with `risk` standard deviations of
/// its steps on top; alike without a load.
pub(crate) fn weights<'a>(
    request: &PlacementRequest<'a>,
    layer: usize,
    risk: f64,
) -> Cow<'a, [f64]> {
    let even = || Cow::Owned(vec![1.0; request.num_logical_experts()]);
    let Some(load) = request.load().and_then(|load| load.layer(layer)) else {
        return even();
    };
    if load.iter().all(|&l| l == 0.0) {
        return even();
    }
    match request
        .trace()
        .filter(|trace| risk > 0.0 && trace.steps().len() > 1)
    {
        Some(trace) => Cow::Owned(with_risk(load, trace, layer, risk)),
        None => Cow::Borrowed(load),
    }
}

/// `load × (1 + risk × σ / μ)`: the deviation is that of one step around the mean of the steps, in
/// the unit of the load.
fn with_risk(load: &[f64], trace: &LoadTrace, layer: usize, risk: f64) -> Vec<f64> {
    let steps = trace.steps().len() as f64;
    let values = |e: usize| {
        trace
            .steps()
            .iter()
            .filter_map(move |step| step.layer(layer)?.get(e).copied())
    };
    let risky = |(e, &load): (usize, &f64)| {
        let mean = values(e).sum::<f64>() / steps;
        if mean <= 0.0 {
            return load;
        }
        // Relative to the mean, so that no square leaves the range of numbers.
        let variance = values(e).map(|v| (v / mean - 1.0).powi(2)).sum::<f64>() / (steps - 1.0);
        load * (1.0 + risk * variance.sqrt())
    };
    load.iter().enumerate().map(risky).collect()
}

#[cfg(test)]
mod tests {
    use moekit_placement::{ExpertLoad, Topology};

    use super::*;

    #[test]
    fn unsteady_experts_weigh_more() {
        let step = |values: [f64; 2]| ExpertLoad::from_rows(&[values]).unwrap();
        let trace = LoadTrace::new(vec![step([4.0, 2.0]), step([4.0, 6.0])]).unwrap();
        let load = trace.total();
        let topology = Topology::new(1).unwrap();
        let request = PlacementRequest::new(1, 2, &topology).unwrap();
        assert_eq!(*weights(&request, 0, 1.0), [1.0, 1.0]);
        let request = request.with_load(&load).unwrap();
        assert_eq!(*weights(&request, 0, 1.0), [8.0, 8.0]);
        let request = request.with_trace(&trace).unwrap();
        assert_eq!(*weights(&request, 0, 0.0), [8.0, 8.0]);
        let risky = weights(&request, 0, 1.0);
        assert_eq!(risky[0], 8.0);
        assert!((risky[1] - (8.0 + 2.0 * 8f64.sqrt())).abs() < 1e-12);
    }
}
