"""The arrays of a step on their way to the GPU: preallocated there and in pinned host memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from pyrite.errors import InternalError

if TYPE_CHECKING:
    from pyrite.backends.torch_ref import Plan

MIN_TABLE_WIDTH = 16
"""Blocks per sequence that a table shows at least; wider ones show the next power of two."""


@dataclass(frozen=True, slots=True)
class DeviceStep:
    """The arrays of one step on the device, all i32; see `_core.StepPlan` for their meaning.

    Args:
        token_ids, positions: [T].
        cu_seqlens_q, seq_lens: [S + 1], [S].
        logit_rows: [R].
        slot_mappings: [T] per KV group.
        block_tables: [S, width] per KV group, rows further apart than that; -1 past what a sequence has.
        decode: every sequence has one token and wants its logits, so that T, S and R are one.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    cu_seqlens_q: torch.Tensor
    seq_lens: torch.Tensor
    logit_rows: torch.Tensor
    slot_mappings: tuple[torch.Tensor, ...]
    block_tables: tuple[torch.Tensor, ...]
    decode: bool

    @property
    def num_tokens(self) -> int:
        """T."""
        return len(self.token_ids)

    @property
    def num_rows(self) -> int:
        """R."""
        return len(self.logit_rows)

    @property
    def key(self) -> tuple[int, ...]:
        """All sizes that are fixed once a step of this shape is captured."""
        return (self.num_tokens, *(table.shape[1] for table in self.block_tables))


