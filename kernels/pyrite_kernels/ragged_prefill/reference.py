"""The plain twin of `ragged_prefill`: one query, one head at a time, in f32."""

from __future__ import annotations

import torch

from pyrite_kernels.store_kv.reference import decode


def gather(cache: torch.Tensor, blocks: torch.Tensor, first: int, last: int) -> torch.Tensor:
    """Rows [first, last) of a sequence with these blocks: [last - first, num_kv_heads, head_dim]."""
    positions = torch.arange(first, last, device=cache.device)
    block_size = cache.shape[1]
    pages = blocks[(positions // block_size)].long()
    return cache[pages, positions % block_size]


def ragged_prefill(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    block_table: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
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
    """Do what `pyrite_kernels.ragged_prefill` does, token by token."""
    out = torch.empty_like(q) if out is None else out
    group = q.shape[1] // k_cache.shape[2]
    starts = cu_seqlens_q.tolist()
    for seq, length in enumerate(seq_lens.tolist()):
        for token in range(starts[seq], starts[seq + 1]):
            position = length - (starts[seq + 1] - token)
            first = 0 if window is None else max(position - window + 1, 0)
            k = decode(gather(k_cache, block_table[seq], first, position + 1), k_scale)
            v = decode(gather(v_cache, block_table[seq], first, position + 1), v_scale)
            k, v = (x.repeat_interleave(group, 1) for x in (k, v))  # [keys, num_heads, head_dim]
            scores = torch.einsum("hd,nhd->hn", q[token].float(), k) * softmax_scale
            if soft_cap is not None:
                scores = soft_cap * torch.tanh(scores / soft_cap)
            if sinks is not None:
                scores = torch.cat([scores, sinks.float()[:, None]], 1)
            p = scores.softmax(1)[:, : k.shape[0]]
            out[token] = torch.einsum("hn,nhd->hd", p, v).to(out.dtype)
    return out
