//! Simulations against figures worked out by hand or from their own dump.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use moekit_eval::EvalError;
use moekit_eval::simulate::{
    Certificate, EqualSplit, SelectorSplit, Simulated, Simulation, SlotLoads, SplitContext,
    TokenSplit,
};
use moekit_eval::workload::{Profile, Workload};
use moekit_placement::{
    ExpertLoad, LoadTrace, MigrationBudget, ModelPlacement, Placement, PlacementError,
    PlacementRequest, PlacementStrategy, Topology, typetag,
};
use moekit_routing::{ReplicaSelector, RoutingTable};
use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};

/// Always the same placement.
#[derive(Debug, Serialize, Deserialize)]
struct Pinned(Vec<Vec<usize>>);

#[typetag::serde(name = "pinned")]
impl PlacementStrategy for Pinned {
    fn place(&self, request: &PlacementRequest<'_>) -> Result<ModelPlacement, PlacementError> {
        let layer = Placement::from_ranks(request.num_logical_experts(), &self.0)?;
        ModelPlacement::new(vec![layer; request.num_layers()])
    }
}

/// The heaviest expert on rank 0, the next on rank 1, and so on; remembers what it was asked.
#[derive(Debug, Default, Serialize, Deserialize)]
struct ByLoad {
    #[serde(skip)]
    seen: std::sync::Mutex<Vec<Seen>>,
}

#[derive(Clone, Debug, PartialEq)]
struct Seen {
    total: f64,
    steps: usize,
    has_current: bool,
    budget: MigrationBudget,
}

#[typetag::serde(name = "by-load")]
impl PlacementStrategy for ByLoad {
    fn place(&self, request: &PlacementRequest<'_>) -> Result<ModelPlacement, PlacementError> {
        let load = request.load().unwrap();
        let trace = request.trace().unwrap();
        assert_eq!(&trace.total(), load);
        self.seen.lock().unwrap().push(Seen {
            total: load.layers().flatten().sum(),
            steps: trace.steps().len(),
            has_current: request.current().is_some(),
            budget: request.budget(),
        });
        let layers = load.layers().map(|load| {
            let mut order: Vec<usize> = (0..load.len()).collect();
            order.sort_by(|&a, &b| load[b].total_cmp(&load[a]));
            Placement::new(load.len(), order, request.rank_offsets())
        });
        ModelPlacement::new(layers.collect::<Result<_, _>>()?)
    }
}

fn trace(steps: &[&[f64]]) -> LoadTrace {
    let step = |load: &&[f64]| ExpertLoad::from_rows(&[load]).unwrap();
    LoadTrace::new(steps.iter().map(step).collect()).unwrap()
}

fn near(a: f64, b: f64) -> bool {
    (a - b).abs() < 1e-12
}

#[test]
fn figures_worked_out_by_hand() {
    // Expert 0 has a slot on each rank. Rank loads of the measured steps: (3, 5), (6, 2), (4, 4).
    let trace = trace(&[
        &[0.0, 9.0, 3.0],
        &[2.0, 2.0, 4.0],
        &[4.0, 4.0, 0.0],
        &[8.0, 0.0, 0.0],
    ]);
    let topology = Topology::new(2).unwrap().with_nodes(2).unwrap();
    let shape = PlacementRequest::new(1, 3, &topology)
        .unwrap()
        .with_redundant_experts(1)
        .unwrap();
    let simulation = Simulation::new(&trace, shape, 1, 2).unwrap();
    let pinned = Pinned(vec![vec![0, 1], vec![0, 2]]);
    let run = simulation.run(&pinned, &mut EqualSplit).unwrap();
    assert_eq!(run.rank_load, [3.0, 5.0, 6.0, 2.0, 4.0, 4.0]);
    assert_eq!(run.interval_starts, [1, 3]);
    let report = run.report;
    assert_eq!(
        (report.strategy.as_str(), report.selector.as_str()),
        ("pinned", "equal")
    );
    assert_eq!((report.intervals, report.replans, report.steps), (2, 1, 3));
    let (step, plan, next) = (
        [0.8, 4.0 / 6.0, 1.0],
        [6.0 / 9.0, 4.0 / 6.0],
        [8.0 / 9.0, 1.0],
    );
    assert!(near(
        report.balance_step_mean,
        step.iter().sum::<f64>() / 3.0
    ));
    assert!(near(
        report.balance_step_p1,
        step[1] + 0.02 * (step[0] - step[1])
    ));
    assert!(near(report.balance_plan, plan.iter().sum::<f64>() / 2.0));
    assert!(near(report.balance_next, next.iter().sum::<f64>() / 2.0));
    assert!(near(report.aggregate.step, 12.0 / 15.0));
    assert!(near(report.aggregate.plan, 10.0 / 15.0));
    assert!(near(report.aggregate.next, 12.0 / 13.0));
    assert!(near(report.off_node_fraction, 0.5));
    assert_eq!(report.slots_moved_fraction, 0.0);
    assert_eq!((report.bound, report.certificate_gap_mean), (None, None));
}

