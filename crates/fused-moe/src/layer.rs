use std::iter::repeat_n;
use std::sync::{Arc, Mutex, PoisonError};

use burn::module::Module;
use burn::tensor::{DType, Tensor};
use moekit_kernels::CpuKernel;
use moekit_routing::{ExpertRouting, LogicalExpert, Rank, ReplicaSelector, RoutingTable, StepLoad};

use crate::dispatch::TokenDispatcher;
use crate::experts::{ExpertMath, Experts, Reduction};
use crate::gate::Gate;
use crate::host::is_host;
use crate::pass::Pass;
use crate::routing::{FixedTable, LayerRouting, experts_of};
use crate::shared::SharedExperts;
use crate::{Compute, FusedMoeError};

/// A fused Mixture-of-Experts layer on one rank of an EP group.
///
/// `y = sum_j w_j * expert_j(x)` over the experts that the gate chooses, plus shared experts:
/// gate → replica selection → dispatch → experts → combine. Sums are in `f32`; the output has the
/// element type of the input.
///
/// Made by [`FusedMoeConfig`](crate::FusedMoeConfig).
#[derive(Module, Debug)]
pub struct FusedMoe {
    /// Chooses the experts of each token.
    pub gate: Gate,
    /// The experts of this rank.
    pub experts: Experts,
    /// Experts that every token passes.
    pub shared: Option<SharedExperts>,
    #[module(skip)]
    pub(crate) parts: Parts,
}

/// What belongs to a layer and is not a module.
#[derive(Clone, Debug)]
pub(crate) struct Parts {
    pub(crate) hidden_size: usize,
    pub(crate) math: ExpertMath,
    pub(crate) routing: LayerRouting,
    pub(crate) dispatcher: Arc<dyn TokenDispatcher>,
    pub(crate) selector: ReplicaSelector,
    pub(crate) kernel: CpuKernel,
    pub(crate) compute: Compute,
    pub(crate) reduction: Reduction,
    /// The logical experts whose weights `experts` holds, slot by slot.
    pub(crate) held: Vec<LogicalExpert>,
    pub(crate) previous: PreviousCounts,
}

/// Tokens per logical expert of the batch before, for selectors that look at it.
#[derive(Debug, Default)]
pub(crate) struct PreviousCounts(Mutex<Vec<u64>>);

impl PreviousCounts {
    /// The counts, zeros before the first batch.
    pub(crate) fn get(&self, num_experts: usize) -> Vec<u64> {
        let mut counts = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        counts.resize(num_experts, 0);
        counts
    }

    pub(crate) fn set(&self, counts: &[u64]) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = counts.to_vec();
    }
}

impl Clone for PreviousCounts {
    fn clone(&self) -> Self {
        Self(Mutex::new(
            self.0
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone(),
        ))
    }
}

/// What a forward pass may be told.
#[derive(Clone, Copy, Debug, Default)]
pub struct ForwardOptions {
    num_valid_tokens: Option<usize>,
}

impl ForwardOptions {
    /// All rows are tokens.
    pub fn new() -> Self {
        Self::default()
    }

    /// Rows from `num_valid_tokens` on are padding: they reach no expert, are not counted as load,
    /// and their output is zero. More of them than rows is an error of the forward pass.
    #[must_use]
    pub fn with_valid_tokens(mut self, num_valid_tokens: usize) -> Self {
        self.num_valid_tokens = Some(num_valid_tokens);
        self
    }
}

/// What a forward pass gives.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct FusedMoeOutput {
    /// `[num_tokens, hidden_size]`
    pub output: Tensor<2>,
    /// Logical experts, `[num_tokens, top_k]`, in order of descending weight; `-1` in padded rows.
    pub topk_ids: Vec<i64>,
    /// `[num_tokens, top_k]`
    pub topk_weights: Vec<f32>,
    /// Slots that served the tokens, `[num_tokens, top_k + S]`: routed experts, then the `S` fused
    /// shared experts; `-1` in padded rows.
    pub physical_ids: Vec<i64>,
    /// Tokens of this rank per logical expert.
    pub load: StepLoad,
}

