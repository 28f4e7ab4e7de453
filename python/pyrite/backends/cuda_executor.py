"""Runs the ops of a program on device tensors, one kernel after the other, without waiting for the device."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from pyrite.backends import cuda_kernels as kernels
from pyrite.models import program as ir

if TYPE_CHECKING:
    from pyrite.backends.cuda_inputs import DeviceStep
    from pyrite.backends.cuda_weights import Parameters


class Executor:
    """A program with everything it needs on the device: parameters, KV cache and scratch.

    Args:
        program: fused, with its slots assigned.
        parameters: by name; matrices [out, in] in `dtype` or as integers, vectors in f32.
        dtype: of activations [T, width]; those of [R, width] have it too, except the logits, which are f32.
        kv_dtype: of keys and values.
        max_tokens, max_rows: the largest T and R.
    """

    def __init__(
        self,
        program: ir.Program,
        parameters: Parameters,
        *,
        dtype: torch.dtype,
        kv_dtype: torch.dtype,
        block_size: int,
        num_blocks: Sequence[int],
        max_tokens: int,
        max_rows: int,
        device: torch.device,
    ) -> None:
        self.program, self.parameters, self.dtype, self.device = program, parameters, dtype, device
        self.inv_freq = [torch.tensor(t.inv_freq, dtype=torch.float32, device=device) for t in program.rope_tables]
        self.caches: list[tuple[torch.Tensor, torch.Tensor]] = []
        for group, blocks in zip(program.kv_groups, num_blocks, strict=True):
            shape = (group.num_layers, blocks, block_size, group.num_kv_heads, group.head_dim)
            self.caches.append(
                (torch.zeros(shape, dtype=kv_dtype, device=device), torch.zeros(shape, dtype=kv_dtype, device=device))
            )
        self._arena = [
            torch.zeros(
                slot.width * (max_tokens * dtype.itemsize if slot.rows == "T" else max_rows * 4),
                dtype=torch.uint8,
                device=device,
            )
            for slot in program.slots
        ]
        self._head_weights = _head_weights(program, parameters)
        self.no_slots = torch.full((max_tokens,), -1, dtype=torch.int32, device=device)

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values."""
        return sum(cache.nbytes for pair in self.caches for cache in pair)

    @property
    def scratch_bytes(self) -> int:
        """Bytes of activations."""
        return sum(slot.nbytes for slot in self._arena)

    def copy_blocks(self, group: int, copies: Sequence[tuple[int, int]]) -> None:
        """Copy whole blocks (source, destination) of all layers of a KV group, one after the other."""
        for source, target in copies:
            for cache in self.caches[group]:
                cache[:, target].copy_(cache[:, source])

    def run(self, step: DeviceStep) -> torch.Tensor:
        """Run every op of a step and return its logits [R, vocab_size] f32, valid until the next step."""
        running = _Running(self, step)
        for op in self.program.ops:
            if running.has_rows(op):
                _OPS[type(op)](running, op)
        return running.view(self.program.logits)

    def buffer(self, index: int, rows: int) -> torch.Tensor:
        """The first rows of a buffer, in its slot."""
        buffer = self.program.buffers[index]
        dtype = torch.float32 if index == self.program.logits.buffer else self.dtype
        size = rows * buffer.width * dtype.itemsize
        return self._arena[buffer.slot][:size].view(dtype).view(rows, buffer.width)

    def heads_options(self, name: str, norm: ir.HeadNorm | ir.NormOfHeads | None) -> dict[str, Any]:
        """How `qk_norm_rope_store` norms the heads of "q" or "k"."""
        if norm is None:
            return {}
        weight = None if norm.weight is None else self._head_weights[norm.weight, norm.weight_offset]
        return {f"{name}_eps": norm.eps, f"{name}_weight": weight, f"{name}_factor": norm.scale}

    def rope_options(self, table: int | None) -> dict[str, Any]:
        """How `qk_norm_rope_store` rotates."""
        if table is None:
            return {}
        return {"inv_freq": self.inv_freq[table], "rope_scale": self.program.rope_tables[table].scale}

    def nowhere(self, head_dim: int) -> torch.Tensor:
        """A cache for `qk_norm_rope_store` that gets nothing."""
        return torch.empty((1, 1, 1, head_dim), dtype=self.dtype, device=self.device)

    def close(self) -> None:
        """Forget every tensor."""
        for kept in (self.parameters, self.caches, self._arena, self._head_weights, self.inv_freq):
            kept.clear()


