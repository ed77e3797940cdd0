//! How each linear of a call is multiplied.

use std::ops::Range;

use moekit_quant::ActivationQuant;

use super::{LinearView, MlpView, WeightView};
use crate::dequantize::dequantize_rows;
use crate::formats::{Direct, Input, direct, input};
use crate::prepared::FEATURES;
use crate::simd::LANES;
use crate::{ActivationQuantMode, Isa};

/// Features of a panel that are widened at a time: 64 KiB, which stay in the second-level cache
/// while all rows are multiplied.
pub(super) const BLOCK: usize = 512;

#[derive(Clone, Copy, Debug)]
pub(super) struct LinearPlan<'a> {
    weight: WeightView<'a>,
    pub(super) bias: Option<&'a [f32]>,
    /// How its input is quantized, if it is.
    pub(super) quant: Option<ActivationQuant>,
    pub(super) input: Input,
    /// `None` where weights are widened first.
    pub(super) direct: Option<Direct>,
    /// Output features.
    pub(super) rows: usize,
    /// Input features, padding included.
    pub(super) features: usize,
}

impl<'a> LinearPlan<'a> {
    /// # Arguments
    ///
    /// - `narrow` - whether activations are in bf16.
    fn new(linear: &LinearView<'a>, narrow: bool, mode: ActivationQuantMode) -> Self {
        let quant = mode.input_quant(linear.input_quant);
        let input = linear_input(linear, narrow, quant);
        let direct = match linear.weight {
            WeightView::Prepared(matrix) => direct(matrix, input),
            WeightView::Packed(_) => None,
        };
        let [rows, cols] = linear.weight.shape();
        Self {
            weight: linear.weight,
            bias: linear.bias,
            quant,
            input,
            direct,
            rows,
            features: cols.next_multiple_of(FEATURES),
        }
    }

    pub(super) fn panels(&self) -> usize {
        self.rows.div_ceil(LANES)
    }

    /// 4-byte units of a row of activations.
    pub(super) fn units(&self) -> usize {
        self.features / self.input.features_per_unit()
    }

    /// The bytes of a panel; none where they do not lie side by side.
    pub(super) fn panel(&self, panel: usize) -> &'a [u8] {
        match self.weight {
            WeightView::Prepared(matrix) if panel < self.panels() => matrix.panel(panel),
            _ => &[],
        }
    }

    /// Values of the scales of the groups that some features lie in, and as many again where
    /// something is added to nibbles.
    pub(super) fn scale_values(&self, features: &Range<usize>) -> usize {
        let grouping = self.direct.and_then(|direct| direct.grouping);
        let scales = grouping.map_or(0, |g| g.groups(features).len() * LANES);
        scales * (1 + usize::from(self.has_zero_points()))
    }

    /// Whether there are no scales, or [`LinearPlan::column_scales`].
    pub(super) fn needs_no_decoding(&self) -> bool {
        let grouping = self.direct.and_then(|direct| direct.grouping);
        grouping.is_none() || self.column_scales(0).is_some()
    }

    /// The scales of a panel if they are there as loops take them.
    pub(super) fn column_scales(&self, panel: usize) -> Option<&'a [u8]> {
        match self.weight {
            WeightView::Prepared(matrix) => matrix.layout().column_scales(matrix.panel(panel)),
            WeightView::Packed(_) => None,
        }
    }

    fn has_zero_points(&self) -> bool {
        let WeightView::Prepared(matrix) = self.weight else {
            return false;
        };
        matrix.layout().zero_points.is_some()
    }

    /// Where the scales of the groups that some features of a panel lie in are, `[groups, 32]`, and what
    /// is added to nibbles. Unless they lie so in the panel, both are written to `out`.
    ///
    /// # Arguments
    ///
    /// - `out` - [`LinearPlan::scale_values`].
    /// - `next` - a panel whose scales are asked for meanwhile, or null.
    pub(super) fn decode_scales(
        &self,
        isa: Isa,
        panel: usize,
        features: &Range<usize>,
        out: &mut [f32],
        next: *const u8,
    ) -> (*const f32, *const u32) {
        let len = out.len() / (1 + usize::from(self.has_zero_points()));
        let (scales, above) = out.split_at_mut(len);
        let above: &mut [u32] = bytemuck::cast_slice_mut(above);
        if let WeightView::Prepared(matrix) = self.weight
            && let Some(grouping) = self.direct.and_then(|d| d.grouping)
        {
            let (layout, panel) = (matrix.layout(), matrix.panel(panel));
            if let Some(scales) = layout.column_scales(panel) {
                return (scales.as_ptr().cast(), above.as_ptr());
            }
            layout.decode_scales(isa, panel, grouping, features, scales, next);
            layout.decode_zero_points(isa, panel, grouping, features, above, next);
        }
        (scales.as_ptr(), above.as_ptr())
    }

    /// Widens some features of a panel to `[features, 32]`, zeros where there are none.
    pub(super) fn unpack(&self, panel: usize, features: Range<usize>, out: &mut [f32]) {
        match self.weight {
            WeightView::Prepared(matrix) => {
                matrix.layout().unpack(matrix.panel(panel), features, out);
            }
            WeightView::Packed(matrix) => {
                out.fill(0.0);
                let rows = panel * LANES..self.rows.min((panel + 1) * LANES);
                let features = features.start..features.end.min(matrix.cols());
                let mut values = [0.0; LANES * BLOCK];
                let values = &mut values[..rows.len() * features.len()];
                // The ranges lie within the matrix, and blocks begin at even features.
                let Ok(part) = matrix.slice(rows, features.clone()) else {
                    return;
                };
                dequantize_rows(&part, 0, values);
                for (lane, row) in values.chunks_exact(features.len()).enumerate() {
                    let out = out.iter_mut().skip(lane).step_by(LANES);
                    out.zip(row).for_each(|(out, value)| *out = *value);
                }
            }
        }
    }
}

