use moekit_quant::{
    ActivationFormat, ActivationQuant, CodeFormat, ExpertLinear, LinearSite, ModuleList,
    QuantError, ScaleFormat, ScaleGrid, TensorDtype, TensorSource, load_float_linear,
};

use crate::ActivationScheme;

/// The types of scales; a `u8` is the exponent of a power of two.
const SCALES: [(TensorDtype, ScaleFormat); 5] = [
    (TensorDtype::F32, ScaleFormat::F32),
    (TensorDtype::BF16, ScaleFormat::BF16),
    (TensorDtype::F16, ScaleFormat::F16),
    (TensorDtype::F8E8M0, ScaleFormat::F8E8M0),
    (TensorDtype::U8, ScaleFormat::F8E8M0),
];

/// What the linears of a checkpoint have in common.
#[derive(Debug)]
pub(crate) struct Fp8Format {
    pub(crate) block: Option<[usize; 2]>,
    pub(crate) activation_scheme: ActivationScheme,
    pub(crate) power_of_two: bool,
    pub(crate) excluded: ModuleList,
}

impl Fp8Format {
    pub(crate) fn load(
        &self,
        site: &LinearSite,
        tensors: &dyn TensorSource,
    ) -> Result<ExpertLinear, QuantError> {
        // A list may name more than was left out; what is stored decides.
        if site.is_float(tensors) && self.excluded.contains(site.module())? {
            return load_float_linear(site, tensors);
        }
        let name = site.tensor("weight");
        let codes = site.codes(tensors, &name, CodeFormat::F8E4M3, &[TensorDtype::F8E4M3])?;
        let weight = codes.with_scales(self.scales(site, tensors)?)?;
        let mut linear = site.linear(tensors, weight)?;
        linear.input_quant = Some(self.input_quant(site, tensors)?);
        Ok(linear)
    }

    fn scales(
        &self,
        site: &LinearSite,
        tensors: &dyn TensorSource,
    ) -> Result<ScaleGrid, QuantError> {
        match self.block {
            Some(block) => {
                site.scales(tensors, &site.tensor("weight_scale_inv"), &[block], &SCALES)
            }
            None => {
                let blocks = [[usize::MAX, usize::MAX], [1, usize::MAX]];
                site.scales(tensors, &site.tensor("weight_scale"), &blocks, &SCALES)
            }
        }
    }

    fn input_quant(
        &self,
        site: &LinearSite,
        tensors: &dyn TensorSource,
    ) -> Result<ActivationQuant, QuantError> {
        let format = ActivationFormat::F8E4M3;
        Ok(match (self.activation_scheme, self.block) {
            (ActivationScheme::Static, _) => ActivationQuant::Static {
                format,
                scale: site.positive_scalar(tensors, &site.tensor("input_scale"))?,
            },
            (ActivationScheme::Dynamic, Some([_, group_size])) => ActivationQuant::PerGroup {
                format,
                group_size,
                power_of_two: self.power_of_two,
            },
            // One scale for a batch would depend on which tokens share it: one per token.
            (ActivationScheme::Dynamic, None) => ActivationQuant::PerToken { format },
        })
    }
}
