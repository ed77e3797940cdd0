use proptest::prelude::*;

use super::*;
use crate::{LogicalExpert, Placement, Rank, RoutingTable, Topology};

fn table(ranks: &[Vec<usize>], experts: usize, nodes: usize) -> RoutingTable {
    let placement = Placement::from_ranks(experts, ranks).unwrap();
    let topology = Topology::new(ranks.len()).unwrap().with_nodes(nodes);
    RoutingTable::new(placement, topology.unwrap(), 0, 0).unwrap()
}

fn rank_loads(table: &RoutingTable, split: &[u64]) -> Vec<u64> {
    let ranks = table.placement().rank_offsets().windows(2);
    ranks.map(|w| split[w[0]..w[1]].iter().sum()).collect()
}

/// The least that the busiest rank can carry: over all sets of ranks, the tokens of the experts
/// that sit only there, per rank.
fn optimum(table: &RoutingTable, counts: &[u64]) -> f64 {
    let holders: Vec<u32> = (0..counts.len())
        .map(|e| table.replicas(LogicalExpert::new(e)).unwrap())
        .map(|slots| slots.iter().map(|&s| 1 << table.owner(s).unwrap().index()))
        .map(|ranks| ranks.fold(0, |set, rank: u32| set | rank))
        .collect();
    let level = |set: u32| {
        let inside = holders.iter().zip(counts).filter(|(h, _)| **h & !set == 0);
        inside.map(|(_, &count)| count).sum::<u64>() as f64 / f64::from(set.count_ones())
    };
    (1u32..1 << table.num_ranks())
        .map(level)
        .fold(0.0, f64::max)
}

/// Every rank's ids from its counts, in a fixed disorder.
fn ids(counts: &[u64]) -> Vec<i64> {
    let mut ids: Vec<i64> = (0i64..)
        .zip(counts)
        .flat_map(|(e, &n)| std::iter::repeat_n(e, n as usize))
        .collect();
    for at in 1..ids.len() {
        ids.swap(at, at * at % (at + 1) * 7 % (at + 1));
    }
    ids.push(-1);
    ids
}

/// Routes one step on all ranks, each with a selector of its own: tokens per slot, and how many
/// are served where they came from.
fn route(
    table: &RoutingTable,
    selectors: &[Waterfill],
    seen: &[u64],
    counts: &[u64],
) -> (Vec<u64>, u64) {
    let experts = table.num_logical_experts();
    let (mut slots, mut at_home) = (vec![0; table.num_physical_experts()], 0);
    for (rank, (selector, own)) in selectors.iter().zip(counts.chunks(experts)).enumerate() {
        let ids = ids(own);
        let mut physical = vec![0; ids.len()];
        let context = SelectContext::new(table, Rank::new(rank), 1).with_counts(seen);
        selector.select(&context, &ids, &mut physical).unwrap();
        for (&id, &slot) in ids.iter().zip(&physical) {
            let slot = PhysicalExpert::from_raw(slot);
            assert_eq!(
                slot.and_then(|s| table.logical_of(s)),
                LogicalExpert::from_raw(id)
            );
            if let Some(slot) = slot {
                slots[slot.index()] += 1;
                at_home += u64::from(table.owner(slot) == Some(Rank::new(rank)));
            }
        }
    }
    (slots, at_home)
}

fn totals(counts: &[u64], experts: usize) -> Vec<u64> {
    (0..experts)
        .map(|e| counts.iter().skip(e).step_by(experts).sum())
        .collect()
}

/// Placements of seven experts on up to five ranks, duplicates and ranks without slots included.
fn any_table() -> impl Strategy<Value = RoutingTable> {
    let rank = prop::collection::vec(0usize..7, 0..5);
    (prop::collection::vec(rank, 1..6), 0usize..5).prop_map(|(mut ranks, first)| {
        let num_ranks = ranks.len();
        (0..7).for_each(|e| ranks[(first + e) % num_ranks].push(e));
        table(&ranks, 7, num_ranks.div_ceil(2))
    })
}

proptest! {
    #[test]
    fn the_busiest_rank_is_within_the_tolerance_of_the_optimum(
        table in any_table(),
        steps in prop::collection::vec(prop::collection::vec(0u64..100_000, 7), 1..4),
    ) {
        let mut shares = ReplicaShares::new(&table).with_tolerance(1e-4).unwrap();
        for counts in steps {
            let split = shares.split(&counts).unwrap().to_vec();
            for (expert, &count) in counts.iter().enumerate() {
                let slots = table.replicas(LogicalExpert::new(expert)).unwrap();
                prop_assert_eq!(slots.iter().map(|s| split[s.index()]).sum::<u64>(), count);
            }
            let max = rank_loads(&table, &split).into_iter().max().unwrap();
            let best = optimum(&table, &counts);
            // Rounding costs less than a token per replica on the rank.
            prop_assert!(max as f64 <= best * (1.0 + 2e-4) + 4.0, "{max} {best}");
        }
    }

    #[test]
    fn every_slot_gets_its_share_and_no_rank_gives_away_what_it_could_keep(
        table in any_table(),
        steps in prop::collection::vec(prop::collection::vec(0u64..9, 35), 1..3),
    ) {
        let ranks = table.num_ranks();
        let selectors = vec![Waterfill::this_step(); ranks];
        let mut shares = ReplicaShares::new(&table);
        for counts in steps {
            let counts = &counts[..ranks * 7];
            let (slots, at_home) = route(&table, &selectors, counts, counts);
            let split = shares.split(&totals(counts, 7)).unwrap();
            prop_assert_eq!(&slots, split);
            let mut kept = 0;
            for (rank, own) in counts.chunks(7).enumerate() {
                for (expert, &count) in own.iter().enumerate() {
                    let slots = table.replicas(LogicalExpert::new(expert)).unwrap().iter();
                    let here = slots.filter(|&&s| table.owner(s) == Some(Rank::new(rank)));
                    kept += count.min(here.map(|s| split[s.index()]).sum());
                }
            }
            prop_assert_eq!(at_home, kept);
        }
    }

    #[test]
    fn the_step_before_decides_the_proportions(
        table in any_table(),
        previous in prop::collection::vec(0u64..9, 35),
        counts in prop::collection::vec(0u64..9, 35),
    ) {
        let ranks = table.num_ranks();
        let selectors = vec![Waterfill::previous_step(); ranks];
        let (previous, counts) = (&previous[..ranks * 7], &counts[..ranks * 7]);
        // The same step again is split as the step itself.
        let (slots, _) = route(&table, &selectors, previous, previous);
        let mut shares = ReplicaShares::new(&table);
        prop_assert_eq!(&slots, shares.split(&totals(previous, 7)).unwrap());
        // Another one goes whole, whatever it is.
        let (slots, _) = route(&table, &selectors, previous, counts);
        prop_assert_eq!(slots.iter().sum::<u64>(), counts.iter().sum::<u64>());
    }
}

