use std::sync::Arc;

use moekit_kernels::{ActivationQuantMode, CpuKernel};
use moekit_quant::{Activation, MoeLayerSpec, RouterSpec};
use moekit_routing::{ReplicaSelector, RoutingTableProvider};

use crate::dispatch::{Local, TokenDispatcher};
use crate::experts::Reduction;
use crate::gate::CustomRouting;

/// What computes a forward pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Compute {
    /// The CPU kernels where tensors lie in host memory and no gradient is wanted, else tensor
    /// operations.
    #[default]
    Auto,
    /// Always tensor operations.
    TensorOps,
}

/// The shared experts of a layer.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct SharedExpertsConfig {
    /// Width of the whole MLP: `num_experts` times that of one.
    pub intermediate_size: usize,
    /// How many shared experts the MLP is made of.
    pub num_experts: usize,
    /// Whether the projections of a trainable MLP have biases.
    pub bias: bool,
    /// Whether the output is multiplied by `sigmoid(gate(x))`.
    pub gate: bool,
    /// What the output is multiplied by.
    pub scaling: f32,
}

impl SharedExpertsConfig {
    /// One MLP, added as it is.
    pub fn new(intermediate_size: usize) -> Self {
        Self {
            intermediate_size,
            num_experts: 1,
            bias: false,
            gate: false,
            scaling: 1.0,
        }
    }

    /// The MLP is that of `num_experts` experts side by side.
    #[must_use]
    pub fn with_num_experts(mut self, num_experts: usize) -> Self {
        self.num_experts = num_experts;
        self
    }

    /// Whether the projections of a trainable MLP have biases.
    #[must_use]
    pub fn with_bias(mut self, bias: bool) -> Self {
        self.bias = bias;
        self
    }

    /// Multiplies the output by `sigmoid(gate(x))`.
    #[must_use]
    pub fn with_gate(mut self, gate: bool) -> Self {
        self.gate = gate;
        self
    }

    /// Multiplies the output by a constant.
    #[must_use]
    pub fn with_scaling(mut self, scaling: f32) -> Self {
        self.scaling = scaling;
        self
    }
}

/// Configuration of a [`FusedMoe`](crate::FusedMoe).
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use moekit_fused_moe::FusedMoeConfig;
///
/// let device = Device::flex();
/// let layer = FusedMoeConfig::new(8, 16, 4, 2).with_renormalize(true).init(&device)?;
/// let output = layer.forward(Tensor::ones([3, 8], &device))?;
/// assert_eq!(output.dims(), [3, 8]);
/// # Ok::<(), moekit_fused_moe::FusedMoeError>(())
/// ```
#[derive(Clone, Debug)]
pub struct FusedMoeConfig {
    pub(crate) hidden_size: usize,
    pub(crate) intermediate_size: usize,
    pub(crate) num_experts: usize,
    pub(crate) top_k: usize,
    pub(crate) router: RouterSpec,
    pub(crate) custom_routing: Option<Arc<dyn CustomRouting>>,
    pub(crate) activation: Activation,
    pub(crate) activation_quant: ActivationQuantMode,
    pub(crate) expert_bias: bool,
    pub(crate) shared: Option<SharedExpertsConfig>,
    pub(crate) sharded_shared: bool,
    pub(crate) routing: Option<Arc<dyn RoutingTableProvider>>,
    pub(crate) dispatcher: Arc<dyn TokenDispatcher>,
    pub(crate) selector: ReplicaSelector,
    pub(crate) kernel: CpuKernel,
    pub(crate) compute: Compute,
    pub(crate) reduction: Reduction,
    pub(crate) seed: u64,
}

impl FusedMoeConfig {
    /// A layer with softmax gate and SwiGLU experts, all on one rank.
    ///
    /// # Arguments
    ///
    /// - `intermediate_size` - width of a routed expert.
    /// - `num_experts` - routed logical experts.
    /// - `top_k` - experts per token.
    pub fn new(
        hidden_size: usize,
        intermediate_size: usize,
        num_experts: usize,
        top_k: usize,
    ) -> Self {
        Self {
            hidden_size,
            intermediate_size,
            num_experts,
            top_k,
            router: RouterSpec::new("gate.weight"),
            custom_routing: None,
            activation: Activation::SILU,
            activation_quant: ActivationQuantMode::Off,
            expert_bias: false,
            shared: None,
            sharded_shared: false,
            routing: None,
            dispatcher: Arc::new(Local),
            selector: ReplicaSelector::default(),
            kernel: CpuKernel::default(),
            compute: Compute::Auto,
            reduction: Reduction::PerRank,
            seed: 0,
        }
    }

