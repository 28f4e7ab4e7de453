//! One step on all workers: the phases of a plan, one after another, each ending in a barrier.

use super::Model;
use super::compile::{Base, NormOf, Phase, Place, RowOp};
use super::profile::Profile;
use super::step_check::StepSize;
use crate::ops::attention::{AttentionArgs, StorePart, attention, copy_blocks, kv_store_after};
use crate::ops::elementwise::{add, gate, glu, scale, soft_cap};
use crate::ops::linear::linear;
use crate::ops::norm::{Norm, head_norm, rms_norm};
use crate::ops::qlinear::{QLinear, prefetch_start, qlinear_fused};
use crate::ops::rope::{rope, rope_table};
use crate::pool::Worker;
use crate::program::RowsOf;
use crate::step::StepView;
use crate::tensor::{Rows, RowsMut};
use crate::weights::Weight;

/// Chunks of rows per worker in a chain: few enough to cost nothing, enough to even out.
const CHUNKS_PER_WORKER: usize = 8;
/// Columns of logits that are scaled at once.
const LOGIT_COLUMNS: usize = 4096;

/// A checked step and the memory it runs in.
pub(super) struct Replay<'a> {
    pub(super) model: &'a Model,
    pub(super) step: &'a StepView<'a>,
    pub(super) size: StepSize,
    /// `[R, vocab_size]`, the caller's.
    pub(super) logits: RowsMut<'a>,
    pub(super) profile: Option<&'a Profile>,
}

impl<'a> Replay<'a> {
    /// Run the step; every worker calls this.
    pub(super) fn run(&self, worker: &Worker<'_>) {
        for (pool, group) in self.model.kv.iter().zip(self.step.groups) {
            if !group.block_copies.is_empty() {
                copy_blocks(worker, pool, group.block_copies);
            }
        }
        for (index, phase) in self.model.plan.phases.iter().enumerate() {
            self.phase(worker, index, phase);
            if let (Some(profile), 0) = (self.profile, worker.index()) {
                profile.stamp(index);
            }
        }
    }

    fn phase(&self, worker: &Worker<'_>, index: usize, phase: &Phase) {
        let (model, isa) = (self.model, self.model.isa);
        match phase {
            Phase::Rows(rows, chain) => self.chain(worker, index, *rows, chain),
            Phase::Linear { x, out, weight, bias, norm, then, next, before } => {
                let bias = bias.map(|bias| self.vector(bias));
                let (x, out) = (self.read(*x), self.write(*out));
                if x.rows() == 0 {
                    return;
                }
                match self.weight(*weight) {
                    Weight::Matrix(matrix) => linear(worker, isa, x, matrix, bias, out, &model.linear),
                    Weight::Quantized(matrix) => {
                        let norm = norm.map(|norm| self.norm(norm));
                        let quantized = |weight: usize| match self.weight(weight) {
                            Weight::Quantized(matrix) => Some(matrix),
                            _ => None,
                        };
                        let (next, before) = (next.and_then(quantized), before.and_then(quantized));
                        let what = QLinear { x, norm, weight: matrix, bias, then: *then, out, next, before };
                        qlinear_fused(worker, isa, &what, &model.linear, || self.look_ahead(worker, index));
                    }
                    Weight::Vector(_) => unreachable!("the program's check resolved {weight} as a matrix"),
                }
            }
            Phase::KvStore { heads, k, v, group, layer } => {
                let (pool, slots) = (&model.kv[*group], self.step.groups[*group].slot_mapping);
                let (k, v) = (self.read(*k), self.read(*v));
                kv_store_after(worker, isa, pool, *layer, k, v, slots, |part| self.head_ops(heads, part));
            }
            Phase::Attention { q, out, group, layer, num_heads, scale, scratch } => {
                let args = AttentionArgs {
                    pool: &model.kv[*group],
                    layer: *layer,
                    num_heads: *num_heads,
                    softmax_scale: *scale,
                    window: model.windows[*group],
                    step: self.step,
                    group: &self.step.groups[*group],
                };
                let (q, out) = (self.read(*q), self.write(*out));
                attention(worker, isa, &args, q, out, &model.attention[*scratch]);
                self.look_ahead(worker, index);
            }
            Phase::Logits { x, multiplier, soft_cap } => {
                self.scale_logits(worker, *x, *multiplier, *soft_cap)
            }
        }
    }