impl FusedMoeOutput {
    /// The same with rows of padding behind it.
    fn padded(mut self, num_rows: usize, top_k: usize, table: &RoutingTable) -> Self {
        if num_rows == 0 {
            return self;
        }
        let slots = top_k + table.num_shared_experts();
        let [_, hidden_size] = self.output.dims();
        let like = (&self.output.device(), self.output.dtype());
        let zeros = Tensor::zeros([num_rows, hidden_size], like);
        self.output = Tensor::cat(vec![self.output, zeros], 0);
        self.topk_ids.extend(repeat_n(-1, num_rows * top_k));
        self.topk_weights.extend(repeat_n(0.0, num_rows * top_k));
        self.physical_ids.extend(repeat_n(-1, num_rows * slots));
        self
    }
}

/// The first rows of a batch, which may be none.
fn first_rows(hidden: Tensor<2>, num_rows: usize) -> Tensor<2> {
    let [all, hidden_size] = hidden.dims();
    match num_rows {
        n if n == all => hidden,
        0 => Tensor::empty([0, hidden_size], (&hidden.device(), hidden.dtype())),
        n => hidden.narrow(0, 0, n),
    }
}

impl FusedMoe {
    /// The layer's output for a batch of tokens.
    ///
    /// # Shapes
    ///
    /// - hidden: `[num_tokens, hidden_size]`, `f32` or `bf16`
    /// - output: `[num_tokens, hidden_size]`, of the same type
    ///
    /// # Errors
    ///
    /// If the input does not fit the layer, the loaded weights are not those of the routing table
    /// in force, or any rank of the group fails. An error on this rank ends the group.
    pub fn forward(&self, hidden: Tensor<2>) -> Result<Tensor<2>, FusedMoeError> {
        Ok(self.forward_detailed(hidden, ForwardOptions::new())?.output)
    }

    /// [`FusedMoe::forward`] with what the gate chose and the load that follows.
    ///
    /// # Errors
    ///
    /// Those of [`FusedMoe::forward`].
    pub fn forward_detailed(
        &self,
        hidden: Tensor<2>,
        options: ForwardOptions,
    ) -> Result<FusedMoeOutput, FusedMoeError> {
        let result = self.run(hidden, options);
        if let Err(error) = &result {
            self.parts.dispatcher.abort(error);
        }
        result
    }

    fn run(
        &self,
        hidden: Tensor<2>,
        options: ForwardOptions,
    ) -> Result<FusedMoeOutput, FusedMoeError> {
        let parts = &self.parts;
        let table = parts.routing.routing_table();
        let [num_tokens, hidden_size] = hidden.dims();
        if hidden_size != parts.hidden_size {
            let expected = format!("[num_tokens, {}]", parts.hidden_size);
            let got = vec![num_tokens, hidden_size];
            return Err(FusedMoeError::Shape {
                what: "hidden",
                got,
                expected,
            });
        }
        if !matches!(hidden.dtype(), DType::F32 | DType::BF16) {
            let got = format!("{:?}", hidden.dtype());
            return Err(FusedMoeError::Dtype { got });
        }
        let num_valid = options.num_valid_tokens.unwrap_or(num_tokens);
        if num_valid > num_tokens {
            return Err(FusedMoeError::ValidTokens {
                num_valid,
                num_tokens,
            });
        }
        self.check_table(&table)?;
        let num_ranks = parts.dispatcher.num_ranks();
        let autodiff = hidden.is_autodiff() || self.is_autodiff();
        if autodiff && num_ranks > 1 {
            return Err(FusedMoeError::AutodiffAcrossRanks { num_ranks });
        }
        let device = hidden.device();
        let kernels = !autodiff && parts.compute == Compute::Auto && is_host(&device);
        let pass = Pass {
            layer: self,
            table: &table,
            kernels,
            device,
        };
        let tokens = first_rows(hidden, num_valid);
        let output = if kernels || num_ranks > 1 {
            pass.on_host(tokens)?
        } else {
            pass.in_tensors(tokens)?
        };
        Ok(output.padded(num_tokens - num_valid, self.gate.top_k(), &table))
    }

