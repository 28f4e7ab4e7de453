"""Short names of dtypes, and the kind of arithmetic that multiplies them."""

from __future__ import annotations

import torch

KINDS = {torch.bfloat16: "bf16", torch.float16: "f16", torch.float32: "f32"}
_NAMES = {**KINDS, torch.int8: "int8", torch.float8_e4m3fn: "fp8"}


def dtype_name(dtype: torch.dtype) -> str:
    """Such as "bf16"."""
    return _NAMES.get(dtype, str(dtype).removeprefix("torch."))
