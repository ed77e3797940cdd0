//! The tables of `docs/planning.md` that no command of `moekit` makes:
//! `cargo run --release -p moekit-benches --bin planning_tables -- [replan] [lost-rank] [nodes] [more-nodes] [budgets]`
//! (all of them without arguments). Loads are seeded.

#![allow(
    clippy::unwrap_used,
    reason = "a benchmark that cannot set up its input has nothing to say"
)]

use std::time::Instant;

use moekit::eval::workload::{Profile, Workload};
use moekit::placement::balance::rank_loads;
use moekit::placement::bound::{load_bound, optimal_split};
use moekit::placement::{
    ExpertLoad, LoadTrace, MigrationBudget, ModelPlacement, Placement, PlacementChange,
    PlacementRequest, PlacementStrategy, Topology,
};
use moekit::strategies::adaptive::Adaptive;
use moekit::strategies::eplb::Eplb;

const EXPERTS: usize = 256;
const SLOTS: usize = 288;
const RANKS: usize = 32;
const GROUPS: usize = 8;

fn main() {
    let mut tables: Vec<String> = std::env::args().skip(1).collect();
    if tables.is_empty() {
        tables = ["replan", "lost-rank", "nodes", "more-nodes", "budgets"]
            .map(str::to_owned)
            .to_vec();
    }
    for table in tables {
        println!("{table}");
        match table.as_str() {
            "replan" => replan(),
            "lost-rank" => lost_rank(),
            "nodes" => nodes(),
            "more-nodes" => more_nodes(),
            "budgets" => budgets(),
            _ => println!("  no such table: replan, lost-rank, nodes, more-nodes or budgets"),
        }
    }
}

/// Plans as a caller does: checked against the request.
fn plan(strategy: &dyn PlacementStrategy, request: &PlacementRequest<'_>) -> ModelPlacement {
    strategy.plan(request).unwrap()
}

fn request<'a>(topology: &'a Topology, load: &'a ExpertLoad) -> PlacementRequest<'a> {
    PlacementRequest::new(load.num_layers(), EXPERTS, topology)
        .unwrap()
        .with_num_slots(SLOTS)
        .unwrap()
        .with_load(load)
        .unwrap()
}

fn trace(profile: &str, [layers, steps]: [usize; 2], drift: f64, seed: u64) -> LoadTrace {
    let profile: Profile = profile.parse().unwrap();
    let workload = Workload::new(profile, EXPERTS, layers, steps, 1_000_000).unwrap();
    let workload = workload.with_drift(drift).unwrap().with_seed(seed);
    workload.generate().unwrap()
}

fn largest(placement: &Placement, load: &[f64]) -> f64 {
    let loads = rank_loads(placement, load).unwrap();
    loads.into_iter().fold(0.0, f64::max)
}

/// Slots filled with an expert that is new to their rank, over all layers.
fn received(old: &ModelPlacement, new: &ModelPlacement) -> usize {
    let layers = old.layers().iter().zip(new.layers());
    layers
        .map(|(old, new)| PlacementChange::between(old, new).slots_received())
        .sum()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn smallest(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::INFINITY, f64::min)
}

/// Five plans, each from the one before, as popularity drifts.
fn replan() {
    let (layers, plans) = (16, 5);
    let topology = Topology::new(RANKS).unwrap();
    for profile in [
        "lognormal:0.8",
        "lognormal:1.2",
        "zipf:0.8",
        "zipf:1.0",
        "zipf:1.2",
        "powerlaw:1.01",
    ] {
        for drift in [0.02, 0.05] {
            let trace = trace(profile, [layers, plans + 1], drift, 5);
            let steps = trace.steps();
            let mut current = plan(&Adaptive::default(), &request(&topology, &steps[0]));
            let (mut moved, mut balance) = (0, Vec::new());
            for load in &steps[1..] {
                let request = request(&topology, load);
                let request = request.with_current(&current, MigrationBudget::Unlimited);
                let next = plan(&Adaptive::default(), &request.unwrap());
                moved += received(&current, &next);
                let placed = next.layers().iter().zip(load.layers());
                balance.extend(placed.map(|(placement, load)| {
                    let bound = load_bound(load, &[SLOTS / RANKS; RANKS]).unwrap();
                    bound.max_load / largest(placement, load)
                }));
                current = next;
            }
            let share = moved as f64 / (plans * layers * SLOTS) as f64;
            println!(
                "  {profile} drift {drift}: {:.1} % of slots moved, smallest balance over the bound {:.3}",
                100.0 * share,
                smallest(&balance)
            );
        }
    }
}

