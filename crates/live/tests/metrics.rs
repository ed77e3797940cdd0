//! What the `metrics` facade is told.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use common::faulty::bereaved;
use common::{Model, Rotate, watched};
use metrics::{
    Counter, Gauge, GaugeFn, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit,
};
use moekit_fused_moe::Reduction;
use moekit_live::LiveConfig;
use moekit_routing::ExpertRouting;

/// The gauges' values, by name and labels.
#[derive(Clone, Debug, Default)]
struct Gauges(Arc<Mutex<BTreeMap<Key, f64>>>);

struct OneGauge(Key, Gauges);

impl GaugeFn for OneGauge {
    fn increment(&self, value: f64) {
        let mut gauges = self.1.0.lock().unwrap();
        *gauges.entry(self.0.clone()).or_default() += value;
    }

    fn decrement(&self, value: f64) {
        self.increment(-value);
    }

    fn set(&self, value: f64) {
        self.1.0.lock().unwrap().insert(self.0.clone(), value);
    }
}

impl Recorder for Gauges {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
        Counter::noop()
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(Arc::new(OneGauge(key.clone(), self.clone())))
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

#[test]
fn generations_are_those_in_force_after_every_change_of_the_group() {
    watched(|| {
        let model = Model::random(2, Reduction::PerSlot);
        let config = LiveConfig::new(Arc::new(Rotate { by: 1 })).with_synchronous(true);
        let gauges = Gauges::default();
        metrics::with_local_recorder(&gauges, || {
            let told = |layer: usize| {
                let labels = [("rank", "0".to_owned()), ("layer", layer.to_string())];
                let key = Key::from_parts("moekit_table_generation", &labels);
                gauges.0.lock().unwrap().get(&key).copied()
            };
            let (mut live, _) = bereaved(&model, &config);
            assert_eq!([told(0), told(1)], [Some(0.0); 2]);
            live.recover().unwrap();
            assert_eq!([told(0), told(1)], [Some(1.0); 2]);
            while live.state().name() != "idle" {
                live.end_step().unwrap();
                for layer in 0..2 {
                    let generation = live.layer(layer).unwrap().routing_table().generation();
                    assert_eq!(told(layer), Some(generation as f64));
                }
            }
            assert!(told(0) > Some(1.0), "what was lost has been read");
        });
    });
}
