//! What generated loads look like.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use moekit_eval::workload::{FlashCrowd, Profile, Workload};
use moekit_placement::{LoadTrace, Placement, balance};
use proptest::prelude::*;

fn layers(trace: &LoadTrace) -> impl Iterator<Item = &[f64]> {
    trace.steps().iter().flat_map(|step| step.layers())
}

fn mean(values: impl IntoIterator<Item = f64>) -> f64 {
    let (sum, n) = values
        .into_iter()
        .fold((0.0, 0), |(sum, n), v| (sum + v, n + 1));
    sum / f64::from(n)
}

/// Standard deviation (of a sample) and (maximum - mean) / mean.
fn spread(loads: &[f64]) -> (f64, f64) {
    let average = mean(loads.iter().copied());
    let squares: f64 = loads.iter().map(|v| (v - average).powi(2)).sum();
    let most = loads.iter().copied().fold(0.0, f64::max);
    (
        (squares / (loads.len() - 1) as f64).sqrt(),
        most / average - 1.0,
    )
}

/// The greedy plan that the published figures used: a spare slot goes to the expert with the most
/// load per slot, slots go longest first to the lightest rank with room.
fn greedy_plan(load: &[f64], ranks: usize, slots_per_rank: usize) -> Placement {
    let mut counts = vec![1.0; load.len()];
    for _ in load.len()..ranks * slots_per_rank {
        let key = |e: &usize| load[*e] / counts[*e];
        let heaviest = (0..load.len())
            .max_by(|a, b| key(a).total_cmp(&key(b)))
            .unwrap();
        counts[heaviest] += 1.0;
    }
    let mut slots: Vec<(f64, usize)> = (0..load.len())
        .flat_map(|e| std::iter::repeat_n((load[e] / counts[e], e), counts[e] as usize))
        .collect();
    slots.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut packs = vec![(0f64, vec![]); ranks];
    for (weight, expert) in slots {
        let open = packs
            .iter_mut()
            .filter(|(_, held)| held.len() < slots_per_rank);
        let lightest = open.min_by(|a, b| a.0.total_cmp(&b.0)).unwrap();
        lightest.0 += weight;
        lightest.1.push(expert);
    }
    let packs: Vec<_> = packs.into_iter().map(|(_, held)| held).collect();
    Placement::from_ranks(load.len(), &packs).unwrap()
}

/// Table 1 of TensorRT-LLM's report on DeepSeek-R1 over 32 ranks, 1024 tokens per rank and
/// iteration: per-rank and per-expert standard deviation and imbalance, and per-rank ones after
/// balancing with 9 slots per rank. Planned on a window, measured on the steps after it.
#[test]
fn r1_mt_has_the_published_statistics() {
    const RANKS: usize = 32;
    const WINDOW: usize = 20;
    let workload = Workload::new(Profile::R1Mt, 256, 150, WINDOW + 2, 32_768).unwrap();
    let trace = workload.generate().unwrap();
    let linear: Vec<Vec<usize>> = (0..RANKS).map(|r| (r * 8..r * 8 + 8).collect()).collect();
    let linear = Placement::from_ranks(256, &linear).unwrap();
    let window = trace.window(0..WINDOW).unwrap();
    let plans: Vec<_> = window
        .layers()
        .map(|load| greedy_plan(load, RANKS, 9))
        .collect();

    let on = |placement: &Placement, load: &[f64]| {
        spread(&balance::rank_loads(placement, load).unwrap())
    };
    let experts: Vec<_> = layers(&trace).map(spread).collect();
    let ranks: Vec<_> = layers(&trace).map(|load| on(&linear, load)).collect();
    let balanced: Vec<_> = trace.steps()[WINDOW..]
        .iter()
        .flat_map(|step| step.layers().zip(&plans))
        .map(|(load, plan)| on(plan, load))
        .collect();

    for (what, measured, published) in [
        ("rank std", mean(ranks.iter().map(|r| r.0)), 491.6),
        ("rank imbalance", mean(ranks.iter().map(|r| r.1)), 1.564),
        ("expert std", mean(experts.iter().map(|e| e.0)), 164.1),
        (
            "expert imbalance",
            mean(experts.iter().map(|e| e.1)),
            10.948,
        ),
        (
            "rank std, balanced",
            mean(balanced.iter().map(|r| r.0)),
            52.0,
        ),
        (
            "rank imbalance, balanced",
            mean(balanced.iter().map(|r| r.1)),
            0.109,
        ),
    ] {
        let ratio = measured / published;
        println!("{what}: {measured:.3}, published {published}, ratio {ratio:.3}");
        assert!(
            (ratio - 1.0).abs() < 0.1,
            "{what}: {measured}, published {published}"
        );
    }
}