/// One of the ranks has no slots any more.
fn lost_rank() {
    let layers = 58;
    let topology = Topology::new(RANKS).unwrap();
    let load = trace("lognormal:0.8", [layers, 1], 0.0, 9).total();
    let full = request(&topology, &load);
    let current = plan(&Adaptive::default(), &full);
    let mut slots = vec![SLOTS / RANKS; RANKS];
    slots[7] = 0;
    let request = full.with_slots_per_rank(slots).unwrap();
    let request = request.with_current(&current, MigrationBudget::Unlimited);
    let request = request.unwrap();
    let start = Instant::now();
    let next = plan(&Adaptive::default(), &request);
    let micros = start.elapsed().as_secs_f64() * 1e6 / layers as f64;
    let placed = next.layers().iter().zip(load.layers());
    let balance: Vec<f64> = placed
        .map(|(placement, load)| {
            load.iter().sum::<f64>() / (RANKS - 1) as f64 / largest(placement, load)
        })
        .collect();
    println!(
        "  {} experts travel, balance {:.3}, {micros:.0} us per layer",
        received(&current, &next),
        mean(&balance)
    );
}

/// Tokens off the home node of their group, beside the least that homes of the groups allow.
fn nodes() {
    for profile in [
        "lognormal:0.5",
        "lognormal:0.8",
        "lognormal:1.2",
        "zipf:0.8",
        "zipf:1.0",
        "zipf:1.2",
    ] {
        for nodes in [4, 8] {
            let planned = OnNodes::plan(profile, nodes, 11);
            let unavoidable = planned.unavoidable();
            // What no plan of the same balance goes below.
            let limits: Vec<f64> = planned.balance.iter().map(|b| 1.0 / b).collect();
            let possible = planned.least_spill(GROUPS / nodes, &limits);
            let any_homes = planned.least_spill(GROUPS, &limits);
            let largest = |above: Vec<f64>| above.into_iter().fold(f64::NEG_INFINITY, f64::max);
            println!(
                "  {profile} on {nodes} nodes: eplb {:.3}, adaptive {:.3} at least; off home {:.1} %, \
                 unavoidable {:.1} % ({:.1} points above at most), \
                 at this balance {:.1} % ({:.1}), with any homes {:.1} %",
                mean(&planned.balance_of(&Eplb::default())),
                smallest(&planned.balance),
                100.0 * mean(&planned.off_home),
                100.0 * mean(&unavoidable),
                largest(planned.points_above(&unavoidable)),
                100.0 * mean(&possible),
                largest(planned.points_above(&possible)),
                100.0 * mean(&any_homes)
            );
        }
    }
}

/// How far other seeds, and heavier loads, are above what has to leave home.
fn more_nodes() {
    for profile in [
        "lognormal:1.2",
        "lognormal:1.5",
        "zipf:1.0",
        "zipf:1.2",
        "zipf:1.4",
        "powerlaw:1.01",
        "powerlaw:1.2",
    ] {
        for nodes in [4, 8] {
            let (mut above, mut balance) = (Vec::new(), Vec::new());
            for seed in 20..30 {
                let planned = OnNodes::plan(profile, nodes, seed);
                above.extend(planned.points_above(&planned.unavoidable()));
                balance.extend(planned.balance);
            }
            above.sort_unstable_by(f64::total_cmp);
            println!(
                "  {profile} on {nodes} nodes: {:.3} at least; {:.1} points above the unavoidable on average, \
                 {:.1} at most, {} of {} layers more than 2",
                smallest(&balance),
                mean(&above),
                above[above.len() - 1],
                above.iter().filter(|points| **points > 2.0).count(),
                above.len()
            );
        }
    }
}

/// A load planned on nodes with expert groups.
struct OnNodes {
    nodes: usize,
    load: ExpertLoad,
    /// Mean over largest rank load of each layer.
    balance: Vec<f64>,
    /// The share of the tokens off their home, `[L]`.
    off_home: Vec<f64>,
}

