//! Stores a small layer as `int8_rows` and reads it back with the backend that a `config.json`
//! chooses: `quant-int8-rows config.json`.

use std::error::Error;
use std::fs;
use std::process::ExitCode;
use std::sync::Arc;

use moekit_quant::{
    ExpertLayout, MemorySource, MlpNames, MoeLayerSpec, RouterSpec, TensorDtype, backend_for,
    plugin::link_plugins,
};
use moekit_routing::{ExpertRouting, Placement, Rank, RoutingTable, Topology};

const EXPERTS: usize = 4;
const HIDDEN: usize = 16;
const INTERMEDIATE: usize = 8;

fn main() -> ExitCode {
    link_plugins!(quant_int8_rows);
    match read_back() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn read_back() -> Result<(), Box<dyn Error>> {
    let path = std::env::args()
        .nth(1)
        .ok_or("usage: quant-int8-rows CONFIG.json")?;
    let config: serde_json::Value = serde_json::from_str(&fs::read_to_string(path)?)?;
    let backend = backend_for(config.get("quantization_config"))?;

    let placement = Placement::from_ranks(EXPERTS, &[[0, 1], [2, 3]])?;
    let table = Arc::new(RoutingTable::new(placement, Topology::new(2)?, 0, 0)?);
    let (layer, tensors) = stored();
    let mut largest = 0.0f32;
    for rank in [Rank::new(0), Rank::new(1)] {
        let view = RankView(rank, Arc::clone(&table));
        let weights = backend.load_experts(&layer, &tensors, &view)?;
        for (mlp, expert) in weights.experts.iter().zip(view.local_experts()) {
            for row in 0..INTERMEDIATE {
                let mut got = [0.0; HIDDEN];
                mlp.up.weight.dequantize_row(row, &mut got)?;
                for (col, got) in got.into_iter().enumerate() {
                    largest = largest.max((got - weight(expert.index(), row, col)).abs());
                }
            }
        }
    }
    println!(
        "{}: {EXPERTS} experts read back within {largest:.4}",
        backend.name()
    );
    Ok(())
}

#[derive(Debug)]
struct RankView(Rank, Arc<RoutingTable>);

impl ExpertRouting for RankView {
    fn rank(&self) -> Rank {
        self.0
    }

    fn routing_table(&self) -> Arc<RoutingTable> {
        Arc::clone(&self.1)
    }
}

/// A weight between -1 and 1.
fn weight(expert: usize, row: usize, col: usize) -> f32 {
    (expert as f32 + 0.7 * row as f32 + 1.3 * col as f32).sin()
}

/// The layer, and its tensors quantized.
fn stored() -> (MoeLayerSpec, MemorySource) {
    let layout = ExpertLayout::PerExpert {
        module: "experts".to_owned(),
        names: MlpNames::w123(),
        bias: false,
    };
    let sizes = [EXPERTS, 2, HIDDEN, INTERMEDIATE];
    let layer = MoeLayerSpec::new(0, sizes, layout, RouterSpec::new("gate.weight"));
    let mut tensors = MemorySource::default();
    for expert in 0..EXPERTS {
        for (name, [rows, cols]) in [
            ("w1", [INTERMEDIATE, HIDDEN]),
            ("w3", [INTERMEDIATE, HIDDEN]),
            ("w2", [HIDDEN, INTERMEDIATE]),
        ] {
            let module = format!("experts.{expert}.{name}");
            let (mut codes, mut scales, mut zeros) = (Vec::new(), Vec::new(), Vec::new());
            for row in 0..rows {
                let values: Vec<f32> = (0..cols).map(|col| weight(expert, row, col)).collect();
                let (low, high) = values
                    .iter()
                    .fold((0f32, 0f32), |(l, h), v| (l.min(*v), h.max(*v)));
                let scale = (high - low) / 255.0;
                let zero = (-128.0 - low / scale).round();
                codes.extend(
                    values
                        .iter()
                        .map(|v| (v / scale + zero).round() as i8 as u8),
                );
                scales.extend(scale.to_le_bytes());
                zeros.push(zero as i8 as u8);
            }
            tensors.insert(
                format!("{module}.weight"),
                TensorDtype::I8,
                [rows, cols],
                codes,
            );
            tensors.insert(
                format!("{module}.weight_scale"),
                TensorDtype::F32,
                [rows, 1],
                scales,
            );
            tensors.insert(
                format!("{module}.weight_zero_point"),
                TensorDtype::I8,
                [rows, 1],
                zeros,
            );
        }
    }
    (layer, tensors)
}
