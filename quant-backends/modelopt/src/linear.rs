use moekit_quant::{
    ActivationFormat, ActivationQuant, CodeFormat, ExpertLinear, F8E4M3_SCALES, F8E8M0_SCALES,
    FLOAT_SCALES, LinearSite, PackedMatrix, QuantError, TensorDtype, TensorSource,
    load_float_linear,
};

use crate::algorithm::Algorithm;
use crate::config::Plan;

/// Loads a linear by the plan of its checkpoint.
pub(crate) fn load(
    plan: &Plan,
    site: &LinearSite,
    tensors: &dyn TensorSource,
) -> Result<ExpertLinear, QuantError> {
    match plan {
        Plan::Same {
            algorithm,
            group_size,
            excluded,
        } => match site.is_excluded(tensors, excluded)? {
            true => load_float_linear(site, tensors),
            false => load_quantized(*algorithm, *group_size, site, tensors),
        },
        Plan::Mixed(formats) => {
            let format = holders(site.module()).find_map(|module| formats.get(module));
            match format {
                Some(Some((algorithm, group_size))) => {
                    load_quantized(*algorithm, *group_size, site, tensors)
                }
                _ => load_float_linear(site, tensors),
            }
        }
    }
}

/// A module and those that hold it, from the inside out.
fn holders(module: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(module), |module| {
        module.rsplit_once('.').map(|(holder, _)| holder)
    })
}

pub(crate) fn load_quantized(
    algorithm: Algorithm,
    group_size: usize,
    site: &LinearSite,
    tensors: &dyn TensorSource,
) -> Result<ExpertLinear, QuantError> {
    let weight = match algorithm {
        Algorithm::Nvfp4 | Algorithm::Nvfp4WeightOnly => nvfp4(group_size, site, tensors)?,
        _ => fp8(algorithm, group_size, site, tensors)?,
    };
    let mut linear = site.linear(tensors, weight)?;
    linear.input_quant = input_quant(algorithm, site, tensors)?;
    Ok(linear)
}

fn fp8(
    algorithm: Algorithm,
    group_size: usize,
    site: &LinearSite,
    tensors: &dyn TensorSource,
) -> Result<PackedMatrix, QuantError> {
    let name = site.tensor("weight");
    let codes = site.codes(tensors, &name, CodeFormat::F8E4M3, &[TensorDtype::F8E4M3])?;
    let (tensor, channel) = ([usize::MAX, usize::MAX], [1, usize::MAX]);
    let name = site.tensor("weight_scale");
    let scales = match algorithm {
        // The shape tells which of the two it is, whatever the configuration says.
        Algorithm::Fp8 => site.scales(tensors, &name, &[tensor, channel], FLOAT_SCALES)?,
        Algorithm::Fp8PerChannel => site.scales(tensors, &name, &[channel], FLOAT_SCALES)?,
        Algorithm::Fp8Blocks => {
            site.scales(tensors, &name, &[[group_size, group_size]], FLOAT_SCALES)?
        }
        _ => site.scales(tensors, &name, &[[1, group_size]], F8E8M0_SCALES)?,
    };
    codes.with_scales(scales)
}

fn nvfp4(
    group_size: usize,
    site: &LinearSite,
    tensors: &dyn TensorSource,
) -> Result<PackedMatrix, QuantError> {
    let name = site.tensor("weight");
    let codes = site.codes(tensors, &name, CodeFormat::F4E2M1, &[TensorDtype::U8])?;
    let name = site.tensor("weight_scale");
    let scales = site.scales(tensors, &name, &[[1, group_size]], F8E4M3_SCALES)?;
    let global = site.positive_scalar(tensors, &site.tensor("weight_scale_2"))?;
    Ok(codes.with_scales(scales)?.with_global_scale(global))
}

fn input_quant(
    algorithm: Algorithm,
    site: &LinearSite,
    tensors: &dyn TensorSource,
) -> Result<Option<ActivationQuant>, QuantError> {
    let format = ActivationFormat::F8E4M3;
    let static_scale = || site.positive_scalar(tensors, &site.tensor("input_scale"));
    Ok(match algorithm {
        Algorithm::Fp8 => Some(ActivationQuant::Static {
            format,
            scale: static_scale()?,
        }),
        Algorithm::Fp8PerChannel => Some(ActivationQuant::PerToken { format }),
        Algorithm::Nvfp4 => Some(ActivationQuant::Nvfp4 {
            scale: static_scale()?,
        }),
        Algorithm::Mxfp8 => Some(ActivationQuant::Mx { format }),
        Algorithm::Fp8Blocks | Algorithm::Nvfp4WeightOnly => None,
    })
}
