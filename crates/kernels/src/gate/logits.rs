use rayon::prelude::*;

use crate::CpuKernel;
use crate::dot::dot;
use crate::error::{KernelError, area, check_len, whole_rows};
use crate::rows::{Rows, Widen, with_rows};

/// Experts whose logits one task computes.
const BLOCK: usize = 32;

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
    /// If the lengths do not agree.
    pub fn gate_logits<'a>(
        &self,
        hidden: impl Into<Rows<'a>>,
        hidden_size: usize,
        weight: &[f32],
        bias: Option<&[f32]>,
    ) -> Result<Vec<f32>, KernelError> {
        let hidden = hidden.into();
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
        self.install(|| {
            with_rows!(hidden, values => {
                let hidden = values.par_chunks_exact(hidden_size);
                logits.par_chunks_exact_mut(num_experts).zip(hidden).for_each(|(out, x)| {
                    row_logits(out, x, weight, bias);
                });
            });
        });
        Ok(logits)
    }
}

fn row_logits<A: Widen>(out: &mut [f32], x: &[A], weight: &[f32], bias: Option<&[f32]>) {
    let blocks = out
        .par_chunks_mut(BLOCK)
        .zip(weight.par_chunks(BLOCK * x.len()));
    blocks.enumerate().for_each(|(block, (out, weight))| {
        for (i, (out, w)) in out.iter_mut().zip(weight.chunks_exact(x.len())).enumerate() {
            let bias = bias.and_then(|b| b.get(block * BLOCK + i));
            *out = dot(w, x) + bias.copied().unwrap_or(0.0);
        }
    });
}
