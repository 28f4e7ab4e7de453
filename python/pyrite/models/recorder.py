"""Records a program: hands out buffers and parameters and appends ops, checking widths as it goes."""

from __future__ import annotations

from pyrite.errors import InternalError
from pyrite.models.program import (
    Add,
    Attention,
    Buffer,
    Embed,
    Gate,
    Glu,
    HeadNorm,
    KvGroup,
    KvStore,
    Linear,
    Logits,
    Op,
    Parameter,
    Program,
    RmsNorm,
    Rope,
    RopeTable,
    RowsOf,
    SelectRows,
    View,
)


class Recorder:
    """Every method named after an op appends one. Those in place return nothing, the others their output."""

    def __init__(self, rope_tables: tuple[RopeTable, ...], kv_groups: tuple[KvGroup, ...]) -> None:
        self.rope_tables = rope_tables
        self.kv_groups = kv_groups
        self.buffers: list[Buffer] = []
        self.parameters: dict[str, Parameter] = {}
        self.ops: list[Op] = []

    def _buffer(self, name: str, width: int, rows: RowsOf) -> View:
        self.buffers.append(Buffer(name, rows, width))
        return View(len(self.buffers) - 1, 0, width)

    def _rows(self, view: View) -> RowsOf:
        return self.buffers[view.buffer].rows

    def matrix(self, name: str, tensor: str, out_features: int, in_features: int) -> str:
        """Declare a matrix `[out_features, in_features]`; declaring the same one again is the same parameter."""
        return self._parameter(Parameter(name, "matrix", (out_features, in_features), (tensor,)))

    def vector(self, name: str, tensor: str, width: int) -> str:
        """Declare a vector `[width]`."""
        return self._parameter(Parameter(name, "vector", (width,), (tensor,)))

    def _parameter(self, parameter: Parameter) -> str:
        if self.parameters.setdefault(parameter.name, parameter) != parameter:
            raise InternalError("parameter recorded twice with different meanings", got=parameter, field=parameter.name)
        return parameter.name

    def _width_of(self, weight: str, axis: int, expected: int) -> None:
        width = self.parameters[weight].shape[axis]
        if width != expected:
            raise InternalError("width of a weight does not fit its op", got=width, expected=expected, field=weight)

    def embed(self, name: str, weight: str) -> View:
        """Rows of `weight` for the step's token ids."""
        out = self._buffer(name, self.parameters[weight].shape[1], "T")
        self.ops.append(Embed(weight, out))
        return out

    def rms_norm(self, name: str, x: View, weight: str | None, eps: float, weight_offset: float) -> View:
        """RMS norm of the rows of `x` into a new buffer."""
        if weight is not None:
            self._width_of(weight, 0, x.width)
        out = self._buffer(name, x.width, self._rows(x))
        self.ops.append(RmsNorm(x, out, weight, eps, weight_offset))
        return out

    def head_norm(self, x: View, head_dim: int, weight: str | None, eps: float, offset: float, scale: float) -> None:
        """RMS norm of each head of `x`, times `scale`, in place."""
        if weight is not None:
            self._width_of(weight, 0, head_dim)
        self.ops.append(HeadNorm(x, x.width // head_dim, head_dim, weight, eps, offset, scale))

    def linear(self, name: str, x: View, weight: str, bias: str | None = None) -> View:
        """`x weight^T + bias` into a new buffer."""
        self._width_of(weight, 1, x.width)
        out = self._buffer(name, self.parameters[weight].shape[0], self._rows(x))
        if bias is not None:
            self._width_of(bias, 0, out.width)
        self.ops.append(Linear(x, out, weight, bias))
        return out

    def rope(self, x: View, head_dim: int, table: int) -> None:
        """Rotate the heads of `x` in place."""
        self.ops.append(Rope(x, x.width // head_dim, head_dim, table))

    def kv_store(self, k: View, v: View, group: int, layer: int) -> None:
        """Store keys and values of this step's tokens."""
        self.ops.append(KvStore(k, v, group, layer))

    def attention(self, name: str, q: View, group: int, layer: int, softmax_scale: float) -> View:
        """Attend over the cache into a new buffer of `q`'s width."""
        out = self._buffer(name, q.width, "T")
        num_heads = q.width // self.kv_groups[group].head_dim
        self.ops.append(Attention(q, out, group, layer, num_heads, softmax_scale))
        return out

    def glu(self, name: str, gate: View, up: View) -> View:
        """`silu(gate) * up` into a new buffer."""
        out = self._buffer(name, gate.width, self._rows(gate))
        self.ops.append(Glu(gate, up, out))
        return out

    def gate(self, x: View, gate: View) -> None:
        """`x *= sigmoid(gate)` in place."""
        self.ops.append(Gate(x, gate))

    def add(self, x: View, y: View) -> None:
        """`x += y` in place."""
        self.ops.append(Add(x, y))

    def select_rows(self, name: str, x: View) -> View:
        """The rows that want logits, as a new buffer."""
        out = self._buffer(name, x.width, "R")
        self.ops.append(SelectRows(x, out))
        return out

    def logits(self, x: View, multiplier: float, soft_cap: float | None) -> None:
        """Multiplier and soft-cap on the head's output, in place."""
        self.ops.append(Logits(x, multiplier, soft_cap))

    def finish(self, logits: View) -> Program:
        """The program whose result is `logits`."""
        return Program(
            vocab_size=logits.width,
            buffers=tuple(self.buffers),
            parameters=tuple(self.parameters.values()),
            rope_tables=self.rope_tables,
            kv_groups=self.kv_groups,
            ops=tuple(self.ops),
            logits=logits,
        )
