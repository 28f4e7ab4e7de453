//! Turns a checked program into phases: what all workers do between two barriers.
//!
//! Ops that treat rows alone (norms, rope, glu, add, ...) form chains that run row by row while the row is in the
//! cache. This needs row t of every buffer of a slot to lie in the same place, so all of them use the slot's stride.

use super::fuse::{FusedLinear, buffer_uses, fused_linear};
use crate::error::CpuError;
use crate::ops::qlinear::Then;
use crate::program::{Op, Program, RowsOf, View};

/// Where a view lives.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) base: Base,
    pub(super) rows: RowsOf,
    /// Elements from row to row.
    pub(super) stride: usize,
    /// Columns.
    pub(super) width: usize,
}

/// First element of row 0.
#[derive(Clone, Copy, Debug)]
pub(super) enum Base {
    /// Elements from the start of the arena.
    Arena(usize),
    /// Elements from the start of the caller's logits.
    Logits(usize),
}

/// What all workers do together; a barrier follows each.
#[derive(Debug)]
pub(super) enum Phase {
    /// A chain of row ops over all rows.
    Rows(RowsOf, Vec<RowOp>),
    Linear {
        x: Place,
        out: Place,
        weight: usize,
        bias: Option<usize>,
        /// Of x; integer weights only.
        norm: Option<NormOf>,
        /// Other than `Store` for integer weights only.
        then: Then,
        /// The weights of the matmul that alone reads `out`, and of the one whose `out` this one alone reads, see
        /// [`QLinear`](crate::ops::qlinear::QLinear).
        next: Option<usize>,
        before: Option<usize>,
    },
    /// `heads` on each head, then its key and value into the cache.
    KvStore {
        heads: Vec<RowOp>,
        k: Place,
        v: Place,
        group: usize,
        layer: usize,
    },
    Attention {
        q: Place,
        out: Place,
        group: usize,
        layer: usize,
        num_heads: usize,
        scale: f32,
        scratch: usize,
    },
    Logits {
        x: Place,
        multiplier: f32,
        soft_cap: Option<f32>,
    },
}

/// Numbers of an RMS norm.
#[derive(Clone, Copy, Debug)]
pub(super) struct NormOf {
    pub(super) weight: Option<usize>,
    pub(super) eps: f32,
    pub(super) weight_offset: f32,
}

/// An op on one row.
#[derive(Debug)]
pub(super) enum RowOp {
    /// cos and sin of the row's position in every rope table.
    RopeTables,
    Embed {
        weight: usize,
        out: Place,
    },
    RmsNorm {
        x: Place,
        out: Place,
        weight: Option<usize>,
        eps: f32,
        weight_offset: f32,
    },
    HeadNorm {
        x: Place,
        head_dim: usize,
        weight: Option<usize>,
        eps: f32,
        weight_offset: f32,
        scale: f32,
    },
    Rope {
        x: Place,
        head_dim: usize,
        table: usize,
    },
    Glu {
        gate: Place,
        up: Place,
        out: Place,
    },
    Gate {
        x: Place,
        gate: Place,
    },
    Add {
        x: Place,
        y: Place,
    },
    SelectRows {
        x: Place,
        out: Place,
    },
}

/// Heads of an attention op; ops with equal ones share their scratch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HeadShape {
    pub(super) num_heads: usize,
    pub(super) num_kv_heads: usize,
    pub(super) head_dim: usize,
}

/// A program ready to replay.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) phases: Vec<Phase>,
    /// Elements of the arena.
    pub(super) arena_len: usize,
    pub(super) head_shapes: Vec<HeadShape>,
}

impl Plan {
    /// Weight, use and rows of the first linear after a phase.
    pub(super) fn next_linear(&self, index: usize) -> Option<(usize, Then, RowsOf)> {
        self.phases[index + 1..].iter().find_map(|phase| match phase {
            Phase::Linear { x, weight, then, .. } => Some((*weight, *then, x.rows)),
            _ => None,
        })
    }
}

struct Compiler<'a> {
    program: &'a Program,
    /// First element and stride of each slot.
    slots: Vec<(usize, usize)>,
    plan: Plan,
}

