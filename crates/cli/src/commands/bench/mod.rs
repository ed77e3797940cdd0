//! `moekit bench`: the layer on random weights, held to the limits of the machine.

mod driven;
mod format;
mod layer;
mod measure;
mod memory;
mod report;
mod routing;
mod shape;
mod weights;

use std::thread;

use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use moekit::eval::workload::Profile;
use moekit::kernels::CpuKernel;
use moekit::kernels::probe::Probe;
use serde::Serialize;

use self::format::WeightFormat;
use self::layer::{Layer, check_memory, probe};
use self::measure::measure;
use self::report::{CaseReport, Report};
use self::routing::{TokenSource, Tokens};
use self::shape::Shape;
use crate::error::{CliError, Result};
use crate::output::{print_json, print_line};
use crate::planning::{MOST_TOKENS, ReportOptions};

/// Up to this many tokens every batch needs experts that the last one has not read.
const FEW_TOKENS: usize = 16;

/// Arguments of `moekit bench`.
#[derive(Args)]
pub(crate) struct Bench {
    /// A shape by name, or H,I,E,k; repeat for more. Names: qwen3-30b-a3b, gpt-oss-20b,
    /// mixtral-8x7b, deepseek-v3-ep32, or `all` of them
    #[arg(long, value_name = "NAME|H,I,E,k", default_value = "qwen3-30b-a3b", value_parser = shapes)]
    shape: Vec<Shapes>,
    /// Formats of the weights, separated by commas: f32, bf16, f16, fp8-block, fp8-channel,
    /// fp8-tensor, int8, int8-dynamic, int4, int4-asym, mxfp4, nvfp4, mxfp8, or `all` of them
    #[arg(long, value_name = "DTYPES", default_value = "bf16", value_delimiter = ',', value_parser = formats)]
    dtype: Vec<Formats>,
    /// Type of the activations
    #[arg(long, value_name = "DTYPE", default_value = "bf16")]
    act: ActivationDtype,
    /// Tokens of a batch, separated by commas
    #[arg(long, value_name = "M", default_value = "1,16,128,512,2048", value_delimiter = ',', value_parser = num_tokens)]
    tokens: Vec<usize>,
    /// How tokens prefer experts, as in `moekit generate`
    #[arg(long, value_name = "NAME[:PARAM]", default_value = "r1-mt")]
    profile: Profile,
    /// Threads of the kernels [default: one per core]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Keep each of these threads but the first on a CPU of its own, and off the first one's
    #[arg(long)]
    pin: bool,
    /// Seed of weights, tokens and routing
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Seconds of samples per case; there are at least three samples
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0, value_parser = positive)]
    time: f64,
    /// Take commands on stdin instead, one layer of one shape and format: for a program that
    /// alternates with other implementations
    #[arg(long, conflicts_with_all = ["json", "time"])]
    driven: bool,
    #[command(flatten)]
    report: ReportOptions,
}

/// Type of the activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum ActivationDtype {
    F32,
    Bf16,
}

impl ActivationDtype {
    fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }
}

#[derive(Clone)]
struct Shapes(Vec<Shape>);

fn shapes(text: &str) -> Result<Shapes> {
    match text {
        "all" => Shape::names()
            .map(str::parse)
            .collect::<Result<_>>()
            .map(Shapes),
        _ => text.parse().map(|shape| Shapes(vec![shape])),
    }
}

#[derive(Clone)]
struct Formats(Vec<WeightFormat>);

fn formats(text: &str) -> Result<Formats> {
    if text == "all" {
        return Ok(Formats(WeightFormat::value_variants().to_vec()));
    }
    let format = WeightFormat::from_str(text, true).map_err(|_| {
        let known = WeightFormat::value_variants().iter().map(|f| f.name());
        let known: Vec<_> = known.collect();
        CliError::usage(format!(
            "`{text}` is no format; known are {}",
            known.join(", ")
        ))
    })?;
    Ok(Formats(vec![format]))
}

fn num_tokens(text: &str) -> Result<usize> {
    let tokens = text.parse().ok().filter(|n| (1..=MOST_TOKENS).contains(n));
    tokens.ok_or_else(|| {
        CliError::usage(format!(
            "`{text}` is no number of tokens from 1 to {MOST_TOKENS}"
        ))
    })
}

