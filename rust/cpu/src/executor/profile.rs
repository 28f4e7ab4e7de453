//! Where the time of steps goes: seconds, bytes and operations of every kind of phase.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use super::Model;
use super::compile::{Base, Phase, Place, Plan, RowOp};
use super::step_check::StepSize;
use crate::isa::Isa;
use crate::ops::attention::KvType;
use crate::ops::qlinear::Then;
use crate::probe::PeakKind;
use crate::program::{Program, RowsOf};
use crate::step::StepView;
use crate::tensor::DType;
use crate::weights::Weight;

/// Totals of the phases with one label, over all steps since [`super::Executor::start_profile`].
#[derive(Clone, Debug)]
pub struct OpProfile {
    /// A matrix's name without its layer, or the kind of op.
    pub label: String,
    /// What its operations are made of.
    pub arithmetic: PeakKind,
    /// Phases.
    pub calls: u64,
    /// Wall time, barriers included.
    pub seconds: f64,
    /// Weights, keys and values, inputs and outputs, each once per phase. Row ops are counted without their parameters.
    pub bytes: u64,
    /// Multiply-adds of products, as two.
    pub operations: u64,
}

/// Totals, and the clock of the step in progress.
pub(super) struct Profile {
    ops: Vec<OpProfile>,
    /// Per phase, the index of its label.
    label_of: Vec<usize>,
    /// Per phase that is a chain of row ops, the bytes of a row.
    row_bytes: Vec<u64>,
    start: Instant,
    /// Per phase, nanoseconds from the start of the step to its end.
    ends: Vec<AtomicU64>,
}

impl Profile {
    pub(super) fn new(plan: &Plan, labels: &[String], model: &Model) -> Self {
        let mut ops: Vec<OpProfile> = Vec::new();
        let mut label_of = Vec::with_capacity(labels.len());
        for (phase, label) in plan.phases.iter().zip(labels) {
            let known = ops.iter().position(|op| op.label == *label);
            label_of.push(known.unwrap_or_else(|| {
                let arithmetic = arithmetic(phase, model);
                let label = label.clone();
                ops.push(OpProfile { label, arithmetic, calls: 0, seconds: 0.0, bytes: 0, operations: 0 });
                ops.len() - 1
            }));
        }
        let ends = labels.iter().map(|_| AtomicU64::new(0)).collect();
        let row_bytes = plan.phases.iter().map(row_bytes).collect();
        Self { ops, label_of, row_bytes, start: Instant::now(), ends }
    }

    pub(super) fn ops(&self) -> &[OpProfile] {
        &self.ops
    }

    /// A step begins.
    pub(super) fn begin(&mut self) {
        self.start = Instant::now();
    }

    /// A phase of the step has ended on all workers; one of them calls this.
    pub(super) fn stamp(&self, phase: usize) {
        self.ends[phase].store(self.start.elapsed().as_nanos() as u64, Relaxed);
    }

    /// The step is done: add its phases to the totals.
    pub(super) fn end(&mut self, model: &Model, step: &StepView<'_>, size: StepSize) {
        let mut before = 0;
        for (index, phase) in model.plan.phases.iter().enumerate() {
            let end = self.ends[index].load(Relaxed);
            let (bytes, operations) = cost(phase, self.row_bytes[index], model, step, size);
            let op = &mut self.ops[self.label_of[index]];
            op.calls += 1;
            op.seconds += end.saturating_sub(before) as f64 * 1e-9;
            op.bytes += bytes;
            op.operations += operations;
            before = end;
        }
    }
}

/// One label per phase.
pub(super) fn labels(plan: &Plan, program: &Program) -> Vec<String> {
    plan.phases
        .iter()
        .map(|phase| match phase {
            Phase::Rows(..) => "norms and other row ops".into(),
            // A tied embedding is the head too.
            Phase::Linear { out, .. } if matches!(out.base, Base::Logits(_)) => "head".into(),
            Phase::Linear { weight, .. } => program
                .parameters
                .get(*weight)
                .map_or_else(String::new, |parameter| without_layer(&parameter.name).to_owned()),
            Phase::KvStore { heads, .. } if heads.is_empty() => "kv_store".into(),
            Phase::KvStore { .. } => "rope, kv_store".into(),
            Phase::Attention { group, .. } => match program.kv_groups.get(*group).and_then(|g| g.window) {
                Some(window) => format!("attention, window {window}"),
                None => "attention".into(),
            },
            Phase::Logits { .. } => "logits".into(),
        })
        .collect()
}

/// "layers.12.gate+up" is "gate+up".
fn without_layer(name: &str) -> &str {
    let rest = name.strip_prefix("layers.").and_then(|rest| rest.split_once('.'));
    rest.filter(|(number, _)| number.bytes().all(|byte| byte.is_ascii_digit())).map_or(name, |(_, rest)| rest)
}

