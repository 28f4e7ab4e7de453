"""One answer: a request's tokens and logprobs do not depend on anything that runs beside it or on how it was cut up.

Run on the starter model and on tiny checkpoints of every family, float and quantized, with greedy and sampled requests
mixed. The planted breaches at the end show that this very comparison would notice.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyrite
import pytest
from pyrite import LLM, SamplingParams
from pyrite.backends.cpu import CpuBackend
from quantizable import quantizable
from tiny_models import FAMILIES, ORDINARY_IDS, tiny

Fingerprint = list[tuple[tuple[int, ...], tuple[float, ...]]]

MODELS = (*FAMILIES, "qwen3-int4", "muse_glimmer-int8", "qwen3--int8")
# Prompts here are shorter than a default block, so blocks are smaller to be shared.
BASE: dict[str, Any] = {"max_model_len": 256, "num_threads": 2, "max_num_seqs": 16, "block_size": 32, "seed": 0}


def keywords(model: str) -> dict[str, Any]:
    """Those of `LLM` that say which of `MODELS`: family-weights-kv."""
    family, quantization, kv_dtype = (*model.split("-"), "", "")[:3]
    folder = quantizable(family) if quantization else tiny(family)
    return {"model": folder, "quantization": quantization or None, "kv_cache_dtype": kv_dtype or "auto"}


def requests(count: int, longest: int, max_tokens: int) -> tuple[list[dict[str, Any]], list[SamplingParams]]:
    """Prompts of mixed length, some sharing a prefix, with greedy and sampled parameters mixed."""
    rng = random.Random(7)
    shared = rng.choices(ORDINARY_IDS, k=40)
    prompts, params = [], []
    for index in range(count):
        own = rng.choices(ORDINARY_IDS, k=rng.randint(1, longest))
        prompts.append({"prompt_token_ids": shared + own[: longest - 40] if index % 4 == 0 else own})
        params.append(
            SamplingParams(
                temperature=(0.0, 0.8, 1.3)[index % 3],
                top_k=(0, 20)[index % 2],
                top_p=0.95,
                seed=index,
                max_tokens=max_tokens - index % 5,
                ignore_eos=True,
                logprobs=2,
            )
        )
    return prompts, params


def fingerprint(llm: LLM, prompts: Sequence[Any], params: Sequence[SamplingParams]) -> Fingerprint:
    """Token ids and logprobs, exactly."""
    found = []
    for output in llm.generate(list(prompts), list(params), use_tqdm=False):
        completion = output.outputs[0]
        assert completion.finish_reason == "length", completion.error
        assert completion.logprobs is not None
        numbers = [logprob.logprob for entry in completion.logprobs for logprob in entry.values()]
        found.append((tuple(completion.token_ids), tuple(numbers)))
    return found


def one_at_a_time(llm: LLM, prompts: Sequence[Any], params: Sequence[SamplingParams]) -> Fingerprint:
    return [fingerprint(llm, [prompt], [param])[0] for prompt, param in zip(prompts, params, strict=True)]


def test_sixty_four_at_once_equal_one_at_a_time() -> None:
    """On the starter model, with its throughput: batching must pay as well as change nothing."""
    prompts, params = requests(64, 120, 32)
    with LLM(**BASE, enable_prefix_caching=False) as llm:
        llm.generate(prompts[:2], params[:2], use_tqdm=False)
        before = llm.metrics()
        started = time.perf_counter()
        together = fingerprint(llm, prompts, params)
        batched_s = time.perf_counter() - started
        after = llm.metrics()
        started = time.perf_counter()
        alone = one_at_a_time(llm, prompts, params)
        serial_s = time.perf_counter() - started
    assert together == alone
    steps = after["decode_steps"] - before["decode_steps"]
    assert (after["decode_tokens"] - before["decode_tokens"]) / steps >= 8
    # bench/cpu/bench_engine.py measures the ratio (at least 2); a busy machine may not fail a test of equality.
    assert batched_s < serial_s


@pytest.mark.parametrize("model", MODELS)
def test_nothing_around_a_request_changes_it(model: str) -> None:
    """Budgets, block sizes, threads, prefix hits and a pool that is too small."""
    prompts, params = requests(10, 100, 20)
    base = {**BASE, **keywords(model)}
    with LLM(**base) as llm:
        golden = one_at_a_time(llm, prompts, params)
    variants: dict[str, dict[str, Any]] = {
        "budget-16": {"max_num_batched_tokens": 16},
        "budget-61": {"max_num_batched_tokens": 61},
        "mixed-5": {"max_num_mixed_prefill_tokens": 5},
        "budget-512": {"max_num_batched_tokens": 512},
        "block-16": {"block_size": 16},
        "block-64": {"block_size": 64, "max_num_batched_tokens": 61},
        "one-thread": {"num_threads": 1},
        "three-threads": {"num_threads": 3, "max_num_batched_tokens": 61},
        "no-prefix-cache": {"enable_prefix_caching": False},
        "two-at-a-time": {"max_num_seqs": 2},
    }
    for name, changes in variants.items():
        with LLM(**{**base, **changes}) as llm:
            assert fingerprint(llm, prompts, params) == golden, name
            again = llm.metrics()["prefix_hit_tokens"]
            assert fingerprint(llm, prompts, params) == golden, f"{name}, second time"
            hits = llm.metrics()["prefix_hit_tokens"] - again
            assert (hits > 0) == (name != "no-prefix-cache"), name


@pytest.mark.parametrize("model", MODELS)
def test_preemption_changes_nothing(model: str) -> None:
    """A pool so small that running requests lose their blocks and are recomputed."""
    prompts, params = requests(8, 90, 40)
    base = {**BASE, **keywords(model)}
    with LLM(**base) as llm:
        golden = one_at_a_time(llm, prompts, params)
    ten_blocks = pyrite.plan(**keywords(model), max_model_len=160, max_num_seqs=1, block_size=16).kv_bytes
    tight = {**base, "max_model_len": 144, "block_size": 16, "kv_cache_memory": ten_blocks}
    with LLM(**tight) as llm:
        assert fingerprint(llm, prompts, params) == golden
        metrics = llm.metrics()
        assert metrics["preemptions"] > 0
        assert metrics["group0_free"] + metrics["group0_cached"] == metrics["group0_total"]


class TestPlantedBreaches:
    """The comparison above, with one rule of the contract broken on purpose: it must fail."""

    def differs(self) -> bool:
        prompts, params = requests(8, 60, 16)
        with LLM(str(tiny("llama")), **BASE, enable_prefix_caching=False) as llm:
            return fingerprint(llm, prompts, params) != one_at_a_time(llm, prompts, params)

    def test_nothing_planted(self) -> None:
        assert not self.differs()

    def test_a_sum_split_by_load(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Partial sums whose number depends on how many sequences run: the last bit of some logits moves."""
        run = CpuBackend.run

        def split_by_load(self: CpuBackend, plan: Any) -> np.ndarray:
            logits = run(self, plan)
            parts = len(plan.seqs)
            return ((logits * np.float32(1 / parts)) * np.float32(parts)) if parts > 1 else logits

        monkeypatch.setattr(CpuBackend, "run", split_by_load)
        assert self.differs()

    def test_a_stream_of_random_numbers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Draws taken from one stream in order of execution instead of by position."""
        sample = CpuBackend.sample
        drawn = iter(range(1 << 30))

        def in_order(self: CpuBackend, logits: np.ndarray, wanted: Sequence[tuple[int, Any, int]]) -> Any:
            return sample(self, logits, [(row, sampler, next(drawn)) for row, sampler, _ in wanted])

        monkeypatch.setattr(CpuBackend, "sample", in_order)
        assert self.differs()
