//! What the threads of a call do.
#![allow(unsafe_code, reason = "buffers that threads write disjoint parts of")]

use std::sync::atomic::AtomicBool;

use super::activate::Activate;
use super::finish::{AskFor, Finish, Sum};
use super::job::{Chunk, Job, Outputs};
use super::memory::{Scratch, Shared};
use super::multiply::multiply;
use super::pack::{MAX_ROWS, Row, Tiles, interleave, pack};
use super::phase::{FailOnPanic, Phase, Task};
use super::plan::{LinearPlan, MlpPlan, Pair};
use super::streams::Streams;
use crate::batch::RouterWeight;
use crate::formats::{Input, Quantize, int8_units};
use crate::rows::Rows;
use crate::simd::LANES;
use crate::tile::SUMS;

/// Columns and rows of a task of the last step.
const SUM_COLUMNS: usize = 512;
const SUM_ROWS: usize = 8;

/// A call with its buffers.
pub(super) struct Work<'a> {
    job: &'a Job<'a>,
    /// The rows of the input plan.
    quantized: &'a [f32],
    /// Inputs of w2: `job.units` for each occupied slot, tile by tile.
    intermediate: Shared<'a, u32>,
    /// `[occupied slots, terms_width]`
    terms: Shared<'a, f32>,
    out: Shared<'a, f32>,
    positions: Vec<Option<usize>>,
    w13: Phase,
    quantize: Phase,
    w2: Phase,
    sum: Phase,
    failed: AtomicBool,
}

impl<'a> Work<'a> {
    pub(super) fn new(
        job: &'a Job<'a>,
        quantized: &'a [f32],
        intermediate: Shared<'a, u32>,
        terms: Shared<'a, f32>,
        out: Shared<'a, f32>,
        members: usize,
    ) -> Self {
        let phase = |units: &dyn Fn(&Chunk, &MlpPlan<'a>) -> (usize, usize)| {
            let chunks = job.chunks.iter();
            let parts = chunks.map(|chunk| units(chunk, &job.mlps[chunk.mlp]));
            Phase::new(parts, members)
        };
        let tiles = |chunk: &Chunk| Tiles::new(chunk.rows, job.isa.max_rows()).len();
        let (positions, sums) = match job.outputs {
            Outputs::Slots => (Vec::new(), 0),
            Outputs::Terms => {
                let columns = job.batch.hidden_size().div_ceil(SUM_COLUMNS);
                let rows = job.batch.num_rows().div_ceil(SUM_ROWS);
                (job.positions(), rows * columns)
            }
        };
        Self {
            job,
            quantized,
            intermediate,
            terms,
            out,
            positions,
            w13: phase(&|chunk, mlp| (mlp.w13_pairs(), chunk.span)),
            quantize: phase(&|chunk, mlp| (mlp.down.quant.map_or(0, |_| tiles(chunk)), 1)),
            w2: phase(&|chunk, mlp| (mlp.w2_pairs(), chunk.span)),
            sum: Phase::new([(sums, 1)].into_iter(), members),
            failed: AtomicBool::new(false),
        }
    }

    /// Threads beyond this one would find nothing to do.
    pub(super) fn most_threads(&self) -> usize {
        self.w13.len().max(self.w2.len())
    }

    /// What each thread does.
    pub(super) fn run(&self, scratch: &mut Scratch<'_>) {
        let _guard = FailOnPanic(&self.failed);
        let (failed, member) = (&self.failed, scratch.member);
        let done = self.w13.run(member, failed, |task, next| {
            let next = match next {
                Some(next) => Some(self.w13_streams(&next)),
                None => self.w2.next(member).map(|next| self.w2_streams(&next)),
            };
            self.w13(scratch, &task, next.as_ref());
        });
        let done = done
            && self
                .quantize
                .run(member, failed, |task, _| self.quantize(scratch, &task));
        let done = done
            && self.w2.run(member, failed, |task, next| {
                let next = next.map(|next| self.w2_streams(&next));
                self.w2(scratch, &task, next.as_ref());
            });
        // Otherwise the call ends with the panic of another thread.
        let _done = done
            && self
                .sum
                .run(member, failed, |task, _| self.sum(task.units.start));
    }

    fn w13_streams(&self, task: &Task) -> Streams<'a, 'a> {
        let (_, mlp, _) = self.chunk(task);
        Streams::w13(mlp, task.units.clone())
    }

