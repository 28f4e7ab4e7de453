"""The recorded program: a flat list of coarse ops that any backend can run, and nothing about any model family.

Sizes are symbolic in two letters: `T`, the tokens of a step, and `R`, the rows of a step that want logits. Every
activation is f32 in shape `[T, width]` or `[R, width]`. What each op computes is written in `backends/base.py`.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pyrite.quant.scheme import QuantScheme

RowsOf = Literal["T", "R"]


@dataclass(frozen=True, slots=True)
class View:
    """Columns `offset .. offset + width` of a buffer, for all its rows."""

    buffer: int
    offset: int
    width: int


@dataclass(frozen=True, slots=True)
class Buffer:
    """An activation `[rows, width]` f32. `slot` is the piece of scratch memory it lives in (see `assign_slots`)."""

    name: str
    rows: RowsOf
    width: int
    slot: int = -1


@dataclass(frozen=True, slots=True)
class Slot:
    """Scratch memory for `rows` x `width` f32, shared by buffers that are never alive together."""

    rows: RowsOf
    width: int


@dataclass(frozen=True, slots=True)
class Parameter:
    """A weight. Matrices `[out_features, in_features]` keep the checkpoint's dtype; vectors become f32.

    `sources` are checkpoint tensors laid one after the other along dimension 0 (q, k and v as one matrix);
    `source_rows` is what each of them contributes to it, empty when there is one source. `quant` says that a matrix
    becomes integers on load, and how; `models/quantize.py` assigns it.
    """

    name: str
    kind: Literal["matrix", "vector"]
    shape: tuple[int, ...]
    sources: tuple[str, ...]
    source_rows: tuple[int, ...] = ()
    quant: QuantScheme | None = None

    def source_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape that each source must have in the checkpoint."""
        rows = self.source_rows or (self.shape[0],)
        return {source: (n, *self.shape[1:]) for source, n in zip(self.sources, rows, strict=True)}


@dataclass(frozen=True, slots=True)
class RopeTable:
    """Rotary frequencies in radians per position, `[rotary_dim / 2]`, and a factor on cos and sin (yarn's)."""

    inv_freq: tuple[float, ...]
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class KvGroup:
    """Layers that keep the same keys: all of them (`window` None) or the last `window` positions."""

    window: int | None
    num_layers: int
    num_kv_heads: int
    head_dim: int


@dataclass(frozen=True, slots=True)
class Op:
    """Base of all ops. `reads` and `writes` name the View fields; a field in both is updated in place."""

    op: ClassVar[str]
    reads: ClassVar[tuple[str, ...]] = ()
    writes: ClassVar[tuple[str, ...]] = ()


@dataclass(frozen=True, slots=True)
class Embed(Op):
    """`out = weight[ids]`."""

    op = "embed"
    writes = ("out",)
    weight: str
    out: View


@dataclass(frozen=True, slots=True)
class RmsNorm(Op):
    """RMS norm over the row; `weight` None is scaleless, `weight_offset` 1 is the centred kind (1 + w)."""

    op = "rms_norm"
    reads = ("x",)
    writes = ("out",)
    x: View
    out: View
    weight: str | None
    eps: float
    weight_offset: float = 0.0


@dataclass(frozen=True, slots=True)
class HeadNorm(Op):
    """RMS norm of each head of `x`, times `scale`, in place."""

    op = "head_norm"
    reads = ("x",)
    writes = ("x",)
    x: View
    num_heads: int
    head_dim: int
    weight: str | None
    eps: float
    weight_offset: float = 0.0
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Linear(Op):
    """`out = x weight^T + bias`."""

    op = "linear"
    reads = ("x",)
    writes = ("out",)
    x: View
    out: View
    weight: str
    bias: str | None = None


@dataclass(frozen=True, slots=True)
class Rope(Op):
    """Rotate half-split pairs of each head of `x` by its token's position, in place."""

    op = "rope"
    reads = ("x",)
    writes = ("x",)
    x: View
    num_heads: int
    head_dim: int
    table: int


@dataclass(frozen=True, slots=True)
class KvStore(Op):
    """Write keys and values of this step's tokens into the cache of `layer` (counted inside its group)."""

    op = "kv_store"
    reads = ("k", "v")
    k: View
    v: View
    group: int
    layer: int


@dataclass(frozen=True, slots=True)
class Attention(Op):
    """Causal attention of each token over its sequence's cache, its own key included."""

    op = "attention"
    reads = ("q",)
    writes = ("out",)
    q: View
    out: View
    group: int
    layer: int
    num_heads: int
    softmax_scale: float


@dataclass(frozen=True, slots=True)
class Glu(Op):
    """`out = activation(gate) * up`."""

    op = "glu"
    reads = ("gate", "up")
    writes = ("out",)
    gate: View
    up: View
    out: View
    activation: Literal["silu"] = "silu"


@dataclass(frozen=True, slots=True)
class Gate(Op):
    """`x *= sigmoid(gate)`, in place."""

    op = "gate"
    reads = ("x", "gate")
    writes = ("x",)
    x: View
    gate: View


@dataclass(frozen=True, slots=True)
class Add(Op):
    """`x += y`, in place."""

    op = "add"
    reads = ("x", "y")
    writes = ("x",)
    x: View
    y: View


