"""Benchmarks are imported from `bench/`; their kernels run on a GPU where there is one, else in the interpreter."""

import os
import sys
from pathlib import Path

import torch

BENCH = Path(__file__).parents[2] / "bench"
sys.path[:0] = [str(BENCH), str(BENCH / "e2e")]

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when kernels are imported
