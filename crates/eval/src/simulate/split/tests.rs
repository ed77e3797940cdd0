use moekit_routing::{
    CountsNeeded, LogicalExpert, Placement, ReplicaSelector, RoutingError, SelectContext,
    SelectReplica, Topology,
};
use proptest::prelude::*;

use super::selector::deal;
use super::*;

fn table(ranks: &[&[usize]], experts: usize, nodes: usize) -> RoutingTable {
    let placement = Placement::from_ranks(experts, ranks).unwrap();
    let topology = Topology::new(ranks.len())
        .unwrap()
        .with_nodes(nodes)
        .unwrap();
    RoutingTable::new(placement, topology, 0, 0).unwrap()
}

/// Expert 0 is on both ranks; rank 1 must carry expert 2 as well.
fn shared_expert() -> RoutingTable {
    table(&[&[0, 1], &[0, 2]], 3, 2)
}

#[test]
fn waterfill_levels_the_ranks_of_this_step() {
    let (table, other) = (shared_expert(), table(&[&[0, 1], &[0, 2]], 3, 1));
    let mut split = WaterfillSplit::this_step("waterfill");
    assert_eq!(split.name(), "waterfill");
    let mut context = SplitContext::new(&table, &[4.0, 1.0, 3.0]);
    context.previous = &[0.0, 9.0, 0.0];
    let result = split.split(&context).unwrap();
    assert_eq!(result.loads, [3.0, 1.0, 1.0, 3.0]);
    // Half of each expert's tokens come from each node, and expert 0 keeps two of them there.
    assert_eq!(result.off_node, 1.0 + 0.5 + 1.5);
    context.layer = 2;
    (context.table, context.counts) = (&other, &[4.0, 3.0, 1.0]);
    assert_eq!(split.split(&context).unwrap().loads, [1.0, 3.0, 3.0, 1.0]);
}

#[test]
fn waterfill_previous_keeps_the_proportions_of_the_step_before() {
    let table = shared_expert();
    let mut split = WaterfillSplit::previous_step("waterfill-previous");
    let mut context = SplitContext::new(&table, &[10.0, 2.0, 2.0]);
    context.previous = &[4.0, 1.0, 3.0];
    assert_eq!(split.split(&context).unwrap().loads, [7.5, 2.0, 2.5, 2.0]);
    context.previous = &[0.0, 1.0, 3.0];
    assert_eq!(split.split(&context).unwrap().loads, [5.0, 2.0, 5.0, 2.0]);
}

fn by_name(name: &str) -> SelectorSplit {
    SelectorSplit::new(name, ReplicaSelector::from_name(name).unwrap(), 2, 5)
}

#[test]
fn equal_split_halves() {
    let table = table(&[&[0, 1], &[0, 2]], 3, 2);
    let split = EqualSplit
        .split(&SplitContext::new(&table, &[3.0, 4.0, 5.0]))
        .unwrap();
    assert_eq!(split.loads, [1.5, 4.0, 1.5, 5.0]);
    assert_eq!(
        split.off_node, 6.0,
        "half of all tokens come from the other node"
    );
}

#[test]
fn nodes_serve_their_own_first() {
    let table = table(&[&[0], &[1], &[0], &[2]], 3, 2);
    // Expert 0 has two tokens on each node and is asked to serve three on the first.
    assert_eq!(
        off_node_nearest(&table, &[4.0, 0.0, 0.0], &[3.0, 0.0, 1.0, 0.0]),
        1.0
    );
    assert_eq!(
        off_node_nearest(&table, &[4.0, 2.0, 0.0], &[2.0, 2.0, 2.0, 0.0]),
        1.0
    );
    assert_eq!(off_node_blind(&table, &[3.0, 0.0, 1.0, 0.0]), 2.0);
}

#[test]
fn local_first_stays_on_its_node() {
    let table = table(&[&[0, 1], &[2], &[0, 1], &[2]], 3, 2);
    let context = SplitContext::new(&table, &[40.0, 8.0, 16.0]);
    assert_eq!(
        by_name("local_first").split(&context).unwrap().off_node,
        0.0
    );
    let blind = by_name("round_robin").split(&context).unwrap();
    assert!((blind.off_node - 32.0).abs() < 16.0, "{}", blind.off_node);
}

