"""Passes over a program. Each says what it may change; none looks at a family."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping

from pyrite.models.program import Buffer, Linear, Op, Parameter, Program, View

Moved = Mapping[int, tuple[int, int]]
"""Old buffer to (new buffer, column where it starts there)."""


def merge_linears(program: Program) -> Program:
    """Turn neighbouring linears of the same input into one: q/k/v (and an output gate), gate/up.

    The merged matrix holds the rows of the parts one after the other, the merged buffer their columns, and every view
    of a part is remapped. Each output is still the same dot product: no bit changes. Parts must agree in having a bias,
    and a weight that another op uses too (a tied embedding) is left alone.
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
