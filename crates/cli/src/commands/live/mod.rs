//! `moekit live`: the MoE layers of a checkpoint under a drifting stream, rebalanced as it flows.

mod changes;
mod children;
mod dashboard;
mod drive;
mod processes;
#[cfg(feature = "prometheus")]
mod prometheus;
mod rebalance;
mod record;
mod show;
mod stream;
mod threads;
mod verdict;
mod watch;

use std::io::IsTerminal;
#[cfg(feature = "prometheus")]
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Args;
use moekit::checkpoint::Checkpoint;
use moekit::eval::workload::{Profile, Workload};
use moekit::fused_moe::{GateTensors, Reduction};
use moekit::kernels::CpuKernel;
use moekit::live::{CheckpointExperts, LiveConfig, LiveError};
use moekit::parallel::TcpGroup;
use moekit::placement::{ModelPlacement, PlacementStrategy};
use moekit::quant::{MoeLayerSpec, QuantBackend, TensorSource, backend_for};
use moekit::routing::ReplicaSelector;
use serde::{Deserialize, Serialize};

use self::children::ToStarter;
use self::drive::{Change, Setup, What};
use self::processes::ToFirst;
use self::rebalance::Rebalance;
use self::record::Summary;
use self::show::Show;
use self::stream::Stream;
use self::verdict::verdict;
use super::comm::{CommOption, count, run_as_rank, run_over_mpi};
use crate::config::merge;
use crate::error::{CliError, Result};
use crate::output::print_line;
use crate::planning::{GroupOptions, MOST_RANKS, MOST_TOKENS};

/// Arguments of `moekit live`.
#[derive(Args)]
pub(crate) struct Live {
    /// Directory of a checkpoint
    #[arg(value_name = "CHECKPOINT")]
    checkpoint: PathBuf,
    #[command(flatten)]
    options: LiveOptions,
    /// A TOML file with any of these flags; flags win
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Serves metrics for Prometheus, over MPI those of process N at the port + N [default address:
    /// 127.0.0.1:9187]
    #[cfg(feature = "prometheus")]
    #[arg(long, value_name = "ADDRESS", num_args = 0..=1, default_missing_value = "127.0.0.1:9187")]
    prometheus: Option<SocketAddr>,
}

#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
#[command(mut_arg("ranks", |ranks| ranks.help("Ranks of the EP group [default: 4]")))]
struct LiveOptions {
    #[command(flatten)]
    #[serde(flatten)]
    group: GroupOptions,
    /// What the ranks are; over `tcp` there are as many processes as are ever wanted, over `mpi` as
    /// `mpirun` has started, those beyond `--ranks` as spares [default: threads]
    #[arg(long, value_name = "WHAT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    comm: Option<CommOption>,
    /// Popularity of the experts, as in `moekit generate` [default: r1-mt]
    #[arg(long, value_name = "NAME[:PARAM]")]
    #[serde(skip_serializing_if = "Option::is_none")]
    profile: Option<String>,
    /// Fraction of the log-popularity that is mixed anew in every step [default: 0.01]
    #[arg(long, value_name = "D")]
    #[serde(skip_serializing_if = "Option::is_none")]
    drift: Option<f64>,
    /// Steps [default: 200]
    #[arg(long, value_name = "S")]
    #[serde(skip_serializing_if = "Option::is_none")]
    steps: Option<u64>,
    /// Tokens of all ranks together in a step [default: 256]
    #[arg(long, value_name = "T")]
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens: Option<usize>,
    /// Seed of the stream [default: 0]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<u64>,
    /// When to look for a better placement: interval=STEPS, below=BALANCEDNESS,
    /// cusum=SLACK:THRESHOLD, window=STEPS, decay=FACTOR, pays=TOKEN_SECONDS:BYTE_SECONDS:STEPS,
    /// separated by commas; or off. Without interval, below and cusum: interval=32 [default:
    /// interval=32,window=32]
    #[arg(long, value_name = "KEY=VALUE,...")]
    #[serde(skip_serializing_if = "Option::is_none")]
    rebalance: Option<String>,
    /// Bytes of experts that a rank sends between two steps [default: 1048576]
    #[arg(long, value_name = "BYTES")]
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes_per_step: Option<usize>,
    /// Bytes of experts that a rank receives before it commits [default: 268435456]
    #[arg(long, value_name = "BYTES")]
    #[serde(skip_serializing_if = "Option::is_none")]
    staging_bytes: Option<u64>,
    /// Which replica of an expert serves a token [default: round_robin]
    #[arg(long, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    selector: Option<String>,
    /// Grow or shrink the group, e.g. 50:4,100:3 for 4 ranks from step 50 and 3 from step 100 on
    #[arg(long, value_name = "STEP:RANKS,...")]
    #[serde(skip_serializing_if = "Option::is_none")]
    resize: Option<String>,
    /// Lose ranks without notice, e.g. 70:1 for rank 1 in step 70; over `tcp` its process is killed
    #[arg(long, value_name = "STEP:RANK,...")]
    #[serde(skip_serializing_if = "Option::is_none")]
    lose: Option<String>,
    /// Sum over the experts of a token in a fixed order: the same bits on any ranks
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    invariant: bool,
    /// Wait for planners, preparations and ranks that come, so that two runs do the same in the same
    /// steps; one of them that never ends is waited for without end
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    synchronous: bool,
    /// Compare the outputs of every N-th step with those of one rank that holds all experts
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    check: Option<u64>,
    /// Threads of the kernels, shared by all ranks [default: one per core]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    threads: Option<usize>,
    /// Print one JSON document per step and a summary, also on a terminal
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    json: bool,
}

impl Live {
    pub(crate) fn run(self) -> Result<()> {
        let mut options = match &self.config {
            Some(file) => merge(&self.options, file, &[])?,
            None => self.options.clone(),
        };
        let comm = options.comm.unwrap_or_default();
        if comm == CommOption::Mpi {
            return run_over_mpi(|comm| {
                options.group.ranks.get_or_insert(comm.size());
                // One alone refuses, so that the message comes once.
                if comm.rank().index() == 0 {
                    options.check_processes(comm.size())?;
                }
                comm.barrier().map_err(LiveError::from)?;
                self.serve(comm.rank().index())?;
                let setup = options.setup(&self.checkpoint)?.with_reference()?;
                let reports = ToFirst::new(&setup, &comm);
                processes::run(&setup, options.ranks(), &comm, reports)
            });
        }
        if comm == CommOption::Tcp && TcpGroup::is_rank() {
            return run_as_rank(|comm| {
                self.serve(comm.rank().index())?;
                let setup = options.setup(&self.checkpoint)?.with_reference()?;
                processes::run(&setup, options.ranks(), &comm, ToStarter)
            });
        }
        let setup = options.setup(&self.checkpoint)?;
        let title = format!(
            "{}: {} under {}, {}",
            self.checkpoint.display(),
            options.profile(),
            options.group.strategy_name(),
            options.rebalance()
        );
        let (setup, summary) = if comm == CommOption::Tcp {
            let show = Show::new(options.json, title)?;
            let setup = Arc::new(setup);
            let summary = children::run(&setup, options.most_ranks(&setup), show)?;
            (setup, summary)
        } else {
            self.serve(0)?;
            let setup = Arc::new(setup.with_reference()?);
            let show = Show::new(options.json, title)?;
            let summary = threads::run(&setup, options.ranks(), show)?;
            (setup, summary)
        };
        if options.json || !std::io::stdout().is_terminal() {
            print_summary(&summary)?;
        } else {
            print_line(&summary.lines())?;
        }
        let stopped = setup.stop.load(Ordering::Relaxed);
        verdict(&summary, &setup.changes, (!stopped).then_some(setup.steps))
    }

