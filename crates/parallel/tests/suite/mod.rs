//! What every communicator must do, whatever carries its messages.
//!
//! Each scenario runs on all ranks of a group of its own, which it may end.
#![allow(dead_code, reason = "a module of several tests")]

mod collectives;
mod failures;
mod groups;
pub(crate) mod job;
mod messages;
pub(crate) mod process;
pub(crate) mod steps;

use std::sync::Arc;

use moekit_parallel::Communicator;
use moekit_routing::Rank;

pub(crate) type Scenario = fn(&Arc<dyn Communicator>);

/// All scenarios, by name.
pub(crate) const SCENARIOS: [(&str, Scenario); 16] = [
    ("every step, many rounds", collectives::every_step),
    ("nothing at all is a message", collectives::nothing),
    (
        "one rank has everything, the others nothing",
        collectives::one_gives,
    ),
    (
        "reductions have the bits of a loop in rank order",
        collectives::reductions,
    ),
    (
        "messages keep their order and their tags",
        messages::order_and_tags,
    ),
    (
        "large messages in both directions at once",
        messages::large_messages,
    ),
    (
        "what was not asked for is in nobody's way",
        messages::unread_messages,
    ),
    (
        "different collectives are an error on all ranks",
        failures::mismatch,
    ),
    (
        "a wrong argument is an error on all ranks",
        failures::wrong_arguments,
    ),
    (
        "a sum that overflows is an error on all ranks",
        failures::overflow,
    ),
    ("an abort ends every call", failures::abort),
    (
        "another thread can abort a rank that waits",
        failures::abort_from_thread,
    ),
    (
        "a wrong argument of a message concerns one rank",
        messages::wrong_messages,
    ),
    (
        "subgroups are numbered in the order given",
        groups::subgroups,
    ),
    ("survivors go on in a smaller group", groups::survivors),
    (
        "dispatch and combine, ranks without tokens too",
        groups::dispatch,
    ),
];

pub(crate) fn ranks(members: impl IntoIterator<Item = usize>) -> Vec<Rank> {
    members.into_iter().map(Rank::new).collect()
}

/// A group of the same ranks that may end.
pub(crate) fn again(comm: &dyn Communicator) -> Arc<dyn Communicator> {
    comm.subgroup(&ranks(0..comm.size())).unwrap().unwrap()
}
