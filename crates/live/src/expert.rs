//! One expert as bytes: the unit that moves.
//!
//! A fixed part (what it is, how long, a checksum of all else), a JSON header (shapes and formats,
//! as in safetensors), and the values: codes, scales, zero points and biases, rows without gaps.

use bytes::Bytes;
use moekit_quant::{
    ActivationQuant, CodeFormat, ExpertLinear, ExpertMlp, PackedMatrix, QuantError, ScaleFormat,
    ScaleGrid,
};
use moekit_routing::LogicalExpert;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use xxhash_rust::xxh3::Xxh3;

const MAGIC: [u8; 8] = *b"moe-xprt";
const VERSION: u32 = 1;
/// Magic, version, length of the header, layer, expert, length of the values, checksum.
const FIXED: usize = 8 + 4 + 4 + 8 + 8 + 8 + 8;
const CHECKSUM_AT: usize = FIXED - 8;

/// Which expert of which layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ExpertId {
    pub(crate) layer: usize,
    pub(crate) expert: LogicalExpert,
}

impl std::fmt::Display for ExpertId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "expert {} of layer {}", self.expert, self.layer)
    }
}

/// Why an expert that arrived is not taken.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ExpertError {
    /// Bytes are missing, or there are too many.
    #[error("{what}: {got} bytes arrived, expected {expected}")]
    Length {
        /// Of what.
        what: String,
        /// Bytes that arrived.
        got: usize,
        /// Bytes that it should have.
        expected: usize,
    },
    /// The bytes are not those that were sent.
    #[error("{what}: the checksum is {got:016x}, expected {expected:016x}")]
    Checksum {
        /// Of what.
        what: String,
        /// Of the bytes that arrived.
        got: u64,
        /// The one that was sent along.
        expected: u64,
    },
    /// Another expert than the one expected.
    #[error("{got} arrived, expected {expected}")]
    Identity {
        /// What arrived.
        got: String,
        /// What should have.
        expected: String,
    },
    /// The bytes are no expert.
    #[error("{what}: {problem}")]
    Malformed {
        /// Of what.
        what: String,
        /// What is wrong.
        problem: String,
    },
}

#[derive(Serialize, Deserialize)]
struct Header {
    gate: Option<LinearHeader>,
    up: LinearHeader,
    down: LinearHeader,
}

#[derive(Serialize, Deserialize)]
struct LinearHeader {
    format: CodeFormat,
    shape: [usize; 2],
    scales: Option<GridHeader>,
    zero_points: Option<GridHeader>,
    /// The bits, so that no value is lost in a decimal.
    global_scale: u32,
    bias: bool,
    input_quant: Option<ActivationQuant>,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
struct GridHeader {
    format: ScaleFormat,
    shape: [usize; 2],
    block: [usize; 2],
    phase: [usize; 2],
    /// Whether all blocks along an axis share one scale.
    repeats: [bool; 2],
}

impl GridHeader {
    fn of(grid: &ScaleGrid) -> Self {
        Self {
            format: grid.format(),
            shape: grid.shape(),
            block: grid.block(),
            phase: grid.phase(),
            repeats: grid.strides().map(|stride| stride == 0),
        }
    }

    /// Distinct scales along an axis.
    fn distinct(&self, axis: usize) -> usize {
        if self.repeats[axis] {
            1
        } else {
            self.shape[axis]
        }
    }