#[test]
fn profiles_have_their_shape() {
    let shares = |profile: &str| {
        let profile: Profile = profile.parse().unwrap();
        let trace = Workload::new(profile, 64, 1, 1, 1 << 40)
            .unwrap()
            .generate()
            .unwrap();
        let mut layer = trace.steps()[0].layer(0).unwrap().to_vec();
        layer.sort_by(|a, b| b.total_cmp(a));
        layer
            .into_iter()
            .map(|v| v / (1u64 << 40) as f64)
            .collect::<Vec<_>>()
    };
    let near = |a: f64, b: f64| (a / b - 1.0).abs() < 1e-3;
    assert!(shares("uniform").iter().all(|s| near(*s, 1.0 / 64.0)));
    let zipf = shares("zipf:1.2");
    assert!(near(zipf[0] / zipf[9], 10f64.powf(1.2)));
    let hot = shares("hot:0.4");
    assert!(near(hot[0], 0.4) && near(hot[63], 0.6 / 63.0));
}

#[test]
fn lognormal_has_its_sigma() {
    let trace = Workload::new(Profile::LogNormal(1.5), 64, 200, 1, 1 << 40).unwrap();
    let trace = trace.generate().unwrap();
    let log_spread = layers(&trace).map(|layer| {
        let logs: Vec<f64> = layer.iter().map(|v| v.ln()).collect();
        spread(&logs).0
    });
    let sigma = mean(log_spread);
    assert!((sigma - 1.5).abs() < 0.05, "{sigma}");
}

/// The correlation of the log-popularity of consecutive steps is 1 - D, and its spread stays.
#[test]
fn drift_mixes_what_it_says() {
    let trace = |drift| {
        let workload = Workload::new(Profile::LogNormal(0.8), 64, 40, 30, 1 << 40).unwrap();
        workload.with_drift(drift).unwrap().generate().unwrap()
    };
    let correlation = |trace: &LoadTrace, lag: usize| {
        let logs = |step: usize, layer: usize| {
            let load = trace.steps()[step].layer(layer).unwrap();
            let logs: Vec<f64> = load.iter().map(|v| v.ln()).collect();
            let average = mean(logs.iter().copied());
            logs.into_iter()
                .map(move |v| v - average)
                .collect::<Vec<_>>()
        };
        let (mut both, mut alone) = (0.0, 0.0);
        for layer in 0..40 {
            for step in 0..30 - lag {
                let (now, later) = (logs(step, layer), logs(step + lag, layer));
                both += now.iter().zip(&later).map(|(a, b)| a * b).sum::<f64>();
                alone += now.iter().map(|a| a * a).sum::<f64>();
            }
        }
        both / alone
    };
    assert!(correlation(&trace(0.0), 5) > 0.999);
    for drift in [0.05, 0.3] {
        let trace = trace(drift);
        for lag in [1, 3] {
            let (got, expected) = (correlation(&trace, lag), (1.0 - drift).powi(lag as i32));
            assert!(
                (got - expected).abs() < 0.03,
                "drift {drift}, lag {lag}: {got}"
            );
        }
        let last = trace.steps()[29]
            .layers()
            .map(|layer| spread(&layer.iter().map(|v| v.ln()).collect::<Vec<_>>()).0);
        assert!(
            (mean(last) - 0.8).abs() < 0.04,
            "the spread of popularity stays"
        );
    }
    assert!(correlation(&trace(1.0), 1).abs() < 0.05);
}

/// The index of the largest share.
fn hottest(trace: &LoadTrace, step: usize, layer: usize) -> usize {
    let load = trace.steps()[step].layer(layer).unwrap();
    (0..load.len())
        .max_by(|a, b| load[*a].total_cmp(&load[*b]))
        .unwrap()
}

#[test]
fn domains_take_turns() {
    let workload = Workload::new(Profile::Zipf(1.2), 64, 3, 12, 1 << 30).unwrap();
    let trace = workload.with_domains(2, 3).unwrap().generate().unwrap();
    for layer in 0..3 {
        let hot: Vec<_> = (0..12).map(|step| hottest(&trace, step, layer)).collect();
        assert_ne!(hot[0], hot[3], "layer {layer}");
        for (step, expert) in hot.iter().enumerate() {
            assert_eq!(*expert, hot[step / 3 % 2 * 3], "layer {layer}, step {step}");
        }
    }
}