    /// The layer of a checkpoint.
    pub fn from_spec(spec: &MoeLayerSpec) -> Self {
        let mut config = Self::new(
            spec.hidden_size,
            spec.intermediate_size,
            spec.num_experts,
            spec.top_k,
        )
        .with_router(spec.router.clone())
        .with_activation(spec.activation)
        .with_expert_bias(spec.experts.has_bias());
        config.shared = spec.shared.as_ref().map(|shared| SharedExpertsConfig {
            intermediate_size: shared.intermediate_size,
            num_experts: shared.num_experts,
            bias: shared.bias,
            gate: shared.gate.is_some(),
            scaling: shared.scaling,
        });
        config
    }

    /// How tokens choose experts. Names of tensors matter only in that a bias without name is
    /// absent.
    #[must_use]
    pub fn with_router(mut self, router: RouterSpec) -> Self {
        self.router = router;
        self
    }

    /// Whether the weights of a token are made to sum to 1.
    #[must_use]
    pub fn with_renormalize(mut self, renormalize: bool) -> Self {
        self.router.renormalize = renormalize;
        self
    }

    /// A routing of the user's own: it replaces the router except for the logits.
    #[must_use]
    pub fn with_custom_routing(mut self, routing: Arc<dyn CustomRouting>) -> Self {
        self.custom_routing = Some(routing);
        self
    }

    /// What lies between w13 and w2.
    #[must_use]
    pub fn with_activation(mut self, activation: Activation) -> Self {
        self.activation = activation;
        self
    }

    /// Whether the inputs of the experts' linears, shared experts included, are quantized and
    /// dequantized as their checkpoint means it, or its weights alone count (the default). A linear
    /// without such a scheme, as trainable ones are, is computed the same either way.
    ///
    /// Rounding has no gradient: a forward pass that would quantize a tensor under autodiff is
    /// refused.
    #[must_use]
    pub fn with_activation_quant(mut self, activation_quant: ActivationQuantMode) -> Self {
        self.activation_quant = activation_quant;
        self
    }

    /// Whether trainable routed experts have biases.
    #[must_use]
    pub fn with_expert_bias(mut self, bias: bool) -> Self {
        self.expert_bias = bias;
        self
    }

    /// Experts that every token passes. They are fused into the routed experts if the routing
    /// table has slots for them, else computed apart.
    #[must_use]
    pub fn with_shared_experts(mut self, shared: SharedExpertsConfig) -> Self {
        self.shared = Some(shared);
        self
    }

    /// Whether shared experts that are computed apart are spread over the ranks: each rank holds and
    /// computes a part of the MLP for the tokens of all ranks. Otherwise every rank holds all of it
    /// and computes its own tokens.
    #[must_use]
    pub fn with_sharded_shared_experts(mut self, sharded: bool) -> Self {
        self.sharded_shared = sharded;
        self
    }

    /// Where the routing tables come from, usually the `ExpertMapManager` of `moekit-placement`.
    #[must_use]
    pub fn with_routing(mut self, routing: Arc<dyn RoutingTableProvider>) -> Self {
        self.routing = Some(routing);
        self
    }

    /// What carries tokens between ranks; its rank is the layer's.
    #[must_use]
    pub fn with_dispatcher(mut self, dispatcher: Arc<dyn TokenDispatcher>) -> Self {
        self.dispatcher = dispatcher;
        self
    }

    /// Which replica of an expert serves a token.
    #[must_use]
    pub fn with_selector(mut self, selector: ReplicaSelector) -> Self {
        self.selector = selector;
        self
    }

    /// The CPU kernels, with the threads that they may use.
    #[must_use]
    pub fn with_kernel(mut self, kernel: CpuKernel) -> Self {
        self.kernel = kernel;
        self
    }

    /// What computes a forward pass.
    #[must_use]
    pub fn with_compute(mut self, compute: Compute) -> Self {
        self.compute = compute;
        self
    }

    /// How outputs are added up over ranks.
    #[must_use]
    pub fn with_reduction(mut self, reduction: Reduction) -> Self {
        self.reduction = reduction;
        self
    }

    /// What the initial weights of trainable experts and gate follow from.
    #[must_use]
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }
}
