//! Shared experts spread over ranks: each computes some of the intermediate features for all
//! tokens, and the sum over ranks is the whole.

use std::ops::Range;
use std::sync::Arc;

use burn::module::Param;
use burn::tensor::Tensor;
use bytes::Bytes;
use moekit_quant::{
    ActivationQuant, ExpertLinear, ExpertMlp, ExpertWeights, PackedMatrix, QuantError, ScaleGrid,
};
use moekit_routing::{Placement, Rank, RoutingTable, Topology, even_offsets};

use crate::FusedMoeError;
use crate::experts::{Experts, TrainableExperts, features_of_a_scale};
use crate::shared::SharedMlp;

/// Least features per unit of a shard: no shard begins within a byte of two codes, and few begin
/// within a block of scales.
const UNIT: usize = 32;

/// Which rank holds which intermediate features.
///
/// To a dispatcher the shards are experts, one per rank (ranks beyond the last shard have none),
/// and every token goes to all of them.
#[derive(Clone, Debug)]
pub(crate) struct Sharding {
    table: Arc<RoutingTable>,
    width: usize,
    /// Features per unit.
    unit: usize,
}

impl Sharding {
    /// Spreads `width` features over the ranks; `None` for one rank, which computes all.
    ///
    /// # Arguments
    ///
    /// - `quant` - how the features, the input of the down projection, are quantized.
    pub(crate) fn new(
        width: usize,
        num_ranks: usize,
        quant: Option<ActivationQuant>,
    ) -> Result<Option<Self>, FusedMoeError> {
        if num_ranks == 1 {
            return Ok(None);
        }
        let unit = match (features_of_a_scale(quant), quant) {
            (None, Some(quant)) => {
                return Err(FusedMoeError::ActivationQuantCut {
                    what: "sharded shared experts",
                    quant,
                    instead: "let every rank hold all of it, `with_sharded_shared_experts(false)`",
                });
            }
            (group, _) => least_common_multiple(UNIT, group.unwrap_or(1)),
        };
        let shards = num_ranks.min(width.div_ceil(unit)).max(1);
        let ranks: Vec<Vec<usize>> = (0..num_ranks)
            .map(|rank| (rank..shards.min(rank + 1)).collect())
            .collect();
        let placement = Placement::from_ranks(shards, &ranks)?;
        let table = RoutingTable::new(placement, Topology::new(num_ranks)?, 0, 0)?;
        Ok(Some(Self {
            table: Arc::new(table),
            width,
            unit,
        }))
    }

    /// The shards as experts of a layer.
    pub(crate) fn table(&self) -> &RoutingTable {
        &self.table
    }

    pub(crate) fn num_shards(&self) -> usize {
        self.table.num_logical_experts()
    }

    /// The features of a rank, empty if it has none.
    fn range(&self, rank: Rank) -> Range<usize> {
        let units = even_offsets(self.width.div_ceil(self.unit), self.num_shards());
        let end = |i: usize| {
            units
                .get(i)
                .map_or(self.width, |u| u.saturating_mul(self.unit).min(self.width))
        };
        end(rank.index())..end(rank.index() + 1)
    }

    /// The part of a rank.
    pub(crate) fn cut(&self, whole: &SharedMlp, rank: Rank) -> Result<Experts, FusedMoeError> {
        let range = self.range(rank);
        // The bias of w2 is added once.
        let first = rank.index() == 0;
        match whole {
            SharedMlp::Packed(weights) => {
                let part = |mlp: &Arc<ExpertMlp>| cut_mlp(mlp, range.clone(), first).map(Arc::new);
                let parts: Result<Vec<_>, _> = match range.is_empty() {
                    true => Ok(Vec::new()),
                    false => weights.experts.iter().map(part).collect(),
                };
                let weights = ExpertWeights::new(weights.hidden_size, range.len(), parts?)?;
                Experts::packed(weights)
            }
            SharedMlp::Trainable(experts) => {
                Ok(Experts::Trainable(cut_trainable(experts, &range, first)))
            }
        }
    }
}

/// Of numbers that are not 0.
fn least_common_multiple(a: usize, b: usize) -> usize {
    let (mut x, mut y) = (a, b);
    while y > 0 {
        (x, y) = (y, x % y);
    }
    (a / x).saturating_mul(b)
}