/// Lay out the arena for at most `max_tokens` and `max_rows` rows, and group the ops.
///
/// # Errors
/// [`CpuError::OutOfMemory`] when the arena's size overflows.
pub(super) fn compile(program: &Program, max_tokens: usize, max_rows: usize) -> Result<Plan, CpuError> {
    let mut slots = Vec::with_capacity(program.slots.len());
    let mut arena_len = 0usize;
    for (index, slot) in program.slots.iter().enumerate() {
        // The logits live in the caller's memory: only what shares their slot with them needs room.
        let buffers = program.buffers.iter().enumerate();
        let here = buffers.filter(|(buffer, b)| b.slot == index as i64 && *buffer != program.logits.buffer);
        let stride = here.map(|(_, buffer)| stride(buffer.width)).max().unwrap_or(0);
        slots.push((arena_len, stride));
        let rows = match slot.rows {
            RowsOf::T => max_tokens,
            RowsOf::R => max_rows,
        };
        arena_len = stride
            .checked_mul(rows)
            .and_then(|len| len.checked_add(arena_len))
            .filter(|len| *len <= isize::MAX as usize / 4)
            .ok_or(CpuError::OutOfMemory { needed_bytes: usize::MAX })?;
    }
    let plan = Plan { phases: Vec::new(), arena_len, head_shapes: Vec::new() };
    let mut compiler = Compiler { program, slots, plan };
    if !program.rope_tables.is_empty() {
        compiler.row_op(RowsOf::T, RowOp::RopeTables);
    }
    let (uses, mut index, mut previous) = (buffer_uses(program), 0, None);
    while let Some(op) = program.ops.get(index) {
        let unresolved = || CpuError::Program { op: Some(index), what: "unchecked program".into() };
        index += match fused_linear(program, &uses, index) {
            Some(fused) => {
                compiler.fused_linear(&fused).ok_or_else(unresolved)?;
                let hands_over = |before: &FusedLinear<'_>| {
                    let reads_it = before.out == fused.x && uses[fused.x.buffer] == 2;
                    before.then == Then::Glu && fused.norm.is_none() && reads_it
                };
                if previous.as_ref().is_some_and(hands_over) {
                    compiler.hand_over();
                }
                previous = Some(fused);
                fused.count
            }
            None => {
                compiler.op(op).ok_or_else(unresolved)?;
                previous = None;
                1
            }
        };
    }
    Ok(compiler.plan)
}

/// Elements from row to row: whole cache lines, and not whole pages, whose rows would fight for cache sets.
fn stride(width: usize) -> usize {
    let stride = width.next_multiple_of(16);
    if stride.is_multiple_of(1024) { stride + 16 } else { stride }
}

