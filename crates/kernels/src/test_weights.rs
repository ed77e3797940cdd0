//! Weights and activations that look random, for tests.

use std::sync::Arc;

use bytes::Bytes;
use moekit_quant::{
    CodeFormat, ExpertLinear, ExpertMlp, ExpertWeights, PackedMatrix, ScaleFormat, ScaleGrid,
};

/// Every format that a matrix can have.
pub(crate) const FORMATS: [CodeFormat; 8] = [
    CodeFormat::F32,
    CodeFormat::F16,
    CodeFormat::BF16,
    CodeFormat::F8E4M3,
    CodeFormat::I8,
    CodeFormat::I8Offset,
    CodeFormat::I4Offset,
    CodeFormat::F4E2M1,
];

pub(crate) struct Noise(u64);

impl Noise {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn bits(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number in `-1..1`.
    pub(crate) fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    pub(crate) fn units(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.unit()).collect()
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| (self.bits() >> 30) as u8).collect()
    }

    /// Codes of finite weights of a size that does not swamp the others.
    fn codes(&mut self, format: CodeFormat, count: usize) -> Vec<u8> {
        match format {
            CodeFormat::F32 => self
                .units(count)
                .iter()
                .flat_map(|v| v.to_le_bytes())
                .collect(),
            CodeFormat::F16 => {
                let value = |v: &f32| half::f16::from_f32(*v).to_le_bytes();
                self.units(count).iter().flat_map(value).collect()
            }
            CodeFormat::BF16 => {
                let value = |v: &f32| half::bf16::from_f32(*v).to_le_bytes();
                self.units(count).iter().flat_map(value).collect()
            }
            // Exponents below that of 2, so that no code is NaN.
            CodeFormat::F8E4M3 => self.bytes(count).iter().map(|b| b & 0xbf).collect(),
            _ => self.bytes(count),
        }
    }

    /// A matrix of a format with its usual kind of scales; `transposed` lays columns side by side.
    pub(crate) fn matrix(
        &mut self,
        format: CodeFormat,
        [rows, cols]: [usize; 2],
        transposed: bool,
    ) -> PackedMatrix {
        let shape = [rows, cols];
        let codes = Bytes::from(self.codes(format, rows * format.row_bytes(cols).max(cols)));
        let matrix = match format.bytes() {
            Some(bytes) if transposed => {
                PackedMatrix::new(format, shape, [bytes, rows * bytes], codes)
            }
            _ => PackedMatrix::contiguous(format, shape, codes),
        };
        let matrix = matrix.unwrap();
        match format {
            CodeFormat::F32 | CodeFormat::F16 | CodeFormat::BF16 => matrix,
            CodeFormat::F8E4M3 => self.scaled(matrix, [4, 3], 0.1).with_global_scale(0.5),
            CodeFormat::I8 => self.scaled(matrix, [1, cols], 0.01),
            CodeFormat::I8Offset => self.scaled(self_zeros(matrix), [1, 5], 0.01),
            CodeFormat::I4Offset => self.scaled(self_zeros(matrix), [1, 4], 0.1),
            _ => self.scaled(matrix, [1, 8], 0.2).with_global_scale(1.5),
        }
    }

    fn scaled(&mut self, matrix: PackedMatrix, block: [usize; 2], size: f32) -> PackedMatrix {
        // The matrix begins within a block, as one that is cut out of a larger one does.
        let phase = [block[0] / 2, block[1] / 3];
        let blocks = |n: usize, axis: usize| (n + phase[axis]).div_ceil(block[axis]);
        let shape = [blocks(matrix.rows(), 0), blocks(matrix.cols(), 1)];
        let values = self.units(shape[0] * shape[1]);
        let bytes = values
            .iter()
            .flat_map(|v| (v * size).to_le_bytes())
            .collect();
        let strides = [shape[1] * 4, 4];
        let grid = ScaleGrid::new(ScaleFormat::F32, shape, block, strides, bytes).unwrap();
        matrix.with_scales(grid.with_phase(phase)).unwrap()
    }

    /// Local experts of all formats in turn.
    pub(crate) fn experts(
        &mut self,
        [num, hidden, intermediate]: [usize; 3],
        gated: bool,
        bias: bool,
    ) -> ExpertWeights {
        let expert = |e: usize| {
            let mut linear = |i: usize, shape: [usize; 2]| {
                let format = FORMATS[(e + i) % FORMATS.len()];
                let mut linear = ExpertLinear::new(self.matrix(format, shape, i == 1));
                linear.bias = bias.then(|| self.units(shape[0]));
                linear
            };
            let gate = gated.then(|| linear(0, [intermediate, hidden]));
            let up = linear(1, [intermediate, hidden]);
            let down = linear(2, [hidden, intermediate]);
            Arc::new(ExpertMlp::new(gate, up, down).unwrap())
        };
        ExpertWeights::new(hidden, intermediate, (0..num).map(expert).collect()).unwrap()
    }
}

/// The matrix with a zero point of 1 to 3 per 3 rows.
fn self_zeros(matrix: PackedMatrix) -> PackedMatrix {
    let blocks = matrix.rows().div_ceil(3);
    let bytes = (0..blocks).map(|b| (b % 3) as u8 + 1).collect();
    let block = [3, matrix.cols()];
    let grid = ScaleGrid::new(ScaleFormat::I8, [blocks, 1], block, [1, 0], bytes).unwrap();
    matrix.with_zero_points(grid).unwrap()
}
