//! The checks of a program: after them a replay can neither panic nor touch memory that is not its own.

use std::collections::HashMap;

use super::{Buffer, KvGroup, MAX_DIM, Op, Parameter, ParameterKind, Program, RowsOf, View};
use crate::error::CpuError;

/// What is wrong, without the op's number.
type Check = Result<(), String>;

pub(super) fn check(program: &Program) -> Result<(), CpuError> {
    let in_program = |what| CpuError::Program { op: None, what };
    declarations(program).map_err(in_program)?;
    let parameters = program.parameters.iter().map(|p| (p.name.as_str(), p)).collect();
    let mut checker = Checker { program, parameters, owner: vec![None; program.slots.len()] };
    for (index, op) in program.ops.iter().enumerate() {
        checker.op(op).map_err(|what| CpuError::Program { op: Some(index), what })?;
    }
    checker.logits().map_err(in_program)
}

fn expect(holds: bool, what: impl FnOnce() -> String) -> Check {
    if holds { Ok(()) } else { Err(what()) }
}

fn equal(what: &str, got: usize, expected: usize) -> Check {
    expect(got == expected, || format!("{what}: got {got}, expected {expected}"))
}

fn dimension(what: &str, got: usize) -> Check {
    expect((1..=MAX_DIM).contains(&got), || format!("{what}: got {got}, expected 1 to {MAX_DIM}"))
}

fn finite(what: &str, got: f32) -> Check {
    expect(got.is_finite(), || format!("{what}: got {got}, expected a finite number"))
}

fn declarations(program: &Program) -> Check {
    dimension("vocab_size", program.vocab_size)?;
    for slot in &program.slots {
        dimension("slot width", slot.width)?;
    }
    for buffer in &program.buffers {
        check_buffer(program, buffer).map_err(|what| format!("buffer {:?}: {what}", buffer.name))?;
    }
    let mut seen = std::collections::HashSet::new();
    for parameter in &program.parameters {
        let unique = seen.insert(parameter.name.as_str());
        expect(unique, || "the name appears twice".into())
            .and_then(|()| check_parameter(parameter))
            .map_err(|what| format!("parameter {:?}: {what}", parameter.name))?;
    }
    for (index, table) in program.rope_tables.iter().enumerate() {
        dimension("length of inv_freq", table.inv_freq.len())
            .and_then(|()| finite("scale", table.scale))
            .and_then(|()| table.inv_freq.iter().try_for_each(|&f| finite("inv_freq", f)))
            .map_err(|what| format!("rope table {index}: {what}"))?;
    }
    for (index, group) in program.kv_groups.iter().enumerate() {
        check_group(group).map_err(|what| format!("KV group {index}: {what}"))?;
    }
    Ok(())
}

fn check_buffer(program: &Program, buffer: &Buffer) -> Check {
    dimension("width", buffer.width)?;
    if buffer.slot == -1 {
        return Ok(());
    }
    let slot = usize::try_from(buffer.slot).ok().and_then(|slot| program.slots.get(slot));
    let slot = slot.ok_or_else(|| format!("slot {} of {}", buffer.slot, program.slots.len()))?;
    expect(slot.rows == buffer.rows, || "its slot is for the other kind of rows".into())?;
    expect(slot.width >= buffer.width, || format!("its slot has width {}, not {}", slot.width, buffer.width))
}

fn check_parameter(parameter: &Parameter) -> Check {
    let rank = match parameter.kind {
        ParameterKind::Matrix => 2,
        ParameterKind::Vector => 1,
    };
    equal("number of dimensions", parameter.shape.len(), rank)?;
    for &size in &parameter.shape {
        dimension("dimension", size)?;
    }
    if let Some(format) = parameter.quant {
        expect(parameter.kind == ParameterKind::Matrix, || "only a matrix can be quantized".into())?;
        format.check(parameter.shape[1]).map_err(|(field, what)| format!("quant: {field}: {what}"))?;
    }
    expect(!parameter.sources.is_empty(), || "it has no sources".into())
}

fn check_group(group: &KvGroup) -> Check {
    dimension("num_layers", group.num_layers)?;
    dimension("num_kv_heads", group.num_kv_heads)?;
    dimension("head_dim", group.head_dim)?;
    dimension("num_kv_heads * head_dim", group.num_kv_heads.saturating_mul(group.head_dim))?;
    expect(group.window != Some(0), || "window: got 0, expected at least 1".into())
}