    fn strides(&self) -> [usize; 2] {
        let bytes = self.format.bytes();
        let row = self.distinct(1).saturating_mul(bytes);
        let stride = |axis: usize, stride| if self.repeats[axis] { 0 } else { stride };
        [stride(0, row), stride(1, bytes)]
    }
}

fn header(expert: &ExpertMlp) -> Result<Vec<u8>, String> {
    let header = Header {
        gate: expert.gate.as_ref().map(linear_header),
        up: linear_header(&expert.up),
        down: linear_header(&expert.down),
    };
    serde_json::to_vec(&header).map_err(|e| e.to_string())
}

/// Bytes that the expert takes on its way, at most.
pub(crate) fn encoded_size(expert: &ExpertMlp) -> u64 {
    let header = header(expert).map_or(0, |header| header.len());
    (FIXED + header + expert.num_bytes()) as u64
}

/// The expert as bytes.
pub(crate) fn encode(id: ExpertId, expert: &ExpertMlp) -> Result<Bytes, ExpertError> {
    let malformed = |problem: String| ExpertError::Malformed {
        what: id.to_string(),
        problem,
    };
    let header = header(expert).map_err(malformed)?;
    let mut out = Vec::new();
    let size = FIXED + header.len() + expert.num_bytes();
    out.try_reserve_exact(size)
        .map_err(|_| malformed(format!("no memory for its {size} bytes")))?;
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&(header.len() as u32).to_le_bytes());
    out.extend_from_slice(&(id.layer as u64).to_le_bytes());
    out.extend_from_slice(&(id.expert.index() as u64).to_le_bytes());
    out.extend_from_slice(&[0; 16]);
    out.extend_from_slice(&header);
    let values = out.len();
    for linear in expert.linears() {
        put_linear(&mut out, linear)
            .ok_or_else(|| malformed("its codes end before its shape".to_owned()))?;
    }
    let length = (out.len() - values) as u64;
    out[CHECKSUM_AT - 8..CHECKSUM_AT].copy_from_slice(&length.to_le_bytes());
    let checksum = checksum(&out);
    out[CHECKSUM_AT..FIXED].copy_from_slice(&checksum.to_le_bytes());
    Ok(out.into())
}

/// The expert in the bytes, which it shares.
///
/// # Errors
///
/// If it is not the expert `id`, or not whole and unchanged.
pub(crate) fn decode(id: ExpertId, bytes: &Bytes) -> Result<ExpertMlp, ExpertError> {
    let length = |expected: usize| ExpertError::Length {
        what: id.to_string(),
        got: bytes.len(),
        expected,
    };
    let malformed = |problem: String| ExpertError::Malformed {
        what: id.to_string(),
        problem,
    };
    let fixed: &[u8; FIXED] = bytes.first_chunk().ok_or_else(|| length(FIXED))?;
    if fixed[..8] != MAGIC || fixed[8..12] != VERSION.to_le_bytes() {
        return Err(malformed(format!(
            "the bytes do not begin as an expert of version {VERSION} does"
        )));
    }
    let header_length = u32::from_le_bytes(array(fixed, 12)) as usize;
    let values_length = u64::from_le_bytes(array(fixed, 32));
    let whole = usize::try_from(values_length)
        .ok()
        .and_then(|n| n.checked_add(FIXED + header_length));
    if whole != Some(bytes.len()) {
        return Err(length(whole.unwrap_or(usize::MAX)));
    }
    let (got, expected) = (
        checksum(bytes),
        u64::from_le_bytes(array(fixed, CHECKSUM_AT)),
    );
    if got != expected {
        return Err(ExpertError::Checksum {
            what: id.to_string(),
            got,
            expected,
        });
    }
    let layer = u64::from_le_bytes(array(fixed, 16));
    let expert = u64::from_le_bytes(array(fixed, 24));
    if (layer, expert) != (id.layer as u64, id.expert.index() as u64) {
        return Err(ExpertError::Identity {
            got: format!("expert {expert} of layer {layer}"),
            expected: id.to_string(),
        });
    }
    let header: Header = serde_json::from_slice(&bytes[FIXED..FIXED + header_length])
        .map_err(|e| malformed(e.to_string()))?;
    let mut values = bytes.slice(FIXED + header_length..);
    let mut linear = |h: &LinearHeader| take_linear(&mut values, h).map_err(malformed);
    let gate = header.gate.as_ref().map(&mut linear).transpose()?;
    let (up, down) = (linear(&header.up)?, linear(&header.down)?);
    if !values.is_empty() {
        return Err(malformed(format!("{} bytes too many", values.len())));
    }
    ExpertMlp::new(gate, up, down).map_err(|e| malformed(e.to_string()))
}

/// Over all bytes but the checksum itself.
fn checksum(bytes: &[u8]) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(&bytes[..CHECKSUM_AT]);
    hash.update(&bytes[FIXED..]);
    hash.digest()
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    std::array::from_fn(|i| bytes[at + i])
}

fn linear_header(linear: &ExpertLinear) -> LinearHeader {
    let weight = &linear.weight;
    LinearHeader {
        format: weight.format(),
        shape: [weight.rows(), weight.cols()],
        scales: weight.scales().map(GridHeader::of),
        zero_points: weight.zero_points().map(GridHeader::of),
        global_scale: weight.global_scale().to_bits(),
        bias: linear.bias.is_some(),
        input_quant: linear.input_quant,
    }
}