impl OnNodes {
    fn plan(profile: &str, nodes: usize, seed: u64) -> Self {
        let load = trace(profile, [16, 1], 0.0, seed).total();
        let plan = plan_on_nodes(&Adaptive::default(), &load, nodes);
        let placed = plan.layers().iter().zip(load.layers());
        Self {
            nodes,
            balance: layer_balance(&plan, &load),
            off_home: placed.map(|(p, load)| off_home(p, load, nodes)).collect(),
            load,
        }
    }

    /// The share that has to leave home if every node carries the mean, `[L]`.
    fn unavoidable(&self) -> Vec<f64> {
        self.least_spill(GROUPS / self.nodes, &vec![1.0; self.load.num_layers()])
    }

    fn balance_of(&self, strategy: &dyn PlacementStrategy) -> Vec<f64> {
        layer_balance(&plan_on_nodes(strategy, &self.load, self.nodes), &self.load)
    }

    /// The share that has to leave home, `[L]`.
    ///
    /// # Arguments
    ///
    /// - `most` - groups that a node is home to, at most.
    /// - `limits` - what a node may carry, as a multiple of the mean, `[L]`.
    fn least_spill(&self, most: usize, limits: &[f64]) -> Vec<f64> {
        let layers = self.load.layers().zip(limits);
        layers
            .map(|(load, &limit)| least_spill(load, self.nodes, most, limit))
            .collect()
    }

    /// How many percent of the tokens more are off their home, `[L]`.
    fn points_above(&self, shares: &[f64]) -> Vec<f64> {
        let pairs = self.off_home.iter().zip(shares);
        pairs.map(|(off, share)| 100.0 * (off - share)).collect()
    }
}

fn plan_on_nodes(
    strategy: &dyn PlacementStrategy,
    load: &ExpertLoad,
    nodes: usize,
) -> ModelPlacement {
    let topology = Topology::new(RANKS).unwrap().with_nodes(nodes).unwrap();
    let request = request(&topology, load).with_expert_groups(GROUPS);
    plan(strategy, &request.unwrap())
}

/// Mean over largest rank load of each layer, `[L]`.
fn layer_balance(plan: &ModelPlacement, load: &ExpertLoad) -> Vec<f64> {
    let placed = plan.layers().iter().zip(load.layers());
    placed
        .map(|(placement, load)| load.iter().sum::<f64>() / RANKS as f64 / largest(placement, load))
        .collect()
}

/// Share of the tokens that are not served on the node that serves most of their group.
fn off_home(placement: &Placement, load: &[f64], nodes: usize) -> f64 {
    let replicas = placement.replica_counts();
    let mut served = vec![[0.0; GROUPS]; nodes];
    for (slot, expert) in placement.physical_to_logical().iter().enumerate() {
        let (node, expert) = (slot / (SLOTS / nodes), expert.index());
        served[node][expert / (EXPERTS / GROUPS)] += load[expert] / replicas[expert] as f64;
    }
    let home = |group: usize| served.iter().map(|node| node[group]).fold(0.0, f64::max);
    1.0 - (0..GROUPS).map(home).sum::<f64>() / load.iter().sum::<f64>()
}

/// Share of the tokens that have to leave their home under the best homes of the groups: what a node has
/// above what it may carry, and at least its lightest experts for which it has no slots.
///
/// # Arguments
///
/// - `most` - groups that a node is home to, at most.
/// - `limit` - what a node may carry, as a multiple of the mean.
fn least_spill(load: &[f64], nodes: usize, most: usize, limit: f64) -> f64 {
    let total: f64 = load.iter().sum();
    let homes = Homes {
        groups: load.chunks(EXPERTS / GROUPS).collect(),
        most,
        capacity: limit * total / nodes as f64,
        slots: SLOTS / nodes,
    };
    homes.least_spill(&mut vec![Vec::new(); nodes], 0) / total
}

/// What decides how much leaves its home.
struct Homes<'a> {
    /// Loads of the experts of each group.
    groups: Vec<&'a [f64]>,
    /// Groups on a node, at most.
    most: usize,
    /// Load on a node, at most.
    capacity: f64,
    /// Slots of a node.
    slots: usize,
}