#[test]
fn a_chain_of_ranks_passes_load_along() {
    // Rank r holds experts r and r + 1 of a chain, and the first rank all the fixed load.
    let ranks: Vec<Vec<usize>> = (0..8)
        .map(|r| if r == 7 { vec![7] } else { vec![r, r + 1] })
        .chain([vec![0]])
        .collect();
    let table = table(&ranks, 8, 1);
    let mut counts = [100; 8];
    counts[0] = 1000;
    let mut shares = ReplicaShares::new(&table).with_tolerance(1e-6).unwrap();
    let split = shares.split(&counts).unwrap();
    let max = rank_loads(&table, split).into_iter().max().unwrap() as f64;
    assert!(max <= optimum(&table, &counts) + 2.0, "{split:?}");
}

#[test]
fn a_warm_start_needs_no_sweeps_for_the_same_counts() {
    let ranks = [vec![0, 1, 2], vec![0, 3, 1], vec![2, 0, 4]];
    let table = table(&ranks, 5, 1);
    let counts = [900, 400, 100, 50, 70];
    let mut shares = ReplicaShares::new(&table);
    let first = shares.split(&counts).unwrap().to_vec();
    let mut shares = shares.with_max_sweeps(0);
    assert_eq!(shares.split(&counts).unwrap(), first);
    // Nothing in a step does not make the shares forget.
    assert_eq!(shares.split(&[0; 5]).unwrap(), [0; 9]);
    assert_eq!(shares.split(&counts).unwrap(), first);
}

#[test]
fn a_new_table_is_a_new_start() {
    let old = table(&[vec![0, 1], vec![0, 2]], 3, 1);
    let placement = Placement::from_ranks(3, &[[0, 2], [1, 0]]).unwrap();
    let new = RoutingTable::new(placement, Topology::new(2).unwrap(), 0, 1).unwrap();
    let (warm, fresh) = (
        vec![Waterfill::this_step(); 2],
        vec![Waterfill::this_step(); 2],
    );
    route(&old, &warm, &[9, 0, 3, 2, 2, 2], &[9, 0, 3, 2, 2, 2]);
    let counts = [30, 1, 5, 11, 2, 2];
    assert_eq!(
        route(&new, &warm, &counts, &counts),
        route(&new, &fresh, &counts, &counts)
    );
    assert!(!ReplicaShares::new(&old).fits(&new));
    let again = RoutingTable::new(old.placement().clone(), Topology::new(2).unwrap(), 0, 2);
    assert!(
        !ReplicaShares::new(&old).fits(&again.unwrap()),
        "another generation"
    );
}

#[test]
fn counts_that_do_not_fit_are_refused() {
    let table = table(&[vec![0, 1], vec![0]], 2, 1);
    let select = |selector: Waterfill, rank, counts: Option<&[u64]>| {
        let mut context = SelectContext::new(&table, Rank::new(rank), 1);
        context.counts = counts;
        let error = selector.select(&context, &[0, 1], &mut [0; 2]);
        error.unwrap_err().to_string()
    };
    let error = select(Waterfill::this_step(), 0, None);
    assert!(
        error.contains("`waterfill` needs the token counts of this step"),
        "{error}"
    );
    let error = select(Waterfill::previous_step(), 0, None);
    assert!(
        error.contains("`waterfill_previous`") && error.contains("previous"),
        "{error}"
    );
    let error = select(Waterfill::this_step(), 0, Some(&[1, 1]));
    assert!(error.contains("has 2 entries, expected 4"), "{error}");
    let error = select(Waterfill::this_step(), 1, Some(&[1, 1, 1, 0]));
    assert!(
        error.contains("rank 1 routes 1 tokens to logical expert 1, the counts say 0"),
        "{error}"
    );
    let error = select(Waterfill::this_step(), 0, Some(&[1, 1, u64::MAX, 0]));
    assert!(error.contains("tokens of a step are more than"), "{error}");
    for bad in [-0.1, 1.0, f64::NAN] {
        assert!(Waterfill::this_step().with_tolerance(bad).is_err());
        assert!(ReplicaShares::new(&table).with_tolerance(bad).is_err());
    }
    assert!(ReplicaShares::new(&table).split(&[1]).is_err());
}
