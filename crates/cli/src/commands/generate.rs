use std::path::PathBuf;

use clap::Args;
use moekit::eval::load_file::{self, LoadFile};
use moekit::eval::workload::{FlashCrowd, Profile, Workload};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::config::merge;
use crate::error::{CliError, Result};
use crate::output::{print_json, print_line};
use crate::planning::ReportOptions;

/// Arguments of `moekit generate`.
#[derive(Args)]
pub(crate) struct Generate {
    #[command(flatten)]
    options: GenerateOptions,
    /// A TOML file with any of these flags; flags win
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct GenerateOptions {
    /// uniform, lognormal:SIGMA, zipf:S, powerlaw:ALPHA, r1-mt, hot:SHARE
    #[arg(long, value_name = "NAME[:PARAM]")]
    #[serde(skip_serializing_if = "Option::is_none")]
    profile: Option<String>,
    /// Logical experts per layer
    #[arg(long, value_name = "E")]
    #[serde(skip_serializing_if = "Option::is_none")]
    experts: Option<usize>,
    /// MoE layers [default: 1]
    #[arg(long, value_name = "L")]
    #[serde(skip_serializing_if = "Option::is_none")]
    layers: Option<usize>,
    /// Steps [default: 1]
    #[arg(long, value_name = "S")]
    #[serde(skip_serializing_if = "Option::is_none")]
    steps: Option<usize>,
    /// Routed tokens per layer and step: tokens times top-k [default: 32768]
    #[arg(long, value_name = "T")]
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens: Option<u64>,
    /// Fraction of the log-popularity that is mixed anew in every step [default: 0]
    #[arg(long, value_name = "D")]
    #[serde(skip_serializing_if = "Option::is_none")]
    drift: Option<f64>,
    /// For some steps one expert of every layer gets a share of all tokens
    #[arg(long, value_name = "START:STEPS:SHARE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    flash_crowd: Option<String>,
    /// Domains with a popularity of their own that take turns [default: 1]
    #[arg(long, value_name = "N", requires = "domain_steps")]
    #[serde(skip_serializing_if = "Option::is_none")]
    domains: Option<usize>,
    /// Steps that a domain lasts
    #[arg(long, value_name = "STEPS", requires = "domains")]
    #[serde(skip_serializing_if = "Option::is_none")]
    domain_steps: Option<usize>,
    /// Seed [default: 0]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<u64>,
    /// Where to write the counts `[steps, layers, experts]`: .json, .csv, .npy or .safetensors
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    out: Option<PathBuf>,
    #[command(flatten)]
    #[serde(flatten)]
    report: ReportOptions,
}

impl Generate {
    pub(crate) fn run(self) -> Result<()> {
        let options = match &self.config {
            Some(file) => merge(&self.options, file, &["out"])?,
            None => self.options,
        };
        let workload = options.workload()?;
        let out = options
            .out
            .as_deref()
            .ok_or_else(|| missing("out", "where to write"))?;
        let load = LoadFile::from(workload.generate()?);
        load_file::write(out, &load)?;
        if options.report.json {
            let out = out.display().to_string();
            return print_json(&json!({"out": out, "shape": load.shape()}));
        }
        print_line(&format!(
            "{:?} token counts written to {}",
            load.shape(),
            out.display()
        ))
    }
}

impl GenerateOptions {
    fn workload(&self) -> Result<Workload> {
        let profile: Profile = self
            .profile
            .as_deref()
            .ok_or_else(|| missing("profile", &Profile::NAMES.join(", ")))?
            .parse()?;
        let experts = self
            .experts
            .ok_or_else(|| missing("experts", "logical experts per layer"))?;
        let (layers, steps) = (self.layers.unwrap_or(1), self.steps.unwrap_or(1));
        let tokens = self.tokens.unwrap_or(32_768);
        let mut workload = Workload::new(profile, experts, layers, steps, tokens)?
            .with_seed(self.seed.unwrap_or(0));
        if let Some(drift) = self.drift {
            workload = workload.with_drift(drift)?;
        }
        if let Some(crowd) = &self.flash_crowd {
            workload = workload.with_flash_crowd(crowd.parse::<FlashCrowd>()?)?;
        }
        match (self.domains, self.domain_steps) {
            (Some(domains), Some(steps)) => workload = workload.with_domains(domains, steps)?,
            (None, None) => {}
            _ => {
                return Err(CliError::usage(
                    "`domains` and `domain-steps` need each other",
                ));
            }
        }
        Ok(workload)
    }
}

fn missing(flag: &str, what: &str) -> CliError {
    CliError::usage(format!("`--{flag}` is missing: {what}"))
}
