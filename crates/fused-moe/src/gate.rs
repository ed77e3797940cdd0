use std::fmt::Debug;
use std::sync::Arc;

use burn::module::{Module, Param};
use burn::tensor::{DType, Tensor, activation};
use moekit_kernels::{CpuKernel, Routed, Router, Rows};
use moekit_quant::{RouterSpec, ScoringFunction, TopKSelection};

use crate::FusedMoeError;
use crate::host::{Floats, HostTensor, float_tensor, index_tensor};

/// The gate: which experts each token goes to, and with which weights.
///
/// Logits are `x * weight^T + bias`; how experts follow from them says [`RouterSpec`]. Ties go to
/// the lowest expert id.
#[derive(Module, Debug)]
pub struct Gate {
    /// `[num_experts, hidden_size]`. Beside packed experts it is in bf16 if that holds all its values, as
    /// those of most checkpoints: a token then reads half as much.
    pub weight: Param<Tensor<2>>,
    /// `[num_experts]`
    pub bias: Option<Param<Tensor<1>>>,
    /// `[num_experts]`, added to the scores for choosing only; no gradient reaches it.
    pub correction_bias: Option<Param<Tensor<1>>>,
    #[module(skip)]
    pub(crate) spec: RouterSpec,
    #[module(skip)]
    pub(crate) router: Router,
    #[module(skip)]
    pub(crate) custom: Option<Arc<dyn CustomRouting>>,
}

/// A routing of the user's own, in place of what [`RouterSpec`] can say.
pub trait CustomRouting: Debug + Send + Sync {
    /// Chooses `top_k` experts for each token.
    ///
    /// # Arguments
    ///
    /// - `hidden` - `[num_tokens, hidden_size]`.
    /// - `logits` - `[num_tokens, num_experts]`.
    ///
    /// # Returns
    ///
    /// Ids in `0..num_experts` (or `-1` for a slot that is left empty) and weights, each
    /// `[num_tokens, top_k]`, in order of descending weight.
    ///
    /// # Errors
    ///
    /// Whatever the routing finds wrong.
    fn route(
        &self,
        hidden: Rows<'_>,
        logits: &[f32],
        num_experts: usize,
        top_k: usize,
    ) -> Result<Routed, FusedMoeError>;

    /// The weights of the chosen experts as tensor operations on the logits, so that gradients
    /// reach the gate. Without it the layer refuses to run under autodiff.
    ///
    /// # Arguments
    ///
    /// - `logits` - `[num_tokens, num_experts]`.
    /// - `topk_ids` - `[num_tokens, top_k]` as [`CustomRouting::route`] gave them.
    fn weights(&self, logits: Tensor<2>, topk_ids: &[i64]) -> Option<Tensor<2>> {
        let _ = (logits, topk_ids);
        None
    }
}

/// What the gate decides in tensor operations.
pub(crate) struct RoutedTensor {
    pub(crate) routed: Routed,
    /// `[num_tokens, top_k]`; the values of `routed.topk_weights`, differentiable.
    pub(crate) weights: Tensor<2>,
}

impl Gate {
    /// The configuration of the router.
    pub fn spec(&self) -> &RouterSpec {
        &self.spec
    }

    /// `E`.
    pub fn num_experts(&self) -> usize {
        self.router.num_experts()
    }

    /// `k`.
    pub fn top_k(&self) -> usize {
        self.router.top_k()
    }

    /// Routes rows in host memory.
    pub(crate) fn route_rows(
        &self,
        kernel: &CpuKernel,
        hidden: Rows<'_>,
        hidden_size: usize,
    ) -> Result<Routed, FusedMoeError> {
        let weight = self.weight.val();
        let weight = match weight.dtype() {
            DType::F32 | DType::BF16 => weight,
            _ => weight.cast(DType::F32),
        };
        let weight = HostTensor::new(weight)?;
        let bias = floats(self.bias.as_ref())?;
        let bias = bias.as_ref().map(Floats::as_slice);
        let logits = kernel.gate_logits(hidden, hidden_size, weight.rows()?, bias)?;
        self.choose(kernel, hidden, &logits)
    }

    /// Routes in tensor operations. The choice itself is made on the host, by the same code.
    ///
    /// # Arguments
    ///
    /// - `hidden` - `[num_tokens, hidden_size]`, `f32`.
    pub(crate) fn route_tensor(
        &self,
        kernel: &CpuKernel,
        hidden: Tensor<2>,
    ) -> Result<RoutedTensor, FusedMoeError> {
        let weight = self.weight.val().cast(DType::F32);
        let mut logits = hidden.clone().matmul(weight.transpose());
        if let Some(bias) = &self.bias {
            logits = logits + bias.val().unsqueeze::<2>();
        }
        let host_logits = Floats::new(logits.clone())?;
        let host_hidden = HostTensor::new(hidden)?;
        let routed = self.choose(kernel, host_hidden.rows()?, host_logits.as_slice())?;
        let weights = match &self.custom {
            Some(custom) => custom_weights(&**custom, logits, &routed, self.top_k())?,
            None => self.weights(logits, host_logits.as_slice(), &routed)?,
        };
        Ok(RoutedTensor { routed, weights })
    }

