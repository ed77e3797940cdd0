//! Results of tasks that each compute some columns of all rows.

use rayon::prelude::*;

/// A matrix `[rows, width]` cut into panels of `block` columns, each panel one task's own memory:
/// panel `b` holds columns `b * block..` of every row, row by row.
pub(crate) struct Panels {
    values: Vec<f32>,
    rows: usize,
    width: usize,
    block: usize,
}

/// Columns per panel: a few panels for each thread, none wider than `most`.
pub(crate) fn panel_width(width: usize, threads: usize, most: usize) -> usize {
    width
        .div_ceil(threads.saturating_mul(4).max(1))
        .clamp(1, most)
}

impl Panels {
    /// Zeros. The caller has checked that `rows * width` values can be allocated.
    pub(crate) fn new(rows: usize, width: usize, block: usize) -> Self {
        Self {
            values: vec![0.0; rows * width],
            rows,
            width,
            block,
        }
    }

    /// The panels, to be filled in parallel: first column, number of columns, values.
    pub(crate) fn par_iter_mut(
        &mut self,
    ) -> impl IndexedParallelIterator<Item = (usize, usize, &mut [f32])> {
        let (block, width) = (self.block, self.width);
        // Full panels are of one size; the last one may be narrower and comes out shorter.
        self.values
            .par_chunks_mut((self.rows * block).max(1))
            .enumerate()
            .map(move |(b, values)| {
                let first = b * block;
                (first, block.min(width - first), values)
            })
    }

    /// The matrix row by row.
    pub(crate) fn into_rows(self) -> Vec<f32> {
        if self.block >= self.width || self.rows == 0 {
            return self.values;
        }
        let mut out = vec![0.0; self.values.len()];
        out.par_chunks_mut(self.width)
            .with_min_len(16)
            .enumerate()
            .for_each(|(row, out)| {
                let panels = self.values.chunks(self.rows * self.block);
                for (out, panel) in out.chunks_mut(self.block).zip(panels) {
                    let columns = out.len();
                    out.copy_from_slice(&panel[row * columns..(row + 1) * columns]);
                }
            });
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panels_become_rows() {
        for (rows, width, block) in [(3, 10, 4), (1, 1, 1), (5, 8, 8), (2, 7, 3), (0, 4, 2)] {
            let mut panels = Panels::new(rows, width, block);
            panels.par_iter_mut().for_each(|(first, columns, values)| {
                assert_eq!(values.len(), rows * columns);
                for (row, values) in values.chunks_mut(columns).enumerate() {
                    for (i, value) in values.iter_mut().enumerate() {
                        *value = (row * width + first + i) as f32;
                    }
                }
            });
            let expected: Vec<f32> = (0..rows * width).map(|i| i as f32).collect();
            assert_eq!(panels.into_rows(), expected);
        }
    }

    #[test]
    fn every_thread_gets_work() {
        assert_eq!(panel_width(2048, 2, 16), 16);
        assert_eq!(panel_width(40, 8, 16), 2);
        assert_eq!(panel_width(3, 64, 16), 1);
    }
}
