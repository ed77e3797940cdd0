//! Layers of three experts in stored matrices, and what their weights are by definition.

use std::sync::Arc;

use moekit_quant::{
    CodeFormat, ExpertLayout, ExpertLinear, ExpertWeights, LinearSite, MemorySource, MoeLayerSpec,
    PackedMatrix, QuantError, RouterSpec, ScaleFormat, TensorDtype, TensorSource,
};
use moekit_routing::{Placement, Rank, RankView, RoutingTable, Topology};

pub(crate) const E: usize = 3;
pub(crate) const H: usize = 10;
pub(crate) const I: usize = 6;

/// A rank with these slots, beside one that holds all experts.
pub(crate) fn rank(slots: Vec<usize>, num_shared: usize) -> RankView {
    let placement = Placement::from_ranks(E, &[slots, (0..E).collect()]).unwrap();
    let topology = Topology::new(2).unwrap();
    let table = RoutingTable::new(placement, topology, num_shared, 0).unwrap();
    RankView::new(Rank::new(0), Arc::new(table)).unwrap()
}

/// All experts, backwards, and the first one twice.
pub(crate) fn backwards(num_shared: usize) -> RankView {
    rank((0..E).rev().chain([0]).collect(), num_shared)
}

/// Whole numbers that look random.
pub(crate) struct Noise(pub(crate) u64);

impl Noise {
    pub(crate) fn next(&mut self, below: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }
}

/// A matrix `[rows][cols]`.
pub(crate) type Dense = Vec<Vec<f32>>;

pub(crate) fn transpose<T: Copy>(matrix: &[Vec<T>]) -> Vec<Vec<T>> {
    (0..matrix[0].len())
        .map(|c| matrix.iter().map(|row| row[c]).collect())
        .collect()
}

/// Stored `[out, in]` matrices of a tensor, their codes and the scales of their blocks.
pub(crate) struct Stack {
    codes: Vec<Vec<Vec<u8>>>,
    scales: Vec<Dense>,
    block: [usize; 2],
}

impl Stack {
    /// `count` matrices of signed bytes with one scale per block.
    pub(crate) fn random(
        noise: &mut Noise,
        count: usize,
        [rows, cols]: [usize; 2],
        block: [usize; 2],
    ) -> Self {
        let block = [block[0].min(rows), block[1].min(cols)];
        let mut matrix = |rows: usize, cols: usize| -> Vec<Vec<u8>> {
            let mut row = || (0..cols).map(|_| noise.next(200) as u8).collect();
            (0..rows).map(|_| row()).collect()
        };
        let codes = (0..count).map(|_| matrix(rows, cols)).collect();
        let grid = [rows.div_ceil(block[0]), cols.div_ceil(block[1])];
        let scale = |code: &u8| 2_f32.powi(i32::from(code % 9) - 4);
        let scales = (0..count)
            .map(|_| {
                matrix(grid[0], grid[1])
                    .iter()
                    .map(|row| row.iter().map(scale).collect())
                    .collect()
            })
            .collect();
        Self {
            codes,
            scales,
            block,
        }
    }

    /// What the weights are, by the definition of a block.
    pub(crate) fn weights(&self, index: usize) -> Dense {
        let rows = self.codes[index].iter().enumerate();
        rows.map(|(r, row)| {
            let scales = &self.scales[index][r / self.block[0]];
            let cols = row.iter().enumerate();
            cols.map(|(c, code)| f32::from(code.cast_signed()) * scales[c / self.block[1]])
                .collect()
        })
        .collect()
    }

    /// Writes codes as `name` and scales as `scale_name`.
    pub(crate) fn store(
        &self,
        tensors: &mut MemorySource,
        [name, scale_name]: [&str; 2],
        transposed: bool,
        flat: bool,
    ) {
        let stored = |m: &Vec<Vec<u8>>| if transposed { transpose(m) } else { m.clone() };
        let codes: Vec<_> = self.codes.iter().map(stored).collect();
        let stored = |m: &Dense| if transposed { transpose(m) } else { m.clone() };
        let scales: Vec<_> = self.scales.iter().map(stored).collect();
        let shape = |rows: usize, cols: usize| match (codes.len(), flat) {
            (1, _) => vec![rows, cols],
            (count, true) => vec![count * rows, cols],
            (count, false) => vec![count, rows, cols],
        };
        let code_shape = shape(codes[0].len(), codes[0][0].len());
        let bytes: Vec<u8> = codes.iter().flatten().flatten().copied().collect();
        tensors.insert(name, TensorDtype::I8, code_shape, bytes);
        let scale_shape = shape(scales[0].len(), scales[0][0].len());
        let bytes: Vec<u8> = scales
            .iter()
            .flatten()
            .flatten()
            .flat_map(|s| s.to_le_bytes())
            .collect();
        tensors.insert(scale_name, TensorDtype::F32, scale_shape, bytes);
    }
}

/// A small format: signed bytes with one float per block.
pub(crate) fn load(
    block: [usize; 2],
) -> impl Fn(&LinearSite, &dyn TensorSource) -> Result<ExpertLinear, QuantError> {
    move |site, tensors| {
        let codes = site.codes(
            tensors,
            &site.tensor("weight"),
            CodeFormat::I8,
            &[TensorDtype::I8],
        )?;
        let formats = [(TensorDtype::F32, ScaleFormat::F32)];
        let scales = site.scales(tensors, &site.tensor("scale"), &[block], &formats)?;
        site.linear(tensors, codes.with_scales(scales)?)
    }
}

pub(crate) fn dense(matrix: &PackedMatrix) -> Dense {
    (0..matrix.rows())
        .map(|r| {
            let mut row = vec![0.0; matrix.cols()];
            matrix.dequantize_row(r, &mut row).unwrap();
            row
        })
        .collect()
}

pub(crate) fn layer(experts: ExpertLayout) -> MoeLayerSpec {
    MoeLayerSpec::new(0, [E, 2, H, I], experts, RouterSpec::new("gate"))
}

/// Gate, up and down of every slot are those of the expert that the table has there.
pub(crate) fn check(weights: &ExpertWeights, expected: impl Fn(usize) -> [Dense; 3], what: &str) {
    let slots: Vec<usize> = (0..E).rev().chain([0]).collect();
    assert_eq!(weights.num_local_experts(), slots.len());
    for (expert, got) in slots.into_iter().zip(&weights.experts) {
        let [gate, up, down] = expected(expert);
        assert_eq!(
            dense(&got.gate.as_ref().unwrap().weight),
            gate,
            "{what}: gate {expert}"
        );
        assert_eq!(dense(&got.up.weight), up, "{what}: up {expert}");
        assert_eq!(dense(&got.down.weight), down, "{what}: down {expert}");
    }
    assert!(Arc::ptr_eq(&weights.experts[E - 1], &weights.experts[E]));
}
