//! The quantization backend `int8_rows`: signed bytes with a scale and a zero point per row.

use moekit_quant::{
    CodeFormat, ExpertLinear, ExpertWeights, LinearSite, MoeLayerSpec, QuantBackend, QuantError,
    ScaleFormat, TensorDtype, TensorSource, load_linears, register_quant_backend,
};
use moekit_routing::ExpertRouting;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One block per row, however many columns it has.
const ROWS: [[usize; 2]; 1] = [[1, usize::MAX]];

const SCALES: [(TensorDtype, ScaleFormat); 3] = [
    (TensorDtype::F32, ScaleFormat::F32),
    (TensorDtype::F16, ScaleFormat::F16),
    (TensorDtype::BF16, ScaleFormat::BF16),
];

/// Weight `(code - zero point of its row) * scale of its row`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Int8Rows {
    /// Whether rows have zero points; without, they are 0.
    #[serde(default)]
    pub zero_points: bool,
}

#[typetag::serde(name = "int8_rows")]
impl QuantBackend for Int8Rows {
    fn load_experts(
        &self,
        layer: &MoeLayerSpec,
        tensors: &dyn TensorSource,
        routing: &dyn ExpertRouting,
    ) -> Result<ExpertWeights, QuantError> {
        load_linears(layer, tensors, routing, &|site, tensors| {
            self.linear(site, tensors)
        })
    }
}

register_quant_backend! {
    Int8Rows,
    name: "int8_rows",
    summary: "Signed bytes with a scale and a zero point per row",
    example: Int8Rows { zero_points: true },
}

impl Int8Rows {
    fn linear(
        &self,
        site: &LinearSite,
        tensors: &dyn TensorSource,
    ) -> Result<ExpertLinear, QuantError> {
        let name = site.tensor("weight");
        let codes = site.codes(tensors, &name, CodeFormat::I8, &[TensorDtype::I8])?;
        let scales = site.scales(tensors, &site.tensor("weight_scale"), &ROWS, &SCALES)?;
        let mut weight = codes.with_scales(scales)?;
        if self.zero_points {
            let name = site.tensor("weight_zero_point");
            let format = [(TensorDtype::I8, ScaleFormat::I8)];
            weight = weight.with_zero_points(site.scales(tensors, &name, &ROWS, &format)?)?;
        }
        site.linear(tensors, weight)
    }
}
