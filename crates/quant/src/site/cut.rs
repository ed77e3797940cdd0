use std::ops::Range;

/// A part of one matrix of a stack, in whole elements.
pub(super) struct Cut {
    /// Rows of the matrix as it is stored.
    pub(super) stored_rows: usize,
    /// Bytes of one of them.
    pub(super) row_bytes: usize,
    /// Bytes of an element.
    pub(super) bytes: usize,
    /// Size of the part along out and in, at least 1 each.
    pub(super) shape: [usize; 2],
    /// First element of the part along out and in.
    pub(super) start: [usize; 2],
    /// Distance of the part's elements along out.
    pub(super) row_step: usize,
    /// Which matrix of the stack.
    pub(super) index: usize,
    /// Whether the matrix lies as `[in, out]`.
    pub(super) transposed: bool,
}

impl Cut {
    /// The byte range of the part and its strides along out and in. The part lies within its
    /// tensor, so nothing overflows.
    pub(super) fn locate(&self) -> (Range<usize>, [usize; 2]) {
        let [along_out, along_in] = match self.transposed {
            true => [self.bytes, self.row_bytes],
            false => [self.row_bytes, self.bytes],
        };
        let matrix = self.index * self.stored_rows * self.row_bytes;
        let first = matrix + self.start[0] * along_out + self.start[1] * along_in;
        let strides = [along_out * self.row_step, along_in];
        let last = first + (self.shape[0] - 1) * strides[0] + (self.shape[1] - 1) * strides[1];
        (first..last + self.bytes, strides)
    }
}