fn positive(text: &str) -> Result<f64> {
    let seconds = text
        .parse()
        .ok()
        .filter(|s: &f64| s.is_finite() && *s > 0.0);
    seconds.ok_or_else(|| CliError::usage(format!("`{text}` is no positive number of seconds")))
}

impl Bench {
    pub(crate) fn run(self) -> Result<()> {
        let kernel = match (self.threads, self.pin) {
            (Some(threads), false) => CpuKernel::with_threads(threads)?,
            (None, false) => CpuKernel::default(),
            (threads, true) => {
                let cores = || thread::available_parallelism().map_or(1, usize::from);
                CpuKernel::with_bound_threads(threads.unwrap_or_else(cores))?
            }
        };
        let isa = kernel.isa()?;
        let shapes = self.shape.iter().flat_map(|list| &list.0);
        let formats = || self.dtype.iter().flat_map(|list| &list.0);
        let layers: Vec<_> = shapes
            .flat_map(|shape| formats().map(move |&format| (shape, format)))
            .collect();
        let largest = self.tokens.iter().copied().max().unwrap_or(0);
        let all = self.tokens.iter().map(|&n| num_batches(n) * n);
        let at_once = match self.driven {
            true => all.sum(),
            false => all.max().unwrap_or(0),
        };
        for (shape, format) in &layers {
            check_memory(shape, *format, largest, at_once)?;
        }
        let mut probe = probe(&kernel)?;
        if self.driven {
            return self.answer(&layers, &kernel, &mut probe);
        }
        let limits = probe.limits();
        let mut cases = Vec::new();
        for (shape, format) in layers {
            cases.extend(self.cases(shape, format, &kernel, &mut probe)?);
        }
        let report = Report::new(kernel.num_threads(), isa, limits, cases);
        match self.report.json {
            true => print_json(&report),
            false => print_line(&report.lines()),
        }
    }

    /// All numbers of tokens of one layer.
    fn cases(
        &self,
        shape: &Shape,
        format: WeightFormat,
        kernel: &CpuKernel,
        probe: &mut Probe,
    ) -> Result<Vec<CaseReport>> {
        let layer = self.layer(shape, format, kernel)?;
        let bar = progress(self.tokens.len(), &format!("{shape} {}", format.name()));
        let mut source = TokenSource::new(shape, self.act, self.profile, self.seed)?;
        let cases = self.tokens.iter().map(|&count| {
            let case = measure(&layer, &batches(&mut source, count), probe, self.time);
            bar.inc(1);
            case
        });
        let cases = cases.collect();
        bar.finish_and_clear();
        cases
    }

    fn layer<'a>(
        &self,
        shape: &'a Shape,
        format: WeightFormat,
        kernel: &CpuKernel,
    ) -> Result<Layer<'a>> {
        let bar = progress(
            shape.num_local,
            &format!("{shape} {}: experts", format.name()),
        );
        let layer = Layer::random(shape, format, self.act, kernel, self.seed, || bar.inc(1));
        bar.finish_and_clear();
        layer
    }

    fn answer(
        &self,
        layers: &[(&Shape, WeightFormat)],
        kernel: &CpuKernel,
        probe: &mut Probe,
    ) -> Result<()> {
        let &[(shape, format)] = layers else {
            return Err(CliError::usage("`--driven` takes one shape and one format"));
        };
        let layer = self.layer(shape, format, kernel)?;
        let mut source = TokenSource::new(shape, self.act, self.profile, self.seed)?;
        let tokens = self.tokens.iter();
        let batches: Vec<_> = tokens.flat_map(|&n| batches(&mut source, n)).collect();
        driven::answer(&layer, &batches, probe)
    }
}

fn batches(source: &mut TokenSource<'_>, tokens: usize) -> Vec<Tokens> {
    (0..num_batches(tokens))
        .map(|_| source.draw(tokens))
        .collect()
}

/// Few tokens need few experts: other ones in each sample, as in one model layer after another.
fn num_batches(tokens: usize) -> usize {
    if tokens <= FEW_TOKENS { 8 } else { 2 }
}

/// A bar on stderr, if that is a terminal.
fn progress(steps: usize, name: &str) -> ProgressBar {
    let bar = ProgressBar::new(steps as u64).with_message(name.to_owned());
    match ProgressStyle::with_template("{msg} {bar:30} {pos}/{len}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
