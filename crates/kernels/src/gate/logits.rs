#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{__m256, __m512};

use super::lanes::{LANES, LaneValue, Lanes, dots};
use crate::error::{KernelError, area, check_len, whole_rows};
use crate::rows::{Rows, with_rows};
use crate::{CpuKernel, Isa};

/// Experts whose weights stay in the cache while the rows go by.
const BLOCK: usize = 32;
/// Products that are worth a thread: some microseconds, against the one in which a thread that is
/// awake joins. One that sleeps comes too late, and is awake for the experts that follow.
const WORTH_A_THREAD: usize = 1 << 17;
/// Products that take as long as reading one weight.
const READING: usize = 4;

impl CpuKernel {
    /// `hidden * weight^T + bias`, accumulated in `f32`.
    ///
    /// # Arguments
    ///
    /// - `hidden` - `[num_tokens, hidden_size]`.
    /// - `weight` - `[num_experts, hidden_size]`.
    /// - `bias` - `[num_experts]`.
    ///
    /// # Returns
    ///
    /// `[num_tokens, num_experts]`
    ///
    /// # Errors
    ///
    /// If the lengths do not agree, or [`CpuKernel::isa`] fails.
    pub fn gate_logits<'a, 'b>(
        &self,
        hidden: impl Into<Rows<'a>>,
        hidden_size: usize,
        weight: impl Into<Rows<'b>>,
        bias: Option<&[f32]>,
    ) -> Result<Vec<f32>, KernelError> {
        let (hidden, weight, isa) = (hidden.into(), weight.into(), self.isa()?);
        let shape = "[num_tokens, hidden_size]";
        let num_tokens = whole_rows("hidden", hidden.len(), hidden_size, shape)?;
        let shape = "[num_experts, hidden_size]";
        let num_experts = whole_rows("gate weight", weight.len(), hidden_size, shape)?;
        if let Some(bias) = bias {
            check_len("gate bias", bias.len(), num_experts, "[num_experts]")?;
        }
        let mut logits = vec![0.0; area("logits", num_tokens, num_experts)?];
        if logits.is_empty() {
            return Ok(logits);
        }
        let products = weight.len().saturating_mul(num_tokens + READING);
        let parts = (products / WORTH_A_THREAD).clamp(1, self.num_threads());
        with_rows!(hidden, hidden => with_rows!(weight, weight => {
            let gemm = Gemm { isa, hidden, weight, bias, hidden_size };
            gemm.fill(self, parts, &mut logits);
        }));
        Ok(logits)
    }
}

/// What is multiplied by what; at least one row of each.
#[derive(Clone, Copy)]
struct Gemm<'a, A, W> {
    isa: Isa,
    hidden: &'a [A],
    weight: &'a [W],
    bias: Option<&'a [f32]>,
    hidden_size: usize,
}

/// A task's own part of the logits: some tokens with all experts, or some experts with all tokens.
struct Part<'a, A, W> {
    gemm: Gemm<'a, A, W>,
    out: &'a mut [f32],
    /// From token to token and from expert to expert.
    strides: [usize; 2],
}

impl<A: LaneValue, W: LaneValue> Gemm<'_, A, W> {
    /// `[num_tokens, num_experts]`, cut into about as many parts as asked for.
    fn fill(self, kernel: &CpuKernel, parts: usize, logits: &mut [f32]) {
        let num_experts = self.weight.len() / self.hidden_size;
        let num_tokens = self.hidden.len() / self.hidden_size;
        if num_tokens >= num_experts.min(4 * parts) || parts == 1 {
            let tokens = num_tokens.div_ceil(parts);
            let hidden = self.hidden.chunks(tokens * self.hidden_size);
            let part = |(hidden, out)| Part {
                gemm: Gemm { hidden, ..self },
                out,
                strides: [num_experts, 1],
            };
            let parts = hidden
                .zip(logits.chunks_mut(tokens * num_experts))
                .map(part);
            return kernel.spread(parts.collect(), Part::run);
        }
        let experts = num_experts.div_ceil(parts);
        let mut columns = vec![0.0; logits.len()];
        let weight = self.weight.chunks(experts * self.hidden_size);
        let part = |(i, (weight, out))| Part {
            gemm: Gemm {
                weight,
                bias: self.bias.and_then(|bias| bias.get(i * experts..)),
                ..self
            },
            out,
            strides: [1, num_tokens],
        };
        let parts = weight.zip(columns.chunks_mut(experts * num_tokens));
        kernel.spread(parts.enumerate().map(part).collect(), Part::run);
        for (token, logits) in logits.chunks_exact_mut(num_experts).enumerate() {
            for (logit, column) in logits.iter_mut().zip(columns.chunks_exact(num_tokens)) {
                *logit = column[token];
            }
        }
    }
}