    fn choose(
        &self,
        kernel: &CpuKernel,
        hidden: Rows<'_>,
        logits: &[f32],
    ) -> Result<Routed, FusedMoeError> {
        let Some(custom) = &self.custom else {
            let bias = floats(self.correction_bias.as_ref())?;
            let bias = bias.as_ref().map(Floats::as_slice);
            return Ok(self.router.route(kernel, logits, bias)?);
        };
        let (experts, top_k) = (self.num_experts(), self.top_k());
        let routed = custom.route(hidden, logits, experts, top_k)?;
        let wrong = |message| {
            Err(FusedMoeError::CustomRouting {
                name: format!("{custom:?}"),
                message,
            })
        };
        let slots = logits.len() / experts * top_k;
        if routed.topk_ids.len() != slots || routed.topk_weights.len() != slots {
            return wrong(format!(
                "gave {} ids and {} weights for {slots} slots",
                routed.topk_ids.len(),
                routed.topk_weights.len()
            ));
        }
        match routed
            .topk_ids
            .iter()
            .find(|&&id| id < -1 || id >= experts as i64)
        {
            Some(id) => wrong(format!(
                "chose expert {id}; there are experts 0..{experts} and -1"
            )),
            None => Ok(routed),
        }
    }

    /// The weights of chosen experts, `[num_tokens, top_k]`, differentiable.
    fn weights(
        &self,
        logits: Tensor<2>,
        host_logits: &[f32],
        routed: &Routed,
    ) -> Result<Tensor<2>, FusedMoeError> {
        let topk_ids = &routed.topk_ids;
        let (top_k, device) = (self.top_k(), logits.device());
        let num_tokens = topk_ids.len() / top_k;
        let ids = index_tensor(topk_ids.clone(), [num_tokens, top_k], &device);
        let scoring = self.spec.scoring;
        let mut weights = match self.spec.selection {
            TopKSelection::TopKThenScores => score(logits.gather(1, ids), scoring)?,
            TopKSelection::SparseMixer { epsilon } => {
                let masks = sparse_mixer_masks(host_logits, topk_ids, top_k, epsilon);
                let experts = self.num_experts();
                let masks = float_tensor(masks, [num_tokens, top_k, experts], &device);
                let scores = activation::softmax(logits.unsqueeze_dim::<3>(1) + masks, 2);
                scores
                    .gather(2, ids.unsqueeze_dim::<3>(2))
                    .squeeze_dim::<2>(2)
            }
            _ => score(logits, scoring)?.gather(1, ids),
        };
        if self.spec.renormalize {
            let sum = weights.clone().sum_dim(1);
            // Weights that all underflowed to zero stay zero.
            let zero = sum.clone().equal_scalar(0.0).float();
            weights = weights / (sum + zero);
        }
        if self.spec.routed_scaling_factor != 1.0 {
            weights = weights * self.spec.routed_scaling_factor;
        }
        if routed.topk_weights.iter().any(|weight| weight.is_nan()) {
            // A NaN of an expert that was not chosen is in none of the scores above.
            let shown = |weight: &f32| if weight.is_nan() { f32::NAN } else { 0.0 };
            let nans = routed.topk_weights.iter().map(shown).collect();
            weights = weights + float_tensor(nans, [num_tokens, top_k], &device);
        }
        Ok(weights)
    }
}

fn floats<const D: usize>(
    param: Option<&Param<Tensor<D>>>,
) -> Result<Option<Floats>, FusedMoeError> {
    param.map(|p| Floats::new(p.val())).transpose()
}

fn score(logits: Tensor<2>, scoring: ScoringFunction) -> Result<Tensor<2>, FusedMoeError> {
    match scoring {
        ScoringFunction::Softmax => Ok(activation::softmax(logits, 1)),
        ScoringFunction::Sigmoid => Ok(activation::sigmoid(logits)),
        ScoringFunction::SqrtSoftplus => {
            // ln(1 + e^x) = max(x, 0) + ln(1 + e^-|x|), which does not overflow.
            let tail = logits.clone().abs().neg().exp().log1p();
            Ok((activation::relu(logits) + tail).sqrt())
        }
        other => Err(FusedMoeError::Config(format!(
            "the scoring function {other:?} is not known"
        ))),
    }
}

/// What is added to the logits before each slot's softmax of sparsemixer, `[num_tokens, top_k,
/// num_experts]`: 0 or minus infinity.
fn sparse_mixer_masks(logits: &[f32], topk_ids: &[i64], top_k: usize, epsilon: f32) -> Vec<f32> {
    let tokens = topk_ids.len() / top_k;
    let experts = logits.len().checked_div(tokens).unwrap_or(0);
    let mut masks = Vec::with_capacity(tokens * top_k * experts);
    for (logits, ids) in logits
        .chunks_exact(experts.max(1))
        .zip(topk_ids.chunks_exact(top_k))
    {
        for &id in ids {
            let max = logits[id as usize];
            masks.extend(logits.iter().enumerate().map(|(expert, &l)| {
                let far = (max - l) / l.abs().max(max) > 2.0 * epsilon;
                // Experts were taken in order of descending logits.
                let taken = ids.contains(&(expert as i64))
                    && (l > max || (l == max && (expert as i64) < id));
                if far || taken { f32::NEG_INFINITY } else { 0.0 }
            }));
        }
    }
    masks
}

fn custom_weights(
    custom: &dyn CustomRouting,
    logits: Tensor<2>,
    routed: &Routed,
    top_k: usize,
) -> Result<Tensor<2>, FusedMoeError> {
    let shape = [routed.topk_ids.len() / top_k, top_k];
    let device = logits.device();
    if let Some(weights) = custom.weights(logits, &routed.topk_ids) {
        if weights.dims() == shape {
            return Ok(weights);
        }
        return Err(FusedMoeError::shape(
            "the weights of the custom routing",
            &weights.dims(),
            shape,
        ));
    }
    if device.is_autodiff() {
        return Err(FusedMoeError::NotDifferentiable {
            name: format!("{custom:?}"),
        });
    }
    Ok(float_tensor(routed.topk_weights.clone(), shape, &device))
}