fn arithmetic(phase: &Phase, model: &Model) -> PeakKind {
    match phase {
        Phase::Linear { weight, .. } => match model.weights.get(*weight) {
            Some(Weight::Quantized(matrix)) => PeakKind::integers(model.isa, matrix.format().bits),
            Some(Weight::Matrix(matrix)) if matrix.dtype() == DType::Bf16 && model.isa == Isa::Avx512Bf16 => {
                PeakKind::Bf16
            }
            _ => PeakKind::Fp32,
        },
        Phase::Attention { group, .. } => match model.kv[*group].dtype() {
            KvType::Int8 => PeakKind::Int8,
            KvType::Int16 => PeakKind::Int16,
            KvType::Bf16Pairs => PeakKind::Bf16,
            KvType::Float(_) => PeakKind::Fp32,
        },
        _ => PeakKind::Fp32,
    }
}

/// Bytes and operations of a phase in a step.
fn cost(phase: &Phase, row_bytes: u64, model: &Model, step: &StepView<'_>, size: StepSize) -> (u64, u64) {
    let rows_of = |rows: RowsOf| match rows {
        RowsOf::T => size.tokens as u64,
        RowsOf::R => size.rows as u64,
    };
    let rows = |place: &Place| rows_of(place.rows);
    let bytes = |place: &Place| 4 * rows(place) * place.width as u64;
    match phase {
        Phase::Rows(rows, _) => (rows_of(*rows) * row_bytes, 0),
        Phase::Linear { x, out, weight, then, .. } if rows(x) > 0 => {
            let weight = model.weights.get(*weight).map_or(0, Weight::bytes) as u64;
            let outputs = out.width as u64 * if *then == Then::Glu { 2 } else { 1 };
            (weight + bytes(x) + bytes(out), 2 * rows(x) * x.width as u64 * outputs)
        }
        Phase::Linear { .. } => (0, 0),
        Phase::KvStore { group, .. } => (size.tokens as u64 * (row_bytes + slot_bytes(model, *group)), 0),
        Phase::Attention { q, out, group, num_heads, .. } => {
            let (keys, pairs) = visible(step, model.windows[*group]);
            let head_dim = model.kv[*group].head_dim() as u64;
            let kv = keys * slot_bytes(model, *group);
            (kv + bytes(q) + bytes(out), 4 * pairs * head_dim * *num_heads as u64)
        }
        Phase::Logits { x, .. } => (2 * bytes(x), 0),
    }
}

/// Bytes that a chain reads or writes per row, each place once: a row is in the cache from one op to the next.
fn row_bytes(phase: &Phase) -> u64 {
    let (Phase::Rows(_, chain) | Phase::KvStore { heads: chain, .. }) = phase else { return 0 };
    let mut all: Vec<&Place> = Vec::new();
    for op in chain {
        let named = match op {
            RowOp::RopeTables => [None; 3],
            RowOp::Embed { out, .. } => [Some(out), None, None],
            RowOp::HeadNorm { x, .. } | RowOp::Rope { x, .. } => [Some(x), None, None],
            RowOp::RmsNorm { x, out, .. } | RowOp::SelectRows { x, out } => [Some(x), Some(out), None],
            RowOp::Glu { gate, up, out } => [Some(gate), Some(up), Some(out)],
            RowOp::Gate { x, gate: y } | RowOp::Add { x, y } => [Some(x), Some(y), None],
        };
        for place in named.into_iter().flatten() {
            let first = |place: &Place| match place.base {
                Base::Arena(first) => (false, first),
                Base::Logits(first) => (true, first),
            };
            if !all.iter().any(|known| (first(known), known.width) == (first(place), place.width)) {
                all.push(place);
            }
        }
    }
    all.iter().map(|place| 4 * place.width as u64).sum()
}

/// Bytes of one token's keys and values in one layer of a group.
fn slot_bytes(model: &Model, group: usize) -> u64 {
    let pool = &model.kv[group];
    (pool.bytes() / (pool.num_layers() * pool.num_blocks() * pool.block_size())) as u64
}

/// Keys that some query of the step sees, and pairs of a query and a key it sees.
fn visible(step: &StepView<'_>, window: Option<usize>) -> (u64, u64) {
    let (mut keys, mut pairs) = (0, 0);
    for (sequence, &len) in step.seq_lens.iter().enumerate() {
        let (len, reach) = (len as u64, window.map_or(u64::MAX, |window| window as u64));
        let new = (step.cu_seqlens_q[sequence + 1] - step.cu_seqlens_q[sequence]) as u64;
        keys += len.min(new.saturating_add(reach) - 1);
        pairs += (len - new..len).map(|position| (position + 1).min(reach)).sum::<u64>();
    }
    (keys, pairs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_share_a_label() {
        assert_eq!(without_layer("layers.12.gate+up"), "gate+up");
        assert_eq!(without_layer("head"), "head");
        assert_eq!(without_layer("layers.x.y"), "layers.x.y");
    }

    #[test]
    fn keys_and_pairs_of_a_step() {
        let step = StepView {
            token_ids: &[0; 4],
            positions: &[0; 4],
            cu_seqlens_q: &[0, 1, 4],
            seq_lens: &[10, 3],
            logit_rows: &[],
            groups: &[],
        };
        assert_eq!(visible(&step, None), (13, 10 + 1 + 2 + 3));
        assert_eq!(visible(&step, Some(2)), (2 + 3, 2 + 1 + 2 + 2));
    }
}
