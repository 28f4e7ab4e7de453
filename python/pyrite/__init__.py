"""Open-weight language models inside a Python process.

>>> from pyrite import LLM, SamplingParams
>>> with LLM() as llm:
...     print(llm.generate("Once upon a time", SamplingParams(max_tokens=40))[0].outputs[0].text)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from pyrite import errors
from pyrite.errors import (
    BackendError,
    CapacityError,
    CheckpointError,
    ConfigError,
    InternalError,
    PyriteError,
    RequestError,
    SessionBusyError,
    ShapeError,
)

if TYPE_CHECKING:
    from pyrite._core import __version__
    from pyrite.llm import LLM
    from pyrite.memory import MemoryPlan, plan
    from pyrite.models.registry import register_family
    from pyrite.outputs import CompletionOutput, Logprob, RequestMetrics, RequestOutput
    from pyrite.params import SamplingParams
    from pyrite.receipt import QuantizationReport

__all__ = [
    "LLM",
    "BackendError",
    "CapacityError",
    "CheckpointError",
    "CompletionOutput",
    "ConfigError",
    "InternalError",
    "Logprob",
    "MemoryPlan",
    "PyriteError",
    "QuantizationReport",
    "RequestError",
    "RequestMetrics",
    "RequestOutput",
    "SamplingParams",
    "SessionBusyError",
    "ShapeError",
    "__version__",
    "errors",
    "plan",
    "register_family",
]

# Where each name lives that is imported on first use, so that `import pyrite` stays quick.
_LAZY = {
    "LLM": "pyrite.llm",
    "CompletionOutput": "pyrite.outputs",
    "Logprob": "pyrite.outputs",
    "MemoryPlan": "pyrite.memory",
    "QuantizationReport": "pyrite.receipt",
    "RequestMetrics": "pyrite.outputs",
    "RequestOutput": "pyrite.outputs",
    "SamplingParams": "pyrite.params",
    "__version__": "pyrite._core",
    "plan": "pyrite.memory",
    "register_family": "pyrite.models.registry",
}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module 'pyrite' has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
