"""An engine that was started before all faults, and that must never notice them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from pyrite import LLM, SamplingParams
from tiny_models import tiny


@pytest.fixture(scope="module")
def bystander() -> Iterator[LLM]:
    with LLM(str(tiny("llama")), max_model_len=256, num_threads=1) as llm:
        yield llm


@pytest.fixture(scope="module")
def canary(bystander: LLM) -> Callable[[], None]:
    """Calling it asks the bystander, and compares its tokens and blocks."""
    params = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
    prompt = {"prompt_token_ids": [5, 9, 17, 33, 65]}

    def ask() -> list[int]:
        return bystander.generate(prompt, params, use_tqdm=False)[0].outputs[0].token_ids

    golden = ask()

    def check() -> None:
        assert ask() == golden
        metrics = bystander.metrics()
        assert metrics["num_running"] == metrics["num_waiting"] == 0
        assert metrics["group0_free"] + metrics["group0_cached"] == metrics["group0_total"]

    return check