/// What a linear multiplies with.
pub(super) fn linear_input(
    linear: &LinearView<'_>,
    narrow: bool,
    quant: Option<ActivationQuant>,
) -> Input {
    match linear.weight {
        WeightView::Prepared(matrix) => input(matrix, narrow, quant),
        WeightView::Packed(_) => Input::F32,
    }
}

/// Panels and the linears that they are of.
pub(super) type Pair<'p, 'a> = [Option<(&'p LinearPlan<'a>, usize)>; 2];

#[derive(Clone, Copy, Debug)]
pub(super) struct MlpPlan<'a> {
    pub(super) gate: Option<LinearPlan<'a>>,
    pub(super) up: LinearPlan<'a>,
    pub(super) down: LinearPlan<'a>,
}

impl<'a> MlpPlan<'a> {
    pub(super) fn new(mlp: &MlpView<'a>, narrow: bool, mode: ActivationQuantMode) -> Self {
        let plan = |linear: &LinearView<'a>| LinearPlan::new(linear, narrow, mode);
        Self {
            gate: mlp.gate.as_ref().map(plan),
            up: plan(&mlp.up),
            down: plan(&mlp.down),
        }
    }

    /// Two panels of w13 whose outputs an activation takes.
    pub(super) fn w13(&self, pair: usize) -> Pair<'_, 'a> {
        match &self.gate {
            Some(gate) => [Some((gate, pair)), Some((&self.up, pair))],
            None => neighbours(&self.up, pair),
        }
    }

    pub(super) fn w13_pairs(&self) -> usize {
        match self.gate {
            Some(_) => self.up.panels(),
            None => self.up.panels().div_ceil(2),
        }
    }

    /// Two panels of w2, side by side.
    pub(super) fn w2(&self, pair: usize) -> Pair<'_, 'a> {
        neighbours(&self.down, pair)
    }

    pub(super) fn w2_pairs(&self) -> usize {
        self.down.panels().div_ceil(2)
    }
}

fn neighbours<'p, 'a>(linear: &'p LinearPlan<'a>, pair: usize) -> Pair<'p, 'a> {
    let panel = 2 * pair;
    let second = (panel + 1 < linear.panels()).then_some((linear, panel + 1));
    [Some((linear, panel)), second]
}
