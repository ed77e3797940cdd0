//! Who gets how many tokens: counted on every rank, summed where a decision is due.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use moekit_placement::{ExpertLoad, LoadTrace, PlacementError};
use moekit_routing::{PhysicalExpert, RoutingTable, StepLoad};

/// Counts of one rank since they were last taken.
#[derive(Debug)]
pub(crate) struct LoadWatcher {
    num_layers: usize,
    num_experts: usize,
    num_ranks: usize,
    /// `[L * E]` tokens per logical expert, then `[L * R]` tokens that each rank served; empty
    /// until something is recorded. Forward passes of several threads may record at a time.
    counts: Mutex<Vec<u64>>,
}

impl LoadWatcher {
    pub(crate) fn new(num_layers: usize, num_experts: usize, num_ranks: usize) -> Self {
        Self {
            num_layers,
            num_experts,
            num_ranks,
            counts: Mutex::default(),
        }
    }

    /// Adds what one layer did in one step: logical counts, which stay right whatever table comes
    /// next, and the ranks that served this rank's tokens under the table of the step.
    pub(crate) fn record(
        &self,
        layer: usize,
        load: &StepLoad,
        physical_ids: &[i64],
        table: &RoutingTable,
    ) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let routed = self.num_layers * self.num_experts;
        counts.resize(routed + self.num_layers * self.num_ranks, 0);
        let (experts, ranks) = counts.split_at_mut(routed);
        let own = experts.chunks_exact_mut(self.num_experts).nth(layer);
        for (sum, count) in own.into_iter().flatten().zip(load.counts()) {
            *sum += count;
        }
        let Some(served) = ranks.chunks_exact_mut(self.num_ranks).nth(layer) else {
            return;
        };
        let owners = physical_ids
            .iter()
            .filter_map(|&id| table.owner(PhysicalExpert::from_raw(id)?));
        for owner in owners {
            if let Some(count) = served.get_mut(owner.index()) {
                *count += 1;
            }
        }
    }

    /// What was counted, and begins anew; empty if nothing was.
    pub(crate) fn take(&self) -> Vec<u64> {
        std::mem::take(&mut *self.counts.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// How much of the past counts.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Window {
    /// The last deliveries, all alike.
    Ring(usize),
    /// All deliveries, each one's weight this factor of that of the next.
    Exponential(f64),
}

/// The load of the group over a window, on rank 0.
#[derive(Debug)]
pub(crate) struct LoadWindow {
    kind: Window,
    past: PastLoad,
    /// How many deliveries the sum of the window stands for.
    weight: f64,
}

/// What a window holds, to be looked at on another thread.
#[derive(Clone, Debug, Default)]
pub(crate) struct PastLoad {
    /// Layers and experts.
    shape: [usize; 2],
    /// `[L * E]` each, the oldest first.
    deliveries: VecDeque<Arc<Vec<f64>>>,
}

impl PastLoad {
    /// The deliveries one by one, `None` if there is none yet.
    pub(crate) fn trace(&self) -> Result<Option<LoadTrace>, PlacementError> {
        if self.deliveries.is_empty() {
            return Ok(None);
        }
        let [layers, experts] = self.shape;
        let load = |values: &Arc<Vec<f64>>| ExpertLoad::new(layers, experts, values.to_vec());
        let steps = self.deliveries.iter().map(load).collect::<Result<_, _>>()?;
        Ok(Some(LoadTrace::new(steps)?))
    }
}

impl LoadWindow {
    pub(crate) fn new(kind: Window, num_layers: usize, num_experts: usize) -> Self {
        Self {
            kind,
            past: PastLoad {
                shape: [num_layers, num_experts],
                deliveries: VecDeque::new(),
            },
            weight: 0.0,
        }
    }

    /// Takes in the counts of one delivery, summed over ranks, `[L * E]`.
    pub(crate) fn push(&mut self, counts: &[u64]) {
        let mut next: Vec<f64> = counts.iter().map(|&count| count as f64).collect();
        let deliveries = &mut self.past.deliveries;
        match self.kind {
            Window::Ring(size) => {
                while deliveries.len() >= size.max(1) {
                    deliveries.pop_front();
                }
                self.weight = deliveries.len() as f64 + 1.0;
            }
            Window::Exponential(factor) => {
                if let Some(past) = deliveries.pop_front() {
                    next.iter_mut()
                        .zip(past.iter())
                        .for_each(|(sum, old)| *sum += factor * old);
                }
                self.weight = factor * self.weight + 1.0;
            }
        }
        deliveries.push_back(Arc::new(next));
    }

    /// The deliveries in the window; cheap, whatever its size.
    pub(crate) fn past(&self) -> PastLoad {
        self.past.clone()
    }

    /// How many deliveries the sum of the window stands for, at least 1.
    pub(crate) fn weight(&self) -> f64 {
        self.weight.max(1.0)
    }
}

#[cfg(test)]
mod tests {
    use moekit_routing::{Placement, Topology};

    use super::*;

    #[test]
    fn counts_stay_with_their_expert_when_tables_change() {
        let watcher = LoadWatcher::new(2, 3, 2);
        assert!(
            watcher.take().is_empty(),
            "nothing recorded, nothing to send"
        );
        for ranks in [[[0, 1], [2, 0]], [[2, 0], [1, 2]]] {
            let placement = Placement::from_ranks(3, &ranks).unwrap();
            let table = RoutingTable::new(placement, Topology::new(2).unwrap(), 0, 0).unwrap();
            let mut load = StepLoad::new(&table);
            load.record(&[2, 2, 0, -1], 1, 3).unwrap();
            watcher.record(1, &load, &[2, 2, 0, -1], &table);
        }
        let counts = watcher.take();
        assert_eq!(counts[..6], [0, 0, 0, 2, 0, 4]);
        assert_eq!(counts[6..], [0, 0, 2, 4]);
        assert!(watcher.take().is_empty());
    }

    #[test]
    fn windows_forget() {
        let mut ring = LoadWindow::new(Window::Ring(2), 1, 2);
        assert_eq!(ring.past().trace().unwrap(), None);
        for n in 1..=3 {
            ring.push(&[n, 10 * n]);
        }
        assert_eq!(ring.weight(), 2.0);
        let trace = ring.past().trace().unwrap().unwrap();
        assert_eq!(trace.steps().len(), 2);
        assert_eq!(trace.total().layer(0), Some(&[5.0, 50.0][..]));

        let mut decaying = LoadWindow::new(Window::Exponential(0.5), 1, 2);
        for n in [4, 0, 1] {
            decaying.push(&[n, 0]);
        }
        let trace = decaying.past().trace().unwrap().unwrap();
        assert_eq!(trace.total().layer(0), Some(&[2.0, 0.0][..]));
        // 1 + 1/2 + 1/4: a constant load of n per delivery has the sum n times the weight.
        assert_eq!(decaying.weight(), 1.75);
    }
}