fn cut_trainable(whole: &TrainableExperts, range: &Range<usize>, first: bool) -> TrainableExperts {
    let [_, w13_rows, _] = whole.w13.val().dims();
    let [num, _, width] = whole.w2.val().dims();
    let num = if range.is_empty() { 0 } else { num };
    // One block of rows without gate, two with.
    let starts = (0..w13_rows / width).map(|block| block * width + range.start);
    let starts: Vec<usize> = starts.collect();
    fn rows<const D: usize>(whole: &Tensor<D>, starts: &[usize], len: usize) -> Tensor<D> {
        let part = |&start: &usize| whole.clone().narrow(1, start, len);
        Tensor::cat(starts.iter().map(part).collect(), 1)
    }
    if num == 0 {
        return whole.without_experts();
    }
    let len = range.len();
    let param = |t: Tensor<2>| Param::from_tensor(t);
    let w2_bias = whole.w2_bias.as_ref().map(|b| b.val());
    TrainableExperts {
        w13: Param::from_tensor(rows(&whole.w13.val(), &starts, len)),
        w2: Param::from_tensor(whole.w2.val().narrow(2, range.start, len)),
        w13_bias: whole
            .w13_bias
            .as_ref()
            .map(|b| param(rows(&b.val(), &starts, len))),
        w2_bias: w2_bias.filter(|_| first).map(param),
    }
}

fn cut_mlp(mlp: &ExpertMlp, range: Range<usize>, first: bool) -> Result<ExpertMlp, QuantError> {
    let rows = |linear: &ExpertLinear| {
        let weight = cut_matrix(&linear.weight, range.clone(), 0..linear.weight.cols())?;
        let mut part = ExpertLinear::new(weight);
        let bias = linear.bias.as_ref().and_then(|b| b.get(range.clone()));
        part.bias = bias.map(<[f32]>::to_vec);
        part.input_quant = linear.input_quant;
        Ok::<_, QuantError>(part)
    };
    let gate = mlp.gate.as_ref().map(rows).transpose()?;
    let up = rows(&mlp.up)?;
    let down = &mlp.down;
    let mut part = ExpertLinear::new(cut_matrix(
        &down.weight,
        0..down.weight.rows(),
        range.clone(),
    )?);
    part.bias = down.bias.clone().filter(|_| first);
    part.input_quant = down.input_quant;
    ExpertMlp::new(gate, up, part)
}

/// A view of some rows and columns; the columns of nibble formats must begin at an even one.
fn cut_matrix(
    whole: &PackedMatrix,
    rows: Range<usize>,
    cols: Range<usize>,
) -> Result<PackedMatrix, QuantError> {
    let col_bytes = match whole.col_stride() {
        Some(stride) => cols.start * stride,
        None => cols.start / 2,
    };
    let strides = [whole.row_stride(), whole.col_stride().unwrap_or(0)];
    let codes = tail(whole.codes(), rows.start * strides[0] + col_bytes);
    let shape = [rows.len(), cols.len()];
    let mut part = PackedMatrix::new(whole.format(), shape, strides, codes)?
        .with_global_scale(whole.global_scale());
    let start = [rows.start, cols.start];
    if let Some(scales) = whole.scales() {
        part = part.with_scales(cut_grid(scales, start, shape)?)?;
    }
    if let Some(zero_points) = whole.zero_points() {
        part = part.with_zero_points(cut_grid(zero_points, start, shape)?)?;
    }
    Ok(part)
}

/// The blocks that a cut matrix still touches.
fn cut_grid(
    whole: &ScaleGrid,
    start: [usize; 2],
    shape: [usize; 2],
) -> Result<ScaleGrid, QuantError> {
    let at = |axis: usize| start[axis] + whole.phase()[axis];
    let block = whole.block();
    let phase = [at(0) % block[0], at(1) % block[1]];
    let blocks = [0, 1].map(|axis| (phase[axis] + shape[axis]).div_ceil(block[axis]));
    let strides = whole.strides();
    let skipped = at(0) / block[0] * strides[0] + at(1) / block[1] * strides[1];
    let bytes = tail(whole.bytes(), skipped);
    Ok(ScaleGrid::new(whole.format(), blocks, block, strides, bytes)?.with_phase(phase))
}

