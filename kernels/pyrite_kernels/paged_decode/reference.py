"""The plain twin of `paged_decode`: a prefill of one token per sequence."""

from __future__ import annotations

import torch

from pyrite_kernels.ragged_prefill import reference


def paged_decode(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    block_table: torch.Tensor,
    seq_lens: torch.Tensor,
    *,
    softmax_scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    sinks: torch.Tensor | None = None,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Do what `pyrite_kernels.paged_decode` does; a row of length 0 is not written."""
    out = torch.empty_like(q) if out is None else out
    for seq, length in enumerate(seq_lens.tolist()):
        if length > 0:
            reference.ragged_prefill(
                q[seq : seq + 1],
                k_cache,
                v_cache,
                block_table[seq : seq + 1],
                torch.tensor([0, 1]),
                seq_lens[seq : seq + 1],
                softmax_scale=softmax_scale,
                window=window,
                soft_cap=soft_cap,
                sinks=sinks,
                k_scale=k_scale,
                v_scale=v_scale,
                out=out[seq : seq + 1],
            )
    return out
