//! The layers that are timed.

use std::fmt;
use std::str::FromStr;

use moekit::quant::{ExpertGroups, GroupScore, RouterSpec, ScoringFunction, TopKSelection};

use crate::error::CliError;

/// Sizes of one layer on one rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// The name that was given, or the sizes.
    pub(super) name: String,
    pub(super) hidden_size: usize,
    pub(super) intermediate_size: usize,
    /// Logical experts, which the gate chooses from.
    pub(super) num_experts: usize,
    /// Those that this rank holds: the first ones.
    pub(super) num_local: usize,
    pub(super) top_k: usize,
    gate: Gate,
}

/// How the gate of a model chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gate {
    /// Softmax, top-k, renormalized.
    Softmax,
    /// Top-k, softmax over the chosen.
    TopKFirst,
    /// DeepSeek-V3's: sigmoid, 4 of 8 groups by the sum of their two largest.
    Grouped,
}

/// `[hidden_size, intermediate_size, num_experts, num_local, top_k]` of published models.
const KNOWN: &[(&str, [usize; 5], Gate)] = &[
    ("qwen3-30b-a3b", [2048, 768, 128, 128, 8], Gate::Softmax),
    ("gpt-oss-20b", [2880, 2880, 32, 32, 4], Gate::TopKFirst),
    ("mixtral-8x7b", [4096, 14336, 8, 8, 2], Gate::Softmax),
    // One of 32 ranks: the tokens are those that come to it, most of whose experts are elsewhere.
    ("deepseek-v3-ep32", [7168, 2048, 256, 8, 8], Gate::Grouped),
];

impl Shape {
    pub(super) fn names() -> impl Iterator<Item = &'static str> {
        KNOWN.iter().map(|(name, ..)| *name)
    }

    fn new(name: &str, sizes: [usize; 5], gate: Gate) -> Self {
        let [
            hidden_size,
            intermediate_size,
            num_experts,
            num_local,
            top_k,
        ] = sizes;
        Self {
            name: name.to_owned(),
            hidden_size,
            intermediate_size,
            num_experts,
            num_local,
            top_k,
            gate,
        }
    }

    /// Weights of one expert.
    pub(super) fn expert_weights(&self) -> usize {
        3 * self.hidden_size * self.intermediate_size
    }

    pub(super) fn router(&self) -> RouterSpec {
        let mut spec = RouterSpec::new("gate.weight");
        spec.renormalize = true;
        match self.gate {
            Gate::Softmax => {}
            Gate::TopKFirst => {
                spec.selection = TopKSelection::TopKThenScores;
                spec.renormalize = false;
            }
            Gate::Grouped => {
                spec.scoring = ScoringFunction::Sigmoid;
                spec.groups = Some(ExpertGroups::new(8, 4, GroupScore::Top2Sum));
            }
        }
        spec
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.name)
    }
}

impl FromStr for Shape {
    type Err = CliError;

    fn from_str(text: &str) -> Result<Self, CliError> {
        if let Some((name, sizes, gate)) = KNOWN.iter().find(|(name, ..)| *name == text) {
            return Ok(Self::new(name, *sizes, *gate));
        }
        let sizes: Option<Vec<usize>> = text.split(',').map(|n| n.trim().parse().ok()).collect();
        let Some(&[h, i, e, k]) = sizes.as_deref() else {
            let known = Self::names().collect::<Vec<_>>().join(", ");
            return Err(CliError::usage(format!(
                "`{text}` is no shape; known are {known}, or H,I,E,k: hidden size, intermediate \
                 size, experts, top-k"
            )));
        };
        // Larger sizes are no layer, and their products need not be checked below this.
        let fits = |size: usize| (1..=1 << 16).contains(&size);
        if ![h, i, e, k].into_iter().all(fits) || k > e {
            return Err(CliError::usage(format!(
                "the shape `{text}` is impossible: sizes are 1 to 65536, top-k at most the experts"
            )));
        }
        Ok(Self::new(text, [h, i, e, e, k], Gate::Softmax))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        for name in Shape::names() {
            assert_eq!(name.parse::<Shape>().unwrap().to_string(), name);
        }
        let shape: Shape = "64, 32,8,2".parse().unwrap();
        assert_eq!((shape.num_local, shape.expert_weights()), (8, 3 * 64 * 32));
        for (text, message) in [
            ("qwen", "known are qwen3-30b-a3b, gpt-oss-20b"),
            ("64,32,8", "H,I,E,k"),
            ("64,32,8,9", "impossible"),
            ("64,0,8,2", "impossible"),
            ("100000,1,1,1", "impossible"),
        ] {
            let error = text.parse::<Shape>().unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }
}
