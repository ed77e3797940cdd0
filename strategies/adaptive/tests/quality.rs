//! How good plans from nothing are.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::*;
use moekit_placement::bound::optimal_split;
use moekit_placement::{ExpertLoad, ModelPlacement, PlacementRequest, PlacementStrategy, Topology};
use moekit_routing::Rank;
use moekit_strategy_adaptive::Adaptive;
use rand::RngExt;

/// The smallest part of the bound over the layers; no expert sits twice on a rank.
fn reached(load: &ExpertLoad, slots: usize, ranks: usize) -> f64 {
    let topology = Topology::new(ranks).unwrap();
    let request = request(load, &topology, slots);
    let plan = Adaptive::default().place(&request).unwrap();
    assert_eq!(duplicates(&plan), 0);
    of_bound(&plan, &request, load)
}

#[test]
fn nine_slots_per_rank_reach_the_bound() {
    let mut rng = rng(1);
    let load = rows(&[
        lognormal(0.3, &mut rng),
        lognormal(0.8, &mut rng),
        lognormal(1.2, &mut rng),
        lognormal(1.5, &mut rng),
        zipf(0.8, &mut rng),
        zipf(1.2, &mut rng),
        power_law(1.01, &mut rng),
        power_law(1.2, &mut rng),
    ]);
    let reached = reached(&load, 288, 32);
    assert!(reached >= 0.999, "{reached}");
}

#[test]
fn few_slots_per_rank_come_close() {
    let mut rng = rng(2);
    let load = rows(&[lognormal(0.8, &mut rng), lognormal(1.2, &mut rng)]);
    let five = reached(&load, 320, 64);
    assert!(five >= 0.995, "{five}");
    let three = reached(&load, 384, 128);
    assert!(three >= 0.985, "{three}");
}

#[test]
fn heavy_pieces_fill_ranks() {
    let mut rng = rng(8);
    let heads: Vec<Vec<f64>> = (0..6).map(|_| power_law_of(1.2, 1e6, &mut rng)).collect();
    let nine = reached(&rows(&heads), 288, 32);
    assert!(nine >= 0.998, "{nine}");
    let load = rows(&[power_law(1.2, &mut rng), power_law(1.2, &mut rng)]);
    let five = reached(&load, 320, 64);
    assert!(five >= 0.99, "{five}");
}

#[test]
fn counts_are_searched_where_few_slots_hold_heavy_pieces() {
    let mut rng = rng(9);
    let parts: Vec<f64> = (0..8)
        .map(|_| reached(&rows(&[power_law(1.2, &mut rng)]), 384, 128))
        .collect();
    let mean = parts.iter().sum::<f64>() / 8.0;
    assert!(mean >= 0.99, "{parts:?} {mean}");
    let good = parts.iter().filter(|&&part| part >= 0.985).count();
    assert!(good >= 7, "{parts:?}");
    assert!(parts.iter().all(|&part| part >= 0.98), "{parts:?}");
}

#[test]
fn counts_are_judged_on_what_ranks_carry() {
    let load = rows(&[vec![600., 560., 120., 120., 20., 10., 10., 10.]]);
    let topology = Topology::new(8).unwrap();
    let plan = Adaptive::default()
        .place(&request(&load, &topology, 16))
        .unwrap();
    let optimum = 560.0 / 3.0 + 10.0;
    assert!((largest(&plan.layers()[0], load.layer(0).unwrap()) - optimum).abs() < 1e-9);
}

#[test]
fn no_expert_twice_on_a_rank_where_ranks_differ() {
    let mut rng = rng(3);
    for _ in 0..200 {
        let ranks = rng.random_range(1..8);
        let experts = rng.random_range(2..20);
        let mut slots: Vec<usize> = (0..ranks).map(|_| rng.random_range(0..=experts)).collect();
        let last = &mut slots[ranks - 1];
        *last = experts.min(*last + experts);
        let load = rows(&[(0..experts)
            .map(|_| rng.random_range(0.0..9.0f64).powi(3))
            .collect()]);
        let topology = Topology::new(ranks).unwrap();
        let request = PlacementRequest::new(1, experts, &topology)
            .unwrap()
            .with_slots_per_rank(slots.clone())
            .unwrap()
            .with_load(&load)
            .unwrap();
        let plan = Adaptive::default().place(&request).unwrap();
        // DeepSeek's balancer may need a duplicate to be as good, but takes even slots only.
        if slots.windows(2).any(|w| w[0] != w[1]) {
            assert_eq!(duplicates(&plan), 0, "{slots:?} {load:?}");
        }
    }
}

