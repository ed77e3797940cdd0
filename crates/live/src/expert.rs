//! One expert as bytes: the unit that moves.
//!
//! A fixed part (what it is, how long, a checksum of all else), and the expert in the order in which
//! the kernels read it: it need not be rearranged where it arrives.

use std::sync::Arc;

use bytes::Bytes;
use moekit_fused_moe::{FusedMoeError, PreparedExpert};
use moekit_quant::{CodeFormat, ExpertLinear, ExpertMlp, PackedMatrix, QuantError};
use moekit_routing::LogicalExpert;
use thiserror::Error;
use xxhash_rust::xxh3::Xxh3;

const MAGIC: [u8; 8] = *b"moe-xprt";
const VERSION: u32 = 2;
/// Magic, version, layer, expert, length of the rest, checksum.
const FIXED: usize = 8 + 4 + 8 + 8 + 8 + 8;
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

/// The expert in the order of the kernels.
pub(crate) fn prepared(expert: &ExpertMlp) -> Result<Arc<PreparedExpert>, FusedMoeError> {
    Ok(Arc::new(PreparedExpert::new(expert)?))
}

/// Bytes that the expert takes on its way.
pub(crate) fn encoded_size(expert: &PreparedExpert) -> u64 {
    (FIXED + expert.num_encoded_bytes()) as u64
}

/// The expert as bytes.
pub(crate) fn encode(id: ExpertId, expert: &PreparedExpert) -> Result<Bytes, ExpertError> {
    let mut out = Vec::new();
    let length = expert.num_encoded_bytes();
    let size = FIXED + length;
    out.try_reserve_exact(size)
        .map_err(|_| ExpertError::Malformed {
            what: id.to_string(),
            problem: format!("no memory for its {size} bytes"),
        })?;
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&(id.layer as u64).to_le_bytes());
    out.extend_from_slice(&(id.expert.index() as u64).to_le_bytes());
    out.extend_from_slice(&(length as u64).to_le_bytes());
    out.extend_from_slice(&[0; 8]);
    expert.write_to(&mut out);
    let checksum = checksum(&out);
    out[CHECKSUM_AT..FIXED].copy_from_slice(&checksum.to_le_bytes());
    Ok(out.into())
}

/// The expert in the bytes.
///
/// # Errors
///
/// If it is not the expert `id`, or not whole and unchanged.
pub(crate) fn decode(id: ExpertId, bytes: &Bytes) -> Result<PreparedExpert, ExpertError> {
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
    let whole = usize::try_from(u64::from_le_bytes(array(fixed, 28)))
        .ok()
        .and_then(|n| n.checked_add(FIXED));
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
    let layer = u64::from_le_bytes(array(fixed, 12));
    let expert = u64::from_le_bytes(array(fixed, 20));
    if (layer, expert) != (id.layer as u64, id.expert.index() as u64) {
        return Err(ExpertError::Identity {
            got: format!("expert {expert} of layer {layer}"),
            expected: id.to_string(),
        });
    }
    PreparedExpert::from_bytes(&bytes[FIXED..]).map_err(|e| malformed(e.to_string()))
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
    use moekit_quant::{ActivationFormat, ActivationQuant, ScaleFormat, ScaleGrid};

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

    fn bits(expert: &PreparedExpert) -> Vec<impl PartialEq + std::fmt::Debug + use<>> {
        let linears = expert.gate().into_iter();
        linears
            .chain([expert.up(), expert.down()])
            .map(|l| {
                let values = l.weight().dequantize();
                let all: Vec<u32> = values.into_iter().map(f32::to_bits).collect();
                let bias = l.bias();
                let bias = bias.map(|b| b.iter().map(|v| v.to_bits()).collect::<Vec<_>>());
                (all, bias, l.input_quant())
            })
            .collect()
    }

    #[test]
    fn every_part_arrives() {
        let sample = sample();
        let expert = PreparedExpert::new(&sample).unwrap();
        let bytes = encode(ID, &expert).unwrap();
        let arrived = decode(ID, &bytes).unwrap();
        assert_eq!(bits(&arrived), bits(&expert));
        assert_eq!(arrived.num_bytes(), expert.num_bytes());
        assert_eq!(encode(ID, &arrived).unwrap(), bytes);
        assert_eq!(encoded_size(&expert), bytes.len() as u64);
        let no_gate = ExpertMlp::new(None, sample.up, sample.down).unwrap();
        let no_gate = PreparedExpert::new(&no_gate).unwrap();
        let arrived = decode(ID, &encode(ID, &no_gate).unwrap()).unwrap();
        assert_eq!(bits(&arrived), bits(&no_gate));
    }

    #[test]
    fn any_changed_byte_and_any_length_is_refused() {
        let bytes = encode(ID, &PreparedExpert::new(&sample()).unwrap()).unwrap();
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
        let bytes = encode(ID, &PreparedExpert::new(&sample()).unwrap()).unwrap();
        let other = ExpertId { layer: 2, ..ID };
        let error = decode(other, &bytes).unwrap_err().to_string();
        assert_eq!(
            error,
            "expert 7 of layer 3 arrived, expected expert 7 of layer 2"
        );
    }

    #[test]
    fn absent_experts_take_little_memory_and_are_nan() {
        let expert = prepared(&absent(512, 1024, true).unwrap()).unwrap();
        assert!(expert.num_bytes() < (3 * 512 * 1024 * 4) / 16);
        assert!(
            expert
                .down()
                .weight()
                .dequantize()
                .iter()
                .all(|v| v.is_nan())
        );
    }
}