#[test]
fn an_interval_longer_than_the_trace_is_all_that_is_left() {
    let trace = trace(&[&[1.0, 3.0], &[2.0, 2.0], &[4.0, 0.0]]);
    let topology = Topology::new(2).unwrap();
    let report = |interval| {
        let shape = PlacementRequest::new(1, 2, &topology).unwrap();
        let simulation = Simulation::new(&trace, shape, 1, interval).unwrap();
        let pinned = Pinned(vec![vec![0], vec![1]]);
        simulation.run(&pinned, &mut EqualSplit).unwrap().report
    };
    for interval in [2, usize::MAX - 1, usize::MAX] {
        let report = report(interval);
        assert_eq!((report.intervals, report.steps), (1, 2));
        assert_eq!(report.balance_step_mean, (1.0 + 0.5) / 2.0);
    }
}

#[test]
fn plans_see_their_window_and_nothing_else() {
    let trace = trace(&[
        &[1.0, 0.0],
        &[2.0, 0.0],
        &[0.0, 4.0],
        &[0.0, 8.0],
        &[16.0, 0.0],
    ]);
    let topology = Topology::new(2).unwrap();
    let shape = PlacementRequest::new(1, 2, &topology).unwrap();
    let budget = MigrationBudget::Slots(7);
    let simulation = Simulation::new(&trace, shape, 2, 1)
        .unwrap()
        .with_budget(budget)
        .with_expert_bytes(3);
    let strategy = ByLoad::default();
    let run = simulation.run(&strategy, &mut EqualSplit).unwrap();
    let seen = |total, has_current, budget| Seen {
        total,
        steps: 2,
        has_current,
        budget,
    };
    assert_eq!(
        *strategy.seen.lock().unwrap(),
        [
            seen(3.0, false, MigrationBudget::Unlimited),
            seen(6.0, true, budget),
            seen(12.0, true, budget),
        ]
    );
    assert_eq!(
        (run.report.slots_moved, run.report.bytes_moved),
        (2, Some(6))
    );
    assert_eq!(run.report.migration_rounds_mean, 0.5);
    // The second plan swaps the two experts, the third keeps them.
    assert_eq!(
        (run.report.replans, run.report.slots_moved_fraction),
        (2, 0.5)
    );
    assert!(run.report.plan_seconds_per_interval > 0.0);
}

#[test]
fn the_plans_of_strategies_without_a_budget_are_cut() {
    let trace = trace(&[
        &[9.0, 0.0, 9.0, 5.0, 4.0, 5.0, 4.0, 0.0],
        &[1.0, 9.0, 1.0, 4.0, 5.0, 4.0, 5.0, 9.0],
        &[1.0, 9.0, 1.0, 4.0, 5.0, 4.0, 5.0, 9.0],
    ]);
    let topology = Topology::new(4).unwrap();
    let moved = |budget| {
        let shape = PlacementRequest::new(1, 8, &topology).unwrap();
        let simulation = Simulation::new(&trace, shape, 1, 1).unwrap();
        let simulation = simulation.with_budget(budget);
        let run = simulation.run(&ByLoad::default(), &mut EqualSplit).unwrap();
        (run.report.slots_moved, run.placements)
    };
    let (all, placements) = moved(MigrationBudget::Unlimited);
    assert!(all > 3 && placements[0] != placements[1]);
    let (some, _) = moved(MigrationBudget::Slots(3));
    assert!((1..=3).contains(&some), "{some} of {all}");
    let (none, placements) = moved(MigrationBudget::Slots(0));
    assert!(none == 0 && placements[0] == placements[1]);
}