/// Instances on which `eplb` is only as good because experts sit twice on a rank, and a plan without exists.
#[test]
fn no_expert_twice_where_a_complete_search_finds_a_way() {
    type Instance<'a> = (usize, usize, [usize; 2], &'a [f64], f64);
    let instances: [Instance<'_>; 6] = [
        (5, 3, [1, 1], &[0., 1., 1., 2.], 5.0 / 6.0),
        (6, 3, [1, 1], &[1., 1., 1., 1., 10., 1.], 2.5),
        (6, 3, [3, 5], &[1., 3., 1., 3., 3.], 1.85),
        (4, 4, [1, 1], &[256., 610., 4., 6., 599., 0., 3.], 370.6),
        (3, 4, [3, 7], &[983., 58., 8., 1., 365., 198., 129.], 583.7),
        (
            6,
            3,
            [1, 1],
            &[52_957., 100_000., 36_511., 28_044., 22_854.],
            40_764.215,
        ),
    ];
    for (ranks, slots, [nodes, groups], weights, eplb) in instances {
        let load = rows(&[weights.to_vec()]);
        let topology = Topology::new(ranks).unwrap().with_nodes(nodes).unwrap();
        let mut request = request(&load, &topology, ranks * slots);
        if groups > 1 {
            request = request.with_expert_groups(groups).unwrap();
        }
        let plan = Adaptive::default().place(&request).unwrap();
        assert_eq!(duplicates(&plan), 0, "{weights:?}");
        let largest = largest(&plan.layers()[0], weights);
        assert!(largest <= eplb * (1.0 + 1e-9), "{weights:?}: {largest}");
    }
}

#[test]
fn replicas_leave_room_for_the_split_of_a_step() {
    let mut rng = rng(4);
    let topology = Topology::new(32).unwrap();
    let load = lognormal(1.04, &mut rng);
    let model = rows(std::slice::from_ref(&load));
    let plan = Adaptive::default()
        .place(&request(&model, &topology, 288))
        .unwrap();
    for (tokens, goal) in [(32_768, 0.985), (4_096, 0.955)] {
        let steps = 8;
        let balance = (0..steps).map(|_| {
            let counts = step(&load, tokens, 13_000.0, &mut rng);
            let optimum = optimal_split(&plan.layers()[0], &counts).unwrap();
            tokens as f64 / 32.0 / optimum.largest() as f64
        });
        let mean = balance.sum::<f64>() / f64::from(steps);
        assert!(mean >= goal, "{tokens} tokens: {mean}");
    }
}

#[test]
fn replicas_connect_all_ranks() {
    let mut rng = rng(7);
    let layers: Vec<Vec<f64>> = (0..24).map(|_| lognormal(1.04, &mut rng)).collect();
    let topology = Topology::new(32).unwrap();
    let load = rows(&layers);
    let plan = Adaptive::default()
        .place(&request(&load, &topology, 288))
        .unwrap();
    for layer in plan.layers() {
        // Ranks that are reached from the first one over experts that both hold.
        let mut reached = vec![0];
        let mut next = 0;
        while next < reached.len() {
            let held = layer.experts_of(Rank::new(reached[next])).unwrap();
            for rank in 0..32 {
                let shares = |e| held.contains(e);
                let other = layer.experts_of(Rank::new(rank)).unwrap();
                if !reached.contains(&rank) && other.iter().any(shares) {
                    reached.push(rank);
                }
            }
            next += 1;
        }
        assert_eq!(reached.len(), 32);
    }
}

#[test]
fn fast_ranks_carry_more() {
    let load = rows(&[lognormal(0.8, &mut rng(5))]);
    let topology = Topology::new(8).unwrap();
    let speeds = [2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.5];
    let config = serde_json::json!({"strategy": "adaptive", "speeds": speeds});
    let strategy: Box<dyn PlacementStrategy> = serde_json::from_value(config).unwrap();
    let plan = strategy.place(&request(&load, &topology, 288)).unwrap();
    let loads =
        moekit_placement::balance::rank_loads(&plan.layers()[0], load.layer(0).unwrap()).unwrap();
    let total: f64 = loads.iter().sum();
    for (load, speed) in loads.iter().zip(speeds) {
        let part = load / total * speeds.iter().sum::<f64>() / speed;
        assert!((part - 1.0).abs() < 0.02, "{loads:?}");
    }
}

/// A plan of eight expert groups, without an expert twice on a rank.
fn plan_on_nodes(load: &ExpertLoad, topology: &Topology) -> ModelPlacement {
    let request = request(load, topology, 288).with_expert_groups(8).unwrap();
    let plan = Adaptive::default().place(&request).unwrap();
    assert_eq!(duplicates(&plan), 0);
    plan
}

