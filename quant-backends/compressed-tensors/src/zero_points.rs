use moekit_quant::{LinearSite, QuantError, ScaleFormat, ScaleGrid, TensorDtype, TensorSource};

use crate::scheme::Integers;

/// The zero points of packed integers, one byte each.
///
/// They are stored as `weight_zero_point` `[ceil(out * bits / 32), groups]`: packed along the
/// output features, unlike the weights, and plus half of their range, like them.
pub(crate) fn packed(
    integers: Integers,
    site: &LinearSite,
    tensors: &dyn TensorSource,
) -> Result<ScaleGrid, QuantError> {
    if site.is_stacked() {
        return Err(site.unsupported("zero points of stacked experts", "symmetric integers"));
    }
    let name = site.tensor("weight_zero_point");
    let info = site.info(tensors, &name)?;
    let stored = site.stored_shape();
    let block = [0, 1].map(|axis| integers.block[axis].clamp(1, stored[axis]));
    let [rows, cols] = [0, 1].map(|axis| stored[axis].div_ceil(block[axis]));
    let per_word = 32 / integers.bits as usize;
    if info.dtype != TensorDtype::I32 {
        return Err(QuantError::Dtype {
            tensor: name,
            got: info.dtype.to_string(),
            expected: TensorDtype::I32.to_string(),
        });
    }
    if info.shape != [rows.div_ceil(per_word), cols] {
        return Err(QuantError::Shape {
            tensor: name,
            got: info.shape,
            expected: format!("[{}, {cols}]", rows.div_ceil(per_word)),
        });
    }
    let words = tensors.read(&name, 0..rows.div_ceil(per_word) * cols * 4)?;
    let zero_point = |row: usize, col: usize| -> Option<u8> {
        let word = words.as_chunks::<4>().0.get(row / per_word * cols + col)?;
        let shifted = u32::from_le_bytes(*word) >> (row % per_word * integers.bits as usize);
        let offset = 1_i32 << (integers.bits - 1);
        let code = (shifted & ((offset as u32) * 2 - 1)) as i32;
        Some(((code - offset) as i8).cast_unsigned())
    };
    // The blocks that the linear touches, of those of the stored matrix.
    let first = [0, 1].map(|axis| site.start()[axis] / block[axis]);
    let end = [0, 1].map(|axis| (site.start()[axis] + site.shape()[axis]).div_ceil(block[axis]));
    let own = (first[0]..end[0]).flat_map(|r| (first[1]..end[1]).map(move |c| (r, c)));
    let bytes = own.filter_map(|(row, col)| zero_point(row, col)).collect();
    let shape = [0, 1].map(|axis| end[axis] - first[axis]);
    let grid = ScaleGrid::new(ScaleFormat::I8, shape, block, [shape[1], 1], bytes)?;
    Ok(grid.with_phase([0, 1].map(|axis| site.start()[axis] % block[axis])))
}