impl<A: LaneValue, W: LaneValue> Part<'_, A, W> {
    fn run(self) {
        match self.gemm.isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Bf16 => {
                #[allow(unsafe_code, reason = "the instruction set was chosen at run time")]
                // SAFETY: a kernel has only instruction sets of the machine that it runs on.
                unsafe {
                    run_avx512(self);
                }
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                #[allow(unsafe_code, reason = "the instruction set was chosen at run time")]
                // SAFETY: as above.
                unsafe {
                    run_avx2(self);
                }
            }
            _ => {
                #[allow(unsafe_code, reason = "shared with the vector paths")]
                // SAFETY: plain Rust runs everywhere.
                unsafe {
                    self.run_with::<[f32; LANES]>();
                }
            }
        }
    }

    /// # Safety
    ///
    /// The machine has the instructions of `L`.
    #[allow(unsafe_code, reason = "compiled for each instruction set")]
    #[inline(always)]
    unsafe fn run_with<L: Lanes>(mut self) {
        let num_experts = self.gemm.weight.len() / self.gemm.hidden_size;
        let num_tokens = self.gemm.hidden.len() / self.gemm.hidden_size;
        for first in (0..num_experts).step_by(BLOCK) {
            let last = num_experts.min(first + BLOCK);
            let mut token = 0;
            // SAFETY: the caller's.
            unsafe {
                while token + 4 <= num_tokens {
                    self.columns::<L, 4, 4>(token, first, last);
                    token += 4;
                }
                while token < num_tokens {
                    self.columns::<L, 1, 8>(token, first, last);
                    token += 1;
                }
            }
        }
    }

    /// `R` tokens with the experts from `first` to `last`, `C` at a time.
    ///
    /// # Safety
    ///
    /// The machine has the instructions of `L`.
    #[allow(unsafe_code, reason = "compiled for each instruction set")]
    #[inline(always)]
    unsafe fn columns<L: Lanes, const R: usize, const C: usize>(
        &mut self,
        token: usize,
        first: usize,
        last: usize,
    ) {
        let Gemm {
            hidden,
            weight,
            hidden_size: width,
            ..
        } = self.gemm;
        let mut x: [&[A]; R] = [&[]; R];
        for i in 0..R {
            x[i] = &hidden[(token + i) * width..][..width];
        }
        let mut expert = first;
        // SAFETY: the caller's.
        unsafe {
            while expert + C <= last {
                let mut w: [&[W]; C] = [&[]; C];
                for i in 0..C {
                    w[i] = &weight[(expert + i) * width..][..width];
                }
                self.put(token, expert, dots::<L, A, W, R, C>(x, w));
                expert += C;
            }
            while expert < last {
                let w = [&weight[expert * width..][..width]];
                self.put(token, expert, dots::<L, A, W, R, 1>(x, w));
                expert += 1;
            }
        }
    }

    #[inline(always)]
    fn put<const R: usize, const C: usize>(
        &mut self,
        token: usize,
        expert: usize,
        dots: [[f32; C]; R],
    ) {
        for (i, dots) in dots.into_iter().enumerate() {
            for (j, dot) in dots.into_iter().enumerate() {
                let bias = match self.gemm.bias {
                    Some(bias) => bias[expert + j],
                    None => 0.0,
                };
                let [row, column] = self.strides;
                self.out[(token + i) * row + (expert + j) * column] = dot + bias;
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn run_avx512<A: LaneValue, W: LaneValue>(part: Part<'_, A, W>) {
    #[allow(unsafe_code, reason = "compiled for this instruction set")]
    // SAFETY: the attribute of this function.
    unsafe {
        part.run_with::<__m512>();
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn run_avx2<A: LaneValue, W: LaneValue>(part: Part<'_, A, W>) {
    #[allow(unsafe_code, reason = "compiled for this instruction set")]
    // SAFETY: the attribute of this function.
    unsafe {
        part.run_with::<[__m256; 2]>();
    }
}