/// `None` if the views do not reach as far as their shapes, which they were made to.
fn put_linear(out: &mut Vec<u8>, linear: &ExpertLinear) -> Option<()> {
    let weight = &linear.weight;
    for row in 0..weight.rows() {
        if let Some(codes) = weight.row_codes(row) {
            out.extend_from_slice(codes);
            continue;
        }
        let (bytes, stride) = (weight.format().bytes()?, weight.col_stride()?);
        for col in 0..weight.cols() {
            let at = row * weight.row_stride() + col * stride;
            out.extend_from_slice(weight.codes().get(at..at + bytes)?);
        }
    }
    for grid in weight.scales().into_iter().chain(weight.zero_points()) {
        let header = GridHeader::of(grid);
        let (strides, bytes) = (grid.strides(), grid.format().bytes());
        for row in 0..header.distinct(0) {
            for col in 0..header.distinct(1) {
                let at = row * strides[0] + col * strides[1];
                out.extend_from_slice(grid.bytes().get(at..at + bytes)?);
            }
        }
    }
    for value in linear.bias.iter().flatten() {
        out.extend_from_slice(&value.to_le_bytes());
    }
    Some(())
}

fn take_linear(values: &mut Bytes, header: &LinearHeader) -> Result<ExpertLinear, String> {
    let [rows, cols] = header.shape;
    let codes = take(values, rows.checked_mul(header.format.row_bytes(cols)))?;
    let weight = PackedMatrix::contiguous(header.format, header.shape, codes);
    let mut weight = weight.map_err(|e| e.to_string())?;
    if let Some(grid) = &header.scales {
        let grid = take_grid(values, grid)?;
        weight = weight.with_scales(grid).map_err(|e| e.to_string())?;
    }
    if let Some(grid) = &header.zero_points {
        let grid = take_grid(values, grid)?;
        weight = weight.with_zero_points(grid).map_err(|e| e.to_string())?;
    }
    let mut linear =
        ExpertLinear::new(weight.with_global_scale(f32::from_bits(header.global_scale)));
    if header.bias {
        let bytes = take(values, rows.checked_mul(4))?;
        let bias = bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b));
        linear.bias = Some(bias.collect());
    }
    linear.input_quant = header.input_quant;
    Ok(linear)
}

fn take_grid(values: &mut Bytes, header: &GridHeader) -> Result<ScaleGrid, String> {
    let distinct = header.distinct(0).checked_mul(header.distinct(1));
    let bytes = take(
        values,
        distinct.and_then(|n| n.checked_mul(header.format.bytes())),
    )?;
    let strides = header.strides();
    let grid = ScaleGrid::new(header.format, header.shape, header.block, strides, bytes);
    Ok(grid.map_err(|e| e.to_string())?.with_phase(header.phase))
}

fn take(values: &mut Bytes, length: Option<usize>) -> Result<Bytes, String> {
    match length {
        Some(length) if length <= values.len() => Ok(values.split_to(length)),
        _ => Err(format!(
            "its header asks for {length:?} bytes where {} are left",
            values.len()
        )),
    }
}

/// Stands in the slots of experts that no rank of the group holds: no token is sent there, and if
/// one were, its output would be NaN rather than wrong.
pub(crate) fn absent(
    hidden_size: usize,
    intermediate_size: usize,
    gated: bool,
) -> Result<ExpertMlp, QuantError> {
    let nan = || Bytes::from_static(&[0, 0, 0xc0, 0x7f]);
    let linear = |rows, cols| {
        let matrix = PackedMatrix::new(CodeFormat::F32, [rows, cols], [0, 0], nan());
        matrix.map(ExpertLinear::new)
    };
    let up = || linear(intermediate_size, hidden_size);
    let gate = gated.then(up).transpose()?;
    ExpertMlp::new(gate, up()?, linear(hidden_size, intermediate_size)?)
}

#[cfg(test)]
mod tests {
    use moekit_quant::ActivationFormat;

    use super::*;

    const ID: ExpertId = ExpertId {
        layer: 3,
        expert: LogicalExpert::new(7),
    };

    fn f32s(values: impl IntoIterator<Item = f32>) -> Bytes {
        values.into_iter().flat_map(f32::to_le_bytes).collect()
    }

