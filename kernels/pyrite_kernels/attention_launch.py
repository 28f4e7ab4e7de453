"""What the launches of `ragged_prefill` and `paged_decode` share: where keys are cut, checks, kinds of caches."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from pyrite_kernels.testing import interpreted

SPLIT_KEYS = 256
"""Keys of a split: split s is positions [s * SPLIT_KEYS, (s + 1) * SPLIT_KEYS) of its sequence, whatever the load."""

FLOATS = (torch.float16, torch.bfloat16, torch.float32)
"""Dtypes of queries, and of caches that hold plain numbers."""

FP8 = torch.float8_e4m3fn
"""Dtype of 8-bit float caches."""


def key_tile(arch: str, block_d: int, query_bytes: int) -> int:
    """Keys folded at a time, a divisor of SPLIT_KEYS. Both ops must agree on it, or their bits differ.

    Args:
        arch: of `architecture`.
        block_d: head_dim, padded to a power of two.
        query_bytes: bytes of a query element; keys and values have as many once decoded.
    """
    if query_bytes == 4:
        return 16 if block_d > 128 else 32
    if block_d > 128:
        return 64 if arch in ("sm_90", "sm_100") else 32
    return 32 if block_d > 64 and arch in ("sm_80", "sm_89", "gfx942") else 64


@dataclass(frozen=True)
class AttentionConfig:
    """How one kernel is compiled: rows of a program, warps, stages of the key pipeline.

    max_registers: of a thread, where ptxas would settle for far fewer and spill what it saves.
    """

    block_m: int
    num_warps: int
    num_stages: int
    max_registers: int | None = None

    def options(self) -> dict[str, int]:
        """What a launch passes to Triton."""
        registers = {} if self.max_registers is None else {"maxnreg": self.max_registers}
        return {"num_warps": self.num_warps, "num_stages": self.num_stages, **registers}


def architecture(device: torch.device) -> str:
    """The name of a device in the committed tables: "sm_80", "sm_89", "sm_90", "sm_100", "gfx942", or "interpreter"."""
    return "interpreter" if device.type == "cpu" else _gpu_architecture(device.index or 0)


@functools.cache
def _gpu_architecture(index: int) -> str:
    if torch.version.hip:
        return "gfx942"
    major, minor = torch.cuda.get_device_capability(index)
    if major >= 10:
        return "sm_100" if major == 10 else "sm_89"  # consumer parts have the small shared memory
    if major == 9:
        return "sm_90"
    return "sm_80" if (major, minor) in ((8, 0), (8, 7)) else "sm_89"


def padded_head_dim(head_dim: int) -> int:
    """The power of two that a head is padded to."""
    return max(16, 1 << (head_dim - 1).bit_length())


def cache_kind(cache: torch.Tensor, arch: str) -> str:
    """How a kernel reads cache elements: "float", "int8", "fp8" where the part converts it, else "fp8_bits"."""
    if cache.dtype == torch.int8:
        return "int8"
    if cache.dtype == FP8:
        return "fp8" if arch in ("sm_89", "sm_90", "sm_100") else "fp8_bits"
    return "float"


def raw_cache(cache: torch.Tensor) -> torch.Tensor:
    """The cache as kernels take it: 8-bit floats as bytes."""
    return cache.view(torch.uint8) if cache.dtype == FP8 else cache


def dot_precision(arch: str) -> str:
    """How operands are multiplied.

    On NVIDIA f32 takes three TF32 products, whose error is near f32's. The interpreter sums row by row, since the bits
    of its own dot depend on where a row stands in the tile.
    """
    if arch == "interpreter":
        return "rowwise"
    return "tf32x3" if arch.startswith("sm_") else "ieee"


def require(condition: bool, what: str, got: object, expected: object) -> None:
    """Raise `ValueError` unless `condition`.

    Raises:
        ValueError: with what broke, what was got and what was expected.
    """
    if not condition:
        raise ValueError(f"{what}: got {got}, expected {expected}")


def check_int32(name: str, x: torch.Tensor, shape: tuple[int | None, ...], device: torch.device) -> None:
    """Check an index tensor; a None in `shape` fits any size.

    Raises:
        ValueError: wrong dtype, rank, size, device or layout.
    """
    require(x.dtype == torch.int32, f"dtype of {name}", x.dtype, torch.int32)
    fits = x.ndim == len(shape) and all(want is None or want == got for want, got in zip(shape, x.shape, strict=True))
    require(fits, f"shape of {name}", tuple(x.shape), shape)
    require(x.device == device, f"device of {name}", x.device, device)
    require(x.ndim == 0 or x.shape[-1] <= 1 or x.stride(-1) == 1, f"last stride of {name}", x.stride(), 1)


def check_scales(
    cache: torch.Tensor, k_scale: torch.Tensor | None, v_scale: torch.Tensor | None, num_kv_heads: int
) -> None:
    """Check that 8-bit caches have both scales, [num_kv_heads] f32, and others none.

    Raises:
        ValueError: a scale is missing, superfluous, or has a wrong shape, dtype or device.
    """
    for name, scale in (("k_scale", k_scale), ("v_scale", v_scale)):
        if cache.dtype in FLOATS:
            require(scale is None, name, "a tensor", f"None with a {cache.dtype} cache")
            continue
        if scale is None:
            raise ValueError(f"{name}: got None, expected [num_kv_heads] f32 with a {cache.dtype} cache")
        require(scale.dtype == torch.float32, f"dtype of {name}", scale.dtype, torch.float32)
        require(scale.shape == (num_kv_heads,), f"shape of {name}", tuple(scale.shape), (num_kv_heads,))
        require(scale.device == cache.device, f"device of {name}", scale.device, cache.device)
        require(scale.is_contiguous(), f"strides of {name}", scale.stride(), (1,))


def check_cache(k_cache: torch.Tensor, v_cache: torch.Tensor, head_dim: int, like: torch.Tensor, name: str) -> None:
    """Check a pair of caches against the tensor called `name` whose heads they hold.

    Raises:
        ValueError: shapes, dtypes, devices or layouts do not go together.
    """
    require(
        k_cache.ndim == 4, "shape of k_cache", tuple(k_cache.shape), "[num_blocks, block_size, num_kv_heads, head_dim]"
    )
    require(v_cache.shape == k_cache.shape, "shape of v_cache", tuple(v_cache.shape), tuple(k_cache.shape))
    require(v_cache.dtype == k_cache.dtype, "dtype of v_cache", v_cache.dtype, k_cache.dtype)
    require(k_cache.shape[3] == head_dim, "head_dim of k_cache", k_cache.shape[3], head_dim)
    require(1 <= head_dim <= 256, "head_dim", head_dim, "1 to 256")
    require(like.dtype in FLOATS, f"dtype of {name}", like.dtype, FLOATS)
    kinds = (like.dtype, torch.int8, FP8)
    require(k_cache.dtype in kinds, "dtype of k_cache", k_cache.dtype, f"one of {kinds}")
    interpreted_bf16 = interpreted() and like.dtype == torch.bfloat16
    require(not interpreted_bf16, f"dtype of {name}", like.dtype, "float16 or float32 in Triton's interpreter")
    for cache_name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
        require(cache.stride(3) == 1, f"last stride of {cache_name}", cache.stride(3), 1)
        require(cache.device == like.device, f"device of {cache_name}", cache.device, like.device)


def check_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    softmax_scale: float,
    window: int | None,
    soft_cap: float | None,
    sinks: torch.Tensor | None,
    k_scale: torch.Tensor | None,
    v_scale: torch.Tensor | None,
    out: torch.Tensor,
) -> None:
    """Check everything but the index tensors.

    Raises:
        ValueError: a shape, dtype, device, layout or number breaks the contract of the two ops.
    """
    require(q.ndim == 3, "shape of q", tuple(q.shape), "[num_tokens, num_heads, head_dim]")
    check_cache(k_cache, v_cache, q.shape[2], q, "q")
    num_heads, num_kv_heads = q.shape[1], k_cache.shape[2]
    fits = num_kv_heads > 0 and num_heads % num_kv_heads == 0
    require(fits, "num_heads", num_heads, f"a multiple of num_kv_heads = {num_kv_heads}")
    check_scales(k_cache, k_scale, v_scale, num_kv_heads)
    require(0.0 < softmax_scale < float("inf"), "softmax_scale", softmax_scale, "a positive number")
    require(window is None or window >= 1, "window", window, "None or at least 1")
    require(soft_cap is None or 0.0 < soft_cap < float("inf"), "soft_cap", soft_cap, "None or a positive number")
    if sinks is not None:
        require(sinks.shape == (num_heads,), "shape of sinks", tuple(sinks.shape), (num_heads,))
        require(sinks.dtype in FLOATS, "dtype of sinks", sinks.dtype, FLOATS)
        require(sinks.is_contiguous(), "strides of sinks", sinks.stride(), (1,))
        require(sinks.device == q.device, "device of sinks", sinks.device, q.device)
    require(out.shape == q.shape, "shape of out", tuple(out.shape), tuple(q.shape))
    require(out.dtype == q.dtype, "dtype of out", out.dtype, q.dtype)
    require(out.device == q.device, "device of out", out.device, q.device)
    for name, x in (("q", q), ("out", out)):
        require(x.shape[2] == 1 or x.stride(2) == 1, f"last stride of {name}", x.stride(2), 1)
