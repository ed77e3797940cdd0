//! A prepared expert as bytes, for another rank.

use moekit_quant::ActivationQuant;
use serde::{Deserialize, Serialize};

use super::{Layout, PreparedExpert, PreparedLinear, PreparedMatrix};
use crate::KernelError;
use crate::memory::Arena;

/// Name and version of the form.
const MAGIC: [u8; 8] = *b"moekitx1";
/// A header that is longer describes no expert.
const MAX_HEADER: usize = 1 << 16;

#[derive(Serialize, Deserialize)]
struct Header {
    /// Gate (if there is one), up, down.
    linears: Vec<LinearHeader>,
}

#[derive(Serialize, Deserialize)]
struct LinearHeader {
    layout: Layout,
    bias: bool,
    input_quant: Option<ActivationQuant>,
}

impl PreparedExpert {
    /// The expert as bytes: 8 of name and version, the length of a header, the header, and for each
    /// linear its bias and its panels.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.num_encoded_bytes());
        self.write_to(&mut out);
        out
    }

    /// Appends what [`PreparedExpert::to_bytes`] gives.
    pub fn write_to(&self, out: &mut Vec<u8>) {
        let header = self.header();
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&(header.len() as u64).to_le_bytes());
        out.extend_from_slice(&header);
        for linear in self.linears() {
            let bias = linear.bias.iter().flatten();
            out.extend(bias.flat_map(|b| b.to_le_bytes()));
            out.extend_from_slice(linear.weight.bytes());
        }
    }

    /// The length of [`PreparedExpert::to_bytes`].
    pub fn num_encoded_bytes(&self) -> usize {
        MAGIC.len() + 8 + self.header().len() + self.num_bytes()
    }

    fn header(&self) -> Vec<u8> {
        let linear = |l: &PreparedLinear| LinearHeader {
            layout: l.weight.layout().clone(),
            bias: l.bias.is_some(),
            input_quant: l.input_quant,
        };
        let header = Header {
            linears: self.linears().map(linear).collect(),
        };
        // Numbers and names are always text.
        serde_json::to_vec(&header).unwrap_or_default()
    }

    /// The expert that [`PreparedExpert::to_bytes`] wrote.
    ///
    /// # Errors
    ///
    /// If the bytes are not those of an expert, end early or go on after it.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, KernelError> {
        let mut rest = Rest(bytes);
        if rest.take(MAGIC.len())? != MAGIC {
            return Err(error(format!(
                "they do not begin with {:?}",
                String::from_utf8_lossy(&MAGIC)
            )));
        }
        let len = rest.take(8)?.first_chunk().map(|b| u64::from_le_bytes(*b));
        let len = len.and_then(|len| usize::try_from(len).ok());
        let len = len.filter(|len| *len <= MAX_HEADER);
        let header = rest.take(len.ok_or_else(|| error("the header is too long".to_owned()))?)?;
        let header: Header = serde_json::from_slice(header)
            .map_err(|e| error(format!("the header cannot be read: {e}")))?;
        let sizes = header.linears.iter().map(|l| size(&l.layout));
        let mut arena = Arena::new(total(sizes, bytes.len())?)?;
        let mut linears = Vec::new();
        for header in header.linears {
            linears.push(linear(header, &mut rest, &mut arena)?);
        }
        if !rest.0.is_empty() {
            return Err(error(format!("{} follow the last weight", rest.0.len())));
        }
        let mut linears = linears.into_iter().rev();
        let expert = match (linears.next(), linears.next(), linears.next()) {
            (Some(down), Some(up), gate) if linears.next().is_none() => Self { gate, up, down },
            _ => return Err(error("an expert has two or three linears".to_owned())),
        };
        expert.check_shapes()?;
        Ok(expert)
    }

    fn check_shapes(&self) -> Result<(), KernelError> {
        let shape = |l: &PreparedLinear| [l.weight.rows(), l.weight.cols()];
        let [width, hidden] = shape(&self.up);
        let gate = self.gate.as_ref().map_or([width, hidden], shape);
        let (got, expected) = (
            [gate, shape(&self.down)],
            [[width, hidden], [hidden, width]],
        );
        match got == expected {
            true => Ok(()),
            false => Err(error(format!(
                "the shapes of gate and down are {got:?}, to an up of [{width}, {hidden}]"
            ))),
        }
    }
}

