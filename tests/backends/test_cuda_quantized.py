"""Integer weights on the CUDA backend, on CPU tensors: tokens and logits of `torch_ref`, bytes, parts of a load."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from plans import BatchPlan, Rig, cuda_backend, program_of, prompt, reference_backend
from pyrite.backends import cuda_weights
from pyrite.backends.cuda_weights import load_parameters
from pyrite.backends.devices import cuda_quantized_bytes
from pyrite.models.program import Linear, LinearGlu
from pyrite.quant.scheme import QuantScheme
from pyrite.weights.reader import open_weights
from pyrite_kernels import QuantizedWeight
from quantizable import quantizable

TOLERANCE = 2e-4
LAYERS = {"llama": 1, "qwen3_tied": 2, "qwen3_uneven": 1, "muse_glimmer": 4}


def folder_of(name: str):
    return quantizable(name, num_hidden_layers=LAYERS[name])


@pytest.mark.parametrize("scheme", ["int4", "int8"])
@pytest.mark.parametrize("name", ["llama", "qwen3_tied", "muse_glimmer"])
def test_greedy_tokens_agree_with_the_reference(name, scheme):
    folder, prompts, answers = folder_of(name), [prompt(1), prompt(18)], []
    for backend in (cuda_backend(folder, scheme), reference_backend(folder, scheme)):
        with Rig(folder, backend) as rig:
            answers.append([o.outputs[0].token_ids for o in rig.generate(prompts, temperature=0.0, max_tokens=3)])
    assert answers[0] == answers[1]
    assert all(len(ids) == 3 for ids in answers[0])


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", TOLERANCE), ("float16", 0.1)])
@pytest.mark.parametrize(("name", "scheme"), [("qwen3_uneven", "int4_g64_asym"), ("qwen3_tied", "int4_g128_head4")])
def test_logits_agree_with_the_reference(name, scheme, dtype, tolerance):
    folder = folder_of(name)
    backend, reference = cuda_backend(folder, scheme, dtype=dtype, kv_dtype=dtype), reference_backend(folder, scheme)
    groups = len(backend.program.kv_groups)
    for plan in (BatchPlan([(0, prompt(5), [3])], groups, "all"), BatchPlan([(5, [11], [3])], groups, "last")):
        got, expected = backend.run(plan), reference.run(plan)
        assert np.abs(got - expected).max() <= tolerance * max(1.0, np.abs(expected).max())


def test_a_glu_of_integers_is_a_linear_and_a_glu():
    ops = cuda_backend(folder_of("llama"), "int4").program.ops
    assert not any(isinstance(op, LinearGlu) for op in ops)
    assert sum(isinstance(op, Linear) for op in ops) == 3  # q/k/v, gate/up, head


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", [(1, 128), (64, 256), (130, 1152), (333, 384)])
def test_bytes_with_padding(bits, shape):
    weight = QuantizedWeight.quantize(torch.ones(shape), bits=bits, group_size=128, symmetric=True)
    assert weight.nbytes == cuda_quantized_bytes(QuantScheme("", bits, 128, True), *shape)


@pytest.mark.parametrize("group_size", [32, 64])
def test_bytes_of_groups_that_only_padding_fills(group_size):
    weight = QuantizedWeight.quantize(torch.ones(65, 192), bits=4, group_size=group_size, symmetric=False)
    assert weight.nbytes == cuda_quantized_bytes(QuantScheme("", 4, group_size, False), 65, 192)


def test_progress_counts_every_byte():
    seen = []
    backend = cuda_backend(folder_of("qwen3_tied"), "int4", progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] == backend.info()["weight_bytes"]


def test_rows_loaded_in_parts_are_those_of_the_whole(monkeypatch):
    folder = folder_of("qwen3_tied")
    program, weights = program_of(folder, "int4"), open_weights(folder)
    options = {"dtype": torch.float32, "device": torch.device("cpu")}
    whole = load_parameters(program, weights, **options)
    monkeypatch.setattr(cuda_weights, "_CODES_AT_ONCE", 1)
    parts = load_parameters(program, weights, num_threads=2, **options)
    integers = [name for name, value in whole.items() if isinstance(value, QuantizedWeight)]
    assert len(integers) == 9  # four of each layer, and the head
    for name in integers:
        assert torch.equal(whole[name].words, parts[name].words) and whole[name].shape == parts[name].shape
        assert torch.equal(whole[name].params, parts[name].params)