#[test]
fn whole_tokens_only() {
    let table = table(&[&[0]], 1, 1);
    let split = |count: f64| by_name("row_hash").split(&SplitContext::new(&table, &[count]));
    assert_eq!(split(2.0).unwrap().loads, [2.0]);
    for bad in [0.5, -1.0, f64::NAN, 1e300] {
        let error = split(bad).unwrap_err().to_string();
        assert!(
            error.contains(&bad.to_string()) && error.contains("whole"),
            "{error}"
        );
    }
    let wrong = EqualSplit
        .split(&SplitContext::new(&table, &[1.0, 2.0]))
        .unwrap_err();
    assert!(wrong.to_string().contains("is 2, expected 1"), "{wrong}");
}

/// Takes the last replica, and notes the counts that it was shown.
#[derive(Debug)]
struct Noting(CountsNeeded, std::sync::Mutex<Vec<Vec<u64>>>);

impl SelectReplica for Noting {
    fn select(
        &self,
        context: &SelectContext<'_>,
        _: &[i64],
        _: &mut [i64],
    ) -> Result<(), RoutingError> {
        let counts = context.counts.unwrap_or_default().to_vec();
        self.1.lock().unwrap().push(counts);
        Ok(())
    }

    fn counts_needed(&self) -> CountsNeeded {
        self.0
    }
}

#[test]
fn selectors_get_the_counts_that_they_ask_for() {
    let table = table(&[&[0], &[1]], 2, 1);
    for (needed, expected) in [
        (CountsNeeded::None, vec![]),
        (CountsNeeded::ThisStep, vec![2, 1, 1, 1]),
        (CountsNeeded::PreviousStep, vec![0, 3, 0, 2]),
    ] {
        let noting = std::sync::Arc::new(Noting(needed, std::sync::Mutex::default()));
        let custom = moekit_routing::CustomSelector(noting.clone());
        let mut split = SelectorSplit::new("noting", ReplicaSelector::Custom(custom), 1, 0);
        let mut context = SplitContext::new(&table, &[3.0, 2.0]);
        context.previous = &[0.0, 5.0];
        split.split(&context).unwrap();
        assert_eq!(*noting.1.lock().unwrap(), [expected.clone(), expected]);
    }
}

proptest! {
    #[test]
    fn no_token_is_lost(
        counts in prop::collection::vec(0u32..50, 4),
        name in prop::sample::select(ReplicaSelector::NAMES),
    ) {
        let table = table(&[&[0, 1, 2], &[3, 0], &[], &[0, 1]], 4, 2);
        let counts: Vec<f64> = counts.into_iter().map(f64::from).collect();
        let context = SplitContext::new(&table, &counts);
        let splits: [&mut dyn TokenSplit; 4] = [
            &mut EqualSplit,
            &mut by_name(name),
            &mut WaterfillSplit::this_step("this"),
            &mut WaterfillSplit::previous_step("previous"),
        ];
        for split in splits {
            let split = split.split(&context).unwrap();
            for (expert, count) in counts.iter().enumerate() {
                let slots = table.replicas(LogicalExpert::new(expert)).unwrap();
                let sum: f64 = slots.iter().map(|s| split.loads[s.index()]).sum();
                prop_assert!((sum - count).abs() < 1e-9);
            }
            let least = off_node_nearest(&table, &counts, &split.loads);
            // Dealing leaves each expert uneven by less than a token per rank.
            prop_assert!(split.off_node >= least - 16.0);
        }
    }

    #[test]
    fn ranks_are_dealt_alike(counts in prop::collection::vec(0u32..50, 3)) {
        let table = table(&[&[0, 1], &[2], &[], &[0], &[1]], 3, 1);
        let counts: Vec<f64> = counts.into_iter().map(f64::from).collect();
        let dealt = deal(&table, &counts).unwrap();
        let ranks: Vec<u64> = dealt.chunks(3).map(|rank| rank.iter().sum()).collect();
        prop_assert!(ranks.iter().max().unwrap() - ranks.iter().min().unwrap() <= 1);
        for (expert, count) in counts.iter().enumerate() {
            let sum: u64 = dealt.iter().skip(expert).step_by(3).sum();
            prop_assert_eq!(sum as f64, *count);
        }
    }
}
