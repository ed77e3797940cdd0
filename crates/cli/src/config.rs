//! Configuration files: everything that the flags of a command hold, in TOML; flags win.

use std::path::{Path, PathBuf};

use clap::{Args, Command};
use moekit::placement::linked_strategies;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::{CliError, Result};

/// One `--set key=value`.
#[derive(Clone, Debug)]
pub(crate) struct Setting {
    key: String,
    value: Value,
}

/// The key under which a configuration names its strategy, and no setting.
const NAME_KEY: &str = "strategy";
const NAMED_APART: &str = "the strategy is named by `--strategy`, not among its settings";

/// Reads `key=value`. The value is TOML (`true`, `3`, `"text"`, `[1, 2]`); what is not is text.
pub(crate) fn parse_setting(text: &str) -> Result<Setting, String> {
    let (key, value) = text
        .split_once('=')
        .filter(|(key, _)| !key.trim().is_empty())
        .ok_or_else(|| format!("`{text}` is not of the form key=value"))?;
    let parsed = toml::from_str::<toml::Table>(&format!("v = {value}"))
        .ok()
        .and_then(|mut table| table.remove("v"));
    if parsed.as_ref().is_some_and(|value| !is_finite(value)) {
        return Err(format!("`{text}`: numbers must be finite"));
    }
    if parsed.is_none() && is_whole_number(value.trim()) {
        return Err(format!("`{text}`: whole numbers go up to {}", i64::MAX));
    }
    let parsed = parsed.and_then(|value| serde_json::to_value(value).ok());
    let key = key.trim();
    if key == NAME_KEY {
        return Err(format!("`{text}`: {NAMED_APART}"));
    }
    Ok(Setting {
        key: key.to_owned(),
        value: parsed.unwrap_or_else(|| Value::String(value.to_owned())),
    })
}

fn is_whole_number(text: &str) -> bool {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())
}

/// JSON, into which settings go, has no other numbers.
fn is_finite(value: &toml::Value) -> bool {
    match value {
        toml::Value::Float(number) => number.is_finite(),
        toml::Value::Array(values) => values.iter().all(is_finite),
        toml::Value::Table(table) => table.values().all(is_finite),
        _ => true,
    }
}

/// Settings are a list on the command line and a table in a file.
pub(crate) mod settings {
    use serde::{Deserialize, Deserializer, Serializer};
    use serde_json::{Map, Value};

    use super::Setting;