impl Homes<'_> {
    /// Tries every home for every group from `next` on.
    ///
    /// # Arguments
    ///
    /// - `nodes` - the groups of each node so far.
    fn least_spill(&self, nodes: &mut Vec<Vec<usize>>, next: usize) -> f64 {
        if next == self.groups.len() {
            return nodes.iter().map(|groups| self.spill(groups)).sum();
        }
        let mut least = f64::INFINITY;
        for node in 0..nodes.len() {
            let is_empty = nodes[node].is_empty();
            if nodes[node].len() < self.most {
                nodes[node].push(next);
                least = least.min(self.least_spill(nodes, next + 1));
                nodes[node].pop();
            }
            // One empty node is as good as another.
            if is_empty {
                break;
            }
        }
        least
    }

    /// The load that leaves a node with these groups.
    fn spill(&self, groups: &[usize]) -> f64 {
        let experts = groups.iter().flat_map(|&group| self.groups[group]);
        let mut light_first: Vec<f64> = experts.copied().collect();
        let over = light_first.iter().sum::<f64>() - self.capacity;
        let many = light_first.len().saturating_sub(self.slots);
        light_first.sort_unstable_by(f64::total_cmp);
        over.max(light_first[..many].iter().sum())
    }
}

/// Layers of different skew share the replicas, or have the same number each.
fn budgets() {
    let (window, steps, tokens) = (32, 12, 32_768);
    let profiles = [
        "lognormal:0.3",
        "lognormal:0.5",
        "lognormal:0.8",
        "r1-mt",
        "lognormal:1.2",
        "lognormal:0.3",
        "lognormal:0.8",
        "zipf:0.8",
    ];
    let layer = |(seed, profile): (u64, &str)| {
        let profile: Profile = profile.parse().unwrap();
        let workload = Workload::new(profile, EXPERTS, 1, window + steps, tokens).unwrap();
        let workload = workload.with_concentration(13_000.0).unwrap();
        workload.with_seed(seed).generate().unwrap()
    };
    let layers: Vec<LoadTrace> = (100..).zip(profiles).map(layer).collect();
    let step = |step: usize| {
        let rows = layers.iter().map(|t| t.steps()[step].layer(0).unwrap());
        ExpertLoad::from_rows(&rows.map(<[f64]>::to_vec).collect::<Vec<_>>()).unwrap()
    };
    let trace = LoadTrace::new((0..window + steps).map(step).collect()).unwrap();
    let load = trace.window(0..window).unwrap();
    let topology = Topology::new(RANKS).unwrap();
    let mut shared = Adaptive::default();
    shared.layer_budgets = true;
    let strategies: [(&str, &dyn PlacementStrategy); 3] = [
        ("eplb", &Eplb::default()),
        ("adaptive", &Adaptive::default()),
        ("adaptive, layer_budgets", &shared),
    ];
    for (name, strategy) in strategies {
        for redundant in [8, 12, 16, 20, 24, 28, 32] {
            // Experts that ranks do not divide are refused by `eplb`.
            if !(EXPERTS + redundant).is_multiple_of(RANKS) && name == "eplb" {
                continue;
            }
            let request = PlacementRequest::new(profiles.len(), EXPERTS, &topology)
                .and_then(|r| r.with_redundant_experts(redundant))
                .and_then(|r| r.with_load(&load))
                .unwrap();
            let plan = plan(strategy, &request);
            let of_plan = balance(&plan, &load, largest);
            let later = &trace.steps()[window..];
            let equal: Vec<f64> = later.iter().map(|s| balance(&plan, s, largest)).collect();
            let best: Vec<f64> = later.iter().map(|s| balance(&plan, s, split)).collect();
            println!(
                "  {name}, {redundant} replicas per layer: plan {of_plan:.4}, steps {:.3} split evenly, {:.3} at best",
                mean(&equal),
                mean(&best)
            );
        }
    }
}

/// The largest rank load under the best split.
fn split(placement: &Placement, load: &[f64]) -> f64 {
    let counts: Vec<u64> = load.iter().map(|&tokens| tokens as u64).collect();
    optimal_split(placement, &counts).unwrap().largest() as f64
}

/// Mean over largest rank load, layers weighed by their time.
fn balance(
    plan: &ModelPlacement,
    load: &ExpertLoad,
    largest: impl Fn(&Placement, &[f64]) -> f64,
) -> f64 {
    let mean: f64 = load.layers().flatten().sum::<f64>() / RANKS as f64;
    let placed = plan.layers().iter().zip(load.layers());
    mean / placed.map(|(p, load)| largest(p, load)).sum::<f64>()
}
