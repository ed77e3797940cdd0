//! What makes no sense cannot be asked, so that no strategy ever sees it.

use moekit_placement::{ExpertLoad, PlacementError, PlacementRequest, Topology};
use proptest::prelude::*;

fn any_nonsense() -> impl Strategy<Value = f64> {
    prop_oneof![
        Just(f64::NAN),
        Just(f64::INFINITY),
        Just(f64::NEG_INFINITY),
        Just(-f64::MIN_POSITIVE),
        -1e9..-1e-9,
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_load_that_counts_no_tokens(
        (layers, experts) in (1usize..4, 1usize..20),
        at in any::<prop::sample::Index>(),
        nonsense in any_nonsense(),
    ) {
        let mut values = vec![1.0; layers * experts];
        let at = at.index(values.len());
        values[at] = nonsense;
        match ExpertLoad::new(layers, experts, values) {
            Err(PlacementError::Load { layer, expert, value }) => {
                prop_assert_eq!((layer, expert), (at / experts, at % experts));
                prop_assert_eq!(value.to_bits(), nonsense.to_bits());
            }
            other => prop_assert!(false, "{:?}", other),
        }
    }

    #[test]
    fn fewer_slots_than_experts(experts in 1usize..40, ranks in 1usize..9, missing in 1usize..40) {
        let slots = experts.saturating_sub(missing);
        let topology = Topology::new(ranks).unwrap();
        let request = PlacementRequest::new(1, experts, &topology).unwrap();
        let refused = request.with_num_slots(slots).unwrap_err();
        prop_assert_eq!(refused, PlacementError::TooFewSlots { num_slots: slots, num_experts: experts });
    }

    #[test]
    fn shapes_that_disagree(experts in 1usize..9, load_experts in 1usize..9, layers in 1usize..4) {
        let topology = Topology::new(2).unwrap();
        let load = ExpertLoad::new(2, load_experts, vec![1.0; 2 * load_experts]).unwrap();
        let request = PlacementRequest::new(layers, experts, &topology).unwrap();
        let fits = (layers, experts) == (2, load_experts);
        prop_assert_eq!(request.with_load(&load).is_ok(), fits);
    }
}
