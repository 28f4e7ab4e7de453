"""Plain torch forms of the kernels, for any device: what `cuda_kernels.py` names where no kernel is named.

Arithmetic is in f32 and a result is rounded once, to the dtype of `out`. Nothing here waits for the device, so that a
step can be captured. Signatures are those of `pyrite_kernels`, or what the executor needs where it has none.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pyrite_kernels import store_kv


def matmul(
    x: torch.Tensor,
    weight: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    out: torch.Tensor,
) -> torch.Tensor:
    """`x weight^T + bias + residual`; `out` may be `residual`."""
    y = _linear(x, weight, bias)
    return out.copy_(y if residual is None else y + residual.float())


def matmul_glu(
    x: torch.Tensor, weight: torch.Tensor, *, bias: torch.Tensor | None = None, out: torch.Tensor
) -> torch.Tensor:
    """`silu(gate) * up` of the two halves of `x weight^T + bias`."""
    gate, up = _linear(x, weight, bias).chunk(2, dim=-1)
    return out.copy_(F.silu(gate) * up)


def _linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`x weight^T + bias` as f32. On a GPU the product itself has the dtype of x, so that no weight is widened."""
    if x.is_cuda:
        y = F.linear(x, weight).float()
        return y if bias is None else y + bias
    return F.linear(x.float(), weight.float(), bias)


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    *,
    eps: float,
    residual: torch.Tensor | None = None,
    out: torch.Tensor,
) -> torch.Tensor:
    """`x / sqrt(mean(x^2) + eps) * weight`; with a residual it becomes `residual + x`, in place, and is normed."""
    y = x.float()
    if residual is not None:
        residual.copy_(residual.float() + y)
        y = residual.float()
    return out.copy_(_norm(y, weight, eps))


def glu(gate: torch.Tensor, up: torch.Tensor, *, out: torch.Tensor) -> torch.Tensor:
    """`silu(gate) * up`."""
    return out.copy_(F.silu(gate.float()) * up.float())


def gate(x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """`x *= sigmoid(gate)`, in place."""
    return x.copy_(x.float() * torch.sigmoid(gate.float()))


def embed(token_ids: torch.Tensor, weight: torch.Tensor, *, out: torch.Tensor) -> torch.Tensor:
    """`out[t] = weight[token_ids[t]]`."""
    return out.copy_(torch.index_select(weight, 0, token_ids))


def head_norm(x: torch.Tensor, weight: torch.Tensor, *, eps: float) -> torch.Tensor:
    """RMS norm of each head of `x` [T, heads, head_dim] times `weight` [head_dim], in place."""
    return x.copy_(_norm(x.float(), weight, eps))


def rope(x: torch.Tensor, positions: torch.Tensor, inv_freq: torch.Tensor, *, scale: float) -> torch.Tensor:
    """Rotate half-split pairs of each head of `x` [T, heads, head_dim] by its position, in place."""
    half = len(inv_freq)
    angles = positions.float()[:, None] * inv_freq
    cos, sin = (torch.cos(angles) * scale)[:, None], (torch.sin(angles) * scale)[:, None]
    a, b = x[..., :half].float(), x[..., half : 2 * half].float()
    rotated = torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)  # of f32 x, a and b are views
    x[..., : 2 * half].copy_(rotated)
    return x


def qk_norm_rope_store(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    positions: torch.Tensor,
    slot_mapping: torch.Tensor,
    *,
    q_weight: torch.Tensor | None,
    k_weight: torch.Tensor | None,
    q_eps: float,
    k_eps: float,
    inv_freq: torch.Tensor | None,
    rope_scale: float,
) -> None:
    """Norm (where a weight is given) and rotate (where frequencies are) the heads of q, in place, and k; store k, v.

    The cache gets k as it was rounded to the dtype of v.
    """
    rotated = []
    for x, weight, eps in ((q, q_weight, q_eps), (k, k_weight, k_eps)):
        y = x.float() if weight is None else _norm(x.float(), weight, eps)
        rotated.append(y if inv_freq is None else rope(y.clone(), positions, inv_freq, scale=rope_scale))
    q.copy_(rotated[0])
    store_kv(rotated[1].to(v.dtype), v, k_cache, v_cache, slot_mapping)


def scale_and_cap(logits: torch.Tensor, *, multiplier: float, soft_cap: float | None) -> torch.Tensor:
    """`soft_cap * tanh(multiplier * logits / soft_cap)`, or `multiplier * logits`, in place."""
    y = logits.float() * multiplier
    return logits.copy_(y if soft_cap is None else soft_cap * torch.tanh(y / soft_cap))


def _norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x / torch.sqrt(torch.mean(x * x, dim=-1, keepdim=True) + eps) * weight
