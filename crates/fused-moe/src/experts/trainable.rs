use std::sync::Arc;

use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Tensor, TensorData};
use bytes::Bytes;
use moekit_quant::{
    Activation, CodeFormat, ExpertLinear, ExpertMlp, ExpertWeights, PackedMatrix, QuantError,
};
use moekit_routing::LogicalExpert;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::{ExpertTensors, LinearTensors};
use crate::FusedMoeError;
use crate::host::Floats;
use crate::init::uniform;

/// Experts as Burn parameters. `L` is the number of local experts, `I` the width of an expert; w13
/// has `I` rows of gate before its `I` rows of up, or only the latter where the activation has no
/// gate.
#[derive(Module, Debug)]
pub struct TrainableExperts {
    /// `[L, 2 * I, H]`, without gate `[L, I, H]`.
    pub w13: Param<Tensor<3>>,
    /// `[L, H, I]`
    pub w2: Param<Tensor<3>>,
    /// `[L, 2 * I]`, without gate `[L, I]`.
    pub w13_bias: Option<Param<Tensor<2>>>,
    /// `[L, H]`
    pub w2_bias: Option<Param<Tensor<2>>>,
}

/// The shape of a set of experts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ExpertShape {
    pub(crate) hidden_size: usize,
    pub(crate) intermediate_size: usize,
    pub(crate) gated: bool,
    pub(crate) bias: bool,
}

impl TrainableExperts {
    /// Draws weights from a uniform distribution `U(-b, b)` with `b = 1 / sqrt(in)`, biases zero.
    ///
    /// The weights of an expert follow from `seed` and its id alone: its replicas, on this and on
    /// other ranks, begin equal, and another placement draws the same experts.
    pub(crate) fn init(
        shape: ExpertShape,
        experts: &[LogicalExpert],
        seed: u64,
        device: &Device,
    ) -> Self {
        let (hidden, width) = (shape.hidden_size, shape.intermediate_size);
        let w13_rows = if shape.gated { 2 * width } else { width };
        let (mut w13, mut w2) = (Vec::new(), Vec::new());
        for expert in experts {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            rng.set_stream(expert.index() as u64);
            w13.extend(uniform(&mut rng, w13_rows * hidden, hidden));
            w2.extend(uniform(&mut rng, hidden * width, width));
        }
        let num = experts.len();
        let zeros = |columns| {
            shape
                .bias
                .then(|| Param::from_tensor(Tensor::zeros([num, columns], (device, DType::F32))))
        };
        Self {
            w13: param(w13, [num, w13_rows, hidden], device),
            w2: param(w2, [num, hidden, width], device),
            w13_bias: zeros(w13_rows),
            w2_bias: zeros(hidden),
        }
    }

    /// The same shapes with no experts at all.
    pub(crate) fn without_experts(&self) -> Self {
        fn none<const D: usize>(param: &Param<Tensor<D>>) -> Param<Tensor<D>> {
            let whole = param.val();
            let mut shape = whole.dims();
            shape[0] = 0;
            Param::from_tensor(Tensor::empty(shape, (&whole.device(), DType::F32)))
        }
        Self {
            w13: none(&self.w13),
            w2: none(&self.w2),
            w13_bias: self.w13_bias.as_ref().map(none),
            w2_bias: self.w2_bias.as_ref().map(none),
        }
    }

    /// `L`.
    pub fn num_local_experts(&self) -> usize {
        self.w13.val().dims()[0]
    }

    pub(super) fn is_autodiff(&self) -> bool {
        self.w13.val().is_autodiff() || self.w2.val().is_autodiff()
    }

    /// The parameters as the kernels read them: views of their memory on the CPU.
    pub(super) fn view(&self, activation: Activation) -> Result<ExpertWeights, FusedMoeError> {
        let [num, w13_rows, hidden] = self.w13.val().dims();
        let width = if activation.is_gated() {
            w13_rows / 2
        } else {
            w13_rows
        };
        let w13 = View::new(&self.w13, self.w13_bias.as_ref())?;
        let w2 = View::new(&self.w2, self.w2_bias.as_ref())?;
        let expert = |e: usize| {
            let gate_rows = w13_rows - width;
            let gate = match activation.is_gated() {
                true => Some(w13.linear(e * w13_rows, [width, hidden])?),
                false => None,
            };
            let up = w13.linear(e * w13_rows + gate_rows, [width, hidden])?;
            let down = w2.linear(e * hidden, [hidden, width])?;
            Ok(Arc::new(ExpertMlp::new(gate, up, down)?))
        };
        let experts: Result<_, FusedMoeError> = (0..num).map(expert).collect();
        Ok(ExpertWeights::new(hidden, width, experts?)?)
    }

    pub(super) fn tensors(
        &self,
        expert: usize,
        activation: Activation,
        device: &Device,
    ) -> ExpertTensors {
        let on = |tensor: Tensor<2>| tensor.to_device(device).cast(DType::F32);
        let bias = |bias: &Option<Param<Tensor<2>>>| {
            bias.as_ref().map(|b| on(b.val().narrow(0, expert, 1)))
        };
        let w13 = on(self.w13.val().narrow(0, expert, 1).squeeze_dim::<2>(0));
        let w13_bias = bias(&self.w13_bias);
        let rows = w13.dims()[0];
        let width = if activation.is_gated() {
            rows / 2
        } else {
            rows
        };
        let cut = |first: usize| LinearTensors {
            weight: w13.clone().narrow(0, first, width),
            bias: w13_bias.clone().map(|b| b.narrow(1, first, width)),
            input_quant: None,
        };
        ExpertTensors {
            gate: activation.is_gated().then(|| cut(0)),
            up: cut(rows - width),
            down: LinearTensors {
                weight: on(self.w2.val().narrow(0, expert, 1).squeeze_dim::<2>(0)),
                bias: bias(&self.w2_bias),
                input_quant: None,
            },
        }
    }
}

fn param<const D: usize>(values: Vec<f32>, shape: [usize; D], device: &Device) -> Param<Tensor<D>> {
    let data = TensorData::new(values, shape);
    Param::from_tensor(Tensor::from_data(data, (device, DType::F32)))
}

/// A stack of weights and of biases, row by row.
struct View {
    weights: Bytes,
    biases: Option<Floats>,
}

impl View {
    fn new(
        weight: &Param<Tensor<3>>,
        bias: Option<&Param<Tensor<2>>>,
    ) -> Result<Self, FusedMoeError> {
        Ok(Self {
            weights: Floats::new(weight.val())?.into_bytes(),
            biases: bias.map(|b| Floats::new(b.val())).transpose()?,
        })
    }

    /// The linear whose first row is row `first` of the stack.
    fn linear(&self, first: usize, shape: [usize; 2]) -> Result<ExpertLinear, QuantError> {
        let row_bytes = shape[1] * size_of::<f32>();
        let codes = self
            .weights
            .slice(first * row_bytes..(first + shape[0]) * row_bytes);
        let mut linear =
            ExpertLinear::new(PackedMatrix::contiguous(CodeFormat::F32, shape, codes)?);
        let biases = self.biases.as_ref().map(Floats::as_slice);
        linear.bias = biases
            .and_then(|b| b.get(first..first + shape[0]))
            .map(<[f32]>::to_vec);
        Ok(linear)
    }
}