struct Checker<'a> {
    program: &'a Program,
    parameters: HashMap<&'a str, &'a Parameter>,
    /// Per slot: the buffer whose content it holds.
    owner: Vec<Option<usize>>,
}

impl<'a> Checker<'a> {
    fn op(&mut self, op: &Op) -> Check {
        use RowsOf::{R, T};
        match op {
            Op::Embed { weight, out } => {
                self.views(&[], &[out], Some(T))?;
                let columns = self.matrix(weight)?.1;
                equal("width of out", out.width, columns)
            }
            Op::RmsNorm { x, out, weight, eps, weight_offset } => {
                self.views(&[x], &[out], None)?;
                equal("width of out", out.width, x.width)?;
                self.norm(weight.as_deref(), x.width, *eps, *weight_offset)
            }
            Op::HeadNorm { x, num_heads, head_dim, weight, eps, weight_offset, scale } => {
                self.views_in_place(&[x], None)?;
                heads("x", x, *num_heads, *head_dim)?;
                finite("scale", *scale)?;
                self.norm(weight.as_deref(), *head_dim, *eps, *weight_offset)
            }
            Op::Linear { x, out, weight, bias } => {
                self.views(&[x], &[out], None)?;
                let (rows, columns) = self.matrix(weight)?;
                equal("width of x", x.width, columns)?;
                equal("width of out", out.width, rows)?;
                bias.as_deref().map_or(Ok(()), |bias| self.vector(bias, rows))
            }
            Op::Rope { x, num_heads, head_dim, table } => {
                self.views_in_place(&[x], Some(T))?;
                heads("x", x, *num_heads, *head_dim)?;
                let tables = &self.program.rope_tables;
                let table = tables.get(*table).ok_or_else(|| format!("table {table} of {}", tables.len()))?;
                let rotated = 2 * table.inv_freq.len();
                expect(rotated <= *head_dim, || format!("{rotated} rotated elements in a head of {head_dim}"))
            }
            Op::KvStore { k, v, group, layer } => {
                self.views(&[k, v], &[], Some(T))?;
                let group = self.group(*group, *layer)?;
                heads("k", k, group.num_kv_heads, group.head_dim)?;
                heads("v", v, group.num_kv_heads, group.head_dim)
            }
            Op::Attention { q, out, group, layer, num_heads, softmax_scale } => {
                self.views(&[q], &[out], Some(T))?;
                let group = self.group(*group, *layer)?;
                heads("q", q, *num_heads, group.head_dim)?;
                equal("width of out", out.width, q.width)?;
                let whole = num_heads.is_multiple_of(group.num_kv_heads);
                expect(whole, || format!("{num_heads} heads over {} KV heads", group.num_kv_heads))?;
                finite("softmax_scale", *softmax_scale)
            }
            Op::Glu { gate, up, out, activation: super::Activation::Silu } => {
                self.views(&[gate, up], &[out], None)?;
                equal("width of up", up.width, gate.width)?;
                equal("width of out", out.width, gate.width)
            }
            Op::Gate { x, gate } => {
                self.views_in_place(&[x, gate], None)?;
                equal("width of gate", gate.width, x.width)
            }
            Op::Add { x, y } => {
                self.views_in_place(&[x, y], None)?;
                equal("width of y", y.width, x.width)
            }
            Op::SelectRows { x, out } => {
                self.views(&[x], &[], Some(T))?;
                self.views(&[], &[out], Some(R))?;
                equal("width of out", out.width, x.width)
            }
            Op::Logits { x, multiplier, soft_cap } => {
                self.views_in_place(&[x], Some(R))?;
                finite("multiplier", *multiplier)?;
                let cap = soft_cap.unwrap_or(1.0);
                expect(cap.is_finite() && cap > 0.0, || format!("soft_cap: got {cap}, expected > 0"))
            }
        }
    }

    /// The views of one op that is not in place: as `inside`, and what is written lies apart from what is read.
    fn views(&mut self, reads: &[&View], writes: &[&View], rows: Option<RowsOf>) -> Check {
        self.inside(reads, writes, rows)?;
        for write in writes {
            reads.iter().try_for_each(|read| self.apart(read, write))?;
            let (_, slot) = self.buffer(write)?;
            self.owner[slot] = Some(write.buffer);
        }
        Ok(())
    }