impl Compiler<'_> {
    /// Append an op; None when a name or an index does not resolve, which the program's check excludes.
    fn op(&mut self, op: &Op) -> Option<()> {
        match op {
            Op::Embed { weight, out } => {
                let (weight, out) = (self.parameter(weight)?, self.place(out)?);
                self.row_op(RowsOf::T, RowOp::Embed { weight, out });
            }
            Op::RmsNorm { x, out, weight, eps, weight_offset } => {
                let (x, out, weight) = (self.place(x)?, self.place(out)?, self.optional(weight)?);
                let (eps, weight_offset) = (*eps, *weight_offset);
                self.row_op(x.rows, RowOp::RmsNorm { x, out, weight, eps, weight_offset });
            }
            Op::HeadNorm { x, num_heads: _, head_dim, weight, eps, weight_offset, scale } => {
                let (x, weight, head_dim) = (self.place(x)?, self.optional(weight)?, *head_dim);
                let (eps, weight_offset, scale) = (*eps, *weight_offset, *scale);
                self.row_op(x.rows, RowOp::HeadNorm { x, head_dim, weight, eps, weight_offset, scale });
            }
            Op::Linear { x, out, weight, bias } => {
                let (x, out) = (self.place(x)?, self.place(out)?);
                let (weight, bias) = (self.parameter(weight)?, self.optional(bias)?);
                let (norm, then) = (None, Then::Store);
                self.plan.phases.push(Phase::Linear {
                    x,
                    out,
                    weight,
                    bias,
                    norm,
                    then,
                    next: None,
                    before: None,
                });
            }
            Op::Rope { x, num_heads: _, head_dim, table } => {
                let x = self.place(x)?;
                self.row_op(x.rows, RowOp::Rope { x, head_dim: *head_dim, table: *table });
            }
            Op::KvStore { k, v, group, layer } => {
                let (k, v) = (self.place(k)?, self.place(v)?);
                let heads = self.take_head_ops(*group);
                self.plan.phases.push(Phase::KvStore { heads, k, v, group: *group, layer: *layer });
            }
            Op::Attention { q, out, group, layer, num_heads, softmax_scale } => {
                let (q, out) = (self.place(q)?, self.place(out)?);
                let (group, layer, num_heads, scale) = (*group, *layer, *num_heads, *softmax_scale);
                let scratch = self.head_shape(group, num_heads)?;
                self.plan.phases.push(Phase::Attention { q, out, group, layer, num_heads, scale, scratch });
            }
            Op::Glu { gate, up, out, activation: crate::program::Activation::Silu } => {
                let (gate, up, out) = (self.place(gate)?, self.place(up)?, self.place(out)?);
                self.row_op(out.rows, RowOp::Glu { gate, up, out });
            }
            Op::Gate { x, gate } => {
                let (x, gate) = (self.place(x)?, self.place(gate)?);
                self.row_op(x.rows, RowOp::Gate { x, gate });
            }
            Op::Add { x, y } => {
                let (x, y) = (self.place(x)?, self.place(y)?);
                self.row_op(x.rows, RowOp::Add { x, y });
            }
            Op::SelectRows { x, out } => {
                let (x, out) = (self.place(x)?, self.place(out)?);
                self.row_op(RowsOf::R, RowOp::SelectRows { x, out });
            }
            Op::Logits { x, multiplier, soft_cap } => {
                let (x, multiplier, soft_cap) = (self.place(x)?, *multiplier, *soft_cap);
                if multiplier != 1.0 || soft_cap.is_some() {
                    self.plan.phases.push(Phase::Logits { x, multiplier, soft_cap });
                }
            }
        }
        Some(())
    }

    fn fused_linear(&mut self, fused: &FusedLinear<'_>) -> Option<()> {
        let Op::Linear { weight, bias, .. } = fused.linear else { return None };
        let norm = match fused.norm {
            Some(Op::RmsNorm { weight, eps, weight_offset, .. }) => {
                Some(NormOf { weight: self.optional(weight)?, eps: *eps, weight_offset: *weight_offset })
            }
            _ => None,
        };
        let (x, out, then) = (self.place(&fused.x)?, self.place(&fused.out)?, fused.then);
        let (weight, bias) = (self.parameter(weight)?, self.optional(bias)?);
        self.plan.phases.push(Phase::Linear { x, out, weight, bias, norm, then, next: None, before: None });
        Some(())
    }

    /// Let the last two phases, matmuls, know each other.
    fn hand_over(&mut self) {
        if let [.., Phase::Linear { weight, next, .. }, Phase::Linear { weight: of_next, before, .. }] =
            &mut self.plan.phases[..]
        {
            (*next, *before) = (Some(*of_next), Some(*weight));
        }
    }

    /// Append to the chain before it, or start one. A chain never mixes T and R: `select_rows` reads other rows.
    fn row_op(&mut self, rows: RowsOf, op: RowOp) {
        match self.plan.phases.last_mut() {
            Some(Phase::Rows(of, chain)) if *of == rows => chain.push(op),
            _ => self.plan.phases.push(Phase::Rows(rows, vec![op])),
        }
    }

    /// The chain before a store, taken away, if it treats the heads of queries and keys alone and can be cut where the
    /// store is.
    fn take_head_ops(&mut self, group: usize) -> Vec<RowOp> {
        let Some(group) = self.program.kv_groups.get(group) else { return Vec::new() };
        let fits = |op: &RowOp| match op {
            RowOp::HeadNorm { x, head_dim, .. } | RowOp::Rope { x, head_dim, .. } => {
                *head_dim == group.head_dim && x.width.is_multiple_of(group.num_kv_heads * head_dim)
            }
            _ => false,
        };
        match self.plan.phases.last_mut() {
            Some(Phase::Rows(RowsOf::T, chain)) if chain.iter().all(fits) => {
                let chain = std::mem::take(chain);
                self.plan.phases.pop();
                chain
            }
            _ => Vec::new(),
        }
    }

    fn place(&self, view: &View) -> Option<Place> {
        let buffer = self.program.buffers.get(view.buffer)?;
        let (rows, width) = (buffer.rows, view.width);
        if view.buffer == self.program.logits.buffer {
            return Some(Place { base: Base::Logits(view.offset), rows, stride: buffer.width, width });
        }
        let (first, stride) = *self.slots.get(usize::try_from(buffer.slot).ok()?)?;
        Some(Place { base: Base::Arena(first + view.offset), rows, stride, width })
    }

    fn parameter(&self, name: &str) -> Option<usize> {
        self.program.parameter(name).map(|(index, _)| index)
    }

    /// Some(None) for no name, None for an unknown one.
    fn optional(&self, name: &Option<String>) -> Option<Option<usize>> {
        name.as_ref().map_or(Some(None), |name| self.parameter(name).map(Some))
    }

    fn head_shape(&mut self, group: usize, num_heads: usize) -> Option<usize> {
        let group = self.program.kv_groups.get(group)?;
        let shape = HeadShape { num_heads, num_kv_heads: group.num_kv_heads, head_dim: group.head_dim };
        let shapes = &mut self.plan.head_shapes;
        Some(shapes.iter().position(|known| *known == shape).unwrap_or_else(|| {
            shapes.push(shape);
            shapes.len() - 1
        }))
    }
}
