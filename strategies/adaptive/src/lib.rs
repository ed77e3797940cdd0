//! A placement strategy that balances what the ranks carry, moves little, and leaves room for the
//! split of each step.
//!
//! From nothing, a layer is planned in three steps: replicas by apportionment; a first layout,
//! longest first, with no expert twice on a rank and with replicas that connect the ranks; a search
//! by swaps and by exchanges of replicas, until the layer is as close to the provable bound as asked for.
//! With a placement in force the search starts there, and moves as few experts as it can.
//!
//! `docs/planning.md` has the model, the sources and the measured results.

mod apportion;
mod baseline;
mod budget;
mod draws;
mod exact;
mod exchange;
mod heavy;
mod homes;
mod lanes;
mod layers;
mod layout;
mod lightest;
mod near_home;
mod order;
mod pack;
mod pairs;
mod plan;
mod ranks;
mod recount;
mod repair;
mod replan;
mod settings;
mod slack;
mod spread;
mod starts;
mod strategy;
mod surplus;
mod swap;
mod undo;
mod weights;

use moekit_placement::register_strategy;

pub use settings::{Adaptive, Recovery, Replan};

register_strategy! {
    Adaptive,
    name: "adaptive",
    summary: "Close to the bound, few moves, room for the split of each step",
    example: Adaptive::default(),
}
