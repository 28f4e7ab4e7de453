"""The whole engine on the starter model: what a request costs beside its arithmetic. Run by `make bench`."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from pyrite import LLM, SamplingParams

TOKENS = 64


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(enable_prefix_caching=False) as engine:
        yield engine


@pytest.mark.parametrize("num_seqs", [1, 4, 16])
def test_decode(benchmark: Any, llm: LLM, num_seqs: int) -> None:
    """`num_seqs` requests of 8 tokens in, 64 out; `tok_per_s` in `extra_info`."""
    prompts = [{"prompt_token_ids": [index + 5] * 8} for index in range(num_seqs)]
    params = SamplingParams(temperature=0.0, max_tokens=TOKENS, ignore_eos=True)
    benchmark(lambda: llm.generate(prompts, params, use_tqdm=False))
    benchmark.extra_info["tok_per_s"] = num_seqs * TOKENS / benchmark.stats["median"]


def test_sixty_four_prompts(benchmark: Any, llm: LLM) -> None:
    """One call of 64 prompts against the same prompts one at a time; `ratio` in `extra_info`."""
    prompts = [{"prompt_token_ids": [index + 5] * (1 + index)} for index in range(64)]
    params = SamplingParams(temperature=0.0, max_tokens=32, ignore_eos=True)

    def serial() -> None:
        for prompt in prompts:
            llm.generate(prompt, params, use_tqdm=False)

    benchmark.pedantic(lambda: llm.generate(prompts, params, use_tqdm=False), rounds=5, warmup_rounds=1)
    together = benchmark.stats["median"]
    started = time.perf_counter()
    serial()
    benchmark.extra_info["ratio"] = (time.perf_counter() - started) / together


def test_import(benchmark: Any) -> None:
    """`import pyrite` and its classes in a new process; `import_ms` leaves out the start of the interpreter."""
    code = "import time; t = time.perf_counter(); import pyrite; pyrite.LLM; print(1e3 * (time.perf_counter() - t))"
    times: list[float] = []

    def start() -> None:
        times.append(float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout))

    benchmark.pedantic(start, rounds=7, warmup_rounds=1)
    benchmark.extra_info["import_ms"] = sorted(times)[len(times) // 2]


def test_start_to_first_token(benchmark: Any) -> None:
    """A cold process: import, load the starter model, one token."""
    code = (
        "from pyrite import LLM, SamplingParams\n"
        "with LLM() as llm: llm.generate('Once', SamplingParams(max_tokens=1), use_tqdm=False)"
    )
    benchmark.pedantic(
        lambda: subprocess.run([sys.executable, "-c", code], check=True, capture_output=True), rounds=5, warmup_rounds=1
    )
