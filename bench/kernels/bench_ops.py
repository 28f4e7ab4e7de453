"""Every Triton kernel on the shapes of its `cases.py`: checked, then timed alone and in turns with its peers.

pytest-benchmark times one call to its end on the device, launch included. `extra_info` has what `gpu_suite.py` would
write: device time of many calls in a row, rates, percent of the roofs that this process measured, ratios to the peers.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pyrite_kernels.roofline import Roofs, measure_roofs
from pyrite_kernels.testing import interpreted
from suite.core import Bench, measure_trials, trials_of
from suite.registry import all_benches

TINY = interpreted()
BENCHES = all_benches(tiny=TINY)


@pytest.fixture(scope="session")
def roofs() -> Roofs:
    return measure_roofs(tiny=TINY)


@pytest.mark.parametrize("bench", BENCHES, ids=[bench.name for bench in BENCHES])
def test_op(benchmark: Any, roofs: Roofs, bench: Bench) -> None:
    trials = trials_of(bench)
    benchmark.extra_info |= measure_trials(bench, trials, roofs, budget_s=1.0)
    turn = iter(range(1 << 60))

    def run() -> None:
        trials[next(turn) % len(trials)].run()
        if not TINY:
            torch.cuda.synchronize()

    benchmark.pedantic(run, rounds=1 if TINY else 50, warmup_rounds=0 if TINY else 5)
