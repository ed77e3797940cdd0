use clap::{Args, Subcommand};
use moekit::placement::{linked_strategies, strategy_from_value};
use moekit::plugin::Descriptor;
use serde_json::{Map, Value, json};

use crate::error::{CliError, Result};
use crate::output::{print_json, print_line};

/// Arguments of `moekit strategies`.
#[derive(Args)]
pub(crate) struct Strategies {
    #[command(subcommand)]
    query: Query,
}

#[derive(Subcommand)]
enum Query {
    /// Every linked strategy.
    List {
        /// Print one JSON document on stdout
        #[arg(long)]
        json: bool,
    },
    /// The JSON schema of a strategy's settings.
    Schema {
        /// The strategy
        name: String,
    },
    /// An example configuration of a strategy, as TOML that `--config` takes.
    Example {
        /// The strategy
        name: String,
        /// Print it as JSON
        #[arg(long)]
        json: bool,
    },
}

impl Strategies {
    pub(crate) fn run(self) -> Result<()> {
        let registry = linked_strategies()?;
        match self.query {
            Query::List { json: true } => {
                let list = registry.iter().map(describe).collect::<Result<Vec<_>>>()?;
                print_json(&list)
            }
            Query::List { json: false } => {
                for d in registry.iter() {
                    print_line(&format!(
                        "{:<12} {} ({} {})",
                        d.name, d.summary, d.crate_name, d.crate_version
                    ))?;
                }
                Ok(())
            }
            Query::Schema { name } => print_json(&(registry.get(&name)?.schema)()),
            Query::Example { name, json } => {
                let example = (registry.get(&name)?.example)();
                if json {
                    return print_json(&example);
                }
                let text = toml::to_string(&as_config(example))
                    .map_err(|e| CliError::usage(e.to_string()))?;
                print_line(text.trim_end())
            }
        }
    }
}

/// The configuration as `--config` takes it: the name above, the settings in a table of their own.
fn as_config(mut example: Value) -> Value {
    let settings = example
        .as_object_mut()
        .map(std::mem::take)
        .unwrap_or_default();
    let (name, settings): (Map<_, _>, Map<_, _>) =
        settings.into_iter().partition(|(key, _)| key == "strategy");
    let mut config = name;
    if !settings.is_empty() {
        config.insert("set".to_owned(), Value::Object(settings));
    }
    Value::Object(config)
}

fn describe(d: &Descriptor) -> Result<Value> {
    let strategy = strategy_from_value((d.example)())?;
    Ok(json!({
        "name": d.name,
        "summary": d.summary,
        "crate": d.crate_name,
        "version": d.crate_version,
        "capabilities": strategy.capabilities(),
    }))
}
