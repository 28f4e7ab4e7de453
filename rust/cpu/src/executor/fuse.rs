//! Which neighbouring ops run as one integer matmul: the norm before it, and the residual or the gated activation after.
//!
//! A fused matmul reads what its norm read, and writes what the op after it wrote, so the buffers between them are left
//! out. No bit changes. All workers read the input while the first of them already write: a fusion that would let the
//! output share memory with the input is left alone.

use crate::ops::qlinear::{QuantizedMatrix, Then};
use crate::program::{Op, Program, View};

/// An integer matmul and the ops that ride along.
#[derive(Clone, Copy, Debug)]
pub(super) struct FusedLinear<'a> {
    /// The norm before it, an [`Op::RmsNorm`].
    pub(super) norm: Option<&'a Op>,
    /// The [`Op::Linear`].
    pub(super) linear: &'a Op,
    pub(super) then: Then,
    /// What is read.
    pub(super) x: View,
    /// What is written.
    pub(super) out: View,
    /// How many ops these are.
    pub(super) count: usize,
}

/// How many ops name each buffer; the logits are used once more, by whoever reads them.
pub(super) fn buffer_uses(program: &Program) -> Vec<usize> {
    let mut uses = vec![0; program.buffers.len()];
    uses[program.logits.buffer] += 1;
    for op in &program.ops {
        let mut named: Vec<usize> = views(op).iter().map(|view| view.buffer).collect();
        named.sort_unstable();
        named.dedup();
        named.into_iter().for_each(|buffer| uses[buffer] += 1);
    }
    uses
}

fn views(op: &Op) -> Vec<View> {
    match op {
        Op::Embed { out, .. } => vec![*out],
        Op::RmsNorm { x, out, .. } | Op::Linear { x, out, .. } | Op::SelectRows { x, out } => vec![*x, *out],
        Op::HeadNorm { x, .. } | Op::Rope { x, .. } | Op::Logits { x, .. } => vec![*x],
        Op::KvStore { k, v, .. } => vec![*k, *v],
        Op::Attention { q, out, .. } => vec![*q, *out],
        Op::Glu { gate, up, out, .. } => vec![*gate, *up, *out],
        Op::Gate { x, gate } => vec![*x, *gate],
        Op::Add { x, y } => vec![*x, *y],
    }
}

/// The fused matmul that begins at op `index`; None when the op stays as it is.
pub(super) fn fused_linear<'a>(
    program: &'a Program,
    uses: &[usize],
    index: usize,
) -> Option<FusedLinear<'a>> {
    let ops = &program.ops[index..];
    let first = FusedLinear {
        norm: None,
        linear: ops.first()?,
        then: Then::Store,
        x: View { buffer: 0, offset: 0, width: 0 },
        out: View { buffer: 0, offset: 0, width: 0 },
        count: 0,
    };
    let (mut fused, after) = match ops {
        [Op::Linear { x, out, .. }, after @ ..] => {
            (FusedLinear { x: *x, out: *out, count: 1, ..first }, after)
        }
        [norm @ Op::RmsNorm { x, out: normed, .. }, linear @ Op::Linear { x: read, out, .. }, after @ ..]
            if normed == read && uses[normed.buffer] == 2 && apart(program, x, out) =>
        {
            (FusedLinear { norm: Some(norm), linear, x: *x, out: *out, count: 2, ..first }, after)
        }
        _ => return None,
    };
    let Op::Linear { weight, .. } = fused.linear else { return None };
    let (_, parameter) = program.parameter(weight)?;
    parameter.quant?;
    let (y, rows) = (fused.out, parameter.shape[0]);
    let (out, then) = match after.first() {
        Some(Op::Add { x, y: added }) if *added == y => (*x, Then::Add),
        Some(Op::Glu { gate, up, out, .. })
            if (*gate, *up) == halves(&y) && QuantizedMatrix::has_whole_halves(rows) =>
        {
            (*out, Then::Glu)
        }
        _ => return Some(fused),
    };
    if uses[y.buffer] == 2 && apart(program, &fused.x, &out) {
        fused = FusedLinear { out, then, count: fused.count + 1, ..fused };
    }
    Some(fused)
}

fn halves(y: &View) -> (View, View) {
    let half = y.width / 2;
    let of = |offset: usize| View { buffer: y.buffer, offset: y.offset + offset, width: half };
    (of(0), of(half))
}

/// Whether two views lie in different memory. The logits are in the caller's, whatever their slot says.
fn apart(program: &Program, read: &View, written: &View) -> bool {
    let slot = |view: &View| program.buffers[view.buffer].slot;
    written.buffer == program.logits.buffer
        || read.buffer == program.logits.buffer
        || slot(read) != slot(written)
}
