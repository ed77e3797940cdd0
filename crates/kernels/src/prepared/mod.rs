//! Experts in the order in which the kernels read them.

mod bytes;
mod layout;
mod matrix;
mod scaling;

use std::sync::Arc;

use moekit_quant::{ActivationQuant, ExpertLinear, ExpertMlp, ExpertWeights};

pub(crate) use self::layout::{FEATURES, Layout};
pub use self::matrix::PreparedMatrix;
pub(crate) use self::scaling::Grouping;
use crate::KernelError;
use crate::check::check_mlp;
use crate::error::check_len;
use crate::memory::Arena;

/// One linear of a prepared expert.
#[derive(Debug)]
pub struct PreparedLinear {
    weight: PreparedMatrix,
    bias: Option<Vec<f32>>,
    input_quant: Option<ActivationQuant>,
}

impl PreparedLinear {
    fn new(linear: &ExpertLinear, arena: &mut Arena) -> Result<Self, KernelError> {
        Ok(Self {
            weight: PreparedMatrix::new(&linear.weight, arena)?,
            bias: linear.bias.clone(),
            input_quant: linear.input_quant,
        })
    }

    /// `W`, `[out, in]`.
    pub fn weight(&self) -> &PreparedMatrix {
        &self.weight
    }

    /// `b`, `[out]`.
    pub fn bias(&self) -> Option<&[f32]> {
        self.bias.as_deref()
    }

    /// How the checkpoint means the input to be quantized.
    pub fn input_quant(&self) -> Option<ActivationQuant> {
        self.input_quant
    }

    fn num_bytes(&self) -> usize {
        let bias = self.bias.as_ref().map_or(0, |b| size_of_val(b.as_slice()));
        self.weight.num_bytes() + bias
    }
}

/// One expert in the order in which the kernels read it: the weights of a checkpoint in their own
/// format, rearranged.
#[derive(Debug)]
pub struct PreparedExpert {
    gate: Option<PreparedLinear>,
    up: PreparedLinear,
    down: PreparedLinear,
}

impl PreparedExpert {
    /// Rearranges an expert.
    ///
    /// # Errors
    ///
    /// If its parts do not fit each other, or there is no memory.
    pub fn new(expert: &ExpertMlp) -> Result<Self, KernelError> {
        Self::in_arena(expert, &mut Arena::new(Self::size(expert)?)?)
    }

    fn in_arena(expert: &ExpertMlp, arena: &mut Arena) -> Result<Self, KernelError> {
        check_mlp(expert)?;
        let gate = expert.gate.as_ref();
        Ok(Self {
            gate: gate.map(|g| PreparedLinear::new(g, arena)).transpose()?,
            up: PreparedLinear::new(&expert.up, arena)?,
            down: PreparedLinear::new(&expert.down, arena)?,
        })
    }

    /// Bytes of an arena that an expert will take.
    fn size(expert: &ExpertMlp) -> Result<usize, KernelError> {
        let sizes = expert.linears().map(|l| PreparedMatrix::size(&l.weight));
        sizes.sum()
    }

    /// Bytes that an expert will take in memory once it is prepared.
    ///
    /// # Errors
    ///
    /// If that is more than the address space.
    pub fn bytes_of(expert: &ExpertMlp) -> Result<usize, KernelError> {
        let bias = |l: &ExpertLinear| l.bias.as_ref().map_or(0, |b| size_of_val(b.as_slice()));
        Ok(Self::size(expert)? + expert.linears().map(bias).sum::<usize>())
    }

    /// `[I, H]`; the gate half of w13.
    pub fn gate(&self) -> Option<&PreparedLinear> {
        self.gate.as_ref()
    }

    /// `[I, H]`; the up half of w13.
    pub fn up(&self) -> &PreparedLinear {
        &self.up
    }

    /// `[H, I]`; w2.
    pub fn down(&self) -> &PreparedLinear {
        &self.down
    }

    /// `H`.
    pub fn hidden_size(&self) -> usize {
        self.up.weight.cols()
    }

    /// `I`.
    pub fn intermediate_size(&self) -> usize {
        self.up.weight.rows()
    }

    fn linears(&self) -> impl Iterator<Item = &PreparedLinear> {
        self.gate.iter().chain([&self.up, &self.down])
    }

    /// Bytes that it takes in memory.
    pub fn num_bytes(&self) -> usize {
        self.linears().map(PreparedLinear::num_bytes).sum()
    }
}

