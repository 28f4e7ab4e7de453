"""The kernel benchmarks run from end to end in the interpreter, so that they work on the day of a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parents[2] / "bench" / "kernels"


def run(**environment: str) -> str:
    command = [sys.executable, "-m", "pytest", str(BENCH), "-p", "no:cacheprovider"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, cwd=BENCH)
    assert done.returncode == 0, done.stdout[-2000:]
    return done.stdout


def test_tiny_sizes_run() -> None:
    assert "passed" in run(PYRITE_BENCH_TINY="1", TRITON_INTERPRET="1")


def test_without_a_gpu_nothing_is_timed() -> None:
    out = run(CUDA_VISIBLE_DEVICES="", PYRITE_BENCH_TINY="")
    assert "skipped" in out and "passed" not in out
