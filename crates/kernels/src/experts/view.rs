use moekit_quant::{ActivationQuant, ExpertLinear, ExpertMlp, ExpertWeights, PackedMatrix};

use crate::prepared::{PreparedExpert, PreparedExperts, PreparedLinear, PreparedMatrix};

/// The experts of a layer, in the order in which the kernels read them or in that of a checkpoint.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum ExpertSet<'a> {
    /// In the order of the kernels.
    Prepared(&'a PreparedExperts),
    /// In the order of a checkpoint, or views of tensors.
    Weights(&'a ExpertWeights),
}

impl<'a> From<&'a PreparedExperts> for ExpertSet<'a> {
    fn from(experts: &'a PreparedExperts) -> Self {
        Self::Prepared(experts)
    }
}

impl<'a> From<&'a ExpertWeights> for ExpertSet<'a> {
    fn from(weights: &'a ExpertWeights) -> Self {
        Self::Weights(weights)
    }
}

impl<'a> ExpertSet<'a> {
    pub(crate) fn len(self) -> usize {
        match self {
            Self::Prepared(experts) => experts.num_local_experts(),
            Self::Weights(weights) => weights.experts.len(),
        }
    }

    /// An expert below [`ExpertSet::len`].
    pub(crate) fn mlp(self, expert: usize) -> MlpView<'a> {
        match self {
            Self::Prepared(experts) => (&*experts.experts()[expert]).into(),
            Self::Weights(weights) => (&*weights.experts[expert]).into(),
        }
    }
}

/// The weight of a linear in either order.
#[derive(Clone, Copy, Debug)]
pub(crate) enum WeightView<'a> {
    Prepared(&'a PreparedMatrix),
    Packed(&'a PackedMatrix),
}

impl WeightView<'_> {
    pub(crate) fn shape(self) -> [usize; 2] {
        match self {
            Self::Prepared(matrix) => [matrix.rows(), matrix.cols()],
            Self::Packed(matrix) => [matrix.rows(), matrix.cols()],
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct LinearView<'a> {
    pub(crate) weight: WeightView<'a>,
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) input_quant: Option<ActivationQuant>,
}

impl<'a> From<&'a ExpertLinear> for LinearView<'a> {
    fn from(linear: &'a ExpertLinear) -> Self {
        Self {
            weight: WeightView::Packed(&linear.weight),
            bias: linear.bias.as_deref(),
            input_quant: linear.input_quant,
        }
    }
}

impl<'a> From<&'a PreparedLinear> for LinearView<'a> {
    fn from(linear: &'a PreparedLinear) -> Self {
        Self {
            weight: WeightView::Prepared(linear.weight()),
            bias: linear.bias(),
            input_quant: linear.input_quant(),
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct MlpView<'a> {
    pub(crate) gate: Option<LinearView<'a>>,
    pub(crate) up: LinearView<'a>,
    pub(crate) down: LinearView<'a>,
}

impl<'a> From<&'a ExpertMlp> for MlpView<'a> {
    fn from(mlp: &'a ExpertMlp) -> Self {
        Self {
            gate: mlp.gate.as_ref().map(LinearView::from),
            up: (&mlp.up).into(),
            down: (&mlp.down).into(),
        }
    }
}

impl<'a> From<&'a PreparedExpert> for MlpView<'a> {
    fn from(expert: &'a PreparedExpert) -> Self {
        Self {
            gate: expert.gate().map(LinearView::from),
            up: expert.up().into(),
            down: expert.down().into(),
        }
    }
}

impl MlpView<'_> {
    /// `I`.
    pub(crate) fn intermediate_size(&self) -> usize {
        self.up.weight.shape()[0]
    }
}
