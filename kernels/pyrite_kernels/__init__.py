"""Triton kernels of pyrite, useful without pyrite: they need torch and triton alone.

The public functions are loaded when first asked for. Each has the name of the folder of its op; importing such a
folder would put the module in the function's place, which `_Package` prevents.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyrite_kernels.embed.launch import embed
    from pyrite_kernels.fp8_matmul.launch import fp8_matmul
    from pyrite_kernels.gate.launch import gate
    from pyrite_kernels.glu.launch import glu
    from pyrite_kernels.grouped_matmul.launch import grouped_matmul, sort_by_expert
    from pyrite_kernels.int8_matmul.launch import int8_matmul
    from pyrite_kernels.logits.launch import scale_softcap, select_candidates
    from pyrite_kernels.matmul.launch import matmul, matmul_glu
    from pyrite_kernels.paged_decode.launch import paged_decode
    from pyrite_kernels.qk_norm_rope_store.launch import qk_norm_rope_store
    from pyrite_kernels.qmatmul.launch import qmatmul
    from pyrite_kernels.quantize_rows.launch import quantize_rows_fp8, quantize_rows_int8
    from pyrite_kernels.quantized import QuantizedWeight
    from pyrite_kernels.ragged_prefill.launch import ragged_prefill
    from pyrite_kernels.rms_norm.launch import rms_norm, rms_norm_fp8, rms_norm_int8
    from pyrite_kernels.store_kv.launch import store_kv

__all__ = [
    "QuantizedWeight",
    "embed",
    "fp8_matmul",
    "gate",
    "glu",
    "grouped_matmul",
    "int8_matmul",
    "matmul",
    "matmul_glu",
    "paged_decode",
    "qk_norm_rope_store",
    "qmatmul",
    "quantize_rows_fp8",
    "quantize_rows_int8",
    "ragged_prefill",
    "rms_norm",
    "rms_norm_fp8",
    "rms_norm_int8",
    "scale_softcap",
    "select_candidates",
    "sort_by_expert",
    "store_kv",
]

_PUBLIC = {
    "QuantizedWeight": "quantized",
    "embed": "embed.launch",
    "fp8_matmul": "fp8_matmul.launch",
    "gate": "gate.launch",
    "glu": "glu.launch",
    "grouped_matmul": "grouped_matmul.launch",
    "int8_matmul": "int8_matmul.launch",
    "matmul": "matmul.launch",
    "matmul_glu": "matmul.launch",
    "paged_decode": "paged_decode.launch",
    "qk_norm_rope_store": "qk_norm_rope_store.launch",
    "qmatmul": "qmatmul.launch",
    "quantize_rows_fp8": "quantize_rows.launch",
    "quantize_rows_int8": "quantize_rows.launch",
    "ragged_prefill": "ragged_prefill.launch",
    "rms_norm": "rms_norm.launch",
    "rms_norm_fp8": "rms_norm.launch",
    "rms_norm_int8": "rms_norm.launch",
    "scale_softcap": "logits.launch",
    "select_candidates": "logits.launch",
    "sort_by_expert": "grouped_matmul.launch",
    "store_kv": "store_kv.launch",
}


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


class _Package(ModuleType):
    """This package, which never takes an op's folder as the attribute of that name."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _PUBLIC and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
