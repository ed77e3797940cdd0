//! Plans with the strategy that a configuration names: `strategy-snake plan.toml`.

use std::error::Error;
use std::fs;
use std::process::ExitCode;

use moekit_placement::balance::model_balance;
use moekit_placement::{
    ExpertLoad, PlacementFile, PlacementRequest, Topology, link_plugins, strategy_from_value,
};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    ranks: usize,
    redundant_experts: usize,
    /// Tokens of each expert, `[layers, experts]`.
    load: Vec<Vec<f64>>,
    /// The strategy and its settings.
    placement: serde_json::Value,
}

fn main() -> ExitCode {
    link_plugins!(strategy_snake);
    match plan() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn plan() -> Result<(), Box<dyn Error>> {
    let path = std::env::args()
        .nth(1)
        .ok_or("usage: strategy-snake CONFIG.toml")?;
    let config: Config = toml::from_str(&fs::read_to_string(path)?)?;
    let strategy = strategy_from_value(config.placement)?;

    let load = ExpertLoad::from_rows(&config.load)?;
    let topology = Topology::new(config.ranks)?;
    let request = PlacementRequest::new(load.num_layers(), load.num_experts(), &topology)?
        .with_redundant_experts(config.redundant_experts)?
        .with_load(&load)?;
    let plan = strategy.plan(&request)?;

    println!("{}", serde_json::to_string(&PlacementFile::from(&plan))?);
    let balance = model_balance(&plan, &load)?.aggregate;
    eprintln!(
        "{}: balancedness {:.3}",
        strategy.name(),
        balance.balancedness
    );
    Ok(())
}
