//! Ranks as threads with mailboxes: a dispatcher that is simple rather than fast.
#![allow(unreachable_pub, reason = "a module of tests")]

use std::any::Any;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use half::bf16;
use moekit_fused_moe::*;
use moekit_routing::Rank;

type Message = Box<dyn Any + Send>;

#[derive(Default)]
struct Mail {
    /// By call, sender and receiver.
    boxes: HashMap<(u64, usize, usize), Message>,
    failure: Option<String>,
}

#[derive(Default)]
pub struct Hub {
    mail: Mutex<Mail>,
    changed: Condvar,
}

#[derive(Debug)]
pub struct Mailbox {
    hub: Arc<Hub>,
    rank: usize,
    num_ranks: usize,
    calls: AtomicU64,
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hub")
    }
}

/// Runs `work` once per rank, each with its dispatcher, and collects the results.
pub fn run_ranks<T: Send>(
    num_ranks: usize,
    work: impl Fn(usize, Arc<Mailbox>) -> T + Sync,
) -> Vec<T> {
    let hub = Arc::new(Hub::default());
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..num_ranks)
            .map(|rank| {
                let (hub, work) = (hub.clone(), &work);
                let calls = AtomicU64::new(0);
                scope.spawn(move || {
                    work(
                        rank,
                        Arc::new(Mailbox {
                            hub,
                            rank,
                            num_ranks,
                            calls,
                        }),
                    )
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    })
}

impl Mailbox {
    fn all_to_all<T: Send + 'static>(&self, parts: Vec<T>) -> Result<Vec<T>, FusedMoeError> {
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        let mut mail = self.hub.mail.lock().unwrap();
        for (to, part) in parts.into_iter().enumerate() {
            mail.boxes.insert((call, self.rank, to), Box::new(part));
        }
        self.hub.changed.notify_all();
        let mut received = Vec::new();
        while received.len() < self.num_ranks {
            // What has arrived can be received even after another rank has failed.
            match mail.boxes.remove(&(call, received.len(), self.rank)) {
                Some(part) => received.push(*part.downcast().unwrap()),
                None => match &mail.failure {
                    Some(failure) => return Err(FusedMoeError::dispatch(failure.clone())),
                    None => mail = self.hub.changed.wait(mail).unwrap(),
                },
            }
        }
        Ok(received)
    }
}

#[derive(Clone)]
enum Wire {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
}

struct Parcel {
    hidden: Wire,
    local_ids: Vec<i64>,
    weights: Vec<f32>,
    generation: u64,
}

struct Handle {
    plan: Vec<RankTokens>,
    /// Rows from each rank.
    received: Vec<usize>,
    num_tokens: usize,
    hidden_size: usize,
    top_k: usize,
}

fn gather<T: Copy>(values: &[T], rows: &[usize], width: usize) -> Vec<T> {
    rows.iter()
        .flat_map(|r| values[r * width..(r + 1) * width].iter().copied())
        .collect()
}

impl TokenDispatcher for Mailbox {
    fn rank(&self) -> Rank {
        Rank::new(self.rank)
    }

    fn num_ranks(&self) -> usize {
        self.num_ranks
    }

    fn exchange_counts(&self, counts: &[u64]) -> Result<Vec<u64>, FusedMoeError> {
        Ok(self
            .all_to_all(vec![counts.to_vec(); self.num_ranks])?
            .concat())
    }

    fn dispatch<'a>(&self, tokens: &RoutedTokens<'a>) -> Result<Dispatched<'a>, FusedMoeError> {
        let plan = tokens.per_rank(self.rank())?;
        let width = tokens.hidden_size;
        let parcels = plan.iter().map(|part| Parcel {
            hidden: match tokens.hidden {
                Rows::F32(x) => Wire::F32(gather(x, &part.tokens, width)),
                Rows::Bf16(x) => Wire::Bf16(gather(x, &part.tokens, width)),
                _ => panic!(),
            },
            local_ids: part.local_ids.clone(),
            weights: part.weights.clone(),
            generation: tokens.table.generation(),
        });
        let parcels = self.all_to_all(parcels.collect())?;
        let (mut wide, mut narrow) = (Vec::new(), Vec::new());
        let (mut local_ids, mut weights, mut received) = (Vec::new(), Vec::new(), Vec::new());
        for parcel in parcels {
            assert_eq!(parcel.generation, tokens.table.generation());
            received.push(parcel.local_ids.len() / tokens.top_k);
            local_ids.extend(parcel.local_ids);
            weights.extend(parcel.weights);
            match parcel.hidden {
                Wire::F32(x) => wide.extend(x),
                Wire::Bf16(x) => narrow.extend(x),
            }
        }
        let hidden = match tokens.hidden {
            Rows::F32(_) => HiddenRows::F32(wide.into()),
            _ => HiddenRows::Bf16(narrow.into()),
        };
        let handle = Handle {
            plan,
            received,
            num_tokens: tokens.num_tokens(),
            hidden_size: width,
            top_k: tokens.top_k,
        };
        Ok(Dispatched::new(
            hidden,
            local_ids,
            weights,
            DispatchHandle::new(handle),
        ))
    }

    fn combine(
        &self,
        outputs: ExpertOutputs,
        handle: DispatchHandle,
    ) -> Result<Vec<f32>, FusedMoeError> {
        let handle: Handle = handle.downcast()?;
        let (values, slots) = match outputs {
            ExpertOutputs::Summed(values) => (values, 1),
            ExpertOutputs::PerSlot(values) => (values, handle.top_k),
            _ => panic!(),
        };
        let width = slots * handle.hidden_size;
        let mut rest = &values[..];
        let mut parts = Vec::new();
        for rows in &handle.received {
            let (part, tail) = rest.split_at(rows * width);
            parts.push(part.to_vec());
            rest = tail;
        }
        assert!(rest.is_empty(), "one output per received row");
        let mut slot_sums = vec![0.0; handle.num_tokens * width];
        for (part, plan) in self.all_to_all(parts)?.iter().zip(&handle.plan) {
            for (values, &token) in part.chunks(width).zip(&plan.tokens) {
                let out = &mut slot_sums[token * width..(token + 1) * width];
                // Slots of other ranks hold zeros.
                out.iter_mut().zip(values).for_each(|(o, v)| *o += v);
            }
        }
        let mut output = vec![0.0; handle.num_tokens * handle.hidden_size];
        for (out, slots) in output
            .chunks_mut(handle.hidden_size)
            .zip(slot_sums.chunks(width))
        {
            for slot in slots.chunks(handle.hidden_size) {
                out.iter_mut().zip(slot).for_each(|(o, v)| *o += v);
            }
        }
        Ok(output)
    }

    fn abort(&self, error: &FusedMoeError) {
        let mut mail = self.hub.mail.lock().unwrap();
        mail.failure
            .get_or_insert(format!("rank {}: {error}", self.rank));
        self.hub.changed.notify_all();
    }
}
