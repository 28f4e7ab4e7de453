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
    from pyrite_kernels.matmul.launch import matmul, matmul_glu
    from pyrite_kernels.paged_decode.launch import paged_decode
    from pyrite_kernels.qmatmul.launch import qmatmul
    from pyrite_kernels.quantized import QuantizedWeight
    from pyrite_kernels.ragged_prefill.launch import ragged_prefill
    from pyrite_kernels.store_kv.launch import store_kv

__all__ = ["QuantizedWeight", "matmul", "matmul_glu", "paged_decode", "qmatmul", "ragged_prefill", "store_kv"]

_PUBLIC = {
    "QuantizedWeight": "quantized",
    "matmul": "matmul.launch",
    "matmul_glu": "matmul.launch",
    "paged_decode": "paged_decode.launch",
    "qmatmul": "qmatmul.launch",
    "ragged_prefill": "ragged_prefill.launch",
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
