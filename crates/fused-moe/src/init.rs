//! From a configuration to a layer.

use std::sync::Arc;

use burn::module::Param;
use burn::tensor::{DType, Device, Tensor, TensorData};
use moekit_kernels::{PreparedExperts, Router, RouterWeight, check_activation};
use moekit_quant::{ExpertMlp, ExpertWeights};
use moekit_routing::{ExpertRouting, LogicalExpert, Rank, RoutingTable};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::FusedMoeError;
use crate::config::{FusedMoeConfig, SharedExpertsConfig};
use crate::experts::{ExpertMath, ExpertShape, Experts, PackedExperts, TrainableExperts};
use crate::gate::Gate;
use crate::gate_tensors::GateTensors;
use crate::layer::{FusedMoe, Parts, PreviousCounts};
use crate::routing::{FixedTable, LayerRouting, experts_of};
use crate::shard::Sharding;
use crate::shared::{SharedExperts, SharedMlp};

impl FusedMoeConfig {
    /// A layer of Burn parameters with random weights, those of the experts that the routing table
    /// places on this rank.
    ///
    /// # Errors
    ///
    /// If the configuration describes no layer, or does not fit the routing table.
    pub fn init(&self, device: &Device) -> Result<FusedMoe, FusedMoeError> {
        self.check()?;
        let (routing, table) = self.routing()?;
        let fused = self.shared.filter(|_| table.num_shared_experts() > 0);
        if let Some(shared) = fused.filter(|shared| shared.bias != self.expert_bias) {
            return Err(FusedMoeError::Config(format!(
                "the shared experts are fused, but their bias is {} and that of the routed experts \
                 is {}: it must be the same",
                shared.bias, self.expert_bias
            )));
        }
        let held = experts_of(&table, routing.rank()).to_vec();
        let shape = ExpertShape {
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            gated: self.activation.is_gated(),
            bias: self.expert_bias,
        };
        let trainable = |shape, experts: &[LogicalExpert]| {
            TrainableExperts::init(shape, experts, self.seed, device)
        };
        let mlp = self.separate_shared(&table).map(|shared| {
            let intermediate_size = shared.intermediate_size;
            let shape = ExpertShape {
                intermediate_size,
                bias: shared.bias,
                ..shape
            };
            let shared = trainable(shape, &[LogicalExpert::new(self.num_experts)]);
            SharedMlp::Trainable(Box::new(shared))
        });
        let zeros = |wanted: bool| wanted.then(|| vec![0.0; self.num_experts]);
        let gate = GateTensors {
            weight: self.random(self.num_experts * self.hidden_size, u64::MAX),
            bias: zeros(self.router.bias.is_some()),
            correction_bias: zeros(self.router.correction_bias.is_some()),
            shared_gate: self
                .shared
                .is_some_and(|s| s.gate)
                .then(|| self.random(self.hidden_size, u64::MAX - 1)),
        };
        let experts = Experts::Trainable(trainable(shape, &held));
        self.build(gate, experts, mlp, (routing, held), device)
    }

    /// A layer over packed experts, which must have been loaded under the routing table in force.
    ///
    /// The experts are rearranged for the CPU kernels, in place of the weights given: those are
    /// freed one by one unless someone else holds them.
    ///
    /// # Errors
    ///
    /// Those of [`FusedMoeConfig::init`]; if weights do not fit the configuration.
    pub fn init_packed(
        &self,
        gate: GateTensors,
        weights: Arc<ExpertWeights>,
        device: &Device,
    ) -> Result<FusedMoe, FusedMoeError> {
        let mut weights = Arc::unwrap_or_clone(weights);
        let shared = weights.shared.take();
        let experts = PreparedExperts::new(weights)?;
        self.init_prepared(gate, experts, shared.as_ref(), device)
    }

    /// [`FusedMoeConfig::init_packed`] over experts that have been rearranged already.
    ///
    /// # Arguments
    ///
    /// - `shared` - the shared experts as one MLP, if the layer has any that are not fused.
    ///
    /// # Errors
    ///
    /// Those of [`FusedMoeConfig::init_packed`].
    pub fn init_prepared(
        &self,
        gate: GateTensors,
        experts: PreparedExperts,
        shared: Option<&Arc<ExpertMlp>>,
        device: &Device,
    ) -> Result<FusedMoe, FusedMoeError> {
        self.check()?;
        let (routing, table) = self.routing()?;
        let held = experts_of(&table, routing.rank()).to_vec();
        let got = [
            experts.num_local_experts(),
            experts.hidden_size(),
            experts.intermediate_size(),
        ];
        let expected = [held.len(), self.hidden_size, self.intermediate_size];
        if got != expected {
            return Err(FusedMoeError::shape(
                "the set of packed experts [local experts, hidden_size, intermediate_size]",
                &got,
                expected,
            ));
        }
        let experts = Experts::Packed(PackedExperts::from_prepared(experts));
        experts.check_fused(table.num_shared_experts(), self.activation_quant)?;
        let separate = self.separate_shared(&table);
        check_given(
            "set of separate shared experts",
            shared.is_some(),
            separate.is_some(),
        )?;
        let mlp = match (separate, shared) {
            (Some(config), Some(mlp)) => Some(self.packed_shared(config, mlp)?),
            _ => None,
        };
        self.build(gate, experts, mlp, (routing, held), device)
    }