def _head_weights(program: ir.Program, parameters: Parameters) -> dict[tuple[str, float], torch.Tensor]:
    """The weights of head norms with their offset added, [head_dim] f32, since one launch norms both q and k."""
    norms: list[ir.HeadNorm | ir.NormOfHeads | None] = []
    for op in program.ops:
        if isinstance(op, ir.HeadNorm):
            norms.append(op)
        elif isinstance(op, ir.QkNormRopeStore):
            norms += (op.q_norm, op.k_norm)
    named = {(norm.weight, norm.weight_offset) for norm in norms if norm is not None and norm.weight is not None}
    return {(name, offset): parameters[name] + offset for name, offset in named}


@dataclasses.dataclass(slots=True)
class _Running:
    """One step in progress."""

    executor: Executor
    step: DeviceStep

    def rows(self, view: ir.View) -> int:
        """T or R, as the view has."""
        rows_of = self.executor.program.buffers[view.buffer].rows
        return self.step.num_tokens if rows_of == "T" else self.step.num_rows

    def has_rows(self, op: ir.Op) -> bool:
        """Whether there is anything to write; a step in the middle of a prompt wants no logits."""
        return not op.writes or self.rows(getattr(op, op.writes[0])) > 0

    def view(self, view: ir.View) -> torch.Tensor:
        """[rows, width] of a buffer."""
        buffer = self.executor.buffer(view.buffer, self.rows(view))
        return buffer[:, view.offset : view.offset + view.width]

    def heads(self, view: ir.View, head_dim: int) -> torch.Tensor:
        """[rows, heads, head_dim] of a buffer."""
        return self.view(view).unflatten(1, (-1, head_dim))

    def parameter(self, name: str | None) -> Any:
        return None if name is None else self.executor.parameters[name]


def _embed(run: _Running, op: ir.Embed) -> None:
    kernels.embed(run.step.token_ids, run.parameter(op.weight), out=run.view(op.out))


def _rms_norm(run: _Running, op: ir.RmsNorm) -> None:
    weight, out = run.parameter(op.weight), run.view(op.out)
    kernels.rms_norm(run.view(op.x), weight, eps=op.eps, weight_offset=op.weight_offset, out=out)


def _add_rms_norm(run: _Running, op: ir.AddRmsNorm) -> None:
    y, weight, x, out = run.view(op.y), run.parameter(op.weight), run.view(op.x), run.view(op.out)
    kernels.rms_norm(y, weight, eps=op.eps, residual=x, weight_offset=op.weight_offset, out=out)


def _head_norm(run: _Running, op: ir.HeadNorm) -> None:
    _heads_alone(run, op, run.executor.heads_options("q", op))


def _heads_alone(run: _Running, op: ir.HeadNorm | ir.Rope, options: dict[str, Any]) -> None:
    """What `qk_norm_rope_store` does to q, done to heads of any kind: nothing is stored."""
    heads, nowhere = run.heads(op.x, op.head_dim), run.executor.nowhere(op.head_dim)
    first, rows = heads[:, :1], len(heads)
    positions, slots = run.step.positions[:rows], run.executor.no_slots[:rows]
    kernels.qk_norm_rope_store(heads, first, first, nowhere, nowhere, positions, slots, **options)


def _linear(run: _Running, op: ir.Linear) -> None:
    kernels.linear(run.view(op.x), run.parameter(op.weight), bias=run.parameter(op.bias), out=run.view(op.out))


