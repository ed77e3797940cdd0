//! What a run tells.

use moekit::placement::balance::LayerBalance;
use serde::Serialize;

use super::execute::LayerRun;

#[derive(Serialize)]
pub(super) struct Report {
    pub(super) checkpoint: String,
    pub(super) model_type: String,
    pub(super) strategy: String,
    pub(super) ranks: usize,
    pub(super) nodes: usize,
    pub(super) threads: usize,
    pub(super) layers: Vec<LayerReport>,
}

#[derive(Serialize)]
pub(super) struct LayerReport {
    layer: usize,
    tokens: usize,
    top_k: usize,
    experts_per_rank: Vec<usize>,
    tokens_per_rank: Vec<u64>,
    balancedness: f64,
    seconds: f64,
    tokens_per_second: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_difference_from_one_rank: Option<f32>,
}

impl LayerReport {
    pub(super) fn of(run: &LayerRun) -> Self {
        let loads: Vec<f64> = run.tokens_per_rank.iter().map(|&n| n as f64).collect();
        let seconds = run.time.as_secs_f64();
        Self {
            layer: run.layer,
            tokens: run.tokens,
            top_k: run.top_k,
            experts_per_rank: run.experts_per_rank.clone(),
            tokens_per_rank: run.tokens_per_rank.clone(),
            balancedness: LayerBalance::of(&loads).balancedness,
            seconds,
            tokens_per_second: if seconds > 0.0 {
                run.tokens as f64 / seconds
            } else {
                0.0
            },
            max_difference_from_one_rank: run.max_difference_from_one_rank,
        }
    }
}

impl Report {
    pub(super) fn lines(&self) -> String {
        let mut lines = vec![format!(
            "{} ({}): {} on {} {}, {} {}, {} kernel threads",
            self.checkpoint,
            self.model_type,
            self.strategy,
            self.ranks,
            plural(self.ranks, "rank"),
            self.nodes,
            plural(self.nodes, "node"),
            self.threads
        )];
        for layer in &self.layers {
            lines.push(format!(
                "layer {}: {} tokens, top-{}, {:.3} ms, {:.0} tokens/s, balancedness {:.4}",
                layer.layer,
                layer.tokens,
                layer.top_k,
                layer.seconds * 1e3,
                layer.tokens_per_second,
                layer.balancedness
            ));
            lines.push(format!("  experts per rank  {:?}", layer.experts_per_rank));
            lines.push(format!("  tokens per rank   {:?}", layer.tokens_per_rank));
            if let Some(difference) = layer.max_difference_from_one_rank {
                lines.push(format!(
                    "  largest difference from one rank  {difference:e}"
                ));
            }
        }
        lines.join("\n")
    }
}

fn plural(n: usize, word: &str) -> String {
    if n == 1 {
        word.to_owned()
    } else {
        format!("{word}s")
    }
}
