use moekit_quant::{
    ActivationFormat, ActivationQuant, CodeFormat, ExpertLinear, F8E8M0_SCALES, FLOAT_SCALES,
    LinearSite, ModuleList, QuantError, ScaleGrid, TensorDtype, TensorSource, load_float_linear,
};

use crate::ActivationScheme;

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
        if site.is_excluded(tensors, &self.excluded)? {
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
        let formats = [FLOAT_SCALES, F8E8M0_SCALES].concat();
        let (companion, blocks) = match self.block {
            Some(block) => ("weight_scale_inv", vec![block]),
            None => {
                let (tensor, channel) = ([usize::MAX, usize::MAX], [1, usize::MAX]);
                ("weight_scale", vec![tensor, channel])
            }
        };
        site.scales(tensors, &site.tensor(companion), &blocks, &formats)
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
