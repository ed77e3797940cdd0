use moekit_quant::{
    ActivationQuant, CodeFormat, ExpertLinear, F8E4M3_SCALES, F8E8M0_SCALES, FLOAT_SCALES,
    LinearSite, PackedMatrix, QuantError, ScaleFormat, TensorDtype, TensorSource,
    load_float_linear,
};

use crate::scheme::{Inputs, Integers, MX_GROUP, NVFP4_GROUP, Scheme, Weights};
use crate::zero_points;

/// Loads a linear of a group.
pub(crate) fn load(
    scheme: &Scheme,
    site: &LinearSite,
    tensors: &dyn TensorSource,
) -> Result<ExpertLinear, QuantError> {
    if scheme.quantizes_output {
        return Err(site.unsupported("`output_activations`", "`input_activations` alone"));
    }
    let parts = Parts { site, tensors };
    let weight = match scheme.weights {
        Weights::Dense => None,
        Weights::Packed(integers) => Some(packed(integers, parts)?),
        Weights::Bytes(integers) => Some(bytes(integers, parts)?),
        Weights::Fp8(block) => Some(parts.scaled(parts.fp8()?, block, FLOAT_SCALES)?),
        Weights::Mxfp8 => Some(parts.scaled(parts.fp8()?, [1, MX_GROUP], F8E8M0_SCALES)?),
        Weights::Mxfp4 => Some(parts.scaled(parts.fp4()?, [1, MX_GROUP], F8E8M0_SCALES)?),
        Weights::Nvfp4 => {
            let weight = parts.scaled(parts.fp4()?, [1, NVFP4_GROUP], F8E4M3_SCALES)?;
            let name = site.tensor("weight_global_scale");
            Some(weight.with_global_scale(site.positive_reciprocal(tensors, &name)?))
        }
    };
    let mut linear = match weight {
        Some(weight) => site.linear(tensors, weight)?,
        None => load_float_linear(site, tensors)?,
    };
    linear.input_quant = input_quant(scheme.inputs, site, tensors)?;
    Ok(linear)
}

/// The tensors of a linear.
#[derive(Clone, Copy)]
struct Parts<'a> {
    site: &'a LinearSite,
    tensors: &'a dyn TensorSource,
}

impl Parts<'_> {
    fn codes(
        self,
        companion: &str,
        format: CodeFormat,
        dtype: TensorDtype,
    ) -> Result<PackedMatrix, QuantError> {
        let name = self.site.tensor(companion);
        self.site.codes(self.tensors, &name, format, &[dtype])
    }

    fn fp8(self) -> Result<PackedMatrix, QuantError> {
        self.codes("weight", CodeFormat::F8E4M3, TensorDtype::F8E4M3)
    }

    fn fp4(self) -> Result<PackedMatrix, QuantError> {
        self.codes("weight_packed", CodeFormat::F4E2M1, TensorDtype::U8)
    }

    fn scaled(
        self,
        codes: PackedMatrix,
        block: [usize; 2],
        formats: &[(TensorDtype, ScaleFormat)],
    ) -> Result<PackedMatrix, QuantError> {
        let name = self.site.tensor("weight_scale");
        codes.with_scales(self.site.scales(self.tensors, &name, &[block], formats)?)
    }
}

fn packed(integers: Integers, parts: Parts<'_>) -> Result<PackedMatrix, QuantError> {
    let Parts { site, tensors } = parts;
    let order = site.tensor("weight_g_idx");
    if tensors.contains(&order) {
        return Err(site.unsupported(&format!("a stored order of columns (`{order}`)"), "none"));
    }
    let format = match integers.bits {
        4 => CodeFormat::I4Offset,
        _ => CodeFormat::I8Offset,
    };
    let codes = parts.codes("weight_packed", format, TensorDtype::I32)?;
    check_weight_shape(site, tensors)?;
    let weight = parts.scaled(codes, integers.block, FLOAT_SCALES)?;
    match integers.symmetric {
        true => Ok(weight),
        false => weight.with_zero_points(zero_points::packed(integers, site, tensors)?),
    }
}

fn bytes(integers: Integers, parts: Parts<'_>) -> Result<PackedMatrix, QuantError> {
    let codes = parts.codes("weight", CodeFormat::I8, TensorDtype::I8)?;
    let weight = parts.scaled(codes, integers.block, FLOAT_SCALES)?;
    match integers.symmetric {
        true => Ok(weight),
        false => {
            let name = parts.site.tensor("weight_zero_point");
            let formats = [(TensorDtype::I8, ScaleFormat::I8)];
            let blocks = [integers.block];
            weight.with_zero_points(parts.site.scales(parts.tensors, &name, &blocks, &formats)?)
        }
    }
}

/// `weight_shape` is `[out, in]` of the stored weight, which the packed words cannot tell exactly.
fn check_weight_shape(site: &LinearSite, tensors: &dyn TensorSource) -> Result<(), QuantError> {
    let name = site.tensor("weight_shape");
    let Some(info) = tensors.info(&name) else {
        return Ok(());
    };
    if info.dtype != TensorDtype::I64 || info.shape != [2] {
        return Err(QuantError::Shape {
            tensor: name,
            got: info.shape,
            expected: "[2] of i64".to_owned(),
        });
    }
    let read = tensors.read(&name, 0..16)?;
    let sizes = read
        .as_chunks::<8>()
        .0
        .iter()
        .map(|size| i64::from_le_bytes(*size));
    let got: Vec<usize> = sizes
        .map(|size| usize::try_from(size).unwrap_or(usize::MAX))
        .collect();
    let stored = site.stored_shape();
    match got == stored {
        true => Ok(()),
        false => Err(QuantError::Value {
            tensor: name,
            got: format!("{got:?}"),
            expected: format!("{stored:?}, the shape of the weight"),
        }),
    }
}

fn input_quant(
    inputs: Inputs,
    site: &LinearSite,
    tensors: &dyn TensorSource,
) -> Result<Option<ActivationQuant>, QuantError> {
    Ok(Some(match inputs {
        Inputs::Float => return Ok(None),
        Inputs::Static(format) => ActivationQuant::Static {
            format,
            scale: site.positive_scalar(tensors, &site.tensor("input_scale"))?,
        },
        Inputs::PerToken(format) => ActivationQuant::PerToken { format },
        Inputs::PerGroup(format, group_size) => ActivationQuant::PerGroup {
            format,
            group_size,
            power_of_two: false,
        },
        Inputs::Mx(format) => ActivationQuant::Mx { format },
        Inputs::Nvfp4 => {
            let name = site.tensor("input_global_scale");
            ActivationQuant::Nvfp4 {
                scale: site.positive_reciprocal(tensors, &name)?,
            }
        }
    }))
}