@dataclass(frozen=True, slots=True)
class SelectRows(Op):
    """Keep the rows that want logits: `[T, width]` to `[R, width]`."""

    op = "select_rows"
    reads = ("x",)
    writes = ("out",)
    x: View
    out: View


@dataclass(frozen=True, slots=True)
class Logits(Op):
    """`x = soft_cap * tanh(multiplier * x / soft_cap)`, or `multiplier * x` without a cap, in place."""

    op = "logits"
    reads = ("x",)
    writes = ("x",)
    x: View
    multiplier: float
    soft_cap: float | None = None


@dataclass(frozen=True, slots=True)
class LinearAdd(Op):
    """Fused: `residual += x weight^T + bias`, in place."""

    op = "linear_add"
    reads = ("x", "residual")
    writes = ("residual",)
    x: View
    residual: View
    weight: str
    bias: str | None = None


@dataclass(frozen=True, slots=True)
class LinearGlu(Op):
    """Fused: `out = activation(x gate^T) * (x up^T)`; the rows of `weight` are those of gate, then those of up."""

    op = "linear_glu"
    reads = ("x",)
    writes = ("out",)
    x: View
    out: View
    weight: str
    bias: str | None = None
    activation: Literal["silu"] = "silu"


@dataclass(frozen=True, slots=True)
class AddRmsNorm(Op):
    """Fused: `x += y`, in place, then `out` is the RMS norm of that sum."""

    op = "add_rms_norm"
    reads = ("x", "y")
    writes = ("x", "out")
    x: View
    y: View
    out: View
    weight: str | None
    eps: float
    weight_offset: float = 0.0


@dataclass(frozen=True, slots=True)
class NormOfHeads:
    """What a `HeadNorm` does to each head."""

    weight: str | None
    eps: float
    weight_offset: float = 0.0
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class QkNormRopeStore(Op):
    """Fused: norm and rotate the heads of `q` (in place) and `k`, and store `k` and `v` in the cache.

    A norm that is None is left out, and so is the rotation when `table` is None.
    """

    op = "qk_norm_rope_store"
    reads = ("q", "k", "v")
    writes = ("q",)
    q: View
    k: View
    v: View
    head_dim: int
    q_norm: NormOfHeads | None
    k_norm: NormOfHeads | None
    table: int | None
    group: int
    layer: int


@dataclass(frozen=True, slots=True)
class Program:
    """A model as ops over buffers. The last buffer written through `logits` is `[R, vocab_size]`."""

    vocab_size: int
    buffers: tuple[Buffer, ...]
    parameters: tuple[Parameter, ...]
    rope_tables: tuple[RopeTable, ...]
    kv_groups: tuple[KvGroup, ...]
    ops: tuple[Op, ...]
    logits: View
    slots: tuple[Slot, ...] = ()

    def to_json(self) -> str:
        """The form handed to the Rust executor: plain objects, each op tagged with its `op` name.

        `source_rows` stays behind: `weights/mapping.py` has checked them, and the checkpoint's headers say them again.
        """
        data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        data["parameters"] = [_parameter_json(parameter) for parameter in self.parameters]
        data["ops"] = [{"op": op.op, **dataclasses.asdict(op)} for op in self.ops]
        return json.dumps(data, default=dataclasses.asdict)

    def scratch_bytes(self, *, max_tokens: int, max_rows: int, itemsize: int = 4) -> int:
        """Bytes of the arena that holds every slot at these sizes of T and R.

        Args:
            itemsize: bytes of an activation of `[T, width]`; those of `[R, width]` take 4.
        """
        widths = {rows: sum(slot.width for slot in self.slots if slot.rows == rows) for rows in ("T", "R")}
        return itemsize * widths["T"] * max_tokens + 4 * widths["R"] * max_rows


def _parameter_json(parameter: Parameter) -> dict[str, Any]:
    data = dataclasses.asdict(parameter)
    del data["source_rows"]
    if parameter.quant is not None:
        fields = ("bits", "group_size", "symmetric", "groups_per_scale")
        data["quant"] = {name: getattr(parameter.quant, name) for name in fields}
    return data


def assign_slots(program: Program) -> Program:
    """Give every buffer a slot such that buffers alive at the same time never share one.

    A buffer lives from its first write to its last use; the logits live to the end.
    """
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for index, op in enumerate(program.ops):
        for field in dict.fromkeys((*op.reads, *op.writes)):
            buffer = getattr(op, field).buffer
            first.setdefault(buffer, index)
            last[buffer] = index
    last[program.logits.buffer] = len(program.ops)
    slots: list[Slot] = []
    busy_until: list[int] = []
    buffers = list(program.buffers)
    for index in sorted(first, key=first.__getitem__):
        buffer = buffers[index]
        fitting = [s for s, slot in enumerate(slots) if slot.rows == buffer.rows and busy_until[s] < first[index]]
        if fitting:  # the one whose width is nearest, so that wide slots stay free for wide buffers
            slot = min(fitting, key=lambda s: abs(slots[s].width - buffer.width))
            slots[slot] = Slot(buffer.rows, max(slots[slot].width, buffer.width))
            busy_until[slot] = last[index]
        else:
            slot = len(slots)
            slots.append(Slot(buffer.rows, buffer.width))
            busy_until.append(last[index])
        buffers[index] = dataclasses.replace(buffer, slot=slot)
    return dataclasses.replace(program, buffers=tuple(buffers), slots=tuple(slots))
