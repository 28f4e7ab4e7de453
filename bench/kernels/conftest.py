"""Kernel benchmarks need a GPU. PYRITE_BENCH_TINY=1 runs tiny sizes in Triton's interpreter, to show that they run."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `suite`

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when kernels are imported


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available() or os.environ.get("PYRITE_BENCH_TINY") == "1":
        return
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="no GPU; PYRITE_BENCH_TINY=1 runs tiny sizes in the interpreter"))
