"""`LLM(quantization=...)` on the CPU from end to end: tokens, memory, what stays float, and what is refused."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyrite
import pytest
import torch
from pyrite import LLM, CheckpointError, ConfigError, SamplingParams, _core
from pyrite.backends.cpu import CpuBackend
from pyrite.backends.devices import cuda_quantized_bytes
from pyrite.backends.torch_ref import run_sequence
from pyrite.memory import open_for
from pyrite.settings import EngineConfig
from pyrite.weights.reader import Weights
from quantizable import QUANTIZABLE, quantizable
from safetensors.torch import load_file, save_file
from tiny_models import ORDINARY_IDS, SafetensorsSource

SMALL = {"max_model_len": 96, "max_num_seqs": 4, "num_threads": 2}
GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
NEAR_TIE = 0.1
"""Where a code of an activation rounds the other way, see test_quantized_models.py. Measured: at most 0.052."""


def prompts(count: int = 4) -> list[dict[str, list[int]]]:
    rng = np.random.default_rng(3)
    return [{"prompt_token_ids": rng.choice(ORDINARY_IDS, 3 + 5 * index).tolist()} for index in range(count)]


def generate(folder: Path, **settings: object) -> list[list[int]]:
    with LLM(folder, **{**SMALL, **settings}) as llm:
        return [output.outputs[0].token_ids for output in llm.generate(prompts(), GREEDY, use_tqdm=False)]


@pytest.mark.parametrize("name", QUANTIZABLE)
@pytest.mark.parametrize("quantization", ["int4", "int8"])
def test_greedy_tokens_are_the_oracles(name: str, quantization: str) -> None:
    """Each drawn token is the oracle's own choice after what came before it; near ties may go either way."""
    folder = quantizable(name)
    program = open_for(folder, EngineConfig(quantization=quantization)).program
    weights = Weights(SafetensorsSource(folder))
    others = 0
    for prompt, drawn in zip(prompts(), generate(folder, quantization=quantization), strict=True):
        ids = prompt["prompt_token_ids"]
        logits = run_sequence(program, weights, [*ids, *drawn[:-1]])[len(ids) - 1 :, : ORDINARY_IDS.stop]
        for row, token_id in zip(logits, drawn, strict=True):
            assert row.max() - row[token_id] <= NEAR_TIE
            others += row.argmax() != token_id
    assert others <= 3  # of 48; measured: at most 2


def test_a_quantized_model_is_another_model() -> None:
    folder = quantizable("llama")
    assert generate(folder) != generate(folder, quantization="int4")


@pytest.mark.parametrize("isa", _core.cpu_info()["isa_levels"])
def test_every_instruction_level_gives_the_same_tokens(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = quantizable("qwen3_tied")
    golden = generate(folder, quantization="int4")
    monkeypatch.setenv("PYRITE_CPU_ISA", isa)
    assert generate(folder, quantization="int4") == golden


@pytest.mark.parametrize("name", QUANTIZABLE)
@pytest.mark.parametrize(
    "settings",
    [
        {"quantization": "int4"},
        {"quantization": "int8_g128"},
        {"quantization": "int4_g64_asym_head4"},
        {"quantization": "int4", "dtype": "bfloat16"},
        {},
    ],
    ids=str,
)
def test_the_plan_has_the_bytes_of_the_executor(name: str, settings: dict[str, str]) -> None:
    folder = quantizable(name)
    plan = pyrite.plan(folder, **SMALL, **settings)
    backend = CpuBackend(
        open_for(folder, EngineConfig(**settings)).program,
        _core.open_checkpoint(str(folder)),
        block_size=32,
        num_blocks=[group.num_blocks for group in plan.kv_groups],
        max_tokens=512,
        max_rows=64,
        max_seqs=4,
        kv_dtype=plan.kv_cache_dtype,
        weight_dtype=settings.get("dtype"),
    )
    assert backend.info()["weight_bytes"] == plan.weight_bytes
    assert plan.quantization == settings.get("quantization")
    assert bool(plan.kept_float) == (plan.quantization is not None and any_kept(name, plan.quantization))
    backend.close()


def any_kept(name: str, quantization: str) -> bool:
    return name.endswith("uneven") or "g128" in quantization


def test_matrices_that_do_not_divide_stay_float_with_one_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "pyrite"), LLM(quantizable("qwen3_uneven"), quantization="int4", **SMALL):
        pass
    lines = [record.getMessage() for record in caplog.records if "stay float" in record.getMessage()]
    assert lines == [
        "int4: inputs do not divide into groups, these stay float: 3 layers.*.down: 80 inputs, groups of 32"
    ]


@pytest.fixture
def poisoned(tmp_path: Path) -> Iterator[Path]:
    """A function of a value: a folder whose layers.1 down matrix holds it."""
    source = quantizable("llama")

    def make(value: float, tensor: str) -> Path:
        for path in source.iterdir():
            if path.suffix != ".safetensors":
                (tmp_path / path.name).write_bytes(path.read_bytes())
        tensors = load_file(source / "model.safetensors")
        tensors[tensor].view(-1)[77] = value
        save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
        return tmp_path

    return make


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("tensor", ["model.layers.1.mlp.up_proj.weight", "lm_head.weight"])
def test_weights_that_are_not_finite_name_their_tensor(poisoned, value: float, tensor: str) -> None:
    folder = poisoned(value, tensor)
    threads = threading.active_count()
    with pytest.raises(CheckpointError) as caught:
        LLM(folder, quantization="int4", **SMALL)
    assert (caught.value.code, caught.value.field) == ("not_finite", tensor)
    assert threading.active_count() == threads
    assert generate(quantizable("llama"), quantization="int4")  # the process goes on


def test_unknown_names_are_refused_before_anything_is_read() -> None:
    with pytest.raises(ConfigError, match="int4_g128_asym_head4") as caught:
        LLM("/no/such/folder", quantization="int5")
    assert caught.value.field == "quantization"


def test_the_plan_of_a_gpu_counts_its_own_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyrite.memory, "resolve_device", lambda device: "cuda")
    monkeypatch.setattr(pyrite.memory, "free_device_bytes", lambda: 1 << 30)
    folder = quantizable("qwen3_tied")
    program = open_for(folder, EngineConfig(quantization="int4")).program
    expected = 0
    for parameter in program.parameters:
        size = 4 * int(np.prod(parameter.shape))
        expected += size if parameter.quant is None else cuda_quantized_bytes(parameter.quant, *parameter.shape)
    assert pyrite.plan(folder, quantization="int4").weight_bytes == expected
