//! Samples of one case, each beside the limits of its own moment.

use std::time::{Duration, Instant};

use moekit::kernels::probe::Probe;

use super::layer::Layer;
use super::report::{Bound, CaseReport};
use super::routing::Tokens;
use crate::error::Result;

/// How long the arithmetic is measured beside a sample: enough for the clock, too little to warm
/// the machine.
const PEAK_TIME: Duration = Duration::from_millis(2);
const LEAST_SAMPLES: usize = 3;
const MOST_SAMPLES: usize = 101;

/// What was measured once.
struct Sample {
    layer: f64,
    gate: f64,
    /// Seconds to stream as many bytes as the experts with tokens have.
    read: f64,
    /// Seconds to bring the threads together for nothing.
    latency: f64,
    /// Operations per second.
    peak: f64,
    bytes: f64,
    operations: f64,
}

impl Sample {
    fn compute(&self) -> f64 {
        self.operations / self.peak
    }

    /// The least seconds that the machine allows.
    fn limit(&self) -> f64 {
        self.read.max(self.compute()).max(self.latency)
    }
}

/// Times a layer on some batches in turn, so that with few tokens the weights are not in a cache that
/// is smaller than all of them.
///
/// # Arguments
///
/// - `time` - seconds of samples after which no more are begun.
pub(super) fn measure(
    layer: &Layer<'_>,
    batches: &[Tokens],
    probe: &mut Probe,
    time: f64,
) -> Result<CaseReport> {
    let tokens = batches
        .first()
        .map_or(0, |b| b.weights.len() / layer.shape.top_k);
    // Once to warm up: threads start, memory is mapped.
    if let Some(batch) = batches.first() {
        layer.run(batch)?;
        layer.run_gate(batch)?;
    }
    let mut reader = layer.cache_probe(batches)?;
    let start = Instant::now();
    let mut samples = Vec::new();
    for batch in batches.iter().cycle().take(MOST_SAMPLES) {
        if samples.len() >= LEAST_SAMPLES && start.elapsed().as_secs_f64() > time {
            break;
        }
        samples.push(sample(layer, batch, probe, reader.as_mut())?);
    }
    Ok(report(layer, tokens, &samples, reader.is_some()))
}

pub(super) fn seconds<T>(work: impl FnOnce() -> Result<T>) -> Result<f64> {
    let start = Instant::now();
    std::hint::black_box(work()?);
    Ok(start.elapsed().as_secs_f64())
}

/// # Arguments
///
/// - `reader` - reads from caches if these keep the weights.
fn sample(
    layer: &Layer<'_>,
    batch: &Tokens,
    probe: &mut Probe,
    reader: Option<&mut Probe>,
) -> Result<Sample> {
    let bytes = layer.weight_bytes(batch);
    let latency = seconds(|| Ok(probe.read(0)))?;
    // From memory it leaves no weights in the caches, neither for the gate nor for the experts.
    let read = match reader {
        Some(reader) => reader.read(bytes),
        None => probe.read(bytes),
    };
    let gate = seconds(|| layer.run_gate(batch))?;
    let peak = probe.peak(layer.arithmetic(), PEAK_TIME);
    Ok(Sample {
        layer: seconds(|| layer.run(batch))?,
        gate,
        read: read.as_secs_f64(),
        latency,
        peak,
        bytes: bytes as f64,
        operations: layer.operations(batch),
    })
}

/// What takes longest of the least times that the machine allows.
fn bound(samples: &[Sample], cached: bool) -> Bound {
    let over = |value: fn(&Sample) -> f64| median(samples.iter().map(value).collect());
    let (read, compute) = (over(|s| s.read), over(Sample::compute));
    match cached {
        _ if over(|s| s.latency) > read.max(compute) => Bound::Latency,
        _ if compute > read => Bound::Compute,
        true => Bound::Cache,
        false => Bound::Bandwidth,
    }
}

fn report(layer: &Layer<'_>, tokens: usize, samples: &[Sample], cached: bool) -> CaseReport {
    let over = |value: fn(&Sample) -> f64| median(samples.iter().map(value).collect());
    let seconds = over(|s| s.layer);
    let gate = over(|s| s.gate);
    CaseReport {
        shape: layer.shape.name.clone(),
        dtype: layer.format.name(),
        act: layer.act,
        tokens,
        samples: samples.len(),
        median_ms: seconds * 1e3,
        tokens_per_s: tokens as f64 / seconds,
        weight_bytes: over(|s| s.bytes),
        weight_gbs: over(|s| s.bytes / s.layer) / 1e9,
        gflops: over(|s| s.operations / s.layer) / 1e9,
        paired_read_gbs: over(|s| s.bytes / s.read) / 1e9,
        paired_peak_gflops: over(|s| s.peak) / 1e9,
        limit: bound(samples, cached),
        fraction_of_limit: over(|s| s.limit() / s.layer),
        gate_ms: gate * 1e3,
        gate_share: over(|s| s.gate / (s.gate + s.layer)),
    }
}

/// The middle one, of an even number the mean of both; 0 of none.
pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match (values.get(middle), values.len() % 2) {
        (None, _) => 0.0,
        (Some(upper), 0) => (values[middle - 1] + upper) / 2.0,
        (Some(middle), _) => *middle,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(vec![]), 0.0);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
    }

    #[test]
    fn the_longest_of_reading_arithmetic_and_latency_is_the_limit() {
        let sample = |read, operations, latency| Sample {
            layer: 4.0,
            gate: 1.0,
            read,
            latency,
            peak: 10.0,
            bytes: 8.0,
            operations,
        };
        for (sample, limit, memory, cache) in [
            (sample(2.0, 10.0, 0.1), 2.0, Bound::Bandwidth, Bound::Cache),
            (sample(2.0, 30.0, 0.1), 3.0, Bound::Compute, Bound::Compute),
            (sample(2.0, 30.0, 3.5), 3.5, Bound::Latency, Bound::Latency),
        ] {
            assert_eq!(sample.limit(), limit);
            let samples = [sample];
            assert_eq!([false, true].map(|c| bound(&samples, c)), [memory, cache]);
        }
    }
}