    /// All ops of a chain on one row, then on the next. A row's results depend on no other row.
    fn chain(&self, worker: &Worker<'_>, index: usize, rows: RowsOf, chain: &[RowOp]) {
        let count = self.count(rows);
        if count == 0 {
            return;
        }
        let chunk = count.div_ceil(CHUNKS_PER_WORKER * worker.count());
        let work = |item: usize| {
            for row in item * chunk..count.min((item + 1) * chunk) {
                for op in chain {
                    self.row_op(op, row);
                }
            }
        };
        worker.share_then(count.div_ceil(chunk), work, || self.look_ahead(worker, index));
    }

    /// Ask for the weights that this worker will stream next, while it waits for the others at the end of a phase or makes
    /// the activations ready.
    fn look_ahead(&self, worker: &Worker<'_>, index: usize) {
        let Some((weight, then, rows)) = self.model.plan.next_linear(index) else { return };
        if let Weight::Quantized(matrix) = self.weight(weight) {
            prefetch_start(worker, self.model.isa, matrix, then, self.count(rows));
        }
    }

    fn row_op(&self, op: &RowOp, row: usize) {
        let isa = self.model.isa;
        match op {
            RowOp::RopeTables => self.fill_rope_tables(row),
            RowOp::Embed { weight, out } => {
                let id = self.step.token_ids[row] as usize;
                let out = self.row_mut(*out, row);
                match self.weight(*weight) {
                    Weight::Matrix(matrix) => matrix.unpack_row(id, out),
                    Weight::Quantized(matrix) => matrix.unpack_row(id, out),
                    Weight::Vector(_) => unreachable!("the program's check resolved {weight} as a matrix"),
                }
            }
            RowOp::RmsNorm { x, out, weight, eps, weight_offset } => {
                let norm = NormOf { weight: *weight, eps: *eps, weight_offset: *weight_offset };
                let norm = self.norm(norm);
                rms_norm(isa, self.row(*x, row), norm, self.row_mut(*out, row));
            }
            RowOp::HeadNorm { x, .. } | RowOp::Rope { x, .. } => self.head_op(op, row, self.row_mut(*x, row)),
            RowOp::Glu { gate, up, out } => {
                glu(isa, self.row(*gate, row), self.row(*up, row), self.row_mut(*out, row));
            }
            RowOp::Gate { x, gate: by } => gate(isa, self.row_mut(*x, row), self.row(*by, row)),
            RowOp::Add { x, y } => add(isa, self.row_mut(*x, row), self.row(*y, row)),
            RowOp::SelectRows { x, out } => {
                let from = self.row(*x, self.step.logit_rows[row] as usize);
                self.row_mut(*out, row).copy_from_slice(from);
            }
        }
    }

    /// Head norms and rotations of some rows and heads.
    fn head_ops(&self, ops: &[RowOp], of: &StorePart) {
        for row in of.tokens.clone() {
            for op in ops {
                if let RowOp::HeadNorm { x, .. } | RowOp::Rope { x, .. } = op {
                    let width = x.width / of.parts;
                    // SAFETY: each row and part is one worker's, one op at a time.
                    self.head_op(op, row, unsafe { self.write(*x).part(row, of.part * width, width) });
                }
            }
        }
    }

    /// A head norm or a rotation of some heads of a row.
    fn head_op(&self, op: &RowOp, row: usize, heads: &mut [f32]) {
        match op {
            RowOp::HeadNorm { head_dim, weight, eps, weight_offset, scale, .. } => {
                let weight = weight.map(|weight| self.vector(weight));
                let norm = Norm { weight, eps: *eps, weight_offset: *weight_offset, scale: *scale };
                head_norm(self.model.isa, heads, *head_dim, norm);
            }
            RowOp::Rope { head_dim, table, .. } => {
                let (cos, sin) = self.rope_row(*table, row);
                rope(self.model.isa, heads, *head_dim, cos, sin);
            }
            _ => unreachable!("not an op on heads"),
        }
    }

