use moekit_routing::{LocalExpert, Placement, Rank, Topology};
use proptest::prelude::*;

use super::memory::Memory;
use super::scenario::{Scenario, anything, scenario};
use crate::migration::{Buffer, LayerMigration, Link, MigrationPlanner};
use crate::{ModelPlacement, PlacementChange, PlacementError};

fn of(experts: usize, ranks: &[&[usize]]) -> Placement {
    Placement::from_ranks(experts, ranks).unwrap()
}

fn between(topology: &Topology, current: &Placement, next: &Placement) -> LayerMigration {
    MigrationPlanner::new(topology)
        .layer(current, next)
        .unwrap()
}

/// Carries the plan out, and says whether it ended in the next placement.
fn replay(scenario: &Scenario, plan: &LayerMigration) -> Result<(), String> {
    let start = scenario.widen(&scenario.current);
    let mut memory = Memory::new(&scenario.topology, start, &scenario.lost);
    memory.replay(plan)?;
    let next = scenario.widen(&scenario.next);
    if memory.in_force() == &next {
        return Ok(());
    }
    Err(format!("{:?} in place of {next:?}", memory.in_force()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn plans_lead_to_the_next_placement(scenario in scenario()) {
        let plan = scenario.plan();
        prop_assert!(plan.stages.len() <= 1);
        prop_assert_eq!(replay(&scenario, &plan), Ok(()));
        prop_assert_eq!(&plan, &scenario.plan(), "a plan is a function of its inputs");

        let sum = plan.summary();
        prop_assert_eq!(
            sum.same_node + sum.cross_node + sum.checkpoint_reads,
            scenario.arrivals()
        );
        if scenario.lost.is_empty() {
            let change = PlacementChange::between(&scenario.current, &scenario.next);
            prop_assert_eq!(scenario.arrivals(), change.slots_received());
        }
    }

    #[test]
    fn stages_keep_to_the_staging_buffers(scenario in scenario(), staging in 1_usize..4) {
        let plan = scenario.planner().with_staging(staging);
        let plan = plan.layer(&scenario.current, &scenario.next).unwrap();
        prop_assert_eq!(replay(&scenario, &plan), Ok(()));
        prop_assert!(plan.summary().peak_staging <= staging);
        let sum = plan.summary();
        prop_assert_eq!(
            sum.same_node + sum.cross_node + sum.checkpoint_reads,
            scenario.arrivals(),
            "no expert travels twice"
        );
        let whole = scenario.plan();
        if whole.summary().peak_staging <= staging {
            prop_assert_eq!(plan, whole);
        }
    }

    #[test]
    fn experts_come_from_the_nearest_replica(scenario in anything()) {
        let plan = scenario.plan();
        for t in plan.stages.iter().flat_map(|s| s.transfers()) {
            let is_near = |rank: &Rank| {
                !scenario.lost.contains(rank)
                    && scenario.topology.node_of(*rank) == scenario.topology.node_of(t.to)
            };
            let near = (0..scenario.current.num_ranks()).map(Rank::new).filter(is_near).any(|r| {
                scenario.current.experts_of(r).unwrap().contains(&t.expert)
            });
            prop_assert_eq!(near, t.link == Link::SameNode);
        }
    }
}

/// The replay finds what is wrong with a plan.
#[test]
fn wrong_plans_fail() {
    let scenario = Scenario {
        topology: Topology::new(4).unwrap(),
        current: of(5, &[&[0, 1, 4], &[2, 3, 0], &[2], &[]]),
        next: of(5, &[&[4, 2, 1, 3], &[1, 0, 0], &[2, 3]]),
        lost: vec![],
    };
    let good = scenario.plan();
    assert_eq!(replay(&scenario, &good), Ok(()));
    let broken = |change: &dyn Fn(&mut crate::MigrationStage)| {
        let mut plan = good.clone();
        change(&mut plan.stages[0]);
        assert_ne!(plan, good);
        replay(&scenario, &plan).unwrap_err()
    };
    let slot = LocalExpert::new;
    let errors = [
        (broken(&|s| s.rounds.truncate(1)), "read but empty"),
        (broken(&|s| s.rounds.push(vec![])), "the number of rounds"),
        (broken(&|s| s.rounds[0][0].slot = slot(0)), "holds"),
        (
            broken(&|s| s.rounds[0][0].into = Buffer::Slot(slot(0))),
            "no free buffer",
        ),
        (
            broken(&|s| s.rounds[0].extend_from_within(..1)),
            "sends twice",
        ),
        (broken(&|s| s.commits[0].moves.reverse()), "holds"),
        (broken(&|s| s.staging[0] += 1), "staging of rank 0"),
        (broken(&|s| s.unchanged += 1), "unchanged"),
    ];
    for (error, part) in errors {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn senders_share_and_the_own_node_comes_first() {
    // Expert 0 is on ranks 0 and 1 of node 0 and on rank 4 of node 1; ranks 2, 3, 5, 6 need it.
    let topology = Topology::new(8).unwrap().with_nodes(2).unwrap();
    let current = of(
        9,
        &[&[0], &[0, 1], &[2], &[3], &[0, 4], &[5], &[6], &[7, 8]],
    );
    let next = of(
        9,
        &[
            &[0],
            &[0, 1],
            &[2, 0],
            &[3, 0],
            &[0, 4],
            &[5, 0],
            &[6, 0],
            &[7, 8, 1],
        ],
    );
    let stage = between(&topology, &current, &next).stages.remove(0);
    let mut sent: Vec<(usize, usize, usize, Link)> = stage
        .transfers()
        .map(|t| (t.expert.index(), t.from.index(), t.to.index(), t.link))
        .collect();
    sent.sort_unstable();
    let expected = [
        (0, 0, 2, Link::SameNode),
        (0, 1, 3, Link::SameNode),
        (0, 4, 5, Link::SameNode),
        (0, 4, 6, Link::SameNode),
        (1, 1, 7, Link::CrossNode),
    ];
    assert_eq!(sent, expected);
    assert_eq!(stage.rounds.len(), 2);
    assert_eq!(
        stage.peak_staging(),
        0,
        "all arrive in slots that nobody uses yet"
    );
}

#[test]
fn groups_grow_and_shrink() {
    let topology = Topology::new(4).unwrap();
    let one = of(4, &[&[0, 1, 2, 3]]);
    let four = of(4, &[&[0], &[1], &[2], &[3]]);
    let grow = between(&topology, &one, &four);
    assert_eq!(
        grow.stages[0].rounds.len(),
        3,
        "rank 0 sends to one at a time"
    );
    assert_eq!(grow.stages[0].placement, four);
    assert_eq!(grow.summary().peak_staging, 0);

    let shrink = between(&topology, &four, &one);
    assert_eq!(shrink.stages[0].rounds.len(), 3);
    assert_eq!(shrink.stages[0].peak_staging(), 0);
    assert_eq!(
        shrink.stages[0].placement,
        of(4, &[&[0, 1, 2, 3], &[], &[], &[]]),
        "the leaving ranks are in the group up to the commit"
    );
}

#[test]
fn what_only_a_lost_rank_held_is_named() {
    let scenario = Scenario {
        topology: Topology::new(3).unwrap(),
        current: of(5, &[&[0, 1], &[2, 3], &[3, 4]]),
        next: of(5, &[&[0, 1, 2], &[], &[2, 3, 4]]),
        lost: vec![Rank::new(1)],
    };
    let plan = scenario.plan();
    assert_eq!(replay(&scenario, &plan), Ok(()));
    let stage = &plan.stages[0];
    let reads: Vec<(usize, usize)> = stage
        .reads
        .iter()
        .map(|read| (read.rank.index(), read.expert.index()))
        .collect();
    assert_eq!(reads, [(0, 2), (2, 2)]);
    assert_eq!(stage.transfers().count(), 0);
    assert_eq!((stage.unchanged, stage.copied), (2, 2));

    // With the rank alive, it serves.
    let alive = between(&scenario.topology, &scenario.current, &scenario.next);
    assert_eq!(alive.summary().checkpoint_reads, 0);
    assert_eq!(alive.summary().same_node, 2);
}

#[test]
fn a_lost_rank_keeps_what_is_nowhere_else() {
    let scenario = Scenario {
        topology: Topology::new(2).unwrap(),
        current: of(4, &[&[0, 0, 0], &[1, 2, 3, 0]]),
        next: of(4, &[&[0, 1, 2, 3], &[]]),
        lost: vec![Rank::new(1)],
    };
    let plan = scenario.planner().with_staging(1);
    let plan = plan.layer(&scenario.current, &scenario.next).unwrap();
    assert_eq!(replay(&scenario, &plan), Ok(()));
    let reached: Vec<&Placement> = plan.stages.iter().map(|s| &s.placement).collect();
    assert_eq!(
        reached,
        [
            &of(4, &[&[0, 0, 2, 1], &[3]]),
            &of(4, &[&[0, 1, 2, 3], &[]]),
        ]
    );
}

#[test]
fn numbers_add_up() {
    let topology = Topology::new(4).unwrap().with_nodes(2).unwrap();
    let current = of(4, &[&[0], &[1], &[2], &[3]]);
    let next = of(4, &[&[1], &[0], &[1], &[2, 3]]);
    let model =
        |a: &Placement, b: &Placement| ModelPlacement::new(vec![a.clone(), b.clone()]).unwrap();
    let plan = MigrationPlanner::new(&topology)
        .with_layer_expert_bytes(vec![10, 7])
        .model(&model(&current, &current), &model(&next, &current))
        .unwrap();
    assert!(!plan.is_empty());
    assert_eq!(plan.layers[1].stages, []);
    let sum = plan.summary();
    assert_eq!((sum.same_node, sum.cross_node, sum.copied), (3, 1, 1));
    assert_eq!((sum.rounds, sum.stages, sum.peak_staging), (2, 1, 1));
    assert_eq!((sum.link_bytes, sum.read_bytes), (Some(40), Some(0)));
    assert_eq!(plan.layers[0].summary(), sum);

    let traffic = plan.traffic();
    let links: Vec<_> = traffic
        .links
        .iter()
        .map(|l| (l.from.index(), l.to.index(), l.link, l.experts, l.bytes))
        .collect();
    assert_eq!(
        links,
        [
            (0, 1, Link::SameNode, 1, Some(10)),
            (1, 0, Link::SameNode, 1, Some(10)),
            (1, 2, Link::CrossNode, 1, Some(10)),
            (2, 3, Link::SameNode, 1, Some(10)),
        ]
    );
    let one = &traffic.ranks[1];
    assert_eq!((one.sent, one.received, one.read), (2, 1, 0));
    assert_eq!((one.sent_bytes, one.received_bytes), (Some(20), Some(10)));

    let unknown = between(&topology, &current, &next);
    assert_eq!(unknown.summary().link_bytes, None);
    assert_eq!(unknown.summary().read_bytes, Some(0));
}

#[test]
fn plans_print_as_json() {
    let topology = Topology::new(2).unwrap();
    let plan = between(&topology, &of(2, &[&[0], &[1]]), &of(2, &[&[1, 0], &[1]]));
    let expected = serde_json::json!({
        "expert_bytes": null,
        "stages": [{
            "reads": [],
            "rounds": [[{
                "expert": 1, "from": 1, "slot": 0, "to": 0, "into": {"slot": 1}, "link": "same_node"
            }]],
            "commits": [{"rank": 0, "moves": [
                {"expert": 0, "from": {"slot": 0}, "to": {"staging": 0}},
                {"expert": 1, "from": {"slot": 1}, "to": {"slot": 0}},
                {"expert": 0, "from": {"staging": 0}, "to": {"slot": 1}},
            ]}],
            "staging": [1, 0],
            "unchanged": 1,
            "copied": 1,
            "placement": {
                "num_logical_experts": 2, "physical_to_logical": [1, 0, 1], "rank_offsets": [0, 2, 3]
            },
        }],
    });
    assert_eq!(serde_json::to_value(&plan).unwrap(), expected);
}

#[test]
fn nonsense_is_refused() {
    let topology = Topology::new(2).unwrap();
    let planner = MigrationPlanner::new(&topology);
    let two = of(2, &[&[0], &[1]]);
    let message = |r: Result<LayerMigration, PlacementError>| r.unwrap_err().to_string();
    assert!(message(planner.layer(&two, &of(3, &[&[0, 1, 2]]))).contains("got 3, expected 2"),);
    assert!(message(planner.layer(&two, &of(2, &[&[0], &[1], &[]]))).contains("has 3 ranks"),);
    let lost = |ranks: &[usize]| {
        let ranks: Vec<Rank> = ranks.iter().copied().map(Rank::new).collect();
        planner.clone().with_lost_ranks(&ranks)
    };
    assert!(
        lost(&[2])
            .unwrap_err()
            .to_string()
            .contains("rank 2 does not exist")
    );
    assert!(message(lost(&[1]).unwrap().layer(&two, &two)).contains("rank 1 is lost"));

    let swapped = of(2, &[&[1], &[0]]);
    let none = planner.clone().with_staging(0);
    assert!(message(none.layer(&two, &swapped)).contains("needs 1"));
    assert_eq!(none.layer(&two, &two).unwrap().stages, []);
    let bytes = planner.clone().with_expert_bytes(0);
    assert!(message(bytes.layer(&two, &two)).contains("at least 1 byte"));
    let bytes = planner.clone().with_layer_expert_bytes(vec![1, 2]);
    assert!(message(bytes.layer(&two, &two)).contains("got 2, expected 1"));

    let model = |layers: usize| ModelPlacement::new(vec![two.clone(); layers]).unwrap();
    let error = planner.model(&model(1), &model(2)).unwrap_err().to_string();
    assert!(
        error.contains("layers in the next placement: got 2, expected 1"),
        "{error}"
    );
}
