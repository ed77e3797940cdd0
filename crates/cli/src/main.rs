//! The command `moekit`: plan, inspect and run Mixture-of-Experts deployments.

mod charts;
mod commands;
mod config;
mod error;
mod output;
mod planning;

use clap::{Parser, Subcommand};

/// Expert parallelism for Mixture-of-Experts models: plan, compare, run.
#[derive(Parser)]
#[command(name = "moekit", version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the MoE layers of a checkpoint over the ranks of an EP group.
    Run(Box<commands::run::Run>),
    /// Run the layers under a drifting stream, and rebalance as it flows.
    Live(Box<commands::live::Live>),
    /// Decide which rank holds which expert.
    Plan(Box<commands::plan::Plan>),
    /// Plan with several strategies and compare them with each other and the bound.
    Compare(Box<commands::compare::Compare>),
    /// Plan on the past steps of a trace, measure on the next.
    Simulate(Box<commands::simulate::Simulate>),
    /// Make a trace of token counts.
    Generate(Box<commands::generate::Generate>),
    /// Write a placement in the form that another engine takes.
    Export(commands::export::Export),
    /// Show every table of one layer.
    Map(Box<commands::map::Map>),
    /// Show the MoE layers of a checkpoint.
    Inspect(commands::inspect::Inspect),
    /// Time the layer on random weights and hold it to the limits of the machine.
    Bench(Box<commands::bench::Bench>),
    /// List placement strategies, their settings and examples.
    Strategies(commands::strategies::Strategies),
}

fn main() -> miette::Result<()> {
    moekit::builtins();
    match Cli::parse().command {
        Command::Run(command) => command.run(),
        Command::Live(command) => command.run(),
        Command::Plan(command) => command.run(),
        Command::Compare(command) => command.run(),
        Command::Simulate(command) => command.run(),
        Command::Generate(command) => command.run(),
        Command::Export(command) => command.run(),
        Command::Map(command) => command.run(),
        Command::Inspect(command) => command.run(),
        Command::Bench(command) => command.run(),
        Command::Strategies(command) => command.run(),
    }?;
    Ok(())
}