    /// Every part that an expert can have: a transposed view, odd nibbles, grids with repetition,
    /// phase and zero points, two levels of scales, biases, input schemes.
    fn sample() -> ExpertMlp {
        let up = PackedMatrix::new(
            CodeFormat::F32,
            [4, 3],
            [4, 16],
            f32s((0..12).map(|v| v as f32)),
        );
        let mut up = ExpertLinear::new(up.unwrap());
        up.bias = Some(vec![0.1, -0.0, f32::MIN_POSITIVE, 3.0]);
        up.input_quant = Some(ActivationQuant::Static {
            format: ActivationFormat::F8E4M3,
            scale: 0.1,
        });
        let nibbles = Bytes::from_static(&[0x21, 0x43, 0x65, 0x87, 0xa9, 0xcb, 0xed, 0x0f]);
        let gate = PackedMatrix::contiguous(CodeFormat::I4Offset, [4, 3], nibbles).unwrap();
        let scales = Bytes::from_static(&[0, 0x3c, 0, 0x40, 0, 0x38]);
        let scales = ScaleGrid::new(ScaleFormat::F16, [2, 3], [3, 1], [0, 2], scales).unwrap();
        let zeros = Bytes::from_static(&[1, 9, 2, 9, 3]);
        let zeros = ScaleGrid::new(ScaleFormat::I8, [3, 1], [2, 3], [2, 0], zeros).unwrap();
        let gate = gate
            .with_scales(scales.with_phase([1, 0]))
            .unwrap()
            .with_zero_points(zeros.with_phase([1, 0]))
            .unwrap()
            .with_global_scale(0.3);
        let down = PackedMatrix::contiguous(CodeFormat::F8E4M3, [3, 4], Bytes::from_iter(40..52));
        ExpertMlp::new(
            Some(ExpertLinear::new(gate)),
            up,
            ExpertLinear::new(down.unwrap()),
        )
        .unwrap()
    }

    fn bits(expert: &ExpertMlp) -> Vec<impl PartialEq + std::fmt::Debug + use<>> {
        let linear = |l: &ExpertLinear| {
            let mut all = Vec::new();
            for row in 0..l.weight.rows() {
                let mut values = vec![0.0; l.weight.cols()];
                l.weight.dequantize_row(row, &mut values).unwrap();
                all.extend(values.into_iter().map(f32::to_bits));
            }
            let bias = l.bias.as_ref();
            let bias = bias.map(|b| b.iter().map(|v| v.to_bits()).collect::<Vec<_>>());
            (all, bias, l.input_quant)
        };
        expert.linears().map(linear).collect()
    }

    #[test]
    fn every_part_arrives() {
        let expert = sample();
        let bytes = encode(ID, &expert).unwrap();
        let arrived = decode(ID, &bytes).unwrap();
        assert_eq!(bits(&arrived), bits(&expert));
        assert_eq!(arrived.num_bytes(), expert.num_bytes());
        assert_eq!(encode(ID, &arrived).unwrap(), bytes, "compact already");
        assert!(encoded_size(&expert) >= bytes.len() as u64);
        let no_gate = ExpertMlp::new(None, expert.up, expert.down).unwrap();
        let arrived = decode(ID, &encode(ID, &no_gate).unwrap()).unwrap();
        assert_eq!(bits(&arrived), bits(&no_gate));
    }

    #[test]
    fn any_changed_byte_and_any_length_is_refused() {
        let bytes = encode(ID, &sample()).unwrap();
        for at in 0..bytes.len() {
            let mut damaged = bytes.to_vec();
            damaged[at] ^= 0x10;
            decode(ID, &damaged.into()).unwrap_err();
        }
        for length in 0..bytes.len() {
            let error = decode(ID, &bytes.slice(..length)).unwrap_err();
            assert!(matches!(error, ExpertError::Length { .. }), "{error}");
        }
        let longer = Bytes::from([&bytes[..], &[0]].concat());
        assert!(matches!(
            decode(ID, &longer),
            Err(ExpertError::Length { .. })
        ));
    }

    #[test]
    fn another_expert_is_named() {
        let bytes = encode(ID, &sample()).unwrap();
        let other = ExpertId { layer: 2, ..ID };
        let error = decode(other, &bytes).unwrap_err().to_string();
        assert_eq!(
            error,
            "expert 7 of layer 3 arrived, expected expert 7 of layer 2"
        );
    }

    #[test]
    fn absent_experts_take_no_memory_and_are_nan() {
        let expert = absent(4096, 1024, true).unwrap();
        assert_eq!(expert.up.weight.codes().len(), 4);
        let mut row = vec![0.0; 1024];
        expert.down.weight.dequantize_row(4095, &mut row).unwrap();
        assert!(row.iter().all(|v| v.is_nan()));
    }
}