def _linear_add(run: _Running, op: ir.LinearAdd) -> None:
    x, residual = run.view(op.x), run.view(op.residual)
    kernels.linear(x, run.parameter(op.weight), bias=run.parameter(op.bias), residual=residual, out=residual)


def _linear_glu(run: _Running, op: ir.LinearGlu) -> None:
    kernels.matmul_glu(run.view(op.x), run.parameter(op.weight), bias=run.parameter(op.bias), out=run.view(op.out))


def _rope(run: _Running, op: ir.Rope) -> None:
    _heads_alone(run, op, run.executor.rope_options(op.table))


def _kv_store(run: _Running, op: ir.KvStore) -> None:
    head_dim = run.executor.program.kv_groups[op.group].head_dim
    k_cache, v_cache = (cache[op.layer] for cache in run.executor.caches[op.group])
    slots = run.step.slot_mappings[op.group]
    kernels.store_kv(run.heads(op.k, head_dim), run.heads(op.v, head_dim), k_cache, v_cache, slots)


def _qk_norm_rope_store(run: _Running, op: ir.QkNormRopeStore) -> None:
    executor = run.executor
    k_cache, v_cache = (cache[op.layer] for cache in executor.caches[op.group])
    kernels.qk_norm_rope_store(
        run.heads(op.q, op.head_dim),
        run.heads(op.k, op.head_dim),
        run.heads(op.v, op.head_dim),
        k_cache,
        v_cache,
        run.step.positions,
        run.step.slot_mappings[op.group],
        **executor.heads_options("q", op.q_norm),
        **executor.heads_options("k", op.k_norm),
        **executor.rope_options(op.table),
    )


def _attention(run: _Running, op: ir.Attention) -> None:
    group, step = run.executor.program.kv_groups[op.group], run.step
    q, out = run.heads(op.q, group.head_dim), run.heads(op.out, group.head_dim)
    k_cache, v_cache = (cache[op.layer] for cache in run.executor.caches[op.group])
    table = step.block_tables[op.group]
    options: dict[str, Any] = {"softmax_scale": op.softmax_scale, "window": group.window, "out": out}
    if step.decode:
        kernels.paged_decode(q, k_cache, v_cache, table, step.seq_lens, **options)
    else:
        kernels.ragged_prefill(q, k_cache, v_cache, table, step.cu_seqlens_q, step.seq_lens, **options)


def _glu(run: _Running, op: ir.Glu) -> None:
    kernels.glu(run.view(op.gate), run.view(op.up), out=run.view(op.out))


def _gate(run: _Running, op: ir.Gate) -> None:
    x = run.view(op.x)
    kernels.gate(x, run.view(op.gate), out=x)


def _add(run: _Running, op: ir.Add) -> None:
    """By torch: passes leave at most the last sum of a model, whose norm works on fewer rows."""
    x = run.view(op.x)
    torch.add(x, run.view(op.y), out=x)


def _select_rows(run: _Running, op: ir.SelectRows) -> None:
    kernels.embed(run.step.logit_rows, run.view(op.x), out=run.view(op.out))


def _logits(run: _Running, op: ir.Logits) -> None:
    x = run.view(op.x)
    kernels.scale_softcap(x, multiplier=op.multiplier, soft_cap=op.soft_cap, out=x)


_OPS: dict[type[ir.Op], Callable[[_Running, Any], None]] = {
    ir.Embed: _embed,
    ir.RmsNorm: _rms_norm,
    ir.AddRmsNorm: _add_rms_norm,
    ir.HeadNorm: _head_norm,
    ir.Linear: _linear,
    ir.LinearAdd: _linear_add,
    ir.LinearGlu: _linear_glu,
    ir.Rope: _rope,
    ir.KvStore: _kv_store,
    ir.QkNormRopeStore: _qk_norm_rope_store,
    ir.Attention: _attention,
    ir.Glu: _glu,
    ir.Gate: _gate,
    ir.Add: _add,
    ir.SelectRows: _select_rows,
    ir.Logits: _logits,
}