    pub(crate) fn serialize<S: Serializer>(
        list: &[Setting],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_map(list.iter().map(|s| (&s.key, &s.value)))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<Setting>, D::Error> {
        let map = Map::<String, Value>::deserialize(deserializer)?;
        if map.contains_key(super::NAME_KEY) {
            return Err(serde::de::Error::custom(super::NAMED_APART));
        }
        Ok(map
            .into_iter()
            .map(|(key, value)| Setting { key, value })
            .collect())
    }
}

/// The configuration of a strategy from its name and settings.
pub(crate) fn strategy_config(name: &str, settings: &[Setting]) -> Value {
    let mut config = Map::new();
    config.insert(NAME_KEY.to_owned(), Value::String(name.to_owned()));
    for setting in settings {
        insert(&mut config, &setting.key, setting.value.clone());
    }
    Value::Object(config)
}

/// Inserts a value under a key, `table.key` for one of a table, as TOML reads it.
fn insert(config: &mut Map<String, Value>, key: &str, value: Value) {
    if let Some((table, rest)) = key.split_once('.')
        && let Value::Object(under) = config
            .entry(table)
            .or_insert_with(|| Value::Object(Map::new()))
    {
        return insert(under, rest, value);
    }
    // Under what is no table: the strategy says that it does not know it.
    config.insert(key.to_owned(), value);
}

/// Fills what the flags leave open from a TOML file.
///
/// # Arguments
///
/// - `paths` - keys that are paths; in a file they are relative to the file.
pub(crate) fn merge<T>(flags: &T, file: &Path, paths: &[&str]) -> Result<T>
where
    T: Args + Serialize + DeserializeOwned,
{
    let text = std::fs::read_to_string(file).map_err(|e| CliError::file(file, e))?;
    let table: toml::Table = toml::from_str(&text).map_err(|e| CliError::file(file, e))?;
    // Without the flags first, so that a fault of the file is reported as one of the file.
    let known = to_map(
        &table
            .clone()
            .try_into::<T>()
            .map_err(|e| CliError::file(file, e))?,
    )?;
    let mut config = to_map(&table)?;
    // What is off or empty is not written again, but has a flag.
    let command = T::augment_args(Command::new(""));
    let is_flag = |key: &str| {
        command
            .get_arguments()
            .any(|arg| arg.get_long() == Some(key))
    };
    let unknown = |key: &&String| !known.contains_key(*key) && !is_flag(key);
    if let Some(key) = config.keys().find(unknown) {
        let message =
            format!("unknown key `{key}`; the keys are the flags of the command, without `--`");
        return Err(CliError::file(file, message));
    }
    let flags = to_map(flags)?;
    let directory = file.parent().unwrap_or(Path::new("."));
    locate(&mut config, paths, directory);
    let name = flags.get(NAME_KEY).or(config.get(NAME_KEY));
    let settings = paths_of(name.and_then(Value::as_str));
    if let Some(Value::Object(set)) = config.get_mut("set") {
        locate(set, &settings, directory);
    }
    overlay(&mut config, flags);
    serde_json::from_value(Value::Object(config)).map_err(|e| CliError::file(file, e))
}

/// Makes paths of a file relative to its directory.
fn locate(config: &mut Map<String, Value>, paths: &[impl AsRef<str>], directory: &Path) {
    for key in paths {
        if let Some(Value::String(path)) = config.get_mut(key.as_ref()) {
            *path = directory.join(PathBuf::from(&*path)).display().to_string();
        }
    }
}

/// The settings of a strategy that are paths: those whose schema has the format `path`. Of a strategy
/// that is not linked there are none; asking for it will say so.
fn paths_of(strategy: Option<&str>) -> Vec<String> {
    let registry = linked_strategies().ok();
    let schema = registry.zip(strategy).and_then(|(registry, name)| {
        let descriptor = registry.get(name).ok()?;
        Some((descriptor.schema)())
    });
    let properties = schema.as_ref().and_then(|s| s["properties"].as_object());
    properties
        .into_iter()
        .flatten()
        .filter(|(_, property)| property["format"] == "path")
        .map(|(key, _)| key.clone())
        .collect()
}

fn to_map(options: &impl Serialize) -> Result<Map<String, Value>> {
    match serde_json::to_value(options) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(other) => Err(CliError::usage(format!("options are not a table: {other}"))),
        // Of flags, such as a path that is no UTF-8, which no file can say.
        Err(error) => Err(CliError::usage(format!(
            "a flag that a configuration file cannot hold: {error}"
        ))),
    }
}

/// Keys that exclude each other: a flag replaces the other of the file too.
const EXCLUSIVE: [[&str; 2]; 9] = [
    ["slots", "redundant"],
    ["budget-slots", "budget-bytes"],
    ["input", "tokens"],
    ["input", "seed"],
    ["placement", "experts"],
    ["placement", "ranks"],
    ["placement", "strategy"],
    ["placement", "set"],
    ["placement", "redundant"],
];

