//! Random requests.

use moekit_placement::{ExpertLoad, LoadTrace, MigrationBudget, ModelPlacement, Placement};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use crate::case::Case;

/// Any shape up to 3 layers, 24 experts, 9 ranks.
pub(crate) fn any_case() -> impl Strategy<Value = Case> {
    (1usize..=3, 1usize..=24, 1usize..=9)
        .prop_flat_map(|(layers, experts, ranks)| {
            let slots = any_slots(experts, ranks);
            (Just((layers, experts, ranks)), 1..=ranks, option::of(slots))
        })
        .prop_flat_map(|((layers, experts, ranks), nodes, slots)| {
            let case = Case {
                nodes,
                slots,
                ..Case::new(layers, experts, ranks)
            };
            let current = any_current(&case);
            let load = option::weighted(0.8, any_load(layers, experts));
            (
                Just(case),
                any_groups(experts),
                load,
                option::of(any_shares()),
                current,
            )
        })
        .prop_map(|(case, groups, load, shares, (current, budget))| {
            let trace = load
                .as_ref()
                .zip(shares)
                .and_then(|(load, shares)| steps(load, &shares));
            Case {
                groups,
                load,
                trace,
                current,
                budget,
                ..case
            }
        })
}

fn any_groups(experts: usize) -> impl Strategy<Value = Option<usize>> {
    let divisors: Vec<_> = (1..=experts)
        .filter(|g| experts.is_multiple_of(*g))
        .collect();
    option::of(proptest::sample::select(divisors))
}

/// Slots per rank, `[ranks]`, that hold all experts: alike on every rank or uneven, some with none.
fn any_slots(experts: usize, ranks: usize) -> impl Strategy<Value = Vec<usize>> {
    let alike = (0usize..4).prop_map(move |more| vec![experts.div_ceil(ranks) + more; ranks]);
    let uneven = (vec(0usize..=6, ranks), 0..ranks).prop_map(move |(mut slots, filled)| {
        slots[filled] += experts.saturating_sub(slots.iter().sum());
        slots
    });
    prop_oneof![alike, uneven]
}

/// `[layers, experts]`, each layer of its own kind.
fn any_load(layers: usize, experts: usize) -> impl Strategy<Value = ExpertLoad> {
    let one_has_all = (0..experts, 0.0..1e6).prop_map(move |(hot, value)| {
        (0..experts)
            .map(|e| if e == hot { value } else { 0.0 })
            .collect()
    });
    let ends = vec![
        0.0,
        f64::from_bits(1),
        f64::MIN_POSITIVE,
        1e-40,
        1.0,
        1e39,
        1e99,
        1e100,
    ];
    let row = prop_oneof![
        Just(vec![0.0; experts]),
        (0.0..1e3).prop_map(move |tie| vec![tie; experts]),
        one_has_all,
        vec((0u8..4).prop_map(f64::from), experts),
        vec(0.0..1e6, experts),
        vec(proptest::sample::select(ends), experts),
    ];
    vec(row, layers).prop_filter_map("a load", |rows| ExpertLoad::from_rows(&rows).ok())
}

/// The share of the load that each step of a trace has.
fn any_shares() -> impl Strategy<Value = Vec<f64>> {
    vec(0.0..=1.0, 1..4)
}

fn steps(load: &ExpertLoad, shares: &[f64]) -> Option<LoadTrace> {
    let step = |share: &f64| {
        let rows: Vec<Vec<f64>> = load
            .layers()
            .map(|row| row.iter().map(|value| value * share).collect())
            .collect();
        ExpertLoad::from_rows(&rows).ok()
    };
    LoadTrace::new(shares.iter().map(step).collect::<Option<_>>()?).ok()
}

/// No placement in force; one over the ranks and slots that the case asks for; or one over other
/// ranks. A budget may protect either.
fn any_current(
    case: &Case,
) -> impl Strategy<Value = (Option<ModelPlacement>, MigrationBudget)> + use<> {
    let (layers, experts) = (case.layers, case.experts);
    let asked = case
        .request(|request| request.slots_per_rank().to_vec())
        .unwrap_or_default();
    let budget = prop_oneof![
        Just(MigrationBudget::Unlimited),
        (0usize..20).prop_map(MigrationBudget::Slots),
        (0u64..2000, 1u64..200)
            .prop_map(|(budget, per_expert)| MigrationBudget::Bytes { budget, per_expert }),
    ];
    let same = (any_model(layers, experts, asked), budget.clone());
    let other = (1usize..=9)
        .prop_flat_map(move |ranks| any_slots(experts, ranks))
        .prop_flat_map(move |slots| (any_model(layers, experts, slots), budget.clone()));
    prop_oneof![Just((None, MigrationBudget::Unlimited)), same, other,]
}

/// Every expert once and repetitions, shuffled, a layer at a time.
fn any_model(
    layers: usize,
    experts: usize,
    slots_per_rank: Vec<usize>,
) -> impl Strategy<Value = Option<ModelPlacement>> {
    let num_slots = slots_per_rank.iter().sum::<usize>();
    let slots: Vec<usize> = (0..num_slots).map(|s| s % experts).collect();
    vec(Just(slots).prop_shuffle(), layers).prop_map(move |layers| {
        let mut end = 0;
        let ends = slots_per_rank.iter().map(|n| {
            end += n;
            end
        });
        let offsets: Vec<usize> = std::iter::once(0).chain(ends).collect();
        let layers = layers
            .into_iter()
            .map(|slots| Placement::new(experts, slots, offsets.clone()).ok())
            .collect::<Option<_>>()?;
        ModelPlacement::new(layers).ok()
    })
}