    /// Whether dispatcher, table and loaded weights speak of the same group and experts.
    fn check_table(&self, table: &RoutingTable) -> Result<(), FusedMoeError> {
        let (rank, num_ranks) = (self.rank(), self.parts.dispatcher.num_ranks());
        if num_ranks != table.num_ranks() || rank.index() >= num_ranks {
            return Err(FusedMoeError::Ranks {
                rank: rank.index(),
                num_ranks,
                table: table.num_ranks(),
            });
        }
        let sharding = self.shared.as_ref().and_then(|s| s.sharding.as_ref());
        if let Some(sharding) = sharding.filter(|s| s.table().num_ranks() != num_ranks) {
            return Err(FusedMoeError::Config(format!(
                "the shared experts are sharded over {} ranks, the dispatcher has {num_ranks}",
                sharding.table().num_ranks()
            )));
        }
        let placed = experts_of(table, rank);
        if table.num_logical_experts() != self.gate.num_experts() {
            return Err(FusedMoeError::Config(format!(
                "the gate has {} experts, the routing table {}",
                self.gate.num_experts(),
                table.num_logical_experts()
            )));
        }
        let mode = self.parts.math.activation_quant;
        self.experts.check_fused(table.num_shared_experts(), mode)?;
        if placed != self.parts.held {
            let ids = |experts: &[LogicalExpert]| experts.iter().map(|e| e.index()).collect();
            return Err(FusedMoeError::StaleExperts {
                generation: table.generation(),
                rank: rank.index(),
                table: ids(placed),
                held: ids(&self.parts.held),
            });
        }
        Ok(())
    }

    fn is_autodiff(&self) -> bool {
        let shared = self.shared.as_ref().and_then(|s| s.mlp.as_ref());
        self.gate.weight.val().is_autodiff()
            || self.experts.is_autodiff()
            || shared.is_some_and(Experts::is_autodiff)
    }

    /// `H`.
    pub fn hidden_size(&self) -> usize {
        self.parts.hidden_size
    }

    /// Where the routing tables come from.
    pub fn routing(&self) -> &LayerRouting {
        &self.parts.routing
    }

    /// The dispatcher.
    pub fn dispatcher(&self) -> &Arc<dyn TokenDispatcher> {
        &self.parts.dispatcher
    }

    /// Takes in the experts of another placement, after the routing table has changed.
    ///
    /// # Arguments
    ///
    /// - `held` - the expert in each local slot of `experts`, as
    ///   [`local_to_global`](moekit_routing::RankTable::local_to_global) lists them.
    ///
    /// # Errors
    ///
    /// If the two differ in length.
    pub fn set_experts(
        &mut self,
        experts: Experts,
        held: Vec<LogicalExpert>,
    ) -> Result<(), FusedMoeError> {
        if experts.num_local_experts() != held.len() {
            return Err(FusedMoeError::Config(format!(
                "weights of {} experts for {} local slots",
                experts.num_local_experts(),
                held.len()
            )));
        }
        self.experts = experts;
        self.parts.held = held;
        Ok(())
    }

    /// The same layer under another routing table, with the experts that the table places here:
    /// both in one value, so that whoever swaps layers never pairs one with the other's past.
    /// Gate and shared experts are shared, not copied.
    ///
    /// # Arguments
    ///
    /// - `experts` - one for each local slot of the table.
    /// - `dispatcher` - reaches the ranks of the table.
    ///
    /// # Errors
    ///
    /// If table, experts, dispatcher and layer do not fit each other.
    pub fn with_placement(
        &self,
        table: &Arc<RoutingTable>,
        experts: Experts,
        dispatcher: Arc<dyn TokenDispatcher>,
    ) -> Result<Self, FusedMoeError> {
        let rank = dispatcher.rank();
        let held = experts_of(table, rank).to_vec();
        let mut layer = self.clone();
        layer.parts.routing = LayerRouting::new(Arc::new(FixedTable(table.clone())), rank);
        layer.parts.dispatcher = dispatcher;
        layer.set_experts(experts, held)?;
        layer.check_table(table)?;
        Ok(layer)
    }

    /// The same layer with another replica selector.
    #[must_use]
    pub fn with_selector(mut self, selector: ReplicaSelector) -> Self {
        self.parts.selector = selector;
        self
    }
}

impl ExpertRouting for FusedMoe {
    fn rank(&self) -> Rank {
        self.parts.routing.rank()
    }

    fn routing_table(&self) -> Arc<RoutingTable> {
        self.parts.routing.routing_table()
    }
}
