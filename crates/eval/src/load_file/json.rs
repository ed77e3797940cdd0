//! Nested lists of numbers, bare or under the keys that engines use.

use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::json;

use super::LoadFile;
use super::array::{Array, integers};
use crate::EvalError;

pub(super) fn read(path: &Path, bytes: &[u8]) -> Result<Array, EvalError> {
    let root: Root = serde_json::from_slice(bytes)
        .map_err(|error| EvalError::content(path, located(&error, bytes)))?;
    let shape = root.0.extents.iter().map_while(|n| *n).collect();
    Ok(Array {
        shape,
        values: root.0.values,
    })
}

pub(super) fn write(load: &LoadFile) -> Result<Vec<u8>, String> {
    let value = match integers(load.values()) {
        Some(values) => nest(&values, &load.shape()),
        None => nest(&load.values().collect::<Vec<_>>(), &load.shape()),
    };
    serde_json::to_vec(&json!({ "logical_count": value })).map_err(|error| error.to_string())
}

fn nest<T: Copy + Into<serde_json::Value>>(values: &[T], shape: &[usize]) -> serde_json::Value {
    match shape {
        [] | [_] => values.iter().map(|&v| v.into()).collect(),
        [_, rest @ ..] => values
            .chunks(rest.iter().product::<usize>().max(1))
            .map(|part| nest(part, rest))
            .collect(),
    }
}

/// The error, and the text at which it happened.
fn located(error: &serde_json::Error, bytes: &[u8]) -> String {
    let line = bytes
        .split(|b| *b == b'\n')
        .nth(error.line().saturating_sub(1));
    let near = line
        .and_then(|line| line.get(error.column().saturating_sub(1)..))
        .map(|rest| String::from_utf8_lossy(&rest[..rest.len().min(20)]).into_owned())
        .filter(|near| !near.is_empty());
    match near {
        Some(near) if error.is_syntax() => format!("{error}, near `{near}`"),
        _ => error.to_string(),
    }
}

/// Collects the numbers of nested lists, and checks that the lists of a level are of one length.
#[derive(Debug, Default)]
struct Collector {
    /// The length of the lists of each level, once one was seen.
    extents: [Option<usize>; Self::MAX_DEPTH],
    /// The level that the numbers are in.
    numbers_at: Option<usize>,
    values: Vec<f64>,
}

impl Collector {
    const MAX_DEPTH: usize = 3;

    fn close<E: Error>(&mut self, level: usize, length: usize) -> Result<(), E> {
        match self.extents[level] {
            Some(before) if before != length => Err(E::custom(format!(
                "a list of {length} where the lists before have {before}"
            ))),
            _ => {
                self.extents[level] = Some(length);
                Ok(())
            }
        }
    }
}

/// A list at `level`, or a number in one of the level above.
struct Nested<'c> {
    collector: &'c mut Collector,
    level: usize,
}

impl<'de> DeserializeSeed<'de> for Nested<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Nested<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.level {
            0 => "a list",
            Collector::MAX_DEPTH => "a number",
            _ => "a number or a list",
        })
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        let level = *self.collector.numbers_at.get_or_insert(self.level);
        if level != self.level || level == 0 {
            return Err(E::custom(format!(
                "the number {value} where a list is expected"
            )));
        }
        self.collector.values.push(value);
        Ok(())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        self.visit_f64(value as f64)
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        self.visit_f64(value as f64)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let numbers_here = self.collector.numbers_at.is_some_and(|n| n <= self.level);
        if numbers_here || self.level == Collector::MAX_DEPTH {
            return Err(A::Error::custom("a list where a number is expected"));
        }
        let mut length = 0;
        while list
            .next_element_seed(Nested {
                collector: self.collector,
                level: self.level + 1,
            })?
            .is_some()
        {
            length += 1;
        }
        self.collector.close(self.level, length)
    }
}

/// The whole document.
#[derive(Debug)]
struct Root(Collector);

impl<'de> Deserialize<'de> for Root {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RootVisitor)
    }
}

struct RootVisitor;

impl<'de> Visitor<'de> for RootVisitor {
    type Value = Root;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "a list of lists of numbers, or an object with `logical_count` or `load_history`",
        )
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Root, A::Error> {
        let mut collector = Collector::default();
        let nested = Nested {
            collector: &mut collector,
            level: 0,
        };
        nested.visit_seq(list)?;
        Ok(Root(collector))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Root, A::Error> {
        let mut collector = Collector::default();
        let mut keys = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            let is_load = matches!(key.as_str(), "logical_count" | "load_history");
            if is_load && collector.extents[0].is_some() {
                return Err(A::Error::custom(format!("a second load, `{key}`")));
            }
            match key.as_str() {
                "logical_count" => map.next_value_seed(Nested {
                    collector: &mut collector,
                    level: 0,
                })?,
                "load_history" => map.next_value_seed(History(&mut collector))?,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
            keys.push(key);
        }
        if collector.extents[0].is_none() {
            return Err(A::Error::custom(format!(
                "an object with the keys {keys:?}, expected `logical_count` or `load_history`"
            )));
        }
        Ok(Root(collector))
    }
}

/// `[{"logical_expert_load": [L][E]}, ..]`.
struct History<'c>(&'c mut Collector);

impl<'de> DeserializeSeed<'de> for History<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for History<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of steps")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut steps: A) -> Result<(), A::Error> {
        let mut length = 0;
        while steps.next_element_seed(Step(self.0))?.is_some() {
            length += 1;
        }
        self.0.close(0, length)
    }
}

/// `{"logical_expert_load": [L][E]}`, among other keys.
struct Step<'c>(&'c mut Collector);

impl<'de> DeserializeSeed<'de> for Step<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Step<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a step, an object with `logical_expert_load`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut found = false;
        while let Some(key) = map.next_key::<String>()? {
            if key != "logical_expert_load" {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            if std::mem::replace(&mut found, true) {
                return Err(A::Error::custom(
                    "a second `logical_expert_load` in one step",
                ));
            }
            map.next_value_seed(Nested {
                collector: self.0,
                level: 1,
            })?;
        }
        if !found {
            return Err(A::Error::missing_field("logical_expert_load"));
        }
        match self.0.numbers_at {
            None | Some(Collector::MAX_DEPTH) => Ok(()),
            Some(_) => Err(A::Error::custom(
                "`logical_expert_load` is [layers, experts], got a list of numbers",
            )),
        }
    }
}