#[test]
fn the_placement_in_force_counts_as_a_plan_to_replace() {
    let trace = trace(&[&[1.0, 2.0], &[1.0, 1.0]]);
    let topology = Topology::new(2).unwrap();
    let layer = Placement::from_ranks(2, &[[0], [1]]).unwrap();
    let current = ModelPlacement::new(vec![layer]).unwrap();
    let shape = PlacementRequest::like(&current, &topology).unwrap();
    let run = Simulation::new(&trace, shape, 1, 1).unwrap();
    let run = run.run(&ByLoad::default(), &mut EqualSplit).unwrap();
    assert_eq!(
        (run.report.replans, run.report.slots_moved_fraction),
        (1, 1.0)
    );
}

fn generated() -> LoadTrace {
    let workload = Workload::new(Profile::LogNormal(1.0), 16, 3, 20, 5_000).unwrap();
    workload.with_drift(0.1).unwrap().generate().unwrap()
}

fn simulate(split: &mut dyn TokenSplit) -> Simulated {
    let trace = generated();
    let topology = Topology::new(5).unwrap().with_nodes(2).unwrap();
    let shape = PlacementRequest::new(3, 16, &topology).unwrap();
    Simulation::new(&trace, shape, 4, 5)
        .unwrap()
        .run(&ByLoad::default(), split)
        .unwrap()
}

/// The figures follow from the trace and the dump alone.
#[test]
fn the_dump_is_enough_to_check() {
    let run = simulate(&mut EqualSplit);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("dump.safetensors");
    run.dump(&path).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let integers = |name: &str| -> Vec<usize> {
        let data = file
            .tensor(name)
            .unwrap()
            .data()
            .as_chunks::<8>()
            .0
            .to_vec();
        data.into_iter()
            .map(|b| i64::from_le_bytes(b) as usize)
            .collect()
    };
    let rank_load = file.tensor("rank_load").unwrap();
    assert_eq!(rank_load.shape(), [16, 3, 5]);
    assert_eq!(
        file.tensor("physical_to_logical").unwrap().shape(),
        [4, 3, 16]
    );
    let rank_load: Vec<f64> = rank_load
        .data()
        .as_chunks()
        .0
        .iter()
        .map(|b| f64::from_le_bytes(*b))
        .collect();
    let (slots, starts) = (integers("physical_to_logical"), integers("interval_start"));
    let offsets = integers("rank_offsets");
    let steps = integers("step");
    assert_eq!(starts, [4, 9, 14, 19]);
    assert_eq!(steps, (4..20).collect::<Vec<_>>());

    let trace = generated();
    let mut balances = vec![];
    for (row, &step) in steps.iter().enumerate() {
        let interval = starts.iter().rposition(|&start| start <= step).unwrap();
        for layer in 0..3 {
            let load = trace.steps()[step].layer(layer).unwrap();
            let at = (interval * 3 + layer) * 16;
            let experts = &slots[at..at + 16];
            let expected: Vec<f64> = offsets
                .windows(2)
                .map(|w| experts[w[0]..w[1]].iter().map(|&e| load[e]).sum())
                .collect();
            let got = &rank_load[(row * 3 + layer) * 5..][..5];
            assert_eq!(got, expected);
            let most = got.iter().copied().fold(0.0, f64::max);
            balances.push(got.iter().sum::<f64>() / 5.0 / most);
        }
    }
    let mean = balances.iter().sum::<f64>() / balances.len() as f64;
    assert!(near(run.report.balance_step_mean, mean));
}

#[test]
fn runs_repeat() {
    let figures = |split: &mut dyn TokenSplit| {
        let run = simulate(split);
        (run.rank_load, run.report.off_node_fraction, run.placements)
    };
    let by_hash = || {
        SelectorSplit::new(
            "hash",
            ReplicaSelector::from_name("row_hash").unwrap(),
            8,
            3,
        )
    };
    assert_eq!(figures(&mut EqualSplit), figures(&mut EqualSplit));
    assert_eq!(figures(&mut by_hash()), figures(&mut by_hash()));
}