    /// The views of an op that updates the first of them in place; the others lie apart from it.
    fn views_in_place(&self, views: &[&View], rows: Option<RowsOf>) -> Check {
        self.inside(views, &[], rows)?;
        views[1..].iter().try_for_each(|read| self.apart(read, views[0]))
    }

    /// Every view is inside its buffer, all have one kind of rows, and what is read was written before.
    fn inside(&self, reads: &[&View], writes: &[&View], mut rows: Option<RowsOf>) -> Check {
        for view in reads.iter().chain(writes) {
            let (buffer, _) = self.buffer(view)?;
            let expected = *rows.get_or_insert(buffer.rows);
            expect(buffer.rows == expected, || {
                format!("buffer {:?} has rows {:?}, expected {expected:?}", buffer.name, buffer.rows)
            })?;
        }
        for view in reads {
            let (buffer, slot) = self.buffer(view)?;
            let held = self.owner[slot] == Some(view.buffer);
            expect(held, || format!("buffer {:?} is read when its slot does not hold it", buffer.name))?;
        }
        Ok(())
    }

    fn apart(&self, read: &View, write: &View) -> Check {
        let apart = if read.buffer == write.buffer {
            read.offset + read.width <= write.offset || write.offset + write.width <= read.offset
        } else {
            self.buffer(read)?.1 != self.buffer(write)?.1
        };
        expect(apart, || format!("what is written to buffer {} overlaps what is read", write.buffer))
    }

    fn buffer(&self, view: &View) -> Result<(&'a Buffer, usize), String> {
        let buffers = &self.program.buffers;
        let buffer =
            buffers.get(view.buffer).ok_or_else(|| format!("buffer {} of {}", view.buffer, buffers.len()))?;
        let inside =
            view.width >= 1 && view.offset.checked_add(view.width).is_some_and(|end| end <= buffer.width);
        expect(inside, || {
            let View { offset, width, .. } = view;
            format!(
                "view of {width} columns from {offset} in buffer {:?} of width {}",
                buffer.name, buffer.width
            )
        })?;
        let slot =
            usize::try_from(buffer.slot).map_err(|_| format!("buffer {:?} has no slot", buffer.name))?;
        Ok((buffer, slot))
    }

    fn parameter(&self, name: &str, kind: ParameterKind) -> Result<&'a Parameter, String> {
        let parameter =
            self.parameters.get(name).copied().ok_or_else(|| format!("unknown parameter {name:?}"))?;
        expect(parameter.kind == kind, || format!("parameter {name:?} is not a {kind:?}"))?;
        Ok(parameter)
    }

    fn matrix(&self, name: &str) -> Result<(usize, usize), String> {
        let shape = &self.parameter(name, ParameterKind::Matrix)?.shape;
        Ok((shape[0], shape[1]))
    }

    fn vector(&self, name: &str, expected: usize) -> Check {
        let length = self.parameter(name, ParameterKind::Vector)?.shape[0];
        equal(&format!("length of {name:?}"), length, expected)
    }

    fn norm(&self, weight: Option<&str>, width: usize, eps: f32, weight_offset: f32) -> Check {
        expect(eps.is_finite() && eps >= 0.0, || format!("eps: got {eps}, expected >= 0"))?;
        finite("weight_offset", weight_offset)?;
        weight.map_or(Ok(()), |weight| self.vector(weight, width))
    }

    fn group(&self, group: usize, layer: usize) -> Result<&'a KvGroup, String> {
        let groups = &self.program.kv_groups;
        let found = groups.get(group).ok_or_else(|| format!("KV group {group} of {}", groups.len()))?;
        expect(layer < found.num_layers, || format!("layer {layer} of {}", found.num_layers))?;
        Ok(found)
    }

    fn logits(&self) -> Check {
        let view = &self.program.logits;
        let (buffer, slot) = self.buffer(view).map_err(|what| format!("logits: {what}"))?;
        expect(buffer.rows == RowsOf::R, || "logits: expected a buffer with rows R".into())?;
        equal("logits: width", view.width, self.program.vocab_size)?;
        equal("logits: width of the whole buffer", buffer.width, self.program.vocab_size)?;
        expect(self.owner[slot] == Some(view.buffer), || "logits: no op leaves them there".into())
    }
}

fn heads(what: &str, view: &View, num_heads: usize, head_dim: usize) -> Check {
    expect(num_heads >= 1 && head_dim >= 1, || format!("{num_heads} heads of {head_dim}"))?;
    equal(&format!("width of {what}"), view.width, num_heads.saturating_mul(head_dim))
}
