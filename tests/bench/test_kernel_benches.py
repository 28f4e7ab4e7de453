"""The kernel benchmarks run from end to end in the interpreter, so that they work on the day of a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from suite.registry import all_benches

BENCH = Path(__file__).parents[2] / "bench" / "kernels"


def run(*arguments: str, **environment: str) -> str:
    command = [sys.executable, "-m", "pytest", str(BENCH), "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, cwd=BENCH)
    assert done.returncode == 0, done.stdout[-2000:]
    return done.stdout


def test_tiny_sizes_run(tmp_path: Path) -> None:
    """One case of each op; `test_gpu_suite.py` runs all of them."""
    told = tmp_path / "told.json"
    first = " or ".join(
        f"{one.op}/{one.shape}]" for one in {one.op: one for one in all_benches(tiny=True)[::-1]}.values()
    )
    assert "passed" in run("-k", first, f"--benchmark-json={told}", PYRITE_BENCH_TINY="1", TRITON_INTERPRET="1")
    infos = [one["extra_info"] for one in json.loads(told.read_text())["benchmarks"]]
    assert {info["op"] for info in infos} == {one.op for one in all_benches(tiny=True)}
    assert all(info["percent_of_roof"] > 0 and "peers" in info for info in infos)


def test_without_a_gpu_nothing_is_timed() -> None:
    out = run(CUDA_VISIBLE_DEVICES="", PYRITE_BENCH_TINY="")
    assert "skipped" in out and "passed" not in out