    fn w2_streams(&self, task: &Task) -> Streams<'a, 'a> {
        let (_, mlp, _) = self.chunk(task);
        Streams::w2(mlp, task.units.clone())
    }

    fn chunk(&self, task: &Task) -> (&'a Chunk, &'a MlpPlan<'a>, Tiles) {
        let chunk = &self.job.chunks[task.part];
        let tiles = Tiles::new(chunk.rows, self.job.isa.max_rows());
        (chunk, &self.job.mlps[chunk.mlp], tiles)
    }

    /// The slots of the rows of a chunk.
    fn slots(&self, chunk: &Chunk) -> &'a [usize] {
        self.job.grouped.slots(chunk.start, chunk.rows)
    }

    /// Some columns of gate and up, and the activation.
    fn w13(&self, scratch: &mut Scratch<'_>, task: &Task, next: Option<&Streams<'a, 'a>>) {
        let (chunk, mlp, tiles) = self.chunk(task);
        if scratch.packed_part != Some(task.part) {
            self.pack(scratch, chunk, mlp, tiles);
            scratch.packed_part = Some(task.part);
        }
        let Scratch {
            packed,
            sums,
            block,
            ..
        } = scratch;
        let inputs = self.sources(mlp).map(|source| &*packed[source]);
        let (pairs, streams) = (task.units.clone(), self.w13_streams(task));
        let sums = &mut sums[..pairs.len() * chunk.rows * SUMS];
        sums.fill(0.0);
        multiply(self.job.isa, &streams, inputs, tiles, sums, block, next);
        for (pair, sums) in pairs.zip(sums.chunks_exact_mut(chunk.rows * SUMS)) {
            self.activate(chunk, mlp, pair, tiles, sums);
        }
    }

    /// Which packed input the two panels of a task of w13 take.
    fn sources(&self, mlp: &MlpPlan<'_>) -> [usize; 2] {
        match &mlp.gate {
            Some(gate) if (gate.input, gate.quant) == (mlp.up.input, mlp.up.quant) => [0, 0],
            Some(_) => [0, 1],
            None => [1, 1],
        }
    }

    /// Writes the inputs of gate and up of a chunk.
    fn pack(&self, scratch: &mut Scratch<'_>, chunk: &Chunk, mlp: &MlpPlan<'_>, tiles: Tiles) {
        let sources = self.sources(mlp);
        let linears = [mlp.gate.as_ref(), Some(&mlp.up)];
        for (which, linear) in linears.into_iter().enumerate() {
            let Some(linear) = linear.filter(|_| sources.contains(&which)) else {
                continue;
            };
            let (units, slots) = (linear.units(), self.slots(chunk));
            for (first, rows) in tiles.iter() {
                let tile = &mut scratch.packed[which][first * units..][..rows * units];
                let mut sources = [Row::F32(&[]); MAX_ROWS];
                for (source, &slot) in sources.iter_mut().zip(&slots[first..first + rows]) {
                    *source = self.row(slot, which);
                }
                pack_tile(&sources[..rows], linear, tile);
            }
        }
    }

    /// The row that gate (0) or up (1) takes in a slot.
    fn row(&self, slot: usize, which: usize) -> Row<'a> {
        let width = self.job.batch.hidden_size();
        if let Some(planned) = self.job.inputs.of_slot(slot)[which] {
            let stride = self.job.inputs.stride();
            return Row::F32(&self.quantized[planned * stride..][..stride]);
        }
        let row = slot / self.job.batch.top_k() * width;
        let row = row..row + width;
        match self.job.batch.hidden() {
            Rows::F32(values) => Row::F32(&values[row]),
            Rows::Bf16(values) => Row::Bf16(&values[row]),
        }
    }

    /// Turns the sums of two panels of w13 into inputs of w2.
    fn activate(
        &self,
        chunk: &Chunk,
        mlp: &MlpPlan<'_>,
        pair: usize,
        tiles: Tiles,
        sums: &mut [f32],
    ) {
        let most = if mlp.gate.is_some() { LANES } else { SUMS };
        let first_feature = pair * most;
        let down = &mlp.down;
        let per_unit = down.input.features_per_unit();
        let (first_unit, row_units) = (first_feature / per_unit, down.units());
        let units = (down.features - first_feature).min(most).div_ceil(per_unit);
        let bias = biases(mlp.w13(pair));
        for (first, rows) in tiles.iter() {
            let slots = &self.slots(chunk)[first..first + rows];
            let sums = &mut sums[first * SUMS..][..rows * SUMS];
            let mut weights = [[1.0; 2]; MAX_ROWS];
            for (weights, &slot) in weights.iter_mut().zip(slots) {
                let planned = self.job.inputs.of_slot(slot);
                let which = if mlp.gate.is_some() { [0, 1] } else { [1, 1] };
                // A planned row has been multiplied already. The product is linear, so that the
                // weight of any other input may as well multiply it.
                *weights = which.map(|which| match planned[which] {
                    Some(_) => 1.0,
                    None => self.job.batch.input_weight(slot),
                });
            }
            let op = Activate {
                activation: self.job.activation,
                sums: &mut *sums,
                weights: &weights[..rows],
                bias: &bias,
                features: (down_width(mlp) - first_feature).min(most),
                input: down.input,
            };
            // SAFETY: `CpuKernel::isa` gives what the machine has.
            unsafe { self.job.isa.dispatch(op) };
            let (values, _) = bytemuck::cast_slice::<f32, u32>(sums).as_chunks::<SUMS>();
            let tile = chunk.start * self.job.units + first * row_units;
            // SAFETY: these units of this tile are those of this pair of panels alone.
            let part = |start, len| unsafe { self.intermediate.part_mut(tile + start, len) };
            if down.quant.is_some() {
                for (row, values) in values.iter().enumerate() {
                    part(row * row_units + first_unit, units).copy_from_slice(&values[..units]);
                }
            } else {
                interleave(values, part(first_unit * rows, units * rows));
            }
        }
    }

    /// Quantizes the inputs of w2 of a tile, which [`Self::activate`] has written row by row, and
    /// puts their units side by side.
    fn quantize(&self, scratch: &mut Scratch<'_>, task: &Task) {
        let (chunk, mlp, tiles) = self.chunk(task);
        let tile = tiles.iter().nth(task.units.start);
        let Some((quant, (first, rows))) = mlp.down.quant.zip(tile) else {
            return;
        };
        let units = mlp.down.units();
        let start = chunk.start * self.job.units + first * units;
        // SAFETY: the tile is that of this task alone, and those of the step before are done.
        let tile = unsafe { self.intermediate.part_mut(start, rows * units) };
        let quantized = &mut scratch.block[..rows * units];
        for (values, out) in tile.chunks(units).zip(quantized.chunks_mut(units)) {
            let values: &[f32] = &bytemuck::cast_slice(values)[..down_width(mlp)];
            if mlp.down.input == Input::Int8 {
                let units = &mut bytemuck::cast_slice_mut(out)[..int8_units(units)];
                let op = Quantize {
                    quant,
                    values,
                    weight: 1.0,
                    units,
                };
                // SAFETY: `CpuKernel::isa` gives what the machine has.
                unsafe { self.job.isa.dispatch(op) };
            } else {
                let out = &mut out[..values.len()];
                out.copy_from_slice(values);
                quant.apply(out);
            }
        }
        let mut sources = [Row::F32(&[]); MAX_ROWS];
        for (source, row) in sources.iter_mut().zip(quantized.chunks(units)) {
            *source = Row::F32(&row[..down_width(mlp)]);
        }
        pack_tile(&sources[..rows], &mlp.down, tile);
    }

    /// Some columns of w2.
    fn w2(&self, scratch: &mut Scratch<'_>, task: &Task, next: Option<&Streams<'a, 'a>>) {
        let (chunk, mlp, tiles) = self.chunk(task);
        let units = mlp.down.units();
        let start = chunk.start * self.job.units;
        // SAFETY: the steps that write these are done.
        let input = unsafe { self.intermediate.part(start, chunk.rows * units) };
        let pairs = task.units.clone();
        let Scratch { sums, block, .. } = scratch;
        let sums = &mut sums[..pairs.len() * chunk.rows * SUMS];
        for pair in pairs.clone() {
            self.ask_for_outputs(chunk, pair);
        }
        sums.fill(0.0);
        let (isa, streams) = (self.job.isa, self.w2_streams(task));
        multiply(isa, &streams, [input; 2], tiles, sums, block, next);
        for (pair, sums) in pairs.zip(sums.chunks_exact(chunk.rows * SUMS)) {
            self.finish(chunk, mlp.w2(pair), pair, sums);
        }
    }

    /// Where the outputs of the rows of two panels of w2 belong, one after the other.
    ///
    /// # Safety
    ///
    /// No one else uses them meanwhile: the task has been claimed, and one row is taken at a time.
    unsafe fn outputs(
        &self,
        chunk: &Chunk,
        pair: usize,
    ) -> impl Iterator<Item = (usize, &'a mut [f32])> {
        let hidden_size = self.job.batch.hidden_size();
        let column = pair * SUMS;
        let columns = (hidden_size - column).min(SUMS);
        let (buffer, width, start) = match self.job.outputs {
            Outputs::Slots => (self.out, hidden_size, None),
            Outputs::Terms => (self.terms, self.job.terms_width(), Some(chunk.start)),
        };
        let slots = self.slots(chunk).iter().enumerate();
        slots.map(move |(row, &slot)| {
            let at = start.map_or(slot, |start| start + row) * width + column;
            // SAFETY: the caller's promise; these columns of this slot are those of this pair alone.
            (slot, unsafe { buffer.part_mut(at, columns) })
        })
    }

    /// Asks for the cache lines that [`Self::finish`] writes: each row has its own, too far apart
    /// for the processor to see them coming.
    fn ask_for_outputs(&self, chunk: &Chunk, pair: usize) {
        if chunk.rows <= self.job.isa.max_rows_of_two() {
            return;
        }
        // SAFETY: the task is that of this thread; `CpuKernel::isa` gives what the machine has.
        unsafe {
            let outputs = self.outputs(chunk, pair).map(|(_, out)| &*out);
            self.job.isa.dispatch(AskFor(outputs));
        }
    }

    /// Puts the outputs of two panels of w2 where they belong.
    fn finish(&self, chunk: &Chunk, panels: Pair<'_, '_>, pair: usize, sums: &[f32]) {
        let weight = |slot: usize| match self.job.batch.router_weight() {
            RouterWeight::OnOutput => self.job.batch.weights()[slot],
            RouterWeight::OnInput => 1.0,
        };
        // SAFETY: the task is that of this thread; `CpuKernel::isa` gives what the machine has.
        unsafe {
            let outputs = self.outputs(chunk, pair);
            let op = Finish {
                sums,
                bias: &biases(panels),
                rows: outputs.map(|(slot, out)| (weight(slot), out)),
            };
            self.job.isa.dispatch(op);
        }
    }

    /// Adds up the terms of some columns of some rows.
    fn sum(&self, task: usize) {
        let batch = self.job.batch;
        let (hidden_size, top_k, width) =
            (batch.hidden_size(), batch.top_k(), self.job.terms_width());
        let parts = hidden_size.div_ceil(SUM_COLUMNS);
        let column = task % parts * SUM_COLUMNS;
        let columns = (hidden_size - column).min(SUM_COLUMNS);
        let first = task / parts * SUM_ROWS;
        let len = columns.next_multiple_of(LANES);
        let terms = |row: usize| {
            let positions = self.positions[row * top_k..(row + 1) * top_k].iter();
            // SAFETY: the step that writes terms is done.
            let part = move |at: &usize| unsafe { self.terms.part(at * width + column, len) };
            positions.flatten().map(part)
        };
        let end = batch.num_rows().min(first + SUM_ROWS);
        for row in first..end {
            let op = Sum {
                terms: terms(row),
                next: terms((row + 1).min(end - 1)),
                // SAFETY: these columns of this row are those of this task alone.
                out: unsafe { self.out.part_mut(row * hidden_size + column, columns) },
            };
            // SAFETY: `CpuKernel::isa` gives what the machine has.
            unsafe { self.job.isa.dispatch(op) };
        }
    }
}

/// Writes rows into the tile of a linear.
fn pack_tile(rows: &[Row<'_>], linear: &LinearPlan<'_>, tile: &mut [u32]) {
    let units = match linear.input {
        Input::Int8 => int8_units(linear.features),
        _ => linear.units(),
    };
    pack(rows, linear.input, &mut tile[..rows.len() * units]);
}

/// Features between w13 and w2.
fn down_width(mlp: &MlpPlan<'_>) -> usize {
    mlp.up.rows
}

/// The biases of two panels, zeros where there are none.
fn biases(panels: Pair<'_, '_>) -> [f32; SUMS] {
    let mut biases = [0.0; SUMS];
    for (out, panel) in biases.chunks_exact_mut(LANES).zip(panels) {
        if let Some((linear, panel)) = panel
            && let Some(bias) = linear.bias
        {
            let bias = &bias[panel * LANES..];
            let bias = &bias[..bias.len().min(LANES)];
            out[..bias.len()].copy_from_slice(bias);
        }
    }
    biases
}
