use std::path::PathBuf;

use clap::Args;
use moekit::eval::engine_file::{self, Engine, ModelLayers};
use moekit::eval::placement_file;

use crate::error::Result;
use crate::output::print_line;

/// Arguments of `moekit export`.
#[derive(Args)]
pub(crate) struct Export {
    /// A placement, as `moekit plan --out` writes it
    #[arg(long, value_name = "FILE")]
    placement: PathBuf,
    /// sglang, tensorrt-llm, vllm or vllm-ascend
    #[arg(long, value_name = "NAME")]
    engine: String,
    /// Layers of the model, dense ones included [default: as many as the placement has]
    #[arg(long, value_name = "N")]
    model_layers: Option<usize>,
    /// The first MoE layer; those after it are MoE layers too [default: 0]
    #[arg(long, value_name = "N", requires = "model_layers")]
    first_moe_layer: Option<usize>,
    /// Where to write the engine's file [default: stdout]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

impl Export {
    pub(crate) fn run(self) -> Result<()> {
        let placement = placement_file::read(&self.placement)?;
        let engine: Engine = self.engine.parse()?;
        let num_layers = self.model_layers.unwrap_or(placement.num_layers());
        let first = self.first_moe_layer.unwrap_or(0);
        let layers = ModelLayers::moe_from(first, num_layers)?;
        match &self.out {
            Some(path) => Ok(engine_file::write(path, engine, &placement, &layers)?),
            None => print_line(engine_file::to_text(engine, &placement, &layers)?.trim_end()),
        }
    }
}