fn size(layout: &Layout) -> Result<usize, KernelError> {
    let unsound = || error(format!("the layout {layout:?} is none"));
    match layout.is_sound() {
        true => layout.num_bytes().ok_or_else(unsound),
        false => Err(unsound()),
    }
}

/// The sum of sizes, none of which may lie beyond the bytes there are.
fn total(
    sizes: impl Iterator<Item = Result<usize, KernelError>>,
    most: usize,
) -> Result<usize, KernelError> {
    let mut total = 0_usize;
    for size in sizes {
        total = total.saturating_add(size?);
    }
    match total <= most {
        true => Ok(total),
        false => Err(error(format!("{total} bytes of weights, {most} in all"))),
    }
}

fn linear(
    header: LinearHeader,
    rest: &mut Rest<'_>,
    arena: &mut Arena,
) -> Result<PreparedLinear, KernelError> {
    let rows = header.layout.rows;
    let bias = match header.bias {
        true => {
            let (values, _) = rest.take(rows.saturating_mul(4))?.as_chunks::<4>();
            Some(values.iter().map(|b| f32::from_le_bytes(*b)).collect())
        }
        false => None,
    };
    let codes = rest.take(size(&header.layout)?)?;
    let mut region = arena.take(codes.len())?;
    region.copy_from_slice(codes);
    let weight = PreparedMatrix::from_parts(header.layout, region)
        .ok_or_else(|| error("the length of a weight is wrong".to_owned()))?;
    Ok(PreparedLinear {
        weight,
        bias,
        input_quant: header.input_quant,
    })
}

fn error(reason: String) -> KernelError {
    KernelError::PreparedBytes { reason }
}

/// What has not been read yet.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], KernelError> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or_else(|| {
            error(format!(
                "{len} are missing of which {} are left",
                self.0.len()
            ))
        })?;
        self.0 = rest;
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_weights::Noise;

    #[test]
    fn an_expert_comes_back() {
        let mut noise = Noise::new(24);
        for (gated, bias) in [(true, true), (false, false)] {
            for expert in noise.experts([8, 40, 37], gated, bias).experts {
                let expert = PreparedExpert::new(&expert).unwrap();
                let bytes = expert.to_bytes();
                let back = PreparedExpert::from_bytes(&bytes).unwrap();
                assert_eq!(back.to_bytes(), bytes);
                assert_eq!(expert.num_encoded_bytes(), bytes.len());
                for (a, b) in back.linears().zip(expert.linears()) {
                    assert_eq!(a.bias, b.bias);
                    assert_eq!(a.weight.dequantize(), b.weight.dequantize());
                }
            }
        }
    }

    #[test]
    fn damage_is_found() {
        let mut noise = Noise::new(25);
        let experts = noise.experts([1, 8, 6], true, true).experts;
        let bytes = PreparedExpert::new(&experts[0]).unwrap().to_bytes();
        for len in (0..bytes.len()).step_by(7) {
            assert!(PreparedExpert::from_bytes(&bytes[..len]).is_err(), "{len}");
        }
        let longer = [&bytes[..], &[0]].concat();
        let message = PreparedExpert::from_bytes(&longer).unwrap_err().to_string();
        assert!(message.contains("1 follow"), "{message}");
        // Whatever a byte of the header becomes, what is read is an expert or an error.
        for at in 0..bytes.len().min(600) {
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1 << bit;
                if let Ok(expert) = PreparedExpert::from_bytes(&damaged) {
                    assert_eq!(expert.to_bytes().len(), bytes.len());
                }
            }
        }
    }
}
