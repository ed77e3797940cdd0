//! Ranks come and go.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use moekit_fused_moe::Reduction;
use moekit_live::{Event, LiveConfig, LiveRank};
use moekit_parallel::{ThreadMember, ThreadWorld};
use moekit_routing::Rank;

use crate::common::{EXPERTS, Model, Rotate, Seen, rotating, run, spread_over, watched};

/// What every member looks at between steps: who is to leave, and when all end; and who is there.
#[derive(Debug, Default)]
struct Orders {
    /// Bits of members that are to leave.
    leave: AtomicU64,
    /// All end after this step, once it is not 0.
    last: AtomicU64,
    /// Members that have been let in.
    inside: AtomicU64,
}

fn steps(model: &Model, live: &mut LiveRank, id: u64, orders: &Orders) -> Seen {
    let mut seen = Seen::default();
    loop {
        live.set_leaving(orders.leave.load(Ordering::SeqCst) & (1 << id) != 0);
        let step = model
            .step(live, id, true)
            .and_then(|unserved| Ok((unserved, live.end_step()?)));
        match step {
            Ok((unserved, report)) => {
                seen.unserved += unserved;
                seen.events.extend(report.events);
            }
            Err(error) => {
                assert!(error.ends_group(), "{error}");
                seen.errors.push(error.to_string());
                seen.events.push(live.recover().unwrap());
            }
        }
        let last = orders.last.load(Ordering::SeqCst);
        if seen.events.last() == Some(&Event::Left) || last != 0 && live.step() >= last {
            seen.placements = live.placements();
            return seen;
        }
    }
}

fn spawn(
    model: &Model,
    config: &LiveConfig,
    member: ThreadMember,
    orders: &Arc<Orders>,
) -> thread::JoinHandle<Seen> {
    let (model, config, orders) = (model.clone(), config.clone(), orders.clone());
    thread::spawn(move || {
        let id = member.id();
        let mut live = model.start(member, 1, config).unwrap();
        orders.inside.fetch_add(1, Ordering::SeqCst);
        steps(&model, &mut live, id, &orders)
    })
}

/// Drives member 0 until `done`, and keeps what it saw.
fn drive(
    model: &Model,
    live: &mut LiveRank,
    seen: &mut Seen,
    mut done: impl FnMut(&LiveRank, &Seen) -> bool,
) {
    while !done(live, seen) {
        seen.unserved += model.step(live, 0, true).unwrap();
        seen.events.extend(live.end_step().unwrap().events);
    }
}

#[test]
fn a_group_grows_from_one_to_four_shrinks_to_three_and_to_one() {
    watched(|| {
        for synchronous in [true, false] {
            let model = Model::random(2, Reduction::PerSlot);
            let config = rotating()
                .with_interval(7)
                .with_bytes_per_step(4000)
                .with_synchronous(synchronous);
            let world = ThreadWorld::new(1);
            let orders = Arc::new(Orders::default());
            let first = world.enter();
            let mut live = model.start(first, 1, config.clone()).unwrap();
            let mut seen = Seen::default();
            drive(&model, &mut live, &mut seen, |live, _| live.step() == 5);

            let newcomers: Vec<_> = (0..3)
                .map(|_| spawn(&model, &config, world.enter(), &orders))
                .collect();
            drive(&model, &mut live, &mut seen, |live, _| spread_over(live, 4));

            orders.leave.store(1 << 2, Ordering::SeqCst);
            drive(&model, &mut live, &mut seen, |live, _| spread_over(live, 3));
            assert_eq!(live.members(), [0, 1, 3]);

            // Two at once.
            orders
                .leave
                .store(1 << 1 | 1 << 2 | 1 << 3, Ordering::SeqCst);
            drive(&model, &mut live, &mut seen, |live, _| spread_over(live, 1));
            assert_eq!(live.members(), [0]);

            assert_eq!(seen.unserved, 0);
            for newcomer in newcomers {
                let newcomer = newcomer.join().unwrap();
                assert_eq!(newcomer.events.last(), Some(&Event::Left));
                assert!(newcomer.errors.is_empty() && newcomer.unserved == 0);
            }
            let read = model.source.reads.lock().unwrap().len();
            assert_eq!(read, 2 * EXPERTS, "nothing was read again");
        }
    });
}

/// Rank 0 decides, so it is the one whose leaving asks most of the others.
#[test]
fn the_first_rank_may_leave_while_another_comes() {
    watched(|| {
        let model = Model::random(2, Reduction::PerSlot);
        let config = rotating().with_interval(7).with_synchronous(true);
        let world = ThreadWorld::new(1);
        let orders = Arc::new(Orders::default());
        let mut live = model.start(world.enter(), 1, config.clone()).unwrap();
        let mut seen = Seen::default();
        let second = spawn(&model, &config, world.enter(), &orders);
        drive(&model, &mut live, &mut seen, |live, _| spread_over(live, 2));
        let third = spawn(&model, &config, world.enter(), &orders);
        live.set_leaving(true);
        let left = |_: &LiveRank, seen: &Seen| seen.events.last() == Some(&Event::Left);
        drive(&model, &mut live, &mut seen, left);
        assert!(live.rank().is_none());
        // With the last one its group ends.
        while orders.inside.load(Ordering::SeqCst) < 2 {
            thread::yield_now();
        }
        // The others go on; nobody knows in which step they are, so they end by leaving one by one.
        orders.last.store(1, Ordering::SeqCst);
        let (second, third) = (second.join().unwrap(), third.join());
        assert!(second.unserved == 0 && third.is_ok());
    });
}

