//! Layers of random experts in any format, for the conformance tests of the backends beside this
//! file.

#![allow(dead_code, reason = "each test uses some of it")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::Arc;

use moekit_quant::{
    ExpertLayout, ExpertWeights, FusedOrder, FusedTensor, MemorySource, MlpNames, MoeLayerSpec,
    QuantError, RouterSpec, TensorDtype, backend_for,
};
use moekit_routing::{Placement, Rank, RankView, RoutingTable, Topology};
use moekit_testkit::QuantSample;
use serde_json::Value;

pub(crate) const EXPERTS: usize = 4;
/// Neither is a multiple of the other, nor of most blocks.
pub(crate) const HIDDEN: usize = 96;
pub(crate) const INTERMEDIATE: usize = 64;

/// Tensors of random numbers.
#[derive(Default)]
pub(crate) struct Tensors {
    source: MemorySource,
    noise: u64,
}

impl Tensors {
    fn next(&mut self) -> u64 {
        let next = self.noise.wrapping_mul(6_364_136_223_846_793_005);
        self.noise = next.wrapping_add(1_442_695_040_888_963_407);
        self.noise >> 33
    }

    /// Random bytes, each from `range`.
    pub(crate) fn bytes(
        &mut self,
        name: impl Into<String>,
        dtype: TensorDtype,
        shape: &[usize],
        range: std::ops::Range<u8>,
    ) {
        let len = shape.iter().product::<usize>() * dtype.bits() / 8;
        let width = u64::from(range.end - range.start);
        let bytes: Vec<u8> = (0..len)
            .map(|_| range.start + (self.next() % width) as u8)
            .collect();
        self.source.insert(name, dtype, shape, bytes);
    }

    /// Random floats from 0.5 to 1.5, f32 or bf16.
    pub(crate) fn floats(&mut self, name: impl Into<String>, dtype: TensorDtype, shape: &[usize]) {
        let mut bytes = Vec::new();
        for _ in 0..shape.iter().product::<usize>() {
            let value = 0.5 + self.next() as f32 / (1_u64 << 31) as f32;
            let first = 4 - dtype.bits() / 8;
            bytes.extend_from_slice(&value.to_le_bytes()[first..]);
        }
        self.source.insert(name, dtype, shape, bytes);
    }

    /// One i64 per number.
    pub(crate) fn sizes(&mut self, name: impl Into<String>, sizes: &[usize]) {
        let bytes: Vec<u8> = sizes
            .iter()
            .flat_map(|&n| (n as i64).to_le_bytes())
            .collect();
        self.source
            .insert(name, TensorDtype::I64, [sizes.len()], bytes);
    }
}

fn layer(experts: ExpertLayout) -> MoeLayerSpec {
    let sizes = [EXPERTS, 2, HIDDEN, INTERMEDIATE];
    MoeLayerSpec::new(0, sizes, experts, RouterSpec::new("gate.weight"))
}

/// One module per expert; `linear` writes the tensors of a module with weight `[out, in]`.
pub(crate) fn per_expert(linear: impl Fn(&mut Tensors, &str, [usize; 2])) -> QuantSample {
    let (layer, tensors) = experts(linear);
    QuantSample::new(layer, tensors)
}

/// The layer and the tensors of [`per_expert`].
pub(crate) fn experts(
    linear: impl Fn(&mut Tensors, &str, [usize; 2]),
) -> (MoeLayerSpec, MemorySource) {
    let mut tensors = Tensors::default();
    for expert in 0..EXPERTS {
        let module = format!("layers.0.experts.{expert}");
        linear(
            &mut tensors,
            &format!("{module}.gate_proj"),
            [INTERMEDIATE, HIDDEN],
        );
        linear(
            &mut tensors,
            &format!("{module}.up_proj"),
            [INTERMEDIATE, HIDDEN],
        );
        linear(
            &mut tensors,
            &format!("{module}.down_proj"),
            [HIDDEN, INTERMEDIATE],
        );
    }
    let layout = ExpertLayout::PerExpert {
        module: "layers.0.experts".to_owned(),
        names: MlpNames::proj(),
        bias: false,
    };
    (layer(layout), tensors.source)
}

/// Loads all experts with the backend that a configuration names.
pub(crate) fn load(
    config: &Value,
    (layer, tensors): &(MoeLayerSpec, MemorySource),
) -> Result<ExpertWeights, QuantError> {
    let placement = Placement::from_ranks(EXPERTS, &[(0..EXPERTS).collect::<Vec<_>>()]).unwrap();
    let table = RoutingTable::new(placement, Topology::new(1).unwrap(), 0, 0).unwrap();
    let all = RankView::new(Rank::new(0), Arc::new(table)).unwrap();
    backend_for(Some(config))?.load_experts(layer, tensors, &all)
}

/// What is said of the experts after a change of their tensors.
pub(crate) fn refusal(
    config: &Value,
    linear: impl Fn(&mut Tensors, &str, [usize; 2]),
    change: impl Fn(&mut MemorySource),
) -> String {
    let mut sample = experts(linear);
    change(&mut sample.1);
    load(config, &sample).unwrap_err().to_string()
}

/// All experts in two parameters; `stack` writes the tensors of one with `[E, out, in]` weights.
pub(crate) fn fused(
    order: FusedOrder,
    parameter: impl Fn(&str) -> FusedTensor,
    stack: impl Fn(&mut Tensors, &str, [usize; 3]),
) -> QuantSample {
    let mut tensors = Tensors::default();
    let (gate_up, down) = (
        "layers.0.experts.gate_up_proj",
        "layers.0.experts.down_proj",
    );
    stack(&mut tensors, gate_up, [EXPERTS, 2 * INTERMEDIATE, HIDDEN]);
    stack(&mut tensors, down, [EXPERTS, HIDDEN, INTERMEDIATE]);
    let layout = ExpertLayout::Fused {
        gate_up: parameter(gate_up),
        order,
        down: parameter(down),
    };
    QuantSample::new(layer(layout), tensors.source)
}
