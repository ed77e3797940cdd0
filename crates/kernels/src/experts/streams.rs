//! In which order a task reads its panels.

use std::ops::Range;

use super::plan::{LinearPlan, MlpPlan};
use crate::simd::LANES;
use crate::tile::SUMS;

/// A panel of a task.
#[derive(Clone, Copy, Debug)]
pub(super) struct Panel<'p, 'a> {
    pub(super) linear: &'p LinearPlan<'a>,
    /// Which one of the linear.
    pub(super) index: usize,
    /// Where its outputs are among those of the task, 32 each.
    pub(super) place: usize,
}

/// Panels that are multiplied together.
pub(super) type Panels<'p, 'a> = [Option<Panel<'p, 'a>>; 2];

impl<'a> Panel<'_, 'a> {
    pub(super) fn bytes(&self) -> &'a [u8] {
        self.linear.panel(self.index)
    }

    /// Where the sums of its first row are: `[pairs of places, rows, SUMS]`.
    pub(super) fn sums(&self, rows: usize) -> usize {
        self.place / 2 * rows * SUMS + self.place % 2 * LANES
    }
}

/// Two runs of panels, each of which lies in one piece in memory. A task reads a panel of either at a
/// time: were it to go from one end of a run to elsewhere, the processor would read slowly until it has
/// found where the run goes on.
#[derive(Debug)]
pub(super) struct Streams<'p, 'a> {
    first: [Panel<'p, 'a>; 2],
    /// Places from one panel of a run to the next.
    stride: usize,
    len: usize,
}

impl<'p, 'a> Streams<'p, 'a> {
    /// Those of some pairs of panels of w13: gate and up, or the first half of up and the second.
    pub(super) fn w13(mlp: &'p MlpPlan<'a>, pairs: Range<usize>) -> Self {
        let Some(gate) = &mlp.gate else {
            return Self::halves(&mlp.up, pairs);
        };
        let first = [(gate, 0), (&mlp.up, 1)].map(|(linear, place)| Panel {
            linear,
            index: pairs.start,
            place,
        });
        Self {
            first,
            stride: 2,
            len: pairs.len(),
        }
    }

    /// Those of some pairs of panels of w2: the first half of them and the second.
    pub(super) fn w2(mlp: &'p MlpPlan<'a>, pairs: Range<usize>) -> Self {
        Self::halves(&mlp.down, pairs)
    }

    fn halves(linear: &'p LinearPlan<'a>, pairs: Range<usize>) -> Self {
        let first = [0, pairs.len()].map(|place| Panel {
            linear,
            index: 2 * pairs.start + place,
            place,
        });
        Self {
            first,
            stride: 1,
            len: pairs.len(),
        }
    }

    /// Steps.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Steps that have two panels.
    pub(super) fn pairs(&self) -> usize {
        let is_pair = |step: &usize| self.step(*step).iter().all(Option::is_some);
        (0..self.len).take_while(is_pair).count()
    }

    /// That of the first panel.
    pub(super) fn linear(&self) -> &'p LinearPlan<'a> {
        self.first[0].linear
    }

    /// The panels of a step. The last one may have a single one.
    pub(super) fn step(&self, step: usize) -> Panels<'p, 'a> {
        self.first.map(|first| {
            let panel = Panel {
                index: first.index + step,
                place: first.place + step * self.stride,
                ..first
            };
            (panel.index < panel.linear.panels()).then_some(panel)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::ptr;

    use super::*;
    use crate::ActivationQuantMode;
    use crate::experts::MlpView;
    use crate::experts::plan::Pair;
    use crate::test_weights::Noise;

    /// The steps reach what the pairs consist of, each panel once and in its place.
    fn check<'p>(streams: &Streams<'p, '_>, pairs: impl Iterator<Item = Pair<'p, 'p>>) {
        let steps = (0..streams.len()).map(|step| streams.step(step));
        let mut steps: Vec<_> = steps.flatten().flatten().collect();
        steps.sort_by_key(|panel| panel.place);
        let expected = pairs.flatten().enumerate();
        let expected: Vec<_> = expected
            .filter_map(|(place, p)| Some((place, p?)))
            .collect();
        assert_eq!(steps.len(), expected.len());
        for (panel, (place, (linear, index))) in steps.iter().zip(expected) {
            assert!(ptr::eq(panel.linear, linear));
            assert_eq!((panel.place, panel.index), (place, index));
        }
    }

    #[test]
    fn every_panel_is_read_once_and_has_the_place_of_its_outputs() {
        // 7 panels of w13 and 5 of w2, the last ones not full.
        let sizes = [1, 4 * LANES + 8, 6 * LANES + 4];
        for is_gated in [true, false] {
            let experts = Noise::new(1).experts(sizes, is_gated, false).experts;
            let view = MlpView::from(&*experts[0]);
            let plan = MlpPlan::new(&view, false, ActivationQuantMode::default());
            for len in 1..=4 {
                for start in (0..plan.w13_pairs()).step_by(len) {
                    let pairs = start..plan.w13_pairs().min(start + len);
                    let streams = Streams::w13(&plan, pairs.clone());
                    check(&streams, pairs.map(|pair| plan.w13(pair)));
                }
                for start in (0..plan.w2_pairs()).step_by(len) {
                    let pairs = start..plan.w2_pairs().min(start + len);
                    let streams = Streams::w2(&plan, pairs.clone());
                    check(&streams, pairs.map(|pair| plan.w2(pair)));
                }
            }
        }
    }
}
