"""The receipt of a quantization: its arithmetic, its run on two engines, and what it refuses."""

from __future__ import annotations

import json
import math
import threading

import numpy as np
import pyrite.memory
import pyrite.receipt
import pytest
from pyrite import LLM, BackendError, CapacityError, ConfigError, QuantizationReport, RequestError, SamplingParams
from pyrite.receipt import compare, cut_windows
from quantizable import quantizable
from tiny_models import ORDINARY_IDS

SMALL = {"max_model_len": 128, "max_num_seqs": 4, "num_threads": 2}


def softmax(rows: np.ndarray) -> np.ndarray:
    e = np.exp(rows.astype(np.float64))
    return e / e.sum(-1, keepdims=True)


def test_the_numbers_are_their_definitions() -> None:
    rng = np.random.default_rng(1)
    windows = [[3, 1, 4, 1, 5, 0], list(rng.integers(0, 6, 40))]
    p = [rng.normal(0, 2, (len(ids) - 1, 6)).astype(np.float32) for ids in windows]
    q = [rows + rng.normal(0, 0.3, rows.shape).astype(np.float32) for rows in p]
    found = compare(lambda ids: q[windows.index(ids)], lambda ids: p[windows.index(ids)], windows)
    all_p, all_q = softmax(np.concatenate(p)), softmax(np.concatenate(q))
    kl = (all_p * np.log(all_p / all_q)).sum(-1)
    following = np.concatenate([ids[1:] for ids in windows])
    rows = np.arange(len(following))
    assert found.num_tokens == 5 + 39
    assert found.kl_mean == pytest.approx(kl.mean()) and found.kl_max == pytest.approx(kl.max())
    assert found.same_top == (all_p.argmax(-1) == all_q.argmax(-1)).mean() < 1
    assert found.perplexity == pytest.approx(math.exp(-np.log(all_q[rows, following]).mean()))
    assert found.float_perplexity == pytest.approx(math.exp(-np.log(all_p[rows, following]).mean()))


def test_a_model_equals_itself() -> None:
    rows = np.random.default_rng(2).normal(0, 5, (30, 9)).astype(np.float32)
    found = compare(lambda ids: rows, lambda ids: rows, [[1] * 31])
    assert (found.kl_mean, found.kl_max, found.same_top) == (0.0, 0.0, 1.0)
    assert found.perplexity == found.float_perplexity


def test_logits_that_are_not_finite_are_an_error() -> None:
    good, bad = np.zeros((3, 5), np.float32), np.full((3, 5), np.nan, np.float32)
    for pair in ((good, bad), (bad, good)):
        with pytest.raises(BackendError, match="NaN"):
            compare(lambda ids, q=pair[0]: q, lambda ids, p=pair[1]: p, [[0, 1, 2, 3]])


def test_windows() -> None:
    assert cut_windows([1, 2, 3, 4, 5], [], 2) == [[1, 2], [3, 4]]
    assert cut_windows([1, 2, 3, 4, 5], [0], 3) == [[0, 1, 2], [0, 3, 4], [0, 5]]
    assert cut_windows([1, 2], [0], 100) == [[0, 1, 2]]
    for ids, prefix, size in (([], [], 9), ([1], [], 9), ([], [0], 9), ([1, 2], [0], 1)):
        with pytest.raises(RequestError, match="too short"):
            cut_windows(ids, prefix, size)


@pytest.fixture(scope="module")
def reports() -> dict[str, QuantizationReport]:
    found = {}
    for name in ("int8", "int4", "int4_g64_asym"):
        with LLM(quantizable("qwen3_tied"), quantization=name, **SMALL) as llm:
            found[name] = llm.quantization_report()
    return found


def test_more_bits_cost_less(reports: dict[str, QuantizationReport]) -> None:
    assert 0 < reports["int8"].kl_mean < 0.1 * reports["int4"].kl_mean
    assert reports["int8"].same_top > reports["int4"].same_top > 0.2
    assert len({report.float_perplexity for report in reports.values()}) == 1
    assert all(report.kl_max >= report.kl_mean and report.num_tokens > 300 for report in reports.values())


def test_bits_are_those_of_the_bytes(reports: dict[str, QuantizationReport]) -> None:
    for name, low, high in (
        ("int8", 8.2, 8.6),
        ("int4", 4.65, 5.55),
        ("int4_g64_asym", 4.8, 5.6),
    ):  # the tied head has 8 bits
        report = reports[name]
        assert low < report.bits_per_weight < high
        assert report.bits_per_weight == 8 * report.weight_bytes / report.num_parameters
        assert report.float_bits_per_weight > 32


def test_it_reads_well_and_travels(reports: dict[str, QuantizationReport]) -> None:
    report = reports["int4"]
    assert json.loads(json.dumps(report.to_dict())) == report.to_dict()
    text = str(report)
    assert text.startswith(f"int4 against the float model, {report.num_tokens} tokens\n")
    for part in ("KL(float || int4): mean", "same top token:", "perplexity:", "bits per weight:"):
        assert part in text


def test_the_report_does_not_depend_on_what_runs_beside(reports: dict[str, QuantizationReport]) -> None:
    threads = threading.active_count()
    with LLM(quantizable("qwen3_tied"), quantization="int4", **SMALL) as llm:
        stream = llm.stream({"prompt_token_ids": [5, 6, 7]}, SamplingParams(max_tokens=100, ignore_eos=True))
        assert llm.quantization_report() == reports["int4"]
        assert len(list(stream)) > 0
        metrics = llm.metrics()
        assert metrics["group0_free"] + metrics["group0_cached"] == metrics["group0_total"]
    assert threading.active_count() == threads


def test_token_ids_and_short_windows() -> None:
    ids = np.random.default_rng(5).choice(ORDINARY_IDS, 50).tolist()
    with LLM(quantizable("llama"), quantization="int8", **SMALL) as llm:
        assert llm.quantization_report(ids, window_tokens=20).num_tokens == 19 + 19 + 9
        assert llm.quantization_report(ids, window_tokens=60000).num_tokens == 49


def test_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with LLM(quantizable("llama"), **SMALL) as llm, pytest.raises(RequestError, match="not quantized"):
        llm.quantization_report()
    with LLM(quantizable("llama"), quantization="int4", **SMALL) as llm:
        for bad in ("", [], [5], [5, -1], [5, 10**9], [5, 332], [5, "a"], 7, b"ab"):
            with pytest.raises(RequestError):
                llm.quantization_report(bad)
        for bad in (1, 0, True, 2.5, None, 10**9):
            with pytest.raises(RequestError, match="window"):
                llm.quantization_report(window_tokens=bad)
        with monkeypatch.context() as patched, pytest.raises(CapacityError, match="beside the quantized one"):
            patched.setattr(pyrite.memory, "free_memory_bytes", lambda: 100_000)
            llm.quantization_report()
        with monkeypatch.context() as patched, pytest.raises(CapacityError, match="lower window_tokens"):
            patched.setattr(pyrite.receipt, "free_memory_bytes", lambda: 3_000_000)
            llm.quantization_report()
        assert llm.quantization_report([5, 6, 7]).num_tokens == 2  # still usable
    with pytest.raises(BackendError, match="closed"):
        llm.quantization_report([5, 6, 7])


def test_a_text_needs_a_tokenizer(tmp_path) -> None:
    for path in quantizable("llama").iterdir():
        if "token" not in path.name and "template" not in path.name:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with LLM(tmp_path, quantization="int4", **SMALL) as llm:
        with pytest.raises(ConfigError, match="tokenizer"):
            llm.quantization_report()
        assert llm.quantization_report([5, 6, 7]).num_tokens == 2