/// A rank is lost while another is let in and a third moves out.
#[test]
fn changes_at_once() {
    watched(|| {
        let model = Model::random(2, Reduction::PerSlot);
        let config = rotating()
            .with_interval(7)
            .with_bytes_per_step(1600)
            .with_synchronous(true);
        let world = ThreadWorld::new(1);
        let orders = Arc::new(Orders::default());
        let mut live = model.start(world.enter(), 1, config.clone()).unwrap();
        let mut seen = Seen::default();
        let mut newcomers = vec![
            spawn(&model, &config, world.enter(), &orders),
            spawn(&model, &config, world.enter(), &orders),
        ];
        let lost = {
            let (model, config, member) = (model.clone(), config.clone(), world.enter());
            let orders = orders.clone();
            thread::spawn(move || {
                let id = member.id();
                let mut live = model.start(member, 1, config).unwrap();
                while orders.leave.load(Ordering::SeqCst) == 0 {
                    model.step(&live, id, true).unwrap();
                    live.end_step().unwrap();
                }
                // Gone without a word.
            })
        };
        drive(&model, &mut live, &mut seen, |live, _| spread_over(live, 4));
        orders.leave.store(1 << 1, Ordering::SeqCst);
        newcomers.push(spawn(&model, &config, world.enter(), &orders));
        // Members 0, 2 and the newcomer remain.
        while !(spread_over(&live, 3) && live.members() == [0, 2, 4]) {
            let step = model
                .step(&live, 0, true)
                .and_then(|unserved| Ok((unserved, live.end_step()?)));
            match step {
                Ok((unserved, _)) => seen.unserved += unserved,
                Err(error) => {
                    assert!(error.ends_group(), "{error}");
                    live.recover().unwrap();
                }
            }
        }
        lost.join().unwrap();
        assert_eq!(live.absent(0).len() + live.absent(1).len(), 0);
        orders.last.store(1, Ordering::SeqCst);
        drop(live);
        for newcomer in newcomers {
            newcomer.join().unwrap();
        }
    });
}

/// A group that is smaller than its first placement lets members in all the same.
#[test]
fn a_newcomer_may_find_a_smaller_group_than_the_first() {
    watched(|| {
        let model = Model::random(2, Reduction::PerSlot);
        let config = rotating().with_interval(7).with_synchronous(true);
        let world = ThreadWorld::new(4);
        let others: Vec<_> = (0..3)
            .map(|_| {
                let (model, config, member) = (model.clone(), config.clone(), world.enter());
                thread::spawn(move || {
                    // Enters, and is gone.
                    drop(model.start(member, 4, config).unwrap());
                })
            })
            .collect();
        let mut live = model.start(world.enter(), 4, config.clone()).unwrap();
        for other in others {
            other.join().unwrap();
        }
        live.recover().unwrap();
        let newcomer = {
            let (model, config, member) = (model.clone(), config, world.enter());
            thread::spawn(move || {
                let mut live = model.start(member, 4, config).unwrap();
                let size = live.members().len();
                live.end_step().ok();
                size
            })
        };
        while live.members().len() == 1 {
            live.end_step().unwrap();
        }
        live.end_step().ok();
        assert_eq!(newcomer.join().unwrap(), 2);
    });
}

/// The one that held everything is lost before the newcomers have got anything: they read it, and
/// know from it how large an expert is.
#[test]
fn survivors_that_hold_nothing_read_everything() {
    watched(|| {
        let model = Model::random(2, Reduction::PerSlot);
        let config = LiveConfig::new(Arc::new(Rotate { by: EXPERTS / 2 }))
            .with_retry(2)
            .with_synchronous(true)
            .with_staging_bytes(model.encoded_expert());
        // As many as the first placement is for, and more.
        for newcomers in [1, 2] {
            let world = ThreadWorld::new(1);
            let mut live = model.start(world.enter(), 1, config.clone()).unwrap();
            let threads: Vec<_> = (0..newcomers)
                .map(|_| {
                    let (model, config, member) = (model.clone(), config.clone(), world.enter());
                    thread::spawn(move || {
                        let id = member.id();
                        let live = model.start(member, 1, config).unwrap();
                        run(&model, live, id, 60, true)
                    })
                })
                .collect();
            world.wait_for_newcomers();
            while live.members().len() == 1 {
                live.end_step().unwrap();
            }
            for placement in live.placements() {
                let held = placement.experts_of(Rank::new(0)).unwrap().len();
                assert_eq!(
                    (held, placement.physical_to_logical().len()),
                    (EXPERTS, EXPERTS)
                );
            }
            drop(live);
            for thread in threads {
                let seen = thread.join().unwrap();
                let nothing = Event::Regrouped {
                    members: (1..=newcomers).collect(),
                    absent: 2 * EXPERTS,
                };
                assert!(seen.events.contains(&nothing), "{seen:?}");
                assert_eq!((seen.errors.len(), seen.absent), (1, 0), "{seen:?}");
                assert!(seen.unserved > 0 && seen.failures().is_empty(), "{seen:?}");
                assert_eq!(seen.placements[0].num_ranks() as u64, newcomers);
                // What is read goes into its slot; what is sent is staged.
                let adopted = |event: &Event| matches!(event, Event::PlanAdopted { .. });
                let plan = seen.events.iter().position(adopted).unwrap();
                for event in &seen.events[plan..] {
                    if let Event::Committed { received, .. } = event {
                        assert!(*received <= 1, "beyond the staging budget: {seen:?}");
                    }
                }
            }
        }
    });
}
