//! What the command tells.

use moekit::kernels::Isa;
use moekit::kernels::probe::Limits;
use serde::Serialize;

use super::ActivationDtype;

#[derive(Serialize)]
pub(super) struct Report {
    pub(super) threads: usize,
    pub(super) isa: &'static str,
    pub(super) limits: LimitsReport,
    pub(super) cases: Vec<CaseReport>,
}

#[derive(Serialize)]
pub(super) struct LimitsReport {
    read_gbs: f64,
    f32_gflops: f64,
    bf16_gflops: f64,
    int8_gops: f64,
}

/// What a case was held back by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Bound {
    /// Reading the weights from memory.
    Bandwidth,
    /// Reading the weights from caches, which hold all that the batches need.
    Cache,
    /// Multiplying.
    Compute,
    /// Bringing the threads together once.
    Latency,
}

impl Bound {
    fn name(self) -> &'static str {
        match self {
            Self::Bandwidth => "bandwidth",
            Self::Cache => "cache",
            Self::Compute => "compute",
            Self::Latency => "latency",
        }
    }
}

/// Medians over the samples of a case.
#[derive(Serialize)]
pub(super) struct CaseReport {
    pub(super) shape: String,
    pub(super) dtype: String,
    pub(super) act: ActivationDtype,
    pub(super) tokens: usize,
    pub(super) samples: usize,
    pub(super) median_ms: f64,
    pub(super) tokens_per_s: f64,
    /// Of the experts that have tokens.
    pub(super) weight_bytes: f64,
    pub(super) weight_gbs: f64,
    pub(super) gflops: f64,
    /// Of as many bytes, right before, from where the weights are: memory or caches.
    pub(super) paired_read_gbs: f64,
    /// Of the arithmetic that bounds the case, right before.
    pub(super) paired_peak_gflops: f64,
    pub(super) limit: Bound,
    pub(super) fraction_of_limit: f64,
    pub(super) gate_ms: f64,
    /// Of gate and experts together.
    pub(super) gate_share: f64,
}

impl From<Limits> for LimitsReport {
    fn from(limits: Limits) -> Self {
        Self {
            read_gbs: limits.read_gbs,
            f32_gflops: limits.f32_gflops,
            bf16_gflops: limits.bf16_gflops,
            int8_gops: limits.int8_gops,
        }
    }
}

impl Report {
    pub(super) fn new(threads: usize, isa: Isa, limits: Limits, cases: Vec<CaseReport>) -> Self {
        Self {
            threads,
            isa: isa.name(),
            limits: limits.into(),
            cases,
        }
    }

    pub(super) fn lines(&self) -> String {
        let limits = &self.limits;
        let mut lines = vec![
            format!(
                "{} {}, {}: read {:.1} GB/s, f32 {:.0} GFLOP/s, bf16 {:.0} GFLOP/s, int8 {:.0} GOP/s",
                self.threads,
                if self.threads == 1 {
                    "thread"
                } else {
                    "threads"
                },
                self.isa,
                limits.read_gbs,
                limits.f32_gflops,
                limits.bf16_gflops,
                limits.int8_gops
            ),
            format!(
                "{:<16} {:<12} {:<4} {:>6} {:>10} {:>10} {:>6} {:>6} {:>7} {:>7}  {:<9} {:>8} {:>6}",
                "shape",
                "dtype",
                "act",
                "tokens",
                "ms",
                "tokens/s",
                "GB/s",
                "read",
                "GFLOP/s",
                "peak",
                "limit",
                "of limit",
                "gate"
            ),
        ];
        lines.extend(self.cases.iter().map(CaseReport::line));
        lines.join("\n")
    }
}

impl CaseReport {
    fn line(&self) -> String {
        let limit = self.limit.name();
        format!(
            "{:<16} {:<12} {:<4} {:>6} {:>10.3} {:>10.1} {:>6.1} {:>6.1} {:>7.1} {:>7.1}  {limit:<9} {:>8.3} {:>5.1}%",
            self.shape,
            self.dtype,
            self.act.name(),
            self.tokens,
            self.median_ms,
            self.tokens_per_s,
            self.weight_gbs,
            self.paired_read_gbs,
            self.gflops,
            self.paired_peak_gflops,
            self.fraction_of_limit,
            self.gate_share * 100.0
        )
    }
}
