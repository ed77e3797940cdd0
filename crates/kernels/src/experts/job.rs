//! One call: what is multiplied by what, and where it is put.

use moekit_quant::Activation;

use super::inputs::InputPlan;
use super::memory::{Shared, Sizes, Workspace};
use super::pack::MAX_ROWS;
use super::plan::{BLOCK, MlpPlan};
use super::view::{ExpertSet, MlpView};
use super::work::Work;
use crate::batch::{ExpertBatch, Grouped};
use crate::check::check_experts;
use crate::error::{KernelError, area};
use crate::formats::{DECODED, SCALES};
use crate::rows::Rows;
use crate::simd::LANES;
use crate::tile::SUMS;
use crate::{CpuKernel, Isa};

/// Most rows of an expert that are packed at a time. Their units take 768 KiB at 2048 features of
/// bf16; each weight is read once per chunk, far below what the memory gives.
const CHUNK: usize = 192;

/// Most pairs of panels of a task of few rows. Each task of its own would wait for memory anew: what
/// it does besides takes as long as a hundred cache lines to come.
const MAX_SPAN: usize = 4;

/// Some rows of an expert.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chunk {
    /// Place in [`Job::mlps`].
    pub(super) mlp: usize,
    /// Place of the first row among all occupied slots.
    pub(super) start: usize,
    pub(super) rows: usize,
    /// Most pairs of panels of a task.
    pub(super) span: usize,
}

/// Where the outputs of experts go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outputs {
    /// Straight to the result, which has a place for each slot.
    Slots,
    /// To a buffer in order of [`Grouped`], to be added up.
    Terms,
}

#[derive(Debug)]
pub(super) struct Job<'a> {
    pub(super) isa: Isa,
    pub(super) activation: Activation,
    pub(super) batch: &'a ExpertBatch<'a>,
    /// The experts that have rows.
    pub(super) mlps: Vec<MlpPlan<'a>>,
    pub(super) grouped: Grouped,
    pub(super) chunks: Vec<Chunk>,
    pub(super) inputs: InputPlan,
    pub(super) outputs: Outputs,
    /// Units of the widest row between w13 and w2.
    pub(super) units: usize,
    sizes: Sizes,
}