    /// Serves the metrics of a process, if that is wanted.
    #[cfg(feature = "prometheus")]
    fn serve(&self, process: usize) -> Result<()> {
        match self.prometheus {
            Some(address) => prometheus::serve(address, process),
            None => Ok(()),
        }
    }

    #[cfg(not(feature = "prometheus"))]
    #[allow(
        clippy::unused_self,
        clippy::unnecessary_wraps,
        reason = "with the feature it serves"
    )]
    fn serve(&self, _: usize) -> Result<()> {
        Ok(())
    }
}

fn print_summary(summary: &Summary) -> Result<()> {
    let text = serde_json::to_string(&serde_json::json!({ "summary": summary }));
    print_line(&text.unwrap_or_default())
}

impl LiveOptions {
    fn ranks(&self) -> usize {
        self.group.ranks.unwrap_or(4)
    }

    fn steps(&self) -> u64 {
        self.steps.unwrap_or(200)
    }

    /// Refuses what would take more than there is, or mean nothing.
    fn check_limits(&self) -> Result<()> {
        for (flag, got, most) in [
            ("tokens", self.tokens.unwrap_or(1), MOST_TOKENS),
            ("ranks", self.ranks(), MOST_RANKS),
        ] {
            if got == 0 || got > most {
                return Err(CliError::usage(format!("`--{flag} {got}`: 1 to {most}")));
            }
        }
        match self.check {
            Some(0) => Err(CliError::usage("`--check 0`: every 1st step is the most")),
            _ => Ok(()),
        }
    }

    /// The most ranks that are ever wanted.
    fn most_ranks(&self, setup: &Setup) -> usize {
        let resized = setup.changes.iter().filter_map(|change| match change.what {
            What::Ranks(ranks) => Some(ranks),
            What::Lose(_) => None,
        });
        resized.fold(self.ranks(), usize::max)
    }

