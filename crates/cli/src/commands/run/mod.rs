//! `moekit run`: the MoE layers of a checkpoint over the ranks of an EP group.

mod execute;
mod input;
mod ranks;
mod report;

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use moekit::checkpoint::Checkpoint;
use moekit::eval::load_file::{self, LoadFile};
use moekit::fused_moe::GateTensors;
use moekit::kernels::{ActivationQuantMode, CpuKernel};
use moekit::placement::{ModelPlacement, Topology};
use moekit::quant::{MoeLayerSpec, MoeModelSpec, QuantBackend, backend_for};
use moekit::routing::ReplicaSelector;
use serde::{Deserialize, Serialize};

use self::execute::{Group, LayerRun};
use self::input::Inputs;
use self::ranks::{CommOption, Ranks, run_over_mpi, run_over_tcp};
use self::report::{LayerReport, Report};
use crate::config::merge;
use crate::error::{CliError, Result};
use crate::output::{print_json, print_line};
use crate::planning::{GroupOptions, MOST_RANKS, MOST_TOKENS, ReportOptions};

/// Arguments of `moekit run`.
#[derive(Args)]
pub(crate) struct Run {
    /// A Hugging Face checkpoint directory, or a TOML file with any of the flags and `checkpoint`
    #[arg(value_name = "CHECKPOINT|CONFIG.toml")]
    source: PathBuf,
    #[command(flatten)]
    options: RunOptions,
}

#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct RunOptions {
    #[arg(skip)]
    #[serde(skip_serializing_if = "Option::is_none")]
    checkpoint: Option<PathBuf>,
    /// Layers of the model, separated by commas, or `all` [default: all]
    #[arg(long, value_name = "LAYERS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    layers: Option<String>,
    /// Tensors `layers.N.input`, `[num_tokens, hidden_size]`
    #[arg(long, value_name = "FILE.safetensors")]
    #[serde(skip_serializing_if = "Option::is_none")]
    input: Option<PathBuf>,
    /// Where to write `layers.N.output`, `layers.N.topk_ids` and `layers.N.topk_weights`
    #[arg(long, value_name = "FILE.safetensors")]
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<PathBuf>,
    #[command(flatten)]
    #[serde(flatten)]
    group: GroupOptions,
    /// What the ranks are; with `mpi`, `--ranks` is the number of processes [default: threads]
    #[arg(long, value_name = "WHAT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    comm: Option<CommOption>,
    /// Observed load of the model's MoE layers, for strategies that use it
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    load: Option<PathBuf>,
    /// Which replica of an expert serves a token: row_hash, round_robin, local_first, waterfill,
    /// waterfill-previous [default: round_robin]
    #[arg(long, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    selector: Option<String>,
    /// Shared experts: apart from the routed ones, or fused as extra slots of every rank
    /// [default: separate]
    #[arg(long, value_name = "HOW")]
    #[serde(skip_serializing_if = "Option::is_none")]
    shared: Option<SharedMode>,
    /// Quantize activations as the checkpoint says, by emulation, or not at all [default: off]
    #[arg(long, value_name = "MODE")]
    #[serde(rename = "activation-quant", skip_serializing_if = "Option::is_none")]
    activation_quant: Option<ActivationQuantOption>,
    /// Random tokens, if there is no input [default: 128]
    #[arg(long, value_name = "T", conflicts_with = "input")]
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens: Option<usize>,
    /// Seed of the random tokens [default: 0]
    #[arg(long, value_name = "S", conflicts_with = "input")]
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<u64>,
    /// Type of the activations [default: that of the input, f32 for random tokens]
    #[arg(long, value_name = "DTYPE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    dtype: Option<ActivationDtype>,
    /// Threads of the kernels, shared by all ranks of a process [default: one per core]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    threads: Option<usize>,
    #[command(flatten)]
    #[serde(flatten)]
    report: ReportOptions,
}

/// Whether activations are quantized.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ActivationQuantOption {
    #[default]
    Off,
    Emulate,
}

impl From<ActivationQuantOption> for ActivationQuantMode {
    fn from(option: ActivationQuantOption) -> Self {
        match option {
            ActivationQuantOption::Off => Self::Off,
            ActivationQuantOption::Emulate => Self::Emulate,
        }
    }
}

/// How shared experts are computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum SharedMode {
    #[default]
    Separate,
    Fused,
}

/// Type of the activations between layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ActivationDtype {
    F32,
    Bf16,
}

