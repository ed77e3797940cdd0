//! What the machine can do at most: the limits that kernels are held to.
//!
//! Memory that is shared with neighbours has another bandwidth in the next second, and cores another
//! clock. So a limit is compared only with what ran right beside it: [`Probe::read`] streams as many
//! bytes as a kernel is about to, on the kernel's own threads.
//!
//! ```
//! use std::time::Duration;
//!
//! use moekit_kernels::CpuKernel;
//! use moekit_kernels::probe::{Arithmetic, Probe};
//!
//! let mut probe = Probe::new(&CpuKernel::with_threads(2)?, 1 << 20)?;
//! assert!(probe.read(3_000_000) > Duration::ZERO);
//! assert!(probe.peak(Arithmetic::F32, Duration::from_millis(1)) > 0.0);
//! # Ok::<(), moekit_kernels::KernelError>(())
//! ```

mod arithmetic;
mod stream;
mod team;

use std::sync::OnceLock;
use std::time::{Duration, Instant};

pub use self::arithmetic::Arithmetic;
use self::stream::{Stream, sum};
use self::team::Team;
use crate::{CpuKernel, Isa, KernelError};

/// How long one measurement of a peak takes in [`Probe::limits`].
const PEAK_TIME: Duration = Duration::from_millis(30);
/// Measurements of each limit in [`Probe::limits`].
const ROUNDS: usize = 5;

/// The limits of a machine, on the threads and with the instruction set of a kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Limits {
    /// Bytes per second that can be read from memory, in GB/s.
    pub read_gbs: f64,
    /// Multiplications and additions of `f32`, in GFLOP/s.
    pub f32_gflops: f64,
    /// Those of products of bfloat16 that are summed in `f32`, in GFLOP/s.
    pub bf16_gflops: f64,
    /// Those of products of bytes that are summed in `i32`, in GOP/s.
    pub int8_gops: f64,
}

/// Measures the limits of the machine.
#[derive(Debug)]
pub struct Probe {
    team: Team,
    stream: Stream,
    isa: Isa,
}

impl Probe {
    /// A probe that runs on the threads and with the instruction set of a kernel.
    ///
    /// # Arguments
    ///
    /// - `buffer_bytes` - size of the memory that is streamed; some times that of the last cache.
    ///
    /// # Errors
    ///
    /// If the system does not give the memory, or [`CpuKernel::isa`] fails.
    pub fn new(kernel: &CpuKernel, buffer_bytes: usize) -> Result<Self, KernelError> {
        Ok(Self {
            team: Team::new(kernel),
            stream: Stream::new(buffer_bytes)?,
            isa: kernel.isa()?,
        })
    }

    /// The time to read this many bytes with all threads, from where the last call ended, around
    /// and around the buffer.
    pub fn read(&mut self, bytes: usize) -> Duration {
        let (isa, stream) = (self.isa, &self.stream);
        let spans = self.team.run(|member, members| {
            let start = Instant::now();
            for part in stream.share(bytes, member, members) {
                std::hint::black_box(sum(isa, part));
            }
            (start, Instant::now())
        });
        self.stream.advance(bytes);
        let start = spans.iter().map(|(start, _)| *start).min();
        let end = spans.iter().map(|(_, end)| *end).max();
        start.zip(end).map_or(Duration::ZERO, |(s, e)| e - s)
    }

    /// Operations per second of all threads, over about the time given. A multiplication with its
    /// addition is two.
    pub fn peak(&self, arithmetic: Arithmetic, time: Duration) -> f64 {
        let isa = self.isa;
        // One beginning for all: threads that share a core work one after the other.
        let begun = OnceLock::new();
        let rates = self.team.run(|_, _| {
            let (start, mut operations) = (begun.get_or_init(Instant::now), 0_u64);
            loop {
                operations += arithmetic.burst(isa);
                let elapsed = start.elapsed();
                if elapsed >= time {
                    return operations as f64 / elapsed.as_secs_f64();
                }
            }
        });
        rates.iter().sum()
    }

    /// All limits: the median bandwidth, and of each peak the best of some measurements.
    pub fn limits(&mut self) -> Limits {
        let bytes = self.stream.len();
        let mut reads: Vec<Duration> = (0..ROUNDS).map(|_| self.read(bytes)).collect();
        reads.sort_unstable();
        let peak = |arithmetic| {
            let rates = (0..ROUNDS).map(|_| self.peak(arithmetic, PEAK_TIME));
            rates.fold(0.0, f64::max) / 1e9
        };
        Limits {
            read_gbs: bytes as f64 / reads[ROUNDS / 2].as_secs_f64() / 1e9,
            f32_gflops: peak(Arithmetic::F32),
            bf16_gflops: peak(Arithmetic::Bf16),
            int8_gops: peak(Arithmetic::Int8),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_instruction_set_has_limits() {
        for isa in Isa::available() {
            let kernel = CpuKernel::with_threads(2).unwrap().with_isa(isa).unwrap();
            let limits = Probe::new(&kernel, 1 << 16).unwrap().limits();
            let all = [
                limits.read_gbs,
                limits.f32_gflops,
                limits.bf16_gflops,
                limits.int8_gops,
            ];
            assert!(
                all.iter().all(|l| l.is_finite() && *l > 0.0),
                "{isa} {limits:?}"
            );
        }
    }

    #[test]
    fn memory_that_is_not_there_is_an_error() {
        for bytes in [0, usize::MAX / 2] {
            let error = Probe::new(&CpuKernel::default(), bytes).unwrap_err();
            assert!(error.to_string().contains("bytes of memory"), "{error}");
        }
    }
}
