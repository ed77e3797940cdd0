use std::ops::Range;
use std::sync::Arc;

use crate::{ActivationQuant, PackedMatrix, QuantError};

/// One linear of one expert: `y = W x + b`, with the quantization of `x` that the checkpoint was
/// made for.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ExpertLinear {
    /// `W`, `[out, in]`.
    pub weight: PackedMatrix,
    /// `b`, `[out]`.
    pub bias: Option<Vec<f32>>,
    /// How the checkpoint means `x` to be quantized. Whoever multiplies decides whether to follow.
    pub input_quant: Option<ActivationQuant>,
}

impl ExpertLinear {
    /// A linear without bias whose input is not quantized.
    pub fn new(weight: PackedMatrix) -> Self {
        Self {
            weight,
            bias: None,
            input_quant: None,
        }
    }

    /// Bytes that weight and bias take.
    pub fn num_bytes(&self) -> usize {
        let bias = self.bias.as_ref().map_or(0, |b| size_of_val(b.as_slice()));
        self.weight.num_bytes() + bias
    }
}

/// One expert: `down(activation(gate(x), up(x)))`, or `down(activation(up(x)))` where the
/// activation has no gate. Each linear has its own format.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ExpertMlp {
    /// `[I, H]`; the gate half of w13.
    pub gate: Option<ExpertLinear>,
    /// `[I, H]`; the up half of w13.
    pub up: ExpertLinear,
    /// `[H, I]`; w2.
    pub down: ExpertLinear,
}

impl ExpertMlp {
    /// An expert of three linears, or two.
    ///
    /// # Errors
    ///
    /// If their shapes do not fit each other, or a bias its weight.
    pub fn new(
        gate: Option<ExpertLinear>,
        up: ExpertLinear,
        down: ExpertLinear,
    ) -> Result<Self, QuantError> {
        let (intermediate, hidden) = (up.weight.rows(), up.weight.cols());
        let check = |what: &'static str, got: usize, expected: usize| {
            if got == expected {
                return Ok(());
            }
            Err(QuantError::Argument {
                what,
                got,
                expected: format!(
                    "{expected}, because the up projection is [{intermediate}, {hidden}]"
                ),
            })
        };
        if let Some(gate) = &gate {
            check(
                "rows of the gate projection",
                gate.weight.rows(),
                intermediate,
            )?;
            check("columns of the gate projection", gate.weight.cols(), hidden)?;
        }
        check("rows of the down projection", down.weight.rows(), hidden)?;
        check(
            "columns of the down projection",
            down.weight.cols(),
            intermediate,
        )?;
        for linear in gate.iter().chain([&up, &down]) {
            let rows = linear.weight.rows();
            check(
                "length of a bias",
                linear.bias.as_ref().map_or(rows, Vec::len),
                rows,
            )?;
        }
        Ok(Self { gate, up, down })
    }

    /// The features `range` of the intermediate ones: rows of gate and up, columns of down. The
    /// outputs of the parts add up to that of the whole; the bias of down is that of the first.
    /// The weights are views of the same bytes.
    ///
    /// # Errors
    ///
    /// If the range is empty or leaves `0..I`, or begins within a byte of nibbles.
    pub fn slice(&self, range: Range<usize>) -> Result<Self, QuantError> {
        let rows = |linear: &ExpertLinear| -> Result<ExpertLinear, QuantError> {
            let weight = linear.weight.slice(range.clone(), 0..self.hidden_size())?;
            let bias = linear
                .bias
                .as_ref()
                .and_then(|bias| bias.get(range.clone()));
            Ok(ExpertLinear {
                weight,
                bias: bias.map(<[f32]>::to_vec),
                input_quant: linear.input_quant,
            })
        };
        let down = ExpertLinear {
            weight: self
                .down
                .weight
                .slice(0..self.hidden_size(), range.clone())?,
            bias: self.down.bias.clone().filter(|_| range.start == 0),
            input_quant: self.down.input_quant,
        };
        Self::new(
            self.gate.as_ref().map(rows).transpose()?,
            rows(&self.up)?,
            down,
        )
    }

    /// `H`.
    pub fn hidden_size(&self) -> usize {
        self.up.weight.cols()
    }

    /// `I`.
    pub fn intermediate_size(&self) -> usize {
        self.up.weight.rows()
    }

    /// Gate (if there is one), up and down.
    pub fn linears(&self) -> impl Iterator<Item = &ExpertLinear> {
        self.gate.iter().chain([&self.up, &self.down])
    }

    /// Bytes that the linears take.
    pub fn num_bytes(&self) -> usize {
        self.linears().map(ExpertLinear::num_bytes).sum()
    }
}

/// The experts of one MoE layer that one rank holds, packed as the checkpoint has them.
///
/// A rank that holds two replicas of an expert shares its weights.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ExpertWeights {
    /// `H`.
    pub hidden_size: usize,
    /// `I` of the routed experts.
    pub intermediate_size: usize,
    /// The expert in each local slot, fused shared experts last: the order of
    /// [`local_to_global`](moekit_routing::RankTable::local_to_global).
    pub experts: Vec<Arc<ExpertMlp>>,
    /// The shared experts as one MLP of their whole width, if the layer has any and they are not
    /// fused into the local slots.
    pub shared: Option<Arc<ExpertMlp>>,
}

impl ExpertWeights {
    /// The experts of a rank.
    ///
    /// # Arguments
    ///
    /// - `experts` - one per local slot.
    ///
    /// # Errors
    ///
    /// If an expert is not `hidden_size` wide.
    pub fn new(
        hidden_size: usize,
        intermediate_size: usize,
        experts: Vec<Arc<ExpertMlp>>,
    ) -> Result<Self, QuantError> {
        for expert in &experts {
            check_width(
                "hidden size of an expert",
                expert.hidden_size(),
                hidden_size,
            )?;
            let intermediate = expert.intermediate_size();
            check_width(
                "intermediate size of an expert",
                intermediate,
                intermediate_size,
            )?;
        }
        Ok(Self {
            hidden_size,
            intermediate_size,
            experts,
            shared: None,
        })
    }

    /// Adds the shared experts that are computed apart.
    ///
    /// # Errors
    ///
    /// If they are not `hidden_size` wide.
    pub fn with_shared(mut self, shared: Arc<ExpertMlp>) -> Result<Self, QuantError> {
        let got = shared.hidden_size();
        check_width("hidden size of the shared experts", got, self.hidden_size)?;
        self.shared = Some(shared);
        Ok(self)
    }

    /// `L`, local slots.
    pub fn num_local_experts(&self) -> usize {
        self.experts.len()
    }

    /// Bytes that all experts take, shared ones included, replicas counted once.
    pub fn num_bytes(&self) -> usize {
        let mut seen: Vec<&Arc<ExpertMlp>> = Vec::with_capacity(self.experts.len());
        let mut total = 0;
        let all = self.experts.iter().chain(&self.shared);
        for expert in all {
            if !seen.iter().any(|s| Arc::ptr_eq(s, expert)) {
                total += expert.num_bytes();
                seen.push(expert);
            }
        }
        total
    }
}

fn check_width(what: &'static str, got: usize, expected: usize) -> Result<(), QuantError> {
    if got == expected {
        return Ok(());
    }
    Err(QuantError::Argument {
        what,
        got,
        expected: format!("{expected}, as the layer has it"),
    })
}