    /// Whether there are processes for all ranks that are ever wanted.
    fn check_processes(&self, size: usize) -> Result<()> {
        let resized = self
            .changes()?
            .into_iter()
            .filter_map(|change| match change.what {
                What::Ranks(ranks) => Some(("resize", ranks)),
                What::Lose(_) => None,
            });
        let mut wanted = std::iter::once(("ranks", self.ranks())).chain(resized);
        match wanted.find(|(_, ranks)| *ranks > size) {
            None => Ok(()),
            Some((flag, ranks)) => Err(CliError::usage(format!(
                "`--{flag}` wants {ranks} ranks, but MPI has started {}: start as many \
                 (`mpirun -n {ranks}`)",
                count(size)
            ))),
        }
    }

    fn profile(&self) -> &str {
        self.profile.as_deref().unwrap_or("r1-mt")
    }

    fn rebalance(&self) -> &str {
        self.rebalance.as_deref().unwrap_or("interval=32,window=32")
    }

    fn setup(&self, path: &std::path::Path) -> Result<Setup> {
        self.check_limits()?;
        let changes = self.changes()?;
        let checkpoint = Checkpoint::open(path)?;
        let specs = checkpoint.model()?.layers;
        let first = specs
            .first()
            .ok_or_else(|| CliError::usage("the checkpoint has no MoE layers"))?;
        // Before tokens are made for a hidden size that no tensor has.
        for spec in &specs {
            spec.check()?;
            GateTensors::check(spec, &checkpoint)?;
        }
        let tokens = self.tokens.unwrap_or(256);
        let steps = self.steps();
        let routed = (tokens * first.top_k) as u64;
        let profile: Profile = self.profile().parse()?;
        let seed = self.seed.unwrap_or(0);
        let trace = Workload::new(
            profile,
            first.num_experts,
            specs.len(),
            steps as usize,
            routed,
        )?
        .with_drift(self.drift.unwrap_or(0.01))?
        .with_seed(seed)
        .generate()?;
        let sizes = [tokens, first.top_k, first.hidden_size];
        let stream = Stream::new(trace, sizes, seed);
        let backend: Arc<dyn QuantBackend> = backend_for(checkpoint.quantization_config())?.into();
        let tensors: Arc<dyn TensorSource> = Arc::new(checkpoint);
        let strategy: Arc<dyn PlacementStrategy> = self.group.strategy()?.into();
        let groups = first.router.groups.map(|groups| groups.num_groups);
        Ok(Setup {
            initial: self.initial(&specs, strategy.as_ref())?,
            experts: CheckpointExperts::new(backend, tensors, specs.clone()),
            specs,
            kernel: match self.threads {
                Some(threads) => CpuKernel::with_threads(threads)?,
                None => CpuKernel::default(),
            },
            reduction: match self.invariant {
                true => Reduction::PerSlot,
                false => Reduction::PerRank,
            },
            stream,
            config: self.config(strategy, groups)?,
            steps,
            synchronous: self.synchronous,
            changes,
            stop: AtomicBool::new(false),
            check: self.check,
            reference: None,
        })
    }

    /// The strategy's placement without a load, with as many slots on every rank.
    fn initial(
        &self,
        specs: &[MoeLayerSpec],
        strategy: &dyn PlacementStrategy,
    ) -> Result<ModelPlacement> {
        let topology = GroupOptions {
            ranks: Some(self.ranks()),
            ..self.group.clone()
        }
        .topology()?;
        let request = self.group.request_for(specs, &topology)?;
        let even = vec![request.num_slots().div_ceil(self.ranks()); self.ranks()];
        let request = request.with_slots_per_rank(even)?;
        Ok(strategy.plan(&request)?)
    }

    fn config(
        &self,
        strategy: Arc<dyn PlacementStrategy>,
        expert_groups: Option<usize>,
    ) -> Result<LiveConfig> {
        let mut config = LiveConfig::new(strategy)
            .with_redundant_experts(self.group.redundant.unwrap_or(0))
            .with_nodes(self.group.nodes.unwrap_or(1))
            .with_synchronous(self.synchronous);
        if let Some(groups) = expert_groups {
            config = config.with_expert_groups(groups);
        }
        if let Some(bytes) = self.bytes_per_step {
            config = config.with_bytes_per_step(bytes);
        }
        if let Some(bytes) = self.staging_bytes {
            config = config.with_staging_bytes(bytes);
        }
        if let Some(name) = &self.selector {
            config = config.with_selector(ReplicaSelector::from_name(name)?);
        }
        Ok(Rebalance::parse(self.rebalance())?.apply(config))
    }

    fn changes(&self) -> Result<Vec<Change>> {
        let (resize, lose) = (self.resize.as_deref(), self.lose.as_deref());
        changes::parse(resize, lose, self.ranks(), self.steps())
    }
}