impl<'a> Job<'a> {
    pub(super) fn new(
        kernel: &CpuKernel,
        experts: ExpertSet<'a>,
        activation: Activation,
        batch: &'a ExpertBatch<'a>,
        per_slot: bool,
    ) -> Result<Self, KernelError> {
        let grouped = Grouped::new(batch, experts.len())?;
        // Experts without rows stay out of it: what describes them need not come into a cache.
        let used = grouped.experts().map(|(expert, ..)| expert);
        let views: Vec<MlpView<'_>> = used.clone().map(|expert| experts.mlp(expert)).collect();
        check_experts(used.zip(&views), batch.hidden_size(), activation)?;
        let isa = kernel.isa()?;
        let inputs = InputPlan::new(&views, &grouped, batch);
        let narrow = matches!(batch.hidden(), Rows::Bf16(_));
        let plan = |view| MlpPlan::new(view, narrow, batch.activation_quant());
        let mlps: Vec<MlpPlan<'_>> = views.iter().map(plan).collect();
        let few = isa.max_rows_of_two();
        let chunks: Vec<Chunk> = grouped
            .experts()
            .enumerate()
            .flat_map(|(mlp, (_, start, slots))| chunks_of(mlp, start, slots.len(), few))
            .collect();
        let most = |of: fn(&MlpPlan<'_>) -> usize| mlps.iter().map(of).max().unwrap_or(0);
        let units = most(|mlp| mlp.down.units());
        let rows = chunks.iter().map(|c| c.rows).max().unwrap_or(0);
        let sums = chunks.iter().map(|c| c.rows * c.span).max().unwrap_or(0);
        let packed = most(|mlp| mlp.up.features);
        let sizes = Sizes {
            packed: area("packed inputs", rows, packed)?,
            sums: sums * SUMS,
            block: (BLOCK * LANES).max(4 * SCALES + DECODED).max(most(|mlp| {
                mlp.down.quant.map_or(0, |_| MAX_ROWS * mlp.down.units())
            })),
        };
        area("intermediate activations", grouped.len(), units)?;
        area("slot outputs", grouped.len(), terms_width(batch))?;
        area("quantized inputs", inputs.len(), batch.hidden_size())?;
        Ok(Self {
            isa,
            activation,
            batch,
            mlps,
            grouped,
            chunks,
            inputs,
            // The one term of a row is its sum.
            outputs: match per_slot || batch.top_k() == 1 {
                true => Outputs::Slots,
                false => Outputs::Terms,
            },
            units,
            sizes,
        })
    }

    /// Computes the outputs, into zeros.
    pub(super) fn run(&self, kernel: &CpuKernel, out: &mut [f32]) -> Result<(), KernelError> {
        if self.chunks.is_empty() {
            return Ok(());
        }
        let mut workspace = kernel.workspaces().take();
        let result = self.run_in(kernel, &mut workspace, out);
        kernel.workspaces().put(workspace);
        result
    }

    fn run_in(
        &self,
        kernel: &CpuKernel,
        workspace: &mut Workspace,
        out: &mut [f32],
    ) -> Result<(), KernelError> {
        let (hidden, width) = (self.batch.hidden(), self.batch.hidden_size());
        let terms = match self.outputs {
            Outputs::Slots => 0,
            Outputs::Terms => self.grouped.len() * self.terms_width(),
        };
        let Workspace {
            quantized,
            intermediate,
            terms: terms_buffer,
            threads,
        } = workspace;
        let quantized = quantized.reserve(self.inputs.len() * self.inputs.stride())?;
        let quantized: &mut [f32] = bytemuck::cast_slice_mut(quantized);
        self.inputs
            .quantize(kernel, hidden, width, self.isa, quantized);
        let work = Work::new(
            self,
            quantized,
            Shared::new(intermediate.reserve(self.grouped.len() * self.units)?),
            Shared::new(bytemuck::cast_slice_mut(terms_buffer.reserve(terms)?)),
            Shared::new(out),
            kernel.num_threads(),
        );
        let wanted = kernel.num_threads().min(work.most_threads());
        threads.resize_with(wanted.max(threads.len()), Default::default);
        let scratch = threads[..wanted].iter_mut().enumerate();
        let scratch = scratch.map(|(member, buffers)| buffers.scratch(member, self.sizes));
        let scratch = scratch.collect::<Result<Vec<_>, _>>()?;
        kernel.spread(scratch, |mut scratch| work.run(&mut scratch));
        Ok(())
    }

    /// Values from one term to the next.
    pub(super) fn terms_width(&self) -> usize {
        terms_width(self.batch)
    }

    /// For each slot of the batch, where [`Grouped`] has put it; `None` if it is empty.
    pub(super) fn positions(&self) -> Vec<Option<usize>> {
        let mut positions = vec![None; self.batch.local_ids().len()];
        for (_, start, slots) in self.grouped.experts() {
            for (i, &slot) in slots.iter().enumerate() {
                positions[slot] = Some(start + i);
            }
        }
        positions
    }
}

fn terms_width(batch: &ExpertBatch<'_>) -> usize {
    batch.hidden_size().next_multiple_of(LANES)
}

/// The chunks of the rows of an expert.
///
/// # Arguments
///
/// - `few` - rows whose tasks have more than one pair of panels.
fn chunks_of(mlp: usize, start: usize, rows: usize, few: usize) -> impl Iterator<Item = Chunk> {
    // Equal parts, rather than full ones and a rest.
    let parts = rows.div_ceil(CHUNK);
    (0..parts).map(move |part| {
        let (first, end) = (part * rows / parts, (part + 1) * rows / parts);
        let rows = end - first;
        Chunk {
            mlp,
            start: start + first,
            rows,
            span: if rows <= few { MAX_SPAN } else { 1 },
        }
    })
}
