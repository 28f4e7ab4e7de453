"""The oracle of every parity test: interprets a program op by op in plain torch, one row at a time.

Slow and obvious on purpose. Each row is computed by itself, so what shares its step cannot reach it. Keys and values
live in blocks as a `StepPlan` deals them out, so a wrong table or slot shows as a wrong logit; blocks start out as NaN.
Integer weights are those of `quant/reference.py`, and so is the arithmetic on them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import torch

from pyrite.errors import BackendError, InternalError
from pyrite.models import program as ir
from pyrite.quant.reference import QuantizedMatrix, integer_matmul, quantize

if TYPE_CHECKING:
    from pyrite.weights.reader import Weights


class Plan(Protocol):
    """The part of `_core.StepPlan` that a backend reads; see its stub for the meaning of each array."""

    @property
    def token_ids(self) -> np.ndarray:
        """[T] i32."""
        ...

    @property
    def positions(self) -> np.ndarray:
        """[T] i32."""
        ...

    @property
    def cu_seqlens_q(self) -> np.ndarray:
        """[S + 1] i32."""
        ...

    @property
    def seq_lens(self) -> np.ndarray:
        """[S] i32."""
        ...

    @property
    def logit_rows(self) -> np.ndarray:
        """[R] i32, rows of T."""
        ...

    def block_table(self, group: int) -> np.ndarray:
        """[S, max_blocks] i32."""
        ...

    def slot_mapping(self, group: int) -> np.ndarray:
        """[T] i32."""
        ...

    def block_copies(self, group: int) -> list[tuple[int, int]]:
        """(source, destination) blocks to copy before the step."""
        ...


# Of integer keys, values and queries: the largest code, and the largest length of a head as a vector of codes.
KV_SCALES = {
    ("int8", "key"): (127, math.inf),
    ("int8", "value"): (127, math.inf),
    ("int8", "query"): (127, math.inf),
    ("int16", "key"): (32767, 65000),
    ("int16", "value"): (8191, math.inf),
    ("int16", "query"): (32767, 32000),
}


class TorchReference:
    """A `Backend` on plain torch.

    Args:
        program: fused or not; slots are ignored, every buffer has its own memory.
        weights: gives `float32(name)` for every source of the program's parameters.
        block_size: tokens per KV block.
        num_blocks: per KV group.
        dtype: of weights, activations and cache: float32, or float64 for a reference of the reference.
        quantized_inputs: how the inputs of integer weights are taken. "int8": exact integer dots on inputs rounded to
            int8, as the CPU does; "float": the inputs as they are, times `(code - zero) * scale`, as the GPU does.
        kv_dtype: of the cache: `dtype`, or "int8" or "int16": keys, values and queries rounded to whole multiples of a
            scale of their head, by `KV_SCALES`.
    """

    def __init__(
        self,
        program: ir.Program,
        weights: Weights,
        *,
        block_size: int,
        num_blocks: Sequence[int],
        dtype: torch.dtype = torch.float32,
        quantized_inputs: Literal["int8", "float"] = "int8",
        kv_dtype: Literal["int8", "int16"] | None = None,
    ) -> None:
        self.program = program
        self.kv_dtype = kv_dtype
        self.dtype = dtype
        self.block_size = block_size
        self.parameters: dict[str, torch.Tensor] = {}
        self.integers: dict[str, QuantizedMatrix] = {}
        for parameter in program.parameters:
            value = np.concatenate([weights.float32(source) for source in parameter.sources])
            if value.shape != parameter.shape:
                raise InternalError(
                    "parameter has the wrong shape", got=value.shape, expected=parameter.shape, field=parameter.name
                )
            if parameter.quant is not None:
                matrix = quantize(value, parameter.quant, name=", ".join(parameter.sources))
                value = matrix.dequantize()
                if quantized_inputs == "int8":
                    self.integers[parameter.name] = matrix
            self.parameters[parameter.name] = torch.from_numpy(value).to(dtype)
        self.inv_freq = [torch.tensor(table.inv_freq, dtype=dtype) for table in program.rope_tables]
        self.caches: list[tuple[torch.Tensor, torch.Tensor]] = []
        for group, blocks in zip(program.kv_groups, num_blocks, strict=True):
            # [num_layers, num_blocks, block_size, num_kv_heads, head_dim]
            shape = (group.num_layers, blocks, block_size, group.num_kv_heads, group.head_dim)
            self.caches.append((torch.full(shape, torch.nan, dtype=dtype), torch.full(shape, torch.nan, dtype=dtype)))
        self._closed = False

    @torch.inference_mode()
    def run(self, plan: Plan) -> np.ndarray:
        """Run one step; see `Backend.run`. The result is a new array.

        Raises:
            BackendError: the backend is closed.
            InternalError: the plan names a block, slot or row that does not exist.
        """
        if self._closed:
            raise BackendError("the backend is closed")
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # rows are small: handing them to other threads costs more than it saves
        try:
            return _Step(self, plan).run()
        finally:
            torch.set_num_threads(threads)

    def close(self) -> None:
        """Free weights and cache. Idempotent."""
        self._closed = True
        self.parameters.clear()
        self.integers.clear()
        self.caches.clear()


class _Step:
    """One step in progress: the plan's arrays and the buffers."""

    def __init__(self, backend: TorchReference, plan: Plan) -> None:
        self.backend = backend
        self.plan = plan
        self.token_ids = plan.token_ids.tolist()
        self.positions = plan.positions.tolist()
        self.logit_rows = plan.logit_rows.tolist()
        self.seq_lens = plan.seq_lens.tolist()
        starts = plan.cu_seqlens_q.tolist()
        self.seq_of_row = [s for s in range(len(starts) - 1) for _ in range(starts[s], starts[s + 1])]
        groups = range(len(backend.program.kv_groups))
        self.tables = [plan.block_table(group).tolist() for group in groups]
        self.slots = [plan.slot_mapping(group).tolist() for group in groups]
        if not len(self.token_ids) == len(self.positions) == len(self.seq_of_row):
            raise InternalError("arrays of the plan differ in length")
        self.buffers: list[torch.Tensor] = []
        for buffer in backend.program.buffers:
            rows = len(self.token_ids) if buffer.rows == "T" else len(self.logit_rows)
            self.buffers.append(torch.full((rows, buffer.width), torch.nan, dtype=backend.dtype))

    def run(self) -> np.ndarray:
        for group in range(len(self.backend.caches)):
            for source, target in self.plan.block_copies(group):
                for cache in self.backend.caches[group]:
                    cache[:, target] = cache[:, source]
        for op in self.backend.program.ops:
            _OPS[type(op)](self, op)
        return self.view(self.backend.program.logits).to(torch.float32).numpy()

    def view(self, view: ir.View) -> torch.Tensor:
        return self.buffers[view.buffer][:, view.offset : view.offset + view.width]

    def rows(self, *views: ir.View) -> Iterable[tuple[torch.Tensor, ...]]:
        """The same row of each view, row after row."""
        return zip(*(self.view(view) for view in views), strict=True)

    def parameter(self, name: str | None) -> torch.Tensor | None:
        return None if name is None else self.backend.parameters[name]

    def block_and_offset(self, group: int, slot: int) -> tuple[int, int]:
        block, offset = divmod(slot, self.backend.block_size)
        if not 0 <= block < self.backend.caches[group][0].shape[1]:
            raise InternalError("slot outside the KV pool", got=slot, field=f"slot_mapping({group})")
        return block, offset

    def stored(self, heads: torch.Tensor, kind: Literal["key", "value", "query"]) -> torch.Tensor:
        """Heads as the cache keeps them, [heads, head_dim]; queries as they meet it."""
        if self.backend.kv_dtype is None:
            return heads
        largest, length = KV_SCALES[self.backend.kv_dtype, kind]
        scale = torch.maximum(
            heads.abs().amax(-1, keepdim=True) / largest, torch.linalg.vector_norm(heads, dim=-1, keepdim=True) / length
        )
        return torch.where(scale > 0, torch.round(heads / scale) * scale, 0.0)

    def slot_of(self, group: int, seq: int, position: int) -> int:
        table, size = self.tables[group][seq], self.backend.block_size
        if position // size >= len(table) or table[position // size] < 0:
            raise InternalError("a key that attention needs has no block", got=position, field=f"block_table({group})")
        return table[position // size] * size + position % size


def _norm(x: torch.Tensor, weight: torch.Tensor | None, eps: float, offset: float) -> torch.Tensor:
    normed = x / torch.sqrt(torch.mean(x * x, dim=-1, keepdim=True) + eps)
    return normed if weight is None else normed * (weight + offset)


def _embed(step: _Step, op: ir.Embed) -> None:
    for token_id, (out,) in zip(step.token_ids, step.rows(op.out), strict=True):
        out.copy_(step.backend.parameters[op.weight][token_id])


def _rms_norm(step: _Step, op: ir.RmsNorm) -> None:
    weight = step.parameter(op.weight)
    for x, out in step.rows(op.x, op.out):
        out.copy_(_norm(x, weight, op.eps, op.weight_offset))


def _head_norm(step: _Step, op: ir.HeadNorm) -> None:
    weight = step.parameter(op.weight)
    for (x,) in step.rows(op.x):
        heads = x.view(op.num_heads, op.head_dim)
        heads.copy_(_norm(heads, weight, op.eps, op.weight_offset) * op.scale)


def _products(step: _Step, op: ir.Linear | ir.LinearAdd | ir.LinearGlu) -> Iterable[torch.Tensor]:
    """`x weight^T + bias`, row after row. A row that is not finite gives NaN on integer weights."""
    weight, bias = step.backend.parameters[op.weight], step.parameter(op.bias)
    integers = step.backend.integers.get(op.weight)
    for (x,) in step.rows(op.x):
        if integers is None:
            y = torch.mv(weight, x)
        elif x.isfinite().all():
            y = torch.from_numpy(integer_matmul(x[None].float().numpy(), integers)[0]).to(x.dtype)
        else:
            y = torch.full((len(weight),), torch.nan, dtype=x.dtype)
        yield y if bias is None else y + bias


def _linear(step: _Step, op: ir.Linear) -> None:
    for y, (out,) in zip(_products(step, op), step.rows(op.out), strict=True):
        out.copy_(y)


def _rope(step: _Step, op: ir.Rope) -> None:
    inv_freq, scale = step.backend.inv_freq[op.table], step.backend.program.rope_tables[op.table].scale
    half = len(inv_freq)
    for position, (x,) in zip(step.positions, step.rows(op.x), strict=True):
        cos, sin = torch.cos(position * inv_freq) * scale, torch.sin(position * inv_freq) * scale
        heads = x.view(op.num_heads, op.head_dim)
        a, b = heads[:, :half].clone(), heads[:, half : 2 * half].clone()
        heads[:, :half] = a * cos - b * sin
        heads[:, half : 2 * half] = b * cos + a * sin


def _kv_store(step: _Step, op: ir.KvStore) -> None:
    k_cache, v_cache = step.backend.caches[op.group]
    for slot, (k, v) in zip(step.slots[op.group], step.rows(op.k, op.v), strict=True):
        if slot == -1:
            continue
        block, offset = step.block_and_offset(op.group, slot)
        k_cache[op.layer, block, offset] = step.stored(k.view(k_cache.shape[-2:]), "key")
        v_cache[op.layer, block, offset] = step.stored(v.view(v_cache.shape[-2:]), "value")


def _attention(step: _Step, op: ir.Attention) -> None:
    group = step.backend.program.kv_groups[op.group]
    k_cache, v_cache = (cache[op.layer].flatten(0, 1) for cache in step.backend.caches[op.group])
    shared = op.num_heads // group.num_kv_heads
    for row, (q, out) in enumerate(step.rows(op.q, op.out)):
        position, seq = step.positions[row], step.seq_of_row[row]
        if position >= step.seq_lens[seq]:
            raise InternalError("position at or past the end of its sequence", got=position, field="positions")
        first = 0 if group.window is None else max(position - group.window + 1, 0)
        slots = [step.slot_of(op.group, seq, j) for j in range(first, position + 1)]
        k = k_cache[slots].repeat_interleave(shared, dim=1)  # [keys, num_heads, head_dim]
        v = v_cache[slots].repeat_interleave(shared, dim=1)
        heads = step.stored(q.view(op.num_heads, group.head_dim), "query")
        scores = torch.einsum("hd,jhd->hj", heads, k) * op.softmax_scale
        out.copy_(torch.einsum("hj,jhd->hd", torch.softmax(scores, dim=-1), v).flatten())


def _glu(step: _Step, op: ir.Glu) -> None:
    for gate, up, out in step.rows(op.gate, op.up, op.out):
        out.copy_(gate / (1 + torch.exp(-gate)) * up)


def _gate(step: _Step, op: ir.Gate) -> None:
    for x, gate in step.rows(op.x, op.gate):
        x.copy_(x / (1 + torch.exp(-gate)))


def _add(step: _Step, op: ir.Add) -> None:
    for x, y in step.rows(op.x, op.y):
        x.copy_(x + y)


def _select_rows(step: _Step, op: ir.SelectRows) -> None:
    x, out = step.view(op.x), step.view(op.out)
    for index, row in enumerate(step.logit_rows):
        out[index] = x[row]


def _logits(step: _Step, op: ir.Logits) -> None:
    for (x,) in step.rows(op.x):
        y = x * op.multiplier
        x.copy_(y if op.soft_cap is None else op.soft_cap * torch.tanh(y / op.soft_cap))


def _linear_add(step: _Step, op: ir.LinearAdd) -> None:
    for y, (residual,) in zip(_products(step, op), step.rows(op.residual), strict=True):
        residual.copy_(residual + y)


def _linear_glu(step: _Step, op: ir.LinearGlu) -> None:
    for y, (out,) in zip(_products(step, op), step.rows(op.out), strict=True):
        gate, up = y.chunk(2)
        out.copy_(gate / (1 + torch.exp(-gate)) * up)


def _add_rms_norm(step: _Step, op: ir.AddRmsNorm) -> None:
    _add(step, ir.Add(op.x, op.y))
    _rms_norm(step, ir.RmsNorm(op.x, op.out, op.weight, op.eps, op.weight_offset))


def _qk_norm_rope_store(step: _Step, op: ir.QkNormRopeStore) -> None:
    keys = step.view(op.k).clone()
    for view, norm in ((op.q, op.q_norm), (op.k, op.k_norm)):
        heads = view.width // op.head_dim
        if norm is not None:
            _head_norm(
                step,
                ir.HeadNorm(view, heads, op.head_dim, norm.weight, norm.eps, norm.weight_offset, norm.scale),
            )
        if op.table is not None:
            _rope(step, ir.Rope(view, heads, op.head_dim, op.table))
    _kv_store(step, ir.KvStore(op.k, op.v, op.group, op.layer))
    step.view(op.k).copy_(keys)


_OPS: dict[type[ir.Op], Callable] = {
    ir.Embed: _embed,
    ir.RmsNorm: _rms_norm,
    ir.HeadNorm: _head_norm,
    ir.Linear: _linear,
    ir.Rope: _rope,
    ir.KvStore: _kv_store,
    ir.Attention: _attention,
    ir.Glu: _glu,
    ir.Gate: _gate,
    ir.Add: _add,
    ir.SelectRows: _select_rows,
    ir.Logits: _logits,
    ir.LinearAdd: _linear_add,
    ir.LinearGlu: _linear_glu,
    ir.AddRmsNorm: _add_rms_norm,
    ir.QkNormRopeStore: _qk_norm_rope_store,
}


class SequencePlan:
    """A hand-made plan of one sequence: positions `start ..`, blocks 0, 1, 2, … of each group, logits of every row.

    Args:
        token_ids: the tokens of this step.
        start: tokens of the sequence that earlier steps stored.
        windows: the window of each KV group, or None; blocks wholly behind it are left out of the table, as the
            scheduler does.
        block_size: tokens per block.
    """

    def __init__(self, token_ids: Sequence[int], start: int, windows: Sequence[int | None], block_size: int) -> None:
        end = start + len(token_ids)
        self.token_ids = np.array(token_ids, np.int32)
        self.positions = np.arange(start, end, dtype=np.int32)
        self.cu_seqlens_q = np.array([0, len(token_ids)], np.int32)
        self.seq_lens = np.array([end], np.int32)
        self.logit_rows = np.arange(len(token_ids), dtype=np.int32)
        self._tables = []
        for window in windows:
            table = np.arange(-(-end // block_size), dtype=np.int32)
            if window is not None:
                table[: max(start - window + 1, 0) // block_size] = -1
            self._tables.append(table[None])

    def block_table(self, group: int) -> np.ndarray:
        """[1, max_blocks] i32."""
        return self._tables[group]

    def slot_mapping(self, group: int) -> np.ndarray:
        """[T] i32: block b holds positions b * block_size and on."""
        return self.positions

    def block_copies(self, group: int) -> list[tuple[int, int]]:
        """None."""
        return []


def run_sequence(
    program: ir.Program,
    weights: Weights,
    token_ids: Sequence[int],
    chunks: Iterable[int] | None = None,
    *,
    block_size: int = 16,
    dtype: torch.dtype = torch.float32,
    quantized_inputs: Literal["int8", "float"] = "int8",
) -> np.ndarray:
    """Logits of every position of one sequence, [len(token_ids), vocab_size] f32, from a fresh reference backend.

    Args:
        chunks: tokens per step, summing to the whole; None runs one step.
        dtype, quantized_inputs: see `TorchReference`.
    """
    num_blocks = [-(-len(token_ids) // block_size)] * len(program.kv_groups)
    backend = TorchReference(
        program,
        weights,
        block_size=block_size,
        num_blocks=num_blocks,
        dtype=dtype,
        quantized_inputs=quantized_inputs,
    )
    windows = [group.window for group in program.kv_groups]
    start, logits = 0, []
    for chunk in [len(token_ids)] if chunks is None else chunks:
        logits.append(backend.run(SequencePlan(token_ids[start : start + chunk], start, windows, block_size)))
        start += chunk
    if start != len(token_ids):
        raise InternalError("chunks do not cover the sequence", got=start, expected=len(token_ids), field="chunks")
    return np.concatenate(logits)