#[test]
fn the_report_has_its_names() {
    let report = serde_json::to_value(simulate(&mut EqualSplit).report).unwrap();
    for name in [
        "balance_plan",
        "balance_next",
        "balance_step_mean",
        "balance_step_p1",
        "bound",
        "certificate_gap_mean",
        "slots_moved_fraction",
        "slots_moved",
        "bytes_moved",
        "migration_rounds_mean",
        "off_node_fraction",
        "plan_seconds_per_interval",
        "split_micros_per_layer",
        "strategy",
        "selector",
    ] {
        assert!(report.get(name).is_some(), "{name}");
    }
}

#[derive(Debug)]
struct Half;

impl Certificate for Half {
    fn balance_bound(&self, load: &[f64], slots: &[usize], speeds: &[f64]) -> Option<f64> {
        assert_eq!((load.len(), slots, speeds), (2, &[1, 1][..], &[][..]));
        Some(0.75)
    }

    fn smallest_maximum(&self, table: &RoutingTable, counts: &[f64]) -> Option<f64> {
        assert_eq!(table.num_ranks(), 2);
        Some(counts.iter().sum::<f64>() / 2.0)
    }
}

#[test]
fn certificates_are_asked_where_there_is_load() {
    let trace = trace(&[&[1.0, 2.0], &[1.0, 3.0], &[0.0, 0.0], &[2.0, 2.0]]);
    let topology = Topology::new(2).unwrap();
    let shape = PlacementRequest::new(1, 2, &topology).unwrap();
    let progress = std::cell::RefCell::new(vec![]);
    let note = |done, all| progress.borrow_mut().push((done, all));
    let run = Simulation::new(&trace, shape, 1, 1)
        .unwrap()
        .with_certificate(&Half)
        .with_progress(&note)
        .run(&ByLoad::default(), &mut EqualSplit)
        .unwrap();
    assert_eq!(run.report.bound, Some(0.75));
    // Busiest ranks 3 and 2, at best 2 and 2; the step without load does not count.
    assert!(near(
        run.report.certificate_gap_mean.unwrap(),
        (1.0 / 3.0 + 0.0) / 2.0
    ));
    assert_eq!(*progress.borrow(), [(1, 3), (2, 3), (3, 3)]);
}

#[derive(Debug)]
struct Broken(Vec<f64>);

impl TokenSplit for Broken {
    fn name(&self) -> &str {
        "broken"
    }

    fn split(&mut self, _: &SplitContext<'_>) -> Result<SlotLoads, EvalError> {
        Ok(SlotLoads::new(
            self.0.clone(),
            0.0,
            std::time::Duration::ZERO,
        ))
    }
}

#[test]
fn nonsense_is_refused() {
    let trace = trace(&[&[1.0, 2.0], &[1.0, 3.0]]);
    let topology = Topology::new(2).unwrap();
    let shape = || PlacementRequest::new(1, 2, &topology).unwrap();
    let new = |window, interval| Simulation::new(&trace, shape(), window, interval);
    let message = |error: EvalError| error.to_string();
    assert!(message(new(0, 1).unwrap_err()).contains("the window is 0"));
    assert!(message(new(1, 0).unwrap_err()).contains("the interval is 0"));
    assert!(message(new(2, 1).unwrap_err()).contains("the window is 2, expected below 2"));
    let other = PlacementRequest::new(2, 2, &topology).unwrap();
    let error = message(Simulation::new(&trace, other, 1, 1).unwrap_err());
    assert!(
        error.contains("layers in the load trace: got 1, expected 2"),
        "{error}"
    );

    let run = |split: &mut dyn TokenSplit| {
        let simulation = new(1, 1).unwrap();
        message(simulation.run(&ByLoad::default(), split).unwrap_err())
    };
    assert!(
        run(&mut Broken(vec![4.0])).contains("slots that a token split loads is 1, expected 2")
    );
    for loads in [vec![1.0, 1.0], vec![f64::NAN, 1.0]] {
        let error = run(&mut Broken(loads));
        assert!(
            error.contains("expected 4, as the step has (split `broken`)"),
            "{error}"
        );
    }
    let strategy = Pinned(vec![vec![0], vec![0]]);
    let error = new(1, 1)
        .unwrap()
        .run(&strategy, &mut EqualSplit)
        .unwrap_err();
    assert!(message(error).contains("logical expert 1"));
}