class StepInputs:
    """Copies a plan's arrays to the device, and pads decode steps to a batch bucket.

    A padded row is token 0 at position 0 of a sequence of length 1 that reads block 0 and stores nothing: it computes
    something that nobody looks at.

    Args:
        max_tokens, max_rows, max_seqs: the largest T, R and S.
        max_blocks: most blocks of one sequence.
        num_blocks: blocks per KV group.
    """

    def __init__(
        self,
        *,
        max_tokens: int,
        max_rows: int,
        max_seqs: int,
        max_blocks: int,
        num_blocks: Sequence[int],
        block_size: int,
        vocab_size: int,
        device: torch.device,
    ) -> None:
        self.buckets = batch_buckets(min(max_seqs, max_tokens, max_rows))
        self._limits = {"T": max_tokens, "R": max_rows, "S": max_seqs, "blocks": max_blocks}
        self._num_blocks, self._block_size, self._vocab_size = list(num_blocks), block_size, vocab_size
        sizes = {"token_ids": max_tokens, "positions": max_tokens, "cu_seqlens_q": max_seqs + 1}
        sizes |= {"seq_lens": max_seqs, "logit_rows": max_rows}
        sizes |= {f"slot_mapping({group})": max_tokens for group in range(len(self._num_blocks))}
        self._sections: dict[str, slice] = {}
        end = 0
        for name, size in sizes.items():
            self._sections[name] = slice(end, end + size)
            end += -(-size // 4) * 4  # sections begin at multiples of 16 bytes, for wide loads
        pinned = device.type == "cuda"
        self._host = torch.zeros(end, dtype=torch.int32, pin_memory=pinned)
        self._device = torch.zeros(end, dtype=torch.int32, device=device)
        shape = (len(self._num_blocks), max_seqs, -(-max_blocks // 4) * 4)
        self._host_tables = torch.full(shape, -1, dtype=torch.int32, pin_memory=pinned)
        self._device_tables = self._host_tables.to(device)
        self._numpy, self._numpy_tables = self._host.numpy(), self._host_tables.numpy()

    def load(self, plan: Plan) -> DeviceStep:
        """Copy the arrays of one step, in stream order; the step before must be over.

        Raises:
            InternalError: the plan is larger than the limits, or names a block, slot, row or id that does not exist.
        """
        tables = [plan.block_table(group) for group in range(len(self._num_blocks))]
        arrays = {"token_ids": plan.token_ids, "positions": plan.positions, "cu_seqlens_q": plan.cu_seqlens_q}
        arrays |= {"seq_lens": plan.seq_lens, "logit_rows": plan.logit_rows}
        arrays |= {f"slot_mapping({group})": plan.slot_mapping(group) for group in range(len(self._num_blocks))}
        self._check(arrays, tables)
        tokens, rows, seqs = len(arrays["token_ids"]), len(arrays["logit_rows"]), len(arrays["seq_lens"])
        decode = tokens == rows == seqs and np.array_equal(arrays["logit_rows"], np.arange(rows))
        if decode:
            size = next(bucket for bucket in self.buckets if bucket >= seqs)
            arrays, tables = _padded(arrays, tables, size)
            tokens = rows = seqs = size
        for name, values in arrays.items():
            self._numpy[self._sections[name]][: len(values)] = values
        self._device.copy_(self._host, non_blocking=True)
        return DeviceStep(
            token_ids=self._part("token_ids", tokens),
            positions=self._part("positions", tokens),
            cu_seqlens_q=self._part("cu_seqlens_q", seqs + 1),
            seq_lens=self._part("seq_lens", seqs),
            logit_rows=self._part("logit_rows", rows),
            slot_mappings=tuple(self._part(f"slot_mapping({group})", tokens) for group in range(len(tables))),
            block_tables=tuple(self._table(group, table) for group, table in enumerate(tables)),
            decode=decode,
        )

    def _part(self, name: str, size: int) -> torch.Tensor:
        return self._device[self._sections[name]][:size]

    def _table(self, group: int, table: np.ndarray) -> torch.Tensor:
        """One group's table on the device, as wide as a power of two so that few shapes occur."""
        seqs, width = table.shape
        most = self._host_tables.shape[2]
        shown = min(most, max(MIN_TABLE_WIDTH, 1 << (width - 1).bit_length() if width else 0))
        self._numpy_tables[group, :seqs, width:shown] = -1
        self._numpy_tables[group, :seqs, :width] = table
        # Whole rows: a strided copy to the device would go through pageable memory.
        self._device_tables[group, :seqs].copy_(self._host_tables[group, :seqs], non_blocking=True)
        return self._device_tables[group, :seqs, :shown]

    def _check(self, arrays: dict[str, np.ndarray], tables: list[np.ndarray]) -> None:
        """A wrong index would read or write outside its buffer on the device, so refuse it here."""
        tokens, rows, seqs = (len(arrays[name]) for name in ("token_ids", "logit_rows", "seq_lens"))
        starts = arrays["cu_seqlens_q"]
        for name, got, most in (("T", tokens, "T"), ("R", rows, "R"), ("S", seqs, "S")):
            if got > self._limits[most]:
                raise InternalError(f"the step is too large in {name}", got=got, expected=self._limits[most])
        covers = len(starts) == seqs + 1 > 1 and starts[0] == 0 and starts[-1] == tokens
        if not covers or (np.diff(starts) < 1).any():
            raise InternalError("sequences do not share the step's tokens among them", field="cu_seqlens_q")
        lengths = {len(arrays["positions"]), *(len(v) for k, v in arrays.items() if k.startswith("slot_mapping"))}
        if lengths != {tokens}:
            raise InternalError("arrays of the plan differ in length", got=sorted(lengths), expected=tokens)
        _in_range("token_ids", arrays["token_ids"], 0, self._vocab_size)
        _in_range("logit_rows", arrays["logit_rows"], 0, tokens)
        last = arrays["positions"][starts[1:] - 1]
        if not np.array_equal(last + 1, arrays["seq_lens"]):
            raise InternalError("positions do not end where their sequences do", field="positions")
        for group, (table, blocks) in enumerate(zip(tables, self._num_blocks, strict=True)):
            _in_range(f"slot_mapping({group})", arrays[f"slot_mapping({group})"], -1, blocks * self._block_size)
            _in_range(f"block_table({group})", table, -1, blocks)
            if table.shape[0] != seqs or table.shape[1] > self._limits["blocks"]:
                raise InternalError("block table of a wrong shape", got=table.shape, field=f"block_table({group})")
            needed = (arrays["seq_lens"] - 1) // self._block_size
            if (needed >= table.shape[1]).any() or (table[np.arange(seqs), needed] < 0).any():
                raise InternalError("a key that attention needs has no block", field=f"block_table({group})")


def batch_buckets(max_seqs: int) -> list[int]:
    """Sizes that decode steps are padded to: 1, 2, 4, 8, ... and `max_seqs` itself."""
    buckets = [1 << i for i in range(max_seqs.bit_length()) if 1 << i < max_seqs]
    return [*buckets, max_seqs]


def _in_range(name: str, values: np.ndarray, low: int, end: int) -> None:
    if values.size and not (low <= values.min() and values.max() < end):
        got = int(values.min()) if values.min() < low else int(values.max())
        raise InternalError("index out of range", got=got, expected=f"{low} to {end - 1}", field=name)


def _padded(
    arrays: dict[str, np.ndarray], tables: list[np.ndarray], size: int
) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    """A decode step filled up to `size` sequences."""
    more = size - len(arrays["seq_lens"])
    order = np.arange(size + 1, dtype=np.int32)
    fill = {"token_ids": 0, "positions": 0, "seq_lens": 1}
    padded = {
        name: np.concatenate([values, np.full(more, fill.get(name, -1), np.int32)]) for name, values in arrays.items()
    }
    padded["cu_seqlens_q"], padded["logit_rows"] = order, order[:-1]
    return padded, [np.concatenate([table, np.zeros((more, table.shape[1]), np.int32)]) for table in tables]