    fn packed_shared(
        &self,
        config: SharedExpertsConfig,
        mlp: &Arc<ExpertMlp>,
    ) -> Result<SharedMlp, FusedMoeError> {
        let (hidden, width) = (mlp.hidden_size(), mlp.intermediate_size());
        let expected = [self.hidden_size, config.intermediate_size];
        if [hidden, width] != expected {
            return Err(FusedMoeError::shape(
                "the MLP of the shared experts [hidden_size, intermediate_size]",
                &[hidden, width],
                expected,
            ));
        }
        let weights = ExpertWeights::new(hidden, width, vec![mlp.clone()])?;
        Ok(SharedMlp::Packed(weights))
    }

    fn build(
        &self,
        tensors: GateTensors,
        experts: Experts,
        mlp: Option<SharedMlp>,
        (routing, held): (LayerRouting, Vec<LogicalExpert>),
        device: &Device,
    ) -> Result<FusedMoe, FusedMoeError> {
        let gate = tensors.shared_gate.clone();
        let shared = self.shared_experts(mlp, gate, routing.rank(), device)?;
        let router_weight = match self.router.weight_on_input {
            true => RouterWeight::OnInput,
            false => RouterWeight::OnOutput,
        };
        let is_packed = matches!(experts, Experts::Packed(_));
        Ok(FusedMoe {
            gate: self.gate(tensors, is_packed, device)?,
            experts,
            shared,
            parts: Parts {
                hidden_size: self.hidden_size,
                math: ExpertMath {
                    activation: self.activation,
                    activation_quant: self.activation_quant,
                    router_weight,
                },
                routing,
                dispatcher: self.dispatcher.clone(),
                selector: self.selector.clone(),
                kernel: self.kernel.clone(),
                compute: self.compute,
                reduction: self.reduction,
                held,
                previous: PreviousCounts::default(),
            },
        })
    }

    fn gate(
        &self,
        tensors: GateTensors,
        is_packed: bool,
        device: &Device,
    ) -> Result<Gate, FusedMoeError> {
        let shape = [self.num_experts, self.hidden_size];
        let vector = |what, values: Option<Vec<f32>>, wanted: bool| {
            check_given(what, values.is_some(), wanted)?;
            values
                .map(|values| param(what, values, [self.num_experts], device))
                .transpose()
        };
        let (bias, correction) = (&self.router.bias, &self.router.correction_bias);
        let correction = vector(
            "correction bias",
            tensors.correction_bias,
            correction.is_some(),
        )?;
        let is_narrow = is_packed && tensors.weight.iter().all(|w| w.to_bits() << 16 == 0);
        let mut weight = param("gate weight", tensors.weight, shape, device)?;
        if is_narrow {
            weight = weight.map(|weight| weight.cast(DType::BF16));
        }
        Ok(Gate {
            weight,
            bias: vector("gate bias", tensors.bias, bias.is_some())?,
            correction_bias: correction.map(|bias| bias.set_require_grad(false)),
            router: Router::new(&self.router, self.num_experts, self.top_k)?,
            spec: self.router.clone(),
            custom: self.custom_routing.clone(),
        })
    }

    /// The shared experts, of which `mlp` is the whole MLP if they are computed apart.
    fn shared_experts(
        &self,
        mlp: Option<SharedMlp>,
        gate: Option<Vec<f32>>,
        rank: Rank,
        device: &Device,
    ) -> Result<Option<SharedExperts>, FusedMoeError> {
        let what = "gate of the shared experts";
        check_given(what, gate.is_some(), self.shared.is_some_and(|s| s.gate))?;
        let Some(config) = self.shared else {
            return Ok(None);
        };
        let gate = gate
            .map(|values| param(what, values, [1, self.hidden_size], device))
            .transpose()?;
        let sharding = match &mlp {
            Some(whole) if self.sharded_shared => {
                let quant = whole.down_quant(self.activation_quant);
                let num_ranks = self.dispatcher.num_ranks();
                Sharding::new(config.intermediate_size, num_ranks, quant)?
            }
            _ => None,
        };
        let mlp = match (&sharding, mlp) {
            (Some(sharding), Some(whole)) => Some(sharding.cut(&whole, rank)?),
            (_, mlp) => mlp.map(SharedMlp::whole).transpose()?,
        };
        Ok(Some(SharedExperts {
            mlp,
            gate,
            scaling: config.scaling,
            sharding,
        }))
    }