/// What is decided before a layer runs.
struct Prepared {
    checkpoint: Checkpoint,
    model: MoeModelSpec,
    backend: Box<dyn QuantBackend>,
    topology: Topology,
    plan: ModelPlacement,
    inputs: Inputs,
    selector: ReplicaSelector,
    kernel: CpuKernel,
    /// Positions of the layers that run among the model's MoE layers.
    chosen: Vec<usize>,
}

impl Run {
    pub(crate) fn run(self) -> Result<()> {
        let options = self.resolve()?;
        let comm = options.comm.unwrap_or_default();
        match options.group.ranks {
            Some(ranks) if ranks > MOST_RANKS && comm != CommOption::Mpi => {
                return Err(CliError::usage(format!(
                    "`--ranks {ranks}`: 1 to {MOST_RANKS}"
                )));
            }
            _ => {}
        }
        match comm {
            CommOption::Threads => options.execute(&Ranks::Threads),
            CommOption::Tcp => run_over_tcp(&options),
            CommOption::Mpi => run_over_mpi(options),
        }
    }

    /// The flags, or a configuration file with the flags over it.
    fn resolve(self) -> Result<RunOptions> {
        if self
            .source
            .extension()
            .is_none_or(|extension| extension != "toml")
        {
            return Ok(RunOptions {
                checkpoint: Some(self.source),
                ..self.options
            });
        }
        let paths = ["checkpoint", "input", "output", "load"];
        let options: RunOptions = merge(&self.options, &self.source, &paths)?;
        match (
            &options.checkpoint,
            &options.input,
            options.tokens,
            options.seed,
        ) {
            (None, ..) => Err(CliError::file(
                &self.source,
                "the key `checkpoint` is missing",
            )),
            (_, Some(_), Some(_), _) => {
                Err(CliError::usage("`input` and `tokens` exclude each other"))
            }
            (_, Some(_), _, Some(_)) => {
                Err(CliError::usage("`input` and `seed` exclude each other"))
            }
            _ => Ok(options),
        }
    }
}

impl RunOptions {
    /// Reads, checks and decides all that comes before the first layer.
    fn prepare(&self) -> Result<Prepared> {
        let checkpoint = Checkpoint::open(self.path())?;
        let model = checkpoint.model()?;
        let backend = backend_for(checkpoint.quantization_config())?;
        let topology = self.group.topology()?;
        let plan = self.plan(&model, &topology)?;
        let chosen = self.layers(&model)?;
        let has_shared = |&index: &usize| model.layers[index].shared.is_some();
        if self.shared == Some(SharedMode::Fused) && !chosen.iter().any(has_shared) {
            return Err(CliError::usage(
                "`--shared fused`, but none of the layers to run has shared experts: leave it out",
            ));
        }
        // Before tokens are made for a hidden size that no tensor has.
        for &index in &chosen {
            model.layers[index].check()?;
            GateTensors::check(&model.layers[index], &checkpoint)?;
        }
        Ok(Prepared {
            backend,
            topology,
            plan,
            inputs: self.inputs()?,
            selector: self.selector()?,
            kernel: self.kernel()?,
            chosen,
            model,
            checkpoint,
        })
    }

    fn execute(&self, ranks: &Ranks) -> Result<()> {
        let prepared = self.prepare()?;
        let (model, plan) = (&prepared.model, &prepared.plan);
        ranks.check_same_plan(plan)?;
        let group = Group {
            ranks,
            checkpoint: &prepared.checkpoint,
            backend: prepared.backend.as_ref(),
            topology: prepared.topology,
            selector: prepared.selector,
            kernel: prepared.kernel,
            shared: self.shared.unwrap_or_default(),
            activation_quant: self.activation_quant.unwrap_or_default().into(),
        };

        let progress = match ranks.reports() {
            true => progress(prepared.chosen.len()),
            false => ProgressBar::hidden(),
        };
        let mut runs = Vec::with_capacity(prepared.chosen.len());
        for index in prepared.chosen {
            let spec = &model.layers[index];
            progress.set_message(format!("layer {}", spec.layer));
            let placement = plan.layers()[index].clone();
            let input = prepared.inputs.layer(spec)?;
            runs.extend(group.run(spec, placement, &input)?);
            progress.inc(1);
        }
        progress.finish_and_clear();

        if !ranks.reports() {
            return Ok(());
        }
        if let Some(output) = &self.output {
            input::write(output, &runs)?;
        }
        self.report(model, &runs, group.kernel.num_threads())
    }