/// The bytes from `start` on, none if there are fewer.
fn tail(bytes: &Bytes, start: usize) -> Bytes {
    bytes.slice(start.min(bytes.len())..)
}

#[cfg(test)]
mod tests {
    use moekit_kernels::dequantize;
    use moekit_quant::{ActivationFormat, CodeFormat, ScaleFormat};

    use super::*;

    #[test]
    fn every_feature_is_on_one_rank() {
        for width in [1, 31, 32, 33, 100, 512] {
            for num_ranks in 2..9 {
                let sharding = Sharding::new(width, num_ranks, None).unwrap().unwrap();
                let ranges: Vec<_> = (0..num_ranks)
                    .map(|r| sharding.range(Rank::new(r)))
                    .collect();
                let features: Vec<usize> = ranges.iter().cloned().flatten().collect();
                assert_eq!(features, (0..width).collect::<Vec<_>>());
                for (rank, range) in ranges.iter().enumerate() {
                    assert_eq!(range.is_empty(), rank >= sharding.num_shards());
                    assert!(range.is_empty() || range.start % UNIT == 0);
                }
            }
        }
        assert!(Sharding::new(64, 1, None).unwrap().is_none());
    }

    #[test]
    fn no_shard_begins_within_a_group_of_one_scale() {
        let format = ActivationFormat::F8E4M3;
        let per_group = |group_size| ActivationQuant::PerGroup {
            format,
            group_size,
            power_of_two: false,
        };
        for (quant, unit) in [
            (per_group(128), 128),
            (per_group(48), 96),
            (per_group(8), 32),
            (ActivationQuant::Mx { format }, 32),
            (ActivationQuant::Nvfp4 { scale: 1.0 }, 32),
            (per_group(usize::MAX), usize::MAX),
        ] {
            let sharding = Sharding::new(1000, 4, Some(quant)).unwrap().unwrap();
            let ranges = [0, 1, 2, 3].map(|r| sharding.range(Rank::new(r)));
            assert!(ranges.iter().all(|r| r.is_empty() || r.start % unit == 0));
            assert_eq!(ranges.iter().map(|r| r.len()).sum::<usize>(), 1000);
        }
        let per_token = Some(ActivationQuant::PerToken { format });
        let message = Sharding::new(1000, 4, per_token).unwrap_err().to_string();
        assert!(
            message.contains("`Emulate`") && message.contains("PerToken"),
            "{message}"
        );
        assert!(Sharding::new(1000, 1, per_token).unwrap().is_none());
    }

    /// Cuts within blocks of scales, of dense, transposed and nibble matrices.
    #[test]
    fn parts_have_the_values_of_the_whole() {
        let (rows, cols) = (10, 12);
        let codes: Bytes = (0..rows * cols).map(|i| (i * 37) as u8).collect();
        let scales: Bytes = (1..=12_u8)
            .flat_map(|i| f32::from(i).to_le_bytes())
            .collect();
        let grid = || {
            let grid = ScaleGrid::new(ScaleFormat::F32, [4, 3], [3, 5], [12, 4], scales.clone());
            grid.unwrap().with_phase([1, 2])
        };
        let new = |format, strides| {
            let matrix = PackedMatrix::new(format, [rows, cols], strides, codes.clone()).unwrap();
            matrix.with_scales(grid()).unwrap().with_global_scale(0.5)
        };
        for whole in [
            new(CodeFormat::I8, [cols, 1]),
            new(CodeFormat::I8, [1, rows]),
            new(CodeFormat::I4Offset, [cols / 2, 0])
                .with_zero_points(grid())
                .unwrap(),
        ] {
            let all = dequantize(&whole);
            for (r, c) in [(0..10, 0..12), (4..9, 2..12), (9..10, 4..5), (3..6, 10..12)] {
                let part = dequantize(&cut_matrix(&whole, r.clone(), c.clone()).unwrap());
                let expected: Vec<f32> = r
                    .flat_map(|r| all[r * cols + c.start..r * cols + c.end].to_vec())
                    .collect();
                assert_eq!(part, expected);
            }
        }
    }
}
