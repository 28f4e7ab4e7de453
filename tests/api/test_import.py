"""`import pyrite` is quick and drags in nothing heavy."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys, time
start = time.perf_counter()
import pyrite
elapsed = time.perf_counter() - start
heavy = sorted({"torch", "triton", "transformers", "numpy", "tokenizers", "huggingface_hub"} & set(sys.modules))
print(elapsed, *heavy)
"""


def test_import_is_quick_and_light():
    times = []
    for _ in range(3):
        output = subprocess.run(
            [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True
        ).stdout.split()
        assert output[1:] == []
        times.append(float(output[0]))
    assert min(times) < 0.15