    /// The directory of the checkpoint.
    fn path(&self) -> &Path {
        self.checkpoint.as_deref().unwrap_or(Path::new(""))
    }

    /// Places all MoE layers of the model, whichever of them run.
    fn plan(&self, model: &MoeModelSpec, topology: &Topology) -> Result<ModelPlacement> {
        let observed = self.load.as_deref().map(load_file::read).transpose()?;
        let load = observed.as_ref().map(LoadFile::total);
        let mut request = self.group.request_for(&model.layers, topology)?;
        if let Some(load) = &load {
            request = request.with_load(load)?;
        }
        if let Some(trace) = observed.as_ref().and_then(LoadFile::trace) {
            request = request.with_trace(trace)?;
        }
        Ok(self.group.strategy()?.plan(&request)?)
    }

    /// Positions of the chosen layers among the model's MoE layers.
    fn layers(&self, model: &MoeModelSpec) -> Result<Vec<usize>> {
        let list = match self.layers.as_deref() {
            None | Some("all") => return Ok((0..model.layers.len()).collect()),
            Some(list) => list,
        };
        let find = |text: &str| {
            let known = || {
                let all: Vec<_> = model.layers.iter().map(|l| l.layer.to_string()).collect();
                format!("the MoE layers are {}", all.join(", "))
            };
            let number: usize = text.trim().parse().map_err(|_| {
                CliError::usage(format!(
                    "`--layers {list}`: `{text}` is not a layer; {}",
                    known()
                ))
            })?;
            model
                .layers
                .iter()
                .position(|l| l.layer == number)
                .ok_or_else(|| {
                    CliError::usage(format!("layer {number} is not a MoE layer; {}", known()))
                })
        };
        let mut chosen = Vec::new();
        for text in list.split(',') {
            let index = find(text)?;
            if chosen.contains(&index) {
                return Err(CliError::usage(format!(
                    "`--layers {list}` names layer {} twice, expected each layer once",
                    text.trim()
                )));
            }
            chosen.push(index);
        }
        Ok(chosen)
    }

    fn inputs(&self) -> Result<Inputs> {
        match &self.input {
            Some(path) => Inputs::open(path, self.dtype),
            None => Ok(Inputs::Random {
                tokens: match self.tokens.unwrap_or(128) {
                    tokens if tokens <= MOST_TOKENS => tokens,
                    tokens => {
                        return Err(CliError::usage(format!(
                            "`--tokens` is {tokens}, expected at most {MOST_TOKENS}"
                        )));
                    }
                },
                seed: self.seed.unwrap_or(0),
                dtype: self.dtype.unwrap_or(ActivationDtype::F32),
            }),
        }
    }

    fn selector(&self) -> Result<ReplicaSelector> {
        Ok(match &self.selector {
            Some(name) => ReplicaSelector::from_name(name)?,
            None => ReplicaSelector::default(),
        })
    }

    fn kernel(&self) -> Result<CpuKernel> {
        Ok(match self.threads {
            Some(threads) => CpuKernel::with_threads(threads)?,
            None => CpuKernel::default(),
        })
    }

    fn report(&self, model: &MoeModelSpec, runs: &[LayerRun], threads: usize) -> Result<()> {
        let report = Report {
            checkpoint: self.path().display().to_string(),
            model_type: model.model_type.clone(),
            strategy: self.group.strategy_name().to_owned(),
            ranks: self.group.ranks.unwrap_or(1),
            nodes: self.group.nodes.unwrap_or(1),
            threads,
            layers: runs.iter().map(LayerReport::of).collect(),
        };
        if self.report.json {
            print_json(&report)
        } else {
            print_line(&report.lines())
        }
    }
}

/// A bar on stderr, if that is a terminal.
fn progress(layers: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}");
    let bar = ProgressBar::new(layers as u64);
    match style {
        Ok(style) if layers > 1 => bar.with_style(style),
        _ => ProgressBar::hidden(),
    }
}

/// Rows of `spec.hidden_size` values.
fn check_width(spec: &MoeLayerSpec, shape: &[usize], name: &str) -> Result<()> {
    match shape {
        [_, width] if *width == spec.hidden_size => Ok(()),
        _ => Err(CliError::usage(format!(
            "tensor `{name}` has shape {shape:?}, expected [num_tokens, {}]",
            spec.hidden_size
        ))),
    }
}
