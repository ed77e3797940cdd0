//! Small layers for tests and benches of what computes or moves them.

use moekit_quant::{
    CodeFormat, ExpertLayout, ExpertLinear, ExpertMlp, MlpNames, MoeLayerSpec, PackedMatrix,
    QuantError, RouterSpec,
};

/// The specification of a layer whose experts are tensors of their own, with three matrices each.
///
/// # Arguments
///
/// - `sizes` - experts, experts per token, hidden size and intermediate size.
pub fn layer_spec(layer: usize, sizes: [usize; 4]) -> MoeLayerSpec {
    let layout = ExpertLayout::PerExpert {
        module: "experts".to_owned(),
        names: MlpNames::w123(),
        bias: false,
    };
    MoeLayerSpec::new(layer, sizes, layout, RouterSpec::new("gate.weight"))
}

/// An expert of f32 with gate, up and down matrix.
///
/// # Arguments
///
/// - `value` - the values, one by one: gate, up and down matrix, row by row.
///
/// # Errors
///
/// If a size is 0.
///
/// ```
/// let mut last = 0.0;
/// let expert = moekit_testkit::expert(8, 4, || {
///     last += 0.5;
///     last
/// })?;
/// assert_eq!((expert.hidden_size(), expert.intermediate_size()), (8, 4));
/// # Ok::<(), moekit_quant::QuantError>(())
/// ```
pub fn expert(
    hidden_size: usize,
    intermediate_size: usize,
    mut value: impl FnMut() -> f32,
) -> Result<ExpertMlp, QuantError> {
    let mut linear = |rows: usize, cols: usize| {
        let codes: Vec<u8> = (0..rows * cols)
            .flat_map(|_| value().to_le_bytes())
            .collect();
        let matrix = PackedMatrix::contiguous(CodeFormat::F32, [rows, cols], codes.into())?;
        Ok::<_, QuantError>(ExpertLinear::new(matrix))
    };
    let gate = linear(intermediate_size, hidden_size)?;
    let up = linear(intermediate_size, hidden_size)?;
    let down = linear(hidden_size, intermediate_size)?;
    ExpertMlp::new(Some(gate), up, down)
}
