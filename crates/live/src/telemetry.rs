//! What a step tells to whoever listens, by the `metrics` facade.

use metrics::{counter, gauge, histogram};
use moekit_routing::Rank;

use crate::state::{Event, RebalanceState, StepReport};

/// The states, as a metric numbers them.
fn number(state: &RebalanceState) -> f64 {
    match state {
        RebalanceState::Idle => 0.0,
        RebalanceState::Planning { .. } => 1.0,
        RebalanceState::Moving { .. } => 2.0,
        RebalanceState::Failed { .. } => 3.0,
    }
}

/// Records that other tables are in force, of the generations `[L]`.
pub(crate) fn tables(rank: Rank, generations: impl Iterator<Item = u64>) {
    for (layer, generation) in generations.enumerate() {
        table(&rank.to_string(), layer, generation);
    }
}

fn table(rank: &str, layer: usize, generation: u64) {
    gauge!("moekit_table_generation", "rank" => rank.to_owned(), "layer" => layer.to_string())
        .set(generation as f64);
}

/// Records a step of a rank.
pub(crate) fn step(report: &StepReport, rank: Option<Rank>) {
    let Some(rank) = rank else { return };
    let rank = rank.to_string();
    counter!("moekit_steps_total", "rank" => rank.clone()).absolute(report.step);
    counter!("moekit_migration_sent_bytes_total", "rank" => rank.clone())
        .increment(report.sent_bytes);
    counter!("moekit_migration_received_bytes_total", "rank" => rank.clone())
        .increment(report.received_bytes);
    gauge!("moekit_rebalance_state", "rank" => rank.clone()).set(number(&report.state));
    histogram!("moekit_between_steps_seconds", "rank" => rank.clone())
        .record(report.work.as_secs_f64());
    for event in &report.events {
        match event {
            Event::Committed {
                layer, generation, ..
            } => table(&rank, *layer, *generation),
            Event::Failed { .. } => {
                counter!("moekit_rebalance_failures_total", "rank" => rank.clone()).increment(1);
            }
            Event::PlanSkipped { .. } => {
                counter!("moekit_plans_skipped_total", "rank" => rank.clone()).increment(1);
            }
            Event::PlanAdopted { .. } => {
                counter!("moekit_plans_adopted_total", "rank" => rank.clone()).increment(1);
            }
            _ => {}
        }
    }
    let Some(balance) = &report.balance else {
        return;
    };
    gauge!("moekit_balancedness", "layer" => "all").set(balance.aggregate);
    for (layer, (value, ranks)) in balance.balancedness.iter().zip(&balance.tokens).enumerate() {
        let layer = layer.to_string();
        gauge!("moekit_balancedness", "layer" => layer.clone()).set(*value);
        for (rank, &tokens) in ranks.iter().enumerate() {
            counter!("moekit_tokens_total", "layer" => layer.clone(), "rank" => rank.to_string())
                .increment(tokens);
        }
    }
}
