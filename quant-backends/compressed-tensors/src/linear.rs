use moekit_quant::{
    ActivationQuant, CodeFormat, ExpertLinear, LinearSite, PackedMatrix, QuantError, ScaleFormat,
    TensorDtype, TensorSource, load_float_linear,
};

use crate::scheme::{Inputs, Integers, Scheme, Weights};
use crate::zero_points;

const FLOAT_SCALES: [(TensorDtype, ScaleFormat); 3] = [
    (TensorDtype::BF16, ScaleFormat::BF16),
    (TensorDtype::F16, ScaleFormat::F16),
    (TensorDtype::F32, ScaleFormat::F32),
];
const E4M3_SCALES: [(TensorDtype, ScaleFormat); 1] = [(TensorDtype::F8E4M3, ScaleFormat::F8E4M3)];
const E8M0_SCALES: [(TensorDtype, ScaleFormat); 2] = [
    (TensorDtype::U8, ScaleFormat::F8E8M0),
    (TensorDtype::F8E8M0, ScaleFormat::F8E8M0),
];

/// Loads a linear of a group.
pub(crate) fn load(
    scheme: &Scheme,
    site: &LinearSite,
    tensors: &dyn TensorSource,
) -> Result<ExpertLinear, QuantError> {
    let weight = match scheme.weights {
        Weights::Dense => None,
        Weights::Packed(integers) => Some(packed(integers, site, tensors)?),
        Weights::Bytes(integers) => Some(bytes(integers, site, tensors)?),
        Weights::Fp8(block) => Some(scaled(
            codes(
                site,
                tensors,
                "weight",
                CodeFormat::F8E4M3,
                TensorDtype::F8E4M3,
            )?,
            (site, tensors),
            block,
            &FLOAT_SCALES,
        )?),
        Weights::Mxfp8 => Some(scaled(
            codes(
                site,
                tensors,
                "weight",
                CodeFormat::F8E4M3,
                TensorDtype::F8E4M3,
            )?,
            (site, tensors),
            [1, 32],
            &E8M0_SCALES,
        )?),
        Weights::Mxfp4 => Some(scaled(
            codes(
                site,
                tensors,
                "weight_packed",
                CodeFormat::F4E2M1,
                TensorDtype::U8,
            )?,
            (site, tensors),
            [1, 32],
            &E8M0_SCALES,
        )?),
        Weights::Nvfp4 => Some(nvfp4(site, tensors)?),
    };
    let mut linear = match weight {
        Some(weight) => site.linear(tensors, weight)?,
        None => load_float_linear(site, tensors)?,
    };
    linear.input_quant = input_quant(scheme.inputs, site, tensors)?;
    Ok(linear)
}

fn codes(
    site: &LinearSite,
    tensors: &dyn TensorSource,
    companion: &str,
    format: CodeFormat,
    dtype: TensorDtype,
) -> Result<PackedMatrix, QuantError> {
    site.codes(tensors, &site.tensor(companion), format, &[dtype])
}

fn scaled(
    codes: PackedMatrix,
    (site, tensors): (&LinearSite, &dyn TensorSource),
    block: [usize; 2],
    formats: &[(TensorDtype, ScaleFormat)],
) -> Result<PackedMatrix, QuantError> {
    let scales = site.scales(tensors, &site.tensor("weight_scale"), &[block], formats)?;
    codes.with_scales(scales)
}

fn nvfp4(site: &LinearSite, tensors: &dyn TensorSource) -> Result<PackedMatrix, QuantError> {
    let codes = codes(
        site,
        tensors,
        "weight_packed",
        CodeFormat::F4E2M1,
        TensorDtype::U8,
    )?;
    let weight = scaled(codes, (site, tensors), [1, 16], &E4M3_SCALES)?;
    let global = site.positive_scalar(tensors, &site.tensor("weight_global_scale"))?;
    Ok(weight.with_global_scale(global.recip()))
}

fn packed(
    integers: Integers,
    site: &LinearSite,
    tensors: &dyn TensorSource,
) -> Result<PackedMatrix, QuantError> {
    let order = site.tensor("weight_g_idx");
    if tensors.contains(&order) {
        return Err(site.unsupported(&format!("a stored order of columns (`{order}`)"), "none"));
    }
    let format = match integers.bits {
        4 => CodeFormat::I4Offset,
        _ => CodeFormat::I8Offset,
    };
    let codes = codes(site, tensors, "weight_packed", format, TensorDtype::I32)?;
    check_weight_shape(site, tensors)?;
    let weight = scaled(codes, (site, tensors), integers.block, &FLOAT_SCALES)?;
    match integers.symmetric {
        true => Ok(weight),
        false => {
            let zero_points = zero_points::packed(integers, site, tensors)?;
            weight.with_zero_points(zero_points)
        }
    }
}

fn bytes(
    integers: Integers,
    site: &LinearSite,
    tensors: &dyn TensorSource,
) -> Result<PackedMatrix, QuantError> {
    let codes = codes(site, tensors, "weight", CodeFormat::I8, TensorDtype::I8)?;
    let weight = scaled(codes, (site, tensors), integers.block, &FLOAT_SCALES)?;
    match integers.symmetric {
        true => Ok(weight),
        false => {
            let name = site.tensor("weight_zero_point");
            let formats = [(TensorDtype::I8, ScaleFormat::I8)];
            let zero_points = site.scales(tensors, &name, &[integers.block], &formats)?;
            weight.with_zero_points(zero_points)
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
                scale: site.positive_scalar(tensors, &name)?.recip(),
            }
        }
    }))
}
