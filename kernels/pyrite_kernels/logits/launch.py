"""Checks, grids and committed configurations of the ops on logits."""

from __future__ import annotations

from typing import Any

import torch
import triton

from pyrite_kernels.attention_launch import architecture, require
from pyrite_kernels.logits import kernel
from pyrite_kernels.small_launch import check_rows, elementwise_tile, elementwise_warps, padded, wave_factor

_scale_softcap_kernel: Any = kernel.scale_softcap_kernel
_chunk_candidates_kernel: Any = kernel.chunk_candidates_kernel
_row_candidates_kernel: Any = kernel.row_candidates_kernel
_sort_candidates_kernel: Any = kernel.sort_candidates_kernel

MAX_CANDIDATES = 256
"""Most candidates of a row."""

MAX_KEYS = 16384
"""Most keys of a row's chunks that one program merges."""


def candidate_sizes(vocab_size: int, num_candidates: int) -> dict[str, int]:
    """What the kernels are compiled for: chunk c is ids [c * CHUNK, (c + 1) * CHUNK), and keeps KEEP of them.

    Raises:
        ValueError: the vocabulary is too large.
    """
    keep = max(padded(num_candidates), 16)
    chunk = 4096
    while triton.cdiv(vocab_size, chunk) * keep > MAX_KEYS and chunk < MAX_KEYS:
        chunk *= 2
    num_chunks = triton.cdiv(vocab_size, chunk)
    most = MAX_KEYS // keep * chunk
    require(num_chunks * keep <= MAX_KEYS, "vocab_size", vocab_size, f"at most {most} for that many candidates")
    return {
        "ID_BITS": max((vocab_size - 1).bit_length(), 1),
        "CHUNK": chunk,
        "NUM_CHUNKS": num_chunks,
        "BLOCK_C": max(padded(num_chunks), 16),
        "KEEP": keep,
        "BLOCK_K": padded(num_chunks * keep),
        "BLOCK_S": min(keep, 64),
    }


def candidate_warps(arch: str, size: int) -> int:
    """Warps of a program that holds `size` keys: 8 for each thread of an NVIDIA part, or more from 4096 on."""
    return max(1, min(16, size // 256) // wave_factor(arch))


def scale_softcap(
    x: torch.Tensor, *, multiplier: float, soft_cap: float | None, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Scale logits and cap them softly: `soft_cap * tanh(multiplier * x / soft_cap)`, or `multiplier * x`, in f32.

    Args:
        x: [rows, vocab_size] f32 | f16 | bf16, last dim contiguous.
        multiplier: a finite number.
        soft_cap: a positive number, or None for no cap.
        out: [rows, vocab_size] f32 | f16 | bf16, may be x; a new tensor of the dtype of x where None.
    Returns:
        out.
    Raises:
        ValueError: a shape, dtype, device, layout or number breaks the above.
    Source: the soft cap of Gemma 2, arXiv 2408.00118.
    """
    check_rows("x", x)
    require(abs(multiplier) < float("inf"), "multiplier", multiplier, "a finite number")
    require(soft_cap is None or 0.0 < soft_cap < float("inf"), "soft_cap", soft_cap, "None or a positive number")
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device) if out is None else out
    check_rows("out", out, x)
    num_rows, width = x.shape
    if num_rows == 0 or width == 0:
        return out
    block_r, block_w = elementwise_tile(width)
    _scale_softcap_kernel[(triton.cdiv(num_rows, block_r), triton.cdiv(width, block_w))](
        x,
        out,
        x.stride(0),
        out.stride(0),
        num_rows,
        float(multiplier),
        1.0 if soft_cap is None else float(soft_cap),
        WIDTH=width,
        BLOCK_R=block_r,
        BLOCK_W=block_w,
        HAS_CAP=soft_cap is not None,
        num_warps=elementwise_warps(architecture(x.device)),
        enable_fp_fusion=False,
    )
    return out


def select_candidates(
    logits: torch.Tensor, *, num_candidates: int, vocab_limit: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Find the ids with the largest logits of each row, and the log of the sum of exps of all its logits.

    Exact: best first, equal logits (0 and -0 too) by the lowest id. NaN counts as larger than infinity, and makes the
    sum NaN.

    Args:
        logits: [rows, vocab_size] f32 | f16 | bf16, last dim contiguous.
        num_candidates: 1 to 256, at most vocab_limit.
        vocab_limit: ids below it exist, 1 to vocab_size; the columns from there on do not count.
    Returns:
        ids [rows, num_candidates] i32, values [rows, num_candidates] f32, lse [rows] f32 (natural log). A row's
        results depend on nothing but the row.
    Raises:
        ValueError: a shape, dtype, device, layout or number breaks the above.
    """
    check_rows("logits", logits)
    num_rows, vocab_size = logits.shape
    require(1 <= vocab_limit <= vocab_size, "vocab_limit", vocab_limit, f"1 to vocab_size = {vocab_size}")
    most = min(MAX_CANDIDATES, vocab_limit)
    require(1 <= num_candidates <= most, "num_candidates", num_candidates, f"1 to {most}")
    sizes = candidate_sizes(vocab_size, num_candidates)
    ids = logits.new_empty((num_rows, num_candidates), dtype=torch.int32)
    values = logits.new_empty((num_rows, num_candidates), dtype=torch.float32)
    lse = logits.new_empty(num_rows, dtype=torch.float32)
    if num_rows > 0:
        _select(logits, vocab_limit, sizes, ids, values, lse)
    return ids, values, lse


def _select(
    logits: torch.Tensor,
    vocab_limit: int,
    sizes: dict[str, int],
    ids: torch.Tensor,
    values: torch.Tensor,
    lse: torch.Tensor,
) -> None:
    """Run the three kernels of `select_candidates`."""
    arch, (num_rows, vocab_size) = architecture(logits.device), logits.shape
    id_bits, num_chunks, keep = sizes["ID_BITS"], sizes["NUM_CHUNKS"], sizes["KEEP"]
    keys = logits.new_empty((num_rows, num_chunks, keep), dtype=torch.int64)
    best = logits.new_empty((num_rows, keep), dtype=torch.int64)
    maxima, sums = (logits.new_empty((num_rows, num_chunks), dtype=torch.float32) for _ in range(2))
    _chunk_candidates_kernel[(num_rows, num_chunks)](
        logits,
        keys,
        maxima,
        sums,
        logits.stride(0),
        vocab_limit,
        VOCAB_SIZE=vocab_size,
        ID_BITS=id_bits,
        CHUNK=sizes["CHUNK"],
        KEEP=keep,
        num_warps=candidate_warps(arch, sizes["CHUNK"]),
        enable_fp_fusion=False,
    )
    _row_candidates_kernel[(num_rows,)](
        keys,
        maxima,
        sums,
        best,
        lse,
        ID_BITS=id_bits,
        NUM_CHUNKS=num_chunks,
        BLOCK_C=sizes["BLOCK_C"],
        KEEP=keep,
        BLOCK_K=sizes["BLOCK_K"],
        num_warps=candidate_warps(arch, sizes["BLOCK_K"]),
        enable_fp_fusion=False,
    )
    _sort_candidates_kernel[(num_rows, keep // sizes["BLOCK_S"])](
        best,
        ids,
        values,
        ID_BITS=id_bits,
        KEEP=keep,
        BLOCK_S=sizes["BLOCK_S"],
        NUM_CANDIDATES=ids.shape[1],
        num_warps=candidate_warps(arch, keep * sizes["BLOCK_S"] // 2),
        enable_fp_fusion=False,
    )