    fn check(&self) -> Result<(), FusedMoeError> {
        check_activation(self.activation)?;
        let shared = self.shared.map_or(1, |shared| shared.intermediate_size);
        let sizes = [
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_experts", self.num_experts),
            ("intermediate_size of the shared experts", shared),
        ];
        match sizes.iter().find(|(_, size)| *size == 0) {
            Some((name, _)) => Err(FusedMoeError::Config(format!(
                "{name} is 0, it must be at least 1"
            ))),
            None => Ok(()),
        }
    }

    /// This rank's view of the tables, and the table in force, which must fit.
    fn routing(&self) -> Result<(LayerRouting, Arc<RoutingTable>), FusedMoeError> {
        let provider = match &self.routing {
            Some(provider) => provider.clone(),
            None => Arc::new(FixedTable::one_rank(self.num_experts)?),
        };
        let routing = LayerRouting::new(provider, self.dispatcher.rank());
        let table = routing.routing_table();
        let num_ranks = self.dispatcher.num_ranks();
        if table.num_ranks() != num_ranks || routing.rank().index() >= num_ranks {
            return Err(FusedMoeError::Ranks {
                rank: routing.rank().index(),
                num_ranks,
                table: table.num_ranks(),
            });
        }
        if table.num_logical_experts() != self.num_experts {
            return Err(FusedMoeError::Config(format!(
                "the layer has {} experts, the routing table {}",
                self.num_experts,
                table.num_logical_experts()
            )));
        }
        self.check_fused(table.num_shared_experts())?;
        Ok((routing, table))
    }

    /// Whether the shared experts can be the `num_fused` extra slots of the routing table.
    fn check_fused(&self, num_fused: usize) -> Result<(), FusedMoeError> {
        if num_fused == 0 {
            return Ok(());
        }
        let reason = match self.shared {
            Some(_) if self.sharded_shared => "they are to be sharded over the ranks".to_owned(),
            None => "the layer has no shared experts".to_owned(),
            Some(shared) if shared.num_experts != num_fused => {
                format!("the layer has {}", shared.num_experts)
            }
            Some(shared) if shared.intermediate_size != num_fused * self.intermediate_size => {
                format!(
                    "their whole width is {}, not {num_fused} times the {} of a routed expert",
                    shared.intermediate_size, self.intermediate_size
                )
            }
            Some(shared)
                if self.router.weight_on_input && (shared.gate || shared.scaling != 1.0) =>
            {
                "weights are applied on the input, so that their gate or scaling would be too"
                    .to_owned()
            }
            Some(_) => return Ok(()),
        };
        Err(FusedMoeError::Config(format!(
            "the routing table has {num_fused} fused shared experts, but {reason}"
        )))
    }

    fn separate_shared(&self, table: &RoutingTable) -> Option<SharedExpertsConfig> {
        self.shared.filter(|_| table.num_shared_experts() == 0)
    }

    /// `U(-b, b)` with `b = 1 / sqrt(hidden_size)`.
    fn random(&self, count: usize, stream: u64) -> Vec<f32> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(stream);
        uniform(&mut rng, count, self.hidden_size).collect()
    }
}

/// `count` draws from `U(-b, b)` with `b = 1 / sqrt(fan_in)`.
pub(crate) fn uniform(
    rng: &mut ChaCha8Rng,
    count: usize,
    fan_in: usize,
) -> impl Iterator<Item = f32> {
    let bound = 1.0 / (fan_in.max(1) as f32).sqrt();
    (0..count).map(move |_| {
        // 24 random bits make a float in [0, 1).
        let unit = (rng.next_u32() >> 8) as f32 / (1_u32 << 24) as f32;
        (2.0 * unit - 1.0) * bound
    })
}

/// Whether something is there exactly where the configuration wants it.
fn check_given(what: &str, given: bool, wanted: bool) -> Result<(), FusedMoeError> {
    match (given, wanted) {
        (true, false) => Err(FusedMoeError::Config(format!(
            "a {what} is given, but the configuration has none"
        ))),
        (false, true) => Err(FusedMoeError::Config(format!(
            "no {what} is given, but the configuration has one"
        ))),
        _ => Ok(()),
    }
}

/// A parameter, `f32`, of values that must fill the shape.
fn param<const D: usize>(
    what: &'static str,
    values: Vec<f32>,
    shape: [usize; D],
    device: &Device,
) -> Result<Param<Tensor<D>>, FusedMoeError> {
    if values.len() != shape.iter().product::<usize>() {
        return Err(FusedMoeError::shape(what, &[values.len()], shape));
    }
    let data = TensorData::new(values, shape);
    Ok(Param::from_tensor(Tensor::from_data(
        data,
        (device, DType::F32),
    )))
}