    /// Elements alone: shared by columns, since a step may want a single row of a large vocabulary.
    fn scale_logits(&self, worker: &Worker<'_>, x: Place, multiplier: f32, cap: Option<f32>) {
        let x = self.write(x);
        if x.rows() == 0 {
            return;
        }
        let pieces = x.width().div_ceil(LOGIT_COLUMNS);
        worker.share(x.rows() * pieces, |item| {
            let begin = item % pieces * LOGIT_COLUMNS;
            // SAFETY: each item has columns of its own.
            let part = unsafe { x.part(item / pieces, begin, LOGIT_COLUMNS.min(x.width() - begin)) };
            match cap {
                Some(cap) => soft_cap(self.model.isa, part, multiplier, cap),
                None => scale(self.model.isa, part, multiplier),
            }
        });
    }

    fn fill_rope_tables(&self, row: usize) {
        for table in &self.model.rope.tables {
            let half = table.inv_freq.len();
            let first = table.first + 2 * half * row;
            let memory = self.model.rope.memory.as_ptr().cast::<f32>();
            // SAFETY: the memory has 2 * half elements per table and token; this row is this worker's.
            let both = unsafe { std::slice::from_raw_parts_mut(memory.add(first), 2 * half) };
            let (cos, sin) = both.split_at_mut(half);
            rope_table(self.step.positions[row], &table.inv_freq, table.scale, cos, sin);
        }
    }

    fn rope_row(&self, table: usize, row: usize) -> (&'a [f32], &'a [f32]) {
        let table = &self.model.rope.tables[table];
        let half = table.inv_freq.len();
        let memory = self.model.rope.memory.as_ptr().cast::<f32>();
        // SAFETY: as above; filled by the first chain of the step, and read only after it.
        let both = unsafe { std::slice::from_raw_parts(memory.add(table.first + 2 * half * row), 2 * half) };
        both.split_at(half)
    }

    fn count(&self, rows: RowsOf) -> usize {
        match rows {
            RowsOf::T => self.size.tokens,
            RowsOf::R => self.size.rows,
        }
    }

    fn write(&self, place: Place) -> RowsMut<'a> {
        let base = match place.base {
            // SAFETY: the plan placed every view inside the arena.
            Base::Arena(first) => unsafe { self.model.arena.as_ptr().cast::<f32>().add(first) },
            // SAFETY: views of the logits are inside their rows.
            Base::Logits(first) => unsafe { self.logits.as_ptr().add(first) },
        };
        // SAFETY: arena slots have room for the most rows that a checked step has; the logits have R rows.
        unsafe { RowsMut::from_raw(base, self.count(place.rows), place.width, place.stride) }
    }

    fn read(&self, place: Place) -> Rows<'a> {
        let rows = self.write(place);
        // SAFETY: the same memory; the program's check keeps what an op reads apart from what it writes.
        unsafe { Rows::from_raw(rows.as_ptr(), rows.rows(), rows.width(), rows.stride()) }
    }

    fn row(&self, place: Place, row: usize) -> &'a [f32] {
        self.read(place).row(row)
    }

    // Handing out `&mut` from `&self` is the point: a chain has each row on one worker only.
    #[allow(clippy::mut_from_ref)]
    fn row_mut(&self, place: Place, row: usize) -> &'a mut [f32] {
        // SAFETY: in a chain one worker has this row of every buffer, one op at a time holds references into it,
        // and the views of one op do not overlap.
        unsafe { self.write(place).row(row) }
    }

    fn norm(&self, norm: NormOf) -> Norm<'a> {
        let NormOf { weight, eps, weight_offset } = norm;
        Norm { weight: weight.map(|weight| self.vector(weight)), eps, weight_offset, scale: 1.0 }
    }

    fn weight(&self, index: usize) -> &'a Weight {
        match self.model.weights.get(index) {
            Some(weight) => weight,
            None => unreachable!("the program's check resolved parameter {index}"),
        }
    }

    fn vector(&self, index: usize) -> &'a [f32] {
        match self.weight(index) {
            Weight::Vector(vector) => vector,
            _ => unreachable!("the program's check resolved parameter {index} as a vector"),
        }
    }
}