/// Lays flags over a configuration. Another strategy than the file's does not inherit its settings.
fn overlay(config: &mut Map<String, Value>, flags: Map<String, Value>) {
    if let (Some(theirs), Some(ours)) = (config.get(NAME_KEY), flags.get(NAME_KEY))
        && theirs != ours
    {
        config.remove("set");
    }
    for [one, other] in EXCLUSIVE {
        for (given, replaced) in [(one, other), (other, one)] {
            if flags.contains_key(given) {
                config.remove(replaced);
            }
        }
    }
    for (key, value) in flags {
        match (config.get_mut(&key), value) {
            (Some(Value::Object(under)), Value::Object(over)) => under.extend(over),
            (_, value) => {
                config.insert(key, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    #[derive(Args, Debug, Default, Serialize, Deserialize)]
    #[serde(default)]
    struct Options {
        #[arg(long)]
        #[serde(skip_serializing_if = "Option::is_none")]
        strategy: Option<String>,
        #[arg(long)]
        #[serde(skip_serializing_if = "Option::is_none")]
        ranks: Option<usize>,
        #[arg(long)]
        #[serde(skip_serializing_if = "Option::is_none")]
        redundant: Option<usize>,
        #[arg(long)]
        #[serde(skip_serializing_if = "Option::is_none")]
        slots: Option<usize>,
        #[arg(long)]
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        json: bool,
        #[arg(long)]
        #[serde(skip_serializing_if = "Option::is_none")]
        load: Option<PathBuf>,
        #[arg(long = "set", value_parser = parse_setting)]
        #[serde(with = "settings", skip_serializing_if = "Vec::is_empty")]
        set: Vec<Setting>,
    }

    fn merged(text: &str, flags: &Options) -> Result<Options> {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("c.toml");
        std::fs::write(&file, text).unwrap();
        merge(flags, &file, &["load"])
    }

    const FILE: &str = "strategy = 'eplb'\nranks = 4\nload = 'l.json'\n[set]\nmode = 'auto'\nx = 1";

    #[test]
    fn flags_win_and_settings_mix() {
        let flags = Options {
            ranks: Some(2),
            set: vec![
                parse_setting("x=2").unwrap(),
                parse_setting("y=[1]").unwrap(),
            ],
            ..Options::default()
        };
        let options = merged(FILE, &flags).unwrap();
        assert_eq!(
            (options.ranks, options.strategy.as_deref()),
            (Some(2), Some("eplb"))
        );
        assert!(options.load.unwrap().is_absolute(), "relative to the file");
        assert_eq!(
            strategy_config("eplb", &options.set),
            json!({"strategy": "eplb", "mode": "auto", "x": 2, "y": [1]})
        );
    }

    #[test]
    fn a_dot_leads_into_a_table() {
        let set = |list: &[&str]| list.iter().map(|s| parse_setting(s).unwrap()).collect();
        let flags = Options {
            set: set(&["replan.to=0.9", "replan.recovery=balance", "x.y=2"]),
            ..Options::default()
        };
        let text = "[set]\nx = 1\n[set.replan]\nbelow = 0.5\nto = 0.6";
        let options = merged(text, &flags).unwrap();
        assert_eq!(
            strategy_config("adaptive", &options.set),
            json!({
                "strategy": "adaptive",
                "replan": { "below": 0.5, "to": 0.9, "recovery": "balance" },
                "x": 1,
                "x.y": 2,
            })
        );
    }

    #[test]
    fn paths_among_settings_are_relative_to_the_file() {
        moekit::builtins();
        let text = "strategy = 'fixed'\nset = { file = 'p.json' }";
        let options = merged(text, &Options::default()).unwrap();
        let file = options.set[0].value.as_str().unwrap();
        assert!(
            Path::new(file).is_absolute() && file.ends_with("p.json"),
            "{file}"
        );
        // On the command line to where it is run.
        let flags = Options {
            set: vec![parse_setting("file=q.json").unwrap()],
            ..Options::default()
        };
        assert_eq!(merged(text, &flags).unwrap().set[0].value, json!("q.json"));
    }

    #[test]
    fn another_strategy_does_not_inherit_settings() {
        let flags = Options {
            strategy: Some("linear".into()),
            ..Options::default()
        };
        assert!(merged(FILE, &flags).unwrap().set.is_empty());
        // Settings of a file that names none are meant for the flag's.
        let set = merged("[set]\nx = 1", &flags).unwrap().set;
        assert_eq!(set.len(), 1);
    }

    #[test]
    fn what_is_off_or_empty_is_known() {
        let options = merged("json = false\n[set]", &Options::default()).unwrap();
        assert!(!options.json && options.set.is_empty());
    }

    #[test]
    fn a_flag_replaces_what_it_excludes() {
        let flags = Options {
            slots: Some(20),
            ..Options::default()
        };
        let options = merged("redundant = 4", &flags).unwrap();
        assert_eq!((options.slots, options.redundant), (Some(20), None));
    }

    #[test]
    fn the_strategy_is_no_setting() {
        assert!(parse_setting("strategy=linear").is_err());
        let error = merged("[set]\nstrategy = 'x'", &Options::default()).unwrap_err();
        assert!(error.to_string().contains("--strategy"), "{error}");
    }

    #[test]
    fn faults_name_the_file() {
        for text in ["rank = 3", "ranks = 'x'", "ranks = "] {
            let error = merged(text, &Options::default()).unwrap_err().to_string();
            assert!(error.contains("c.toml"), "{error}");
        }
    }

    #[test]
    fn settings_are_toml_or_text() {
        let value = |text| parse_setting(text).unwrap().value;
        assert_eq!(value("a=true"), json!(true));
        assert_eq!(value("a=0.5"), json!(0.5));
        assert_eq!(value("a=global"), json!("global"));
        assert_eq!(value("a=b=c"), json!("b=c"));
        assert!(parse_setting("a=99999999999999999999").is_err());
        assert!(parse_setting("a").is_err());
        assert!(parse_setting("=1").is_err());
        assert!(parse_setting("a=[1, {b = nan}]").is_err());
    }
}