#[test]
fn flash_crowds_come_and_go() {
    let workload = Workload::new(Profile::Uniform, 64, 2, 6, 1 << 30).unwrap();
    let crowd = "2:3:0.5".parse().unwrap();
    let trace = workload
        .with_flash_crowd(crowd)
        .unwrap()
        .generate()
        .unwrap();
    for layer in 0..2 {
        for step in 0..6 {
            let load = trace.steps()[step].layer(layer).unwrap();
            let top = load[hottest(&trace, step, layer)] / (1u64 << 30) as f64;
            let expected = if (2..5).contains(&step) {
                0.5 + 0.5 / 64.0
            } else {
                1.0 / 64.0
            };
            assert!((top / expected - 1.0).abs() < 0.01, "step {step}: {top}");
        }
        assert_eq!(hottest(&trace, 2, layer), hottest(&trace, 4, layer));
    }
}

#[test]
fn nonsense_is_refused() {
    let new = |e, l, s, t| Workload::new(Profile::Uniform, e, l, s, t);
    let ok = || new(1, 1, 1, 1).unwrap();
    for (error, part) in [
        (new(0, 1, 1, 1).unwrap_err(), "experts is 0"),
        (new(1, 0, 1, 1).unwrap_err(), "layers is 0"),
        (new(1, 1, 0, 1).unwrap_err(), "steps is 0"),
        (
            new(usize::MAX, usize::MAX, 2, 1).unwrap_err(),
            "at most 268435456 values",
        ),
        (
            new(1, 1, 1, u64::MAX).unwrap_err(),
            "tokens is 18446744073709551615",
        ),
        (
            Workload::new(Profile::Zipf(f64::NAN), 1, 1, 1, 1).unwrap_err(),
            "zipf:NaN",
        ),
        (
            ok().with_drift(1.5).unwrap_err(),
            "drift is 1.5, expected 0 to 1",
        ),
        (
            ok().with_concentration(0.0).unwrap_err(),
            "concentration is 0",
        ),
        (ok().with_domains(0, 1).unwrap_err(), "domains is 0"),
        (
            ok().with_domains(1_000_000_000, 1).unwrap_err(),
            "each has its turn",
        ),
        (
            ok().with_domains(1, 0).unwrap_err(),
            "steps of a domain is 0",
        ),
        (
            "1:2".parse::<FlashCrowd>().unwrap_err(),
            "START:STEPS:SHARE",
        ),
        (
            "1:2:1.5".parse::<FlashCrowd>().unwrap_err(),
            "1.5, expected 0 to 1",
        ),
    ] {
        assert!(error.to_string().contains(part), "{error}");
    }
}

fn any_profile() -> impl Strategy<Value = Profile> {
    prop_oneof![
        Just(Profile::Uniform),
        Just(Profile::R1Mt),
        (0.0..100.0).prop_map(Profile::LogNormal),
        (0.0..100.0).prop_map(Profile::Zipf),
        (0.0..100.0).prop_map(Profile::PowerLaw),
        (0.0..=1.0).prop_map(Profile::Hot),
    ]
}

proptest! {
    #[test]
    fn every_layer_of_every_step_has_the_tokens(
        profile in any_profile(),
        (experts, layers_, steps) in (1usize..20, 1usize..4, 1usize..4),
        tokens in prop_oneof![0u64..50, 0u64..100_000, Just(1 << 53)],
        drift in 0.0..=1.0,
        concentration in prop::option::of(1e-6..1e6),
        seed: u64,
    ) {
        let mut workload = Workload::new(profile, experts, layers_, steps, tokens).unwrap()
            .with_drift(drift).unwrap()
            .with_seed(seed)
            .with_domains(2.min(steps), 1).unwrap()
            .with_flash_crowd(FlashCrowd::new(steps / 2, 1, drift).unwrap())
            .unwrap();
        if let Some(concentration) = concentration {
            workload = workload.with_concentration(concentration).unwrap();
        }
        let trace = workload.generate().unwrap();
        prop_assert_eq!(trace.steps().len(), steps);
        for layer in layers(&trace) {
            prop_assert_eq!(layer.len(), experts);
            prop_assert_eq!(layer.iter().map(|v| *v as u64).sum::<u64>(), tokens);
        }
        prop_assert_eq!(&workload.generate().unwrap(), &trace);
    }

    #[test]
    fn a_longer_trace_begins_with_the_shorter(seed: u64, drift in 0.0..=1.0) {
        let trace = |layers, steps| {
            let workload = Workload::new(Profile::PowerLaw(1.2), 6, layers, steps, 500).unwrap();
            workload.with_drift(drift).unwrap().with_seed(seed).generate().unwrap()
        };
        let (short, long) = (trace(2, 3), trace(3, 5));
        for (a, b) in short.steps().iter().zip(long.steps()) {
            prop_assert!(a.layers().zip(b.layers()).all(|(a, b)| a == b));
        }
    }
}

#[test]
fn seeds_differ() {
    let trace = |seed| {
        let workload = Workload::new(Profile::Uniform, 16, 1, 1, 1000).unwrap();
        workload.with_seed(seed).generate().unwrap()
    };
    assert_ne!(trace(0), trace(1));
}
