"""Passes over a program. Each says what it may change; none looks at a family.

`merge_linears` serves every backend. The others make ops that only some backends have; a backend names those it has
and gets its program from `fuse`. In f32 no pass changes a bit of what the unfused ops give; with 16-bit activations a
fused op leaves out the rounding of what no longer goes through memory.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Collection, Mapping

from pyrite.errors import InternalError
from pyrite.models.program import (
    Add,
    AddRmsNorm,
    Attention,
    Buffer,
    Glu,
    HeadNorm,
    KvStore,
    Linear,
    LinearAdd,
    LinearGlu,
    NormOfHeads,
    Op,
    Parameter,
    Program,
    QkNormRopeStore,
    RmsNorm,
    Rope,
    View,
    assign_slots,
)

Moved = Mapping[int, tuple[int, int]]
"""Old buffer to (new buffer, column where it starts there)."""


def merge_linears(program: Program) -> Program:
    """Turn neighbouring linears of the same input into one: q/k/v (and an output gate), gate/up.

    The merged matrix holds the rows of the parts one after the other, the merged buffer their columns, and every view
    of a part is remapped. Each output is still the same dot product: no bit changes. Parts must agree in having a bias,
    and a weight that another op uses too (a tied embedding) is left alone. Schemes are assigned afterwards, so that a
    merged matrix has one.
    """
    uses = Counter(getattr(op, "weight", None) for op in program.ops)
    parameters = {parameter.name: parameter for parameter in program.parameters}
    replaced: dict[str, Parameter | None] = {}
    buffers = list(program.buffers)
    moved: dict[int, tuple[int, int]] = {}
    ops: list[Op] = []
    index = 0
    while index < len(program.ops):
        run = _run_at(program, index, uses)
        if len(run) < 2:
            ops.append(_remap(program.ops[index], moved))
            index += 1
            continue
        width = 0
        for op in run:
            moved[op.out.buffer] = (len(buffers), width)
            width += op.out.width
        name = "+".join(buffers[op.out.buffer].name for op in run)
        out = View(len(buffers), 0, width)
        buffers.append(Buffer(name, buffers[run[0].out.buffer].rows, width))
        prefix = run[0].weight.rpartition(".")[0]
        weight = ".".join(filter(None, (prefix, "+".join(op.weight.rpartition(".")[2] for op in run))))
        _merge(weight, [parameters[op.weight] for op in run], replaced)
        bias = None
        if run[0].bias is not None:
            bias = f"{weight}.bias"
            _merge(bias, [parameters[op.bias] for op in run if op.bias is not None], replaced)
        ops.append(Linear(_remap_view(run[0].x, moved), out, weight, bias))
        index += len(run)
    kept = (replaced.get(name, parameter) for name, parameter in parameters.items())
    merged = dataclasses.replace(
        program,
        buffers=tuple(buffers),
        parameters=tuple(parameter for parameter in kept if parameter is not None),
        ops=tuple(ops),
        logits=_remap_view(program.logits, moved),
    )
    return _drop_unused_buffers(merged)


def _run_at(program: Program, index: int, uses: Counter[str | None]) -> list[Linear]:
    """The longest run of mergeable linears that starts at `index`."""
    run: list[Linear] = []
    while index + len(run) < len(program.ops):
        op = program.ops[index + len(run)]
        if not isinstance(op, Linear) or uses[op.weight] != 1 or op.out.width != program.buffers[op.out.buffer].width:
            break
        if run and (op.x != run[0].x or (op.bias is None) != (run[0].bias is None)):
            break
        run.append(op)
    return run


def _merge(name: str, parts: list[Parameter], replaced: dict[str, Parameter | None]) -> None:
    """Put one parameter in the place of the first part, and nothing in the place of the others."""
    if any(part.quant is not None for part in parts):
        raise InternalError("linears are merged before schemes are assigned", field=name)
    replaced.update((part.name, None) for part in parts[1:])
    replaced[parts[0].name] = Parameter(
        name=name,
        kind=parts[0].kind,
        shape=(sum(part.shape[0] for part in parts), *parts[0].shape[1:]),
        sources=tuple(source for part in parts for source in part.sources),
        source_rows=tuple(shape[0] for part in parts for shape in part.source_shapes().values()),
    )


def _remap_view(view: View, moved: Moved) -> View:
    if view.buffer not in moved:
        return view
    buffer, column = moved[view.buffer]
    return View(buffer, column + view.offset, view.width)


def _remap(op: Op, moved: Moved) -> Op:
    return dataclasses.replace(
        op, **{field: _remap_view(getattr(op, field), moved) for field in {*op.reads, *op.writes}}
    )


def _drop_unused_buffers(program: Program) -> Program:
    """Number the buffers that ops still name, in order."""
    used = {getattr(op, field).buffer for op in program.ops for field in (*op.reads, *op.writes)}
    kept = [index for index in range(len(program.buffers)) if index in used]
    moved = {old: (new, 0) for new, old in enumerate(kept)}
    return dataclasses.replace(
        program,
        buffers=tuple(program.buffers[index] for index in kept),
        ops=tuple(_remap(op, moved) for op in program.ops),
        logits=_remap_view(program.logits, moved),
    )


def fuse(program: Program, fused_ops: Collection[str], *, float_only: Collection[str] = ()) -> Program:
    """The program with the named fused ops wherever they fit, and scratch slots assigned anew.

    Args:
        fused_ops: `op` names among "linear_glu", "linear_add", "qk_norm_rope_store" and "add_rms_norm". The residual of
            a linear is taken by "linear_add" first, so that "add_rms_norm" gets what has another op in between.
        float_only: those that the backend has for float matrices alone; linears of integers are left as they are.

    Raises:
        InternalError: an unknown name.
    """
    unknown = sorted(set(fused_ops) - _PASSES.keys())
    if unknown:
        raise InternalError("no such fused op", got=", ".join(unknown), expected=", ".join(_PASSES))
    integers = frozenset(parameter.name for parameter in program.parameters if parameter.quant is not None)
    for name, one in _PASSES.items():
        if name in fused_ops:
            left = integers if name in float_only else frozenset()
            program = dataclasses.replace(program, ops=tuple(one(program, left)))
    return assign_slots(_drop_unused_buffers(program))


def _fuse_pairs(program: Program, first: type[Op], make: Callable[[Op, Op, Counter[int]], Op | None]) -> list[Op]:
    """Replace neighbours by what `make` gives for them, where it gives something.

    Args:
        make: called with an op of kind `first`, the op after it, and how many ops use each buffer.
    """
    uses = _buffer_uses(program)
    ops: list[Op] = []
    for op in program.ops:
        made = make(ops[-1], op, uses) if ops and isinstance(ops[-1], first) else None
        if made is None:
            ops.append(op)
        else:
            ops[-1] = made
    return ops


def _buffer_uses(program: Program) -> Counter[int]:
    """How many ops name each buffer; the logits are used once more, by whoever reads them."""
    uses = Counter({program.logits.buffer: 1})
    for op in program.ops:
        uses.update({getattr(op, field).buffer for field in (*op.reads, *op.writes)})
    return uses


def _linear_glu(program: Program, left: frozenset[str]) -> list[Op]:
    """A linear whose two halves are gate and up of the next op, and nothing else; not those of the weights `left`."""

    def make(a: Op, b: Op, uses: Counter[int]) -> Op | None:
        if not isinstance(a, Linear) or not isinstance(b, Glu) or uses[a.out.buffer] != 2 or a.weight in left:
            return None
        half = a.out.width // 2
        if (b.gate, b.up) != (View(a.out.buffer, 0, half), View(a.out.buffer, half, half)) or a.out.width != 2 * half:
            return None
        return LinearGlu(a.x, b.out, a.weight, a.bias, b.activation)

    return _fuse_pairs(program, Linear, make)


def _linear_add(program: Program, left: frozenset[str]) -> list[Op]:
    """A linear whose output is only added to the residual by the next op; not those of the weights `left`."""

    def make(a: Op, b: Op, uses: Counter[int]) -> Op | None:
        if not isinstance(a, Linear) or not isinstance(b, Add) or b.y != a.out or uses[a.out.buffer] != 2:
            return None
        if a.weight in left:
            return None
        return None if b.x.buffer == a.x.buffer else LinearAdd(a.x, b.x, a.weight, a.bias)

    return _fuse_pairs(program, Linear, make)


def _add_rms_norm(program: Program, left: frozenset[str]) -> list[Op]:
    """A sum and the norm of that sum."""

    def make(a: Op, b: Op, uses: Counter[int]) -> Op | None:
        if (
            not isinstance(a, Add)
            or not isinstance(b, RmsNorm)
            or b.x != a.x
            or b.out.buffer in (a.x.buffer, a.y.buffer)
        ):
            return None
        return AddRmsNorm(a.x, a.y, b.out, b.weight, b.eps, b.weight_offset)

    return _fuse_pairs(program, Add, make)


def _qk_norm_rope_store(program: Program, left: frozenset[str]) -> list[Op]:
    """The head norms and rotations between the linear and the store, with the store, where attention follows it.

    Nothing but the store may use the keys, which stay unrotated in their buffer.
    """
    ops: list[Op] = []
    for index, op in enumerate(program.ops):
        after = program.ops[index + 1] if index + 1 < len(program.ops) else None
        made = _fused_store(program, ops, op, after)
        if made is None:
            ops.append(op)
        else:
            fused, taken = made
            del ops[len(ops) - taken :]
            ops.append(fused)
    return ops


def _fused_store(program: Program, before: list[Op], store: Op, after: Op | None) -> tuple[Op, int] | None:
    """The fused op that ends with `store`, and how many of the ops before go into it; None if there is none."""
    if not isinstance(store, KvStore) or not isinstance(after, Attention):
        return None
    if (store.group, store.layer) != (after.group, after.layer):
        return None
    head_dim = program.kv_groups[store.group].head_dim
    found: dict[str, HeadNorm | Rope] = {}
    taken = 0
    for op in reversed(before):  # rotations lie after norms, so that a norm before a taken rotation fits
        if not isinstance(op, HeadNorm | Rope) or op.x not in (after.q, store.k) or op.head_dim != head_dim:
            break
        kind = ("q" if op.x == after.q else "k") + ("_norm" if isinstance(op, HeadNorm) else "_rope")
        if kind in found or (kind.endswith("_rope") and kind[0] + "_norm" in found):
            break
        found[kind] = op
        taken += 1
    tables = {getattr(found.get(kind), "table", None) for kind in ("q_rope", "k_rope")}
    if taken == 0 or len(tables) != 1:  # attention would have to know that one of the two is not rotated
        return None
    q_norm, k_norm = (_norm_of_heads(found.get(kind)) for kind in ("q_norm", "k_norm"))
    fused = QkNormRopeStore(after.q, store.k, store.v, head_dim, q_norm, k_norm, tables.pop(), store.group, store.layer)
    return fused, taken


def _norm_of_heads(op: Op | None) -> NormOfHeads | None:
    return NormOfHeads(op.weight, op.eps, op.weight_offset, op.scale) if isinstance(op, HeadNorm) else None


_PASSES: dict[str, Callable[[Program, frozenset[str]], list[Op]]] = {
    "linear_glu": _linear_glu,
    "linear_add": _linear_add,
    "qk_norm_rope_store": _qk_norm_rope_store,
    "add_rms_norm": _add_rms_norm,
}