#[test]
fn tokens_stay_on_their_node_as_far_as_balance_allows() {
    let mut rng = rng(6);
    let mut load = vec![
        lognormal(0.5, &mut rng),
        lognormal(0.8, &mut rng),
        zipf(0.8, &mut rng),
        lognormal(1.2, &mut rng),
    ];
    load.extend((0..3).map(|_| zipf(1.0, &mut rng)));
    load.extend((0..16).map(|_| zipf(1.2, &mut rng)));
    load.extend((0..4).map(|_| power_law(1.01, &mut rng)));
    let load = rows(&load);
    for nodes in [4, 8] {
        let topology = Topology::new(32).unwrap().with_nodes(nodes).unwrap();
        let plan = plan_on_nodes(&load, &topology);
        for (layer, load) in plan.layers().iter().zip(load.layers()) {
            let total: f64 = load.iter().sum();
            let balance = total / 32.0 / largest(layer, load);
            assert!(balance >= 0.98, "{nodes} nodes: {balance}");
            let counts = layer.replica_counts();
            let mut served = vec![vec![0.0; nodes]; 8];
            for rank in 0..32 {
                let node = topology.node_of(Rank::new(rank)).unwrap();
                for expert in layer.experts_of(Rank::new(rank)).unwrap() {
                    let e = expert.index();
                    served[e / 32][node] += load[e] / counts[e] as f64;
                }
            }
            let home: f64 = served
                .iter()
                .map(|nodes| nodes.iter().copied().fold(0.0, f64::max))
                .sum();
            let groups: Vec<f64> = load.chunks(32).map(|group| group.iter().sum()).collect();
            let off_home = 1.0 - home / total;
            let least = least_spill(&groups, nodes) / total;
            assert!(
                off_home <= least + 0.02,
                "{nodes} nodes: {off_home}, unavoidable {least}"
            );
        }
    }
}

#[test]
fn homes_cost_no_more_balance_than_they_may() {
    // Heavy pieces fill ranks only in few ways, hardly ever near home.
    let mut rng = rng(12);
    let heads: Vec<Vec<f64>> = (0..8).map(|_| power_law_of(1.2, 1e6, &mut rng)).collect();
    for head in heads {
        let load = rows(&[head]);
        let possible = reached(&load, 288, 32).min(0.985);
        for nodes in [4, 8] {
            let topology = Topology::new(32).unwrap().with_nodes(nodes).unwrap();
            let plan = plan_on_nodes(&load, &topology);
            let reached = of_bound(&plan, &request(&load, &topology, 288), &load);
            assert!(
                reached >= possible,
                "{nodes} nodes: {reached} of {possible}"
            );
        }
    }
}

/// The least load above the mean of a node, over all ways to give nodes equally many groups.
fn least_spill(groups: &[f64], nodes: usize) -> f64 {
    fn place(groups: &[f64], loads: &mut Vec<(f64, usize)>, limit: (f64, usize)) -> f64 {
        let Some((group, rest)) = groups.split_first() else {
            return loads
                .iter()
                .map(|(load, _)| (load - limit.0).max(0.0))
                .sum();
        };
        let mut least = f64::INFINITY;
        for node in 0..loads.len() {
            let before = loads[node];
            if before.1 < limit.1 {
                loads[node] = (before.0 + group, before.1 + 1);
                least = least.min(place(rest, loads, limit));
                loads[node] = before;
            }
            if before.1 == 0 {
                break;
            }
        }
        least
    }
    let mean = groups.iter().sum::<f64>() / nodes as f64;
    place(
        groups,
        &mut vec![(0.0, 0); nodes],
        (mean, groups.len() / nodes),
    )
}

#[test]
fn settings_are_checked() {
    let load = rows(&[vec![1.0; 4]]);
    let topology = Topology::new(2).unwrap();
    for (setting, message) in [
        (
            serde_json::json!({"tolerance": -0.1}),
            "`tolerance` must be a number from 0 to 1, got -0.1",
        ),
        (serde_json::json!({"replan": {"to": 0.0}}), "above 0"),
        (serde_json::json!({"speeds": [1.0]}), "1 values for 2 ranks"),
        (serde_json::json!({"speeds": [1.0, 0.0]}), "got 0"),
    ] {
        let strategy: Adaptive = serde_json::from_value(setting).unwrap();
        let error = strategy
            .place(&request(&load, &topology, 4))
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("strategy `adaptive`") && error.contains(message),
            "{error}"
        );
    }
}