/// The routed experts of one MoE layer that one rank holds, in the order in which the kernels read
/// them.
///
/// Replicas of an expert on one rank share its weights, and so do clones.
#[derive(Clone, Debug)]
pub struct PreparedExperts {
    hidden_size: usize,
    intermediate_size: usize,
    experts: Vec<Arc<PreparedExpert>>,
}

impl PreparedExperts {
    /// Rearranges the weights of a checkpoint, one expert at a time; each is dropped before the
    /// next one, so that the weights are there once. Shared experts that are not fused are not
    /// among them.
    ///
    /// # Errors
    ///
    /// If the parts of an expert do not fit each other, or there is no memory.
    pub fn new(weights: ExpertWeights) -> Result<Self, KernelError> {
        let ExpertWeights {
            hidden_size,
            intermediate_size,
            experts,
            ..
        } = weights;
        let first: Vec<usize> = (0..experts.len())
            .map(|i| {
                let same = |e: &Arc<ExpertMlp>| Arc::ptr_eq(e, &experts[i]);
                experts.iter().position(same).unwrap_or(i)
            })
            .collect();
        let distinct = || first.iter().enumerate().filter(|(i, first)| i == *first);
        let sizes = distinct().map(|(i, _)| PreparedExpert::size(&experts[i]));
        let total = sizes.sum::<Result<usize, _>>()?;
        let mut arena = Arena::new(total)?;
        let mut prepared: Vec<Arc<PreparedExpert>> = Vec::with_capacity(experts.len());
        for (i, expert) in experts.into_iter().enumerate() {
            prepared.push(match prepared.get(first[i]) {
                Some(replica) => Arc::clone(replica),
                None => Arc::new(PreparedExpert::in_arena(&expert, &mut arena)?),
            });
        }
        Self::from_experts(hidden_size, intermediate_size, prepared)
    }

    /// A set of experts, one per local slot.
    ///
    /// # Errors
    ///
    /// If an expert has another shape.
    pub fn from_experts(
        hidden_size: usize,
        intermediate_size: usize,
        experts: Vec<Arc<PreparedExpert>>,
    ) -> Result<Self, KernelError> {
        for expert in &experts {
            let (hidden, width) = (expert.hidden_size(), expert.intermediate_size());
            check_len("hidden size of an expert", hidden, hidden_size, "H")?;
            check_len("width of an expert", width, intermediate_size, "I")?;
        }
        Ok(Self {
            hidden_size,
            intermediate_size,
            experts,
        })
    }

    /// `H`.
    pub fn hidden_size(&self) -> usize {
        self.hidden_size
    }

    /// `I`.
    pub fn intermediate_size(&self) -> usize {
        self.intermediate_size
    }

    /// The expert in each local slot.
    pub fn experts(&self) -> &[Arc<PreparedExpert>] {
        &self.experts
    }

    /// `L`, local slots.
    pub fn num_local_experts(&self) -> usize {
        self.experts.len()
    }

    /// Bytes in memory, replicas counted once.
    pub fn num_bytes(&self) -> usize {
        let distinct = |(i, expert): &(usize, &Arc<PreparedExpert>)| {
            !self.experts[..*i].iter().any(|e| Arc::ptr_eq(e, expert))
        };
        let experts = self.experts.iter().enumerate().filter(distinct);
        experts.map(|(_, e)| e.num_bytes()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_weights::Noise;

    #[test]
    fn replicas_share_and_padding_is_small() {
        let mut noise = Noise::new(22);
        let mut weights = noise.experts([8, 128, 96], true, true);
        weights.experts.push(weights.experts[1].clone());
        let before = weights.num_bytes();
        let estimate: usize = (0..8)
            .map(|e| PreparedExpert::bytes_of(&weights.experts[e]).unwrap())
            .sum();
        let prepared = PreparedExperts::new(weights).unwrap();
        assert_eq!(prepared.num_local_experts(), 9);
        let [a, b] = [1, 8].map(|i| &prepared.experts()[i]);
        assert!(Arc::ptr_eq(a, b));
        assert_eq!(prepared.num_bytes(), estimate);
        // Scales per few features cost more than those of checkpoints.
        assert!(prepared.num_bytes() < before * 3 / 2, "{before}");
    }

    #[test]
    fn other_shapes_are_refused() {
        let mut noise = Noise::new(23);
        let weights = noise.experts([1, 16, 8], true, false);
        let prepared = PreparedExperts::new(weights).unwrap();
        let experts = prepared.experts().to_vec();
        assert!(PreparedExperts::from_experts(16, 8, experts.clone()).is_ok());
        assert!(PreparedExperts::from_experts(15, 8, experts.clone()).is_err());
        assert!(PreparedExperts::from_experts(16, 9, experts).is_err());
    }
}
