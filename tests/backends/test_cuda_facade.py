"""`LLM(device="cuda")` from its keywords to its text, on CPU tensors in place of a GPU."""

from __future__ import annotations

import pyrite.memory
import pytest
import torch
from plans import Rig, prompt, reference_backend
from pyrite import LLM, SamplingParams
from quantizable import quantizable

FOLDER = {"name": "qwen3_tied", "num_hidden_layers": 1}
SIZES = {"max_model_len": 64, "max_num_seqs": 2, "max_num_batched_tokens": 24, "num_threads": 1}


@pytest.fixture(autouse=True)
def pretended_gpu(monkeypatch):
    monkeypatch.setattr(pyrite.memory, "resolve_device", lambda device: "cuda")
    monkeypatch.setattr(pyrite.memory, "free_device_bytes", lambda: 1 << 28)
    monkeypatch.setattr("pyrite.backends.cuda._torch_device", lambda name: torch.device("cpu"))


@pytest.mark.parametrize("scheme", [None, "int4"])
def test_tokens_are_those_of_the_reference(scheme):
    folder, ids = quantizable(**FOLDER), prompt(6)
    params = SamplingParams(temperature=0.0, max_tokens=3, logprobs=1, ignore_eos=True)
    with LLM(folder, device="cuda", quantization=scheme, **SIZES) as llm:
        got = llm.generate({"prompt_token_ids": ids}, params, use_tqdm=False)[0].outputs[0]
    with Rig(folder, reference_backend(folder, scheme)) as rig:
        expected = rig.generate([ids], temperature=0.0, max_tokens=3, logprobs=1)[0].outputs[0]
    assert got.token_ids == expected.token_ids and got.logprobs and expected.logprobs
    for ours, theirs in zip(got.logprobs, expected.logprobs, strict=True):
        assert {i: p.rank for i, p in ours.items()} == {i: p.rank for i, p in theirs.items()}
        assert [p.logprob for p in ours.values()] == pytest.approx([p.logprob for p in theirs.values()], abs=1e-4)


def test_the_receipt_sees_whole_rows():
    with LLM(quantizable(**FOLDER), device="cuda", quantization="int8", **SIZES) as llm:
        report = llm.quantization_report("the quick brown fox", window_tokens=6)
    assert 0 < report.kl_mean < 0.05 and report.num_tokens >= 4
