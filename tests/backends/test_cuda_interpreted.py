"""The whole CUDA backend on CPU tensors: logits and greedy tokens of `torch_ref`, padding, copies, and faults."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from plans import (
    BLOCK_SIZE,
    MAX_SEQS,
    MODELS,
    NUM_BLOCKS,
    BatchPlan,
    Rig,
    cuda_backend,
    program_of,
    prompt,
    reference_backend,
)
from pyrite.backends import cuda_kernels
from pyrite.backends.cuda_inputs import batch_buckets
from pyrite.backends.cuda_trial import run_double
from pyrite.errors import BackendError, CheckpointError, ConfigError, InternalError
from pyrite.models.fuse import fuse
from tiny_models import ORDINARY_IDS

TOLERANCE = 2e-4  # of logits with a standard deviation near 1, in f32


@pytest.fixture(params=MODELS)
def folder(request):
    return MODELS[request.param]()


def chunks_of(ids, sizes, num_groups, logits="all"):
    """Plans of one sequence in blocks 3, 2, 5, ... that are cut as `sizes` says."""
    start, blocks = 0, [3, 2, 5, 7, 1]
    for size in sizes:
        yield BatchPlan(
            [(start, ids[start : start + size], blocks[: -(-(start + size) // BLOCK_SIZE)])], num_groups, logits
        )
        start += size
    assert start == len(ids)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", TOLERANCE), ("float16", 0.1)])
def test_logits_agree_with_the_reference(folder, dtype, tolerance):
    ids, sizes, groups = prompt(22), [16, 1, 4, 1], len(program_of(folder).kv_groups)
    backend, reference = cuda_backend(folder, dtype=dtype, kv_dtype=dtype), reference_backend(folder)
    for plan in chunks_of(ids, sizes, groups):
        got, expected = backend.run(plan), reference.run(plan)
        assert got.shape == expected.shape and got.dtype == np.float32
        assert np.abs(got - expected).max() <= tolerance * max(1.0, np.abs(expected).max())


def test_greedy_tokens_agree_with_the_reference(folder):
    prompts = [prompt(n) for n in (1, 25)]  # the second in two chunks, and longer than the window
    answers = []
    for backend in (cuda_backend(folder), reference_backend(folder)):
        with Rig(folder, backend) as rig:
            answers.append([o.outputs[0].token_ids for o in rig.generate(prompts, temperature=0.0, max_tokens=4)])
            rig.scheduler.check()
    assert answers[0] == answers[1]
    assert all(len(ids) == 4 for ids in answers[0])


def test_all_fused_ops_are_in_use():
    programs = [cuda_backend(make()).program for make in MODELS.values()]
    used = {op.op for program in programs for op in program.ops}
    assert {"linear_glu", "linear_add", "qk_norm_rope_store", "add_rms_norm"} <= used


def test_ops_that_are_not_fused_run_too(folder, monkeypatch):
    monkeypatch.setattr("pyrite.backends.devices.CUDA_FUSED_OPS", ())
    ids, groups = prompt(5), len(program_of(folder).kv_groups)
    backend, reference = cuda_backend(folder), reference_backend(folder)
    assert backend.program == fuse(program_of(folder), ())
    for plan in chunks_of(ids, [4, 1], groups):
        assert np.abs(backend.run(plan) - reference.run(plan)).max() <= TOLERANCE


def test_a_row_does_not_depend_on_the_bucket(folder):
    """Three sequences decode in a bucket of four, then each alone."""
    groups, backend = len(program_of(folder).kv_groups), cuda_backend(folder)
    prompts = [prompt(3), prompt(5), prompt(1)]
    tables = [[4], [9], [1]]
    for ids, table in zip(prompts, tables, strict=True):
        assert backend.run(BatchPlan([(0, ids, table)], groups, "none")).shape == (0, 333)
    seqs = [(len(ids), [ids[0]], table) for ids, table in zip(prompts, tables, strict=True)]
    together = backend.run(BatchPlan(seqs, groups, "last")).copy()
    for seq, row in zip(seqs, together, strict=True):
        assert np.array_equal(backend.run(BatchPlan([seq], groups, "last"))[0], row)


def test_padding_stores_nothing(folder):
    groups, backend = len(program_of(folder).kv_groups), cuda_backend(folder)
    seqs = [(0, [7], [4]), (0, [8], [9]), (0, [9], [1])]
    backend.run(BatchPlan(seqs, groups, "last"))
    for pair in backend._executor.caches:
        for cache in pair:  # [layers, blocks, block_size, heads, head_dim]
            written = cache.abs().amax(dim=(0, 3, 4)) > 0
            assert written.nonzero().tolist() == [[1, 0], [4, 0], [9, 0]]


def test_blocks_are_copied_before_the_step():
    folder = MODELS["qwen3"]()
    groups, ids = len(program_of(folder).kv_groups), prompt(20)
    backend = cuda_backend(folder)
    backend.run(BatchPlan([(0, ids, [3, 5])], groups, "none"))
    expected = backend.run(BatchPlan([(20, [11], [3, 5])], groups, "last")).copy()
    backend.run(BatchPlan([(0, prompt(9), [8])], groups, "none"))
    plan = BatchPlan([(20, [11], [3, 8])], groups, "last")
    plan.copies = [(5, 8)]
    assert np.array_equal(backend.run(plan), expected)


def test_sampled_tokens_do_not_depend_on_the_batch():
    folder, prompts = MODELS["qwen3"](), [prompt(n) for n in (3, 18)]
    with Rig(folder, cuda_backend(folder)) as rig:
        params = {"seed": 5, "max_tokens": 3}
        together = rig.generate(prompts, **params)
        for ids, output in zip(prompts, together, strict=True):
            assert rig.generate([ids], **params)[0].outputs[0].token_ids == output.outputs[0].token_ids


def wrong_plans():
    def wrong(name, **changes):
        plan = BatchPlan([(0, [5, 6], [2]), (3, [7], [4])], 1, "last")
        for key, value in changes.items():
            setattr(plan, key, np.array(value, getattr(plan, key).dtype))
        return pytest.param(plan, id=name)

    yield wrong("slot", slots=[32, NUM_BLOCKS * BLOCK_SIZE, 67])
    yield wrong("negative_slot", slots=[32, -2, 67])
    yield wrong("block", table=[[NUM_BLOCKS], [4]])
    yield wrong("no_block", table=[[-1], [4]])
    yield wrong("row", logit_rows=[1, 3])
    yield wrong("id", token_ids=[5, 333, 7])
    yield wrong("negative_id", token_ids=[5, -1, 7])
    yield wrong("starts", cu_seqlens_q=[0, 2, 4])
    yield wrong("positions", positions=[0, 1, 4])
    yield wrong("lengths", seq_lens=[2, 200])
    yield wrong("fewer_positions", positions=[0, 1])


@pytest.mark.parametrize("plan", list(wrong_plans()))
def test_a_wrong_plan_runs_nothing(plan):
    backend = cuda_backend(MODELS["llama"]())
    with pytest.raises(InternalError):
        backend.run(plan)
    assert not any(cache.any() for pair in backend._executor.caches for cache in pair)


def test_too_large_a_step():
    backend = cuda_backend(MODELS["llama"](), max_tokens=4)
    with pytest.raises(InternalError, match="too large in T"):
        backend.run(BatchPlan([(0, [5] * 5, [2])], 1, "last"))


def test_a_failing_kernel_ends_the_requests_of_its_step(monkeypatch):
    folder = MODELS["llama"]()
    with Rig(folder, cuda_backend(folder)) as rig:
        golden = rig.generate([prompt(5)], temperature=0.0, max_tokens=4)[0].outputs[0].token_ids
        with monkeypatch.context() as patch:
            patch.setattr(cuda_kernels, "matmul_glu", broken_kernel)
            for output in rig.generate([prompt(5), prompt(6)], temperature=0.0, max_tokens=4):
                assert output.outputs[0].finish_reason == "error"
                assert "BackendError: a kernel failed: got RuntimeError: no luck" in output.outputs[0].error
        assert rig.generate([prompt(5)], temperature=0.0, max_tokens=4)[0].outputs[0].token_ids == golden
        rig.scheduler.check()


def broken_kernel(*args, **keywords):
    raise RuntimeError("no luck")


def test_out_of_memory_in_a_step(monkeypatch):
    backend, plan = cuda_backend(MODELS["llama"]()), BatchPlan([(0, [5], [2])], 1, "last")

    def full(*args, **keywords):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate much")

    monkeypatch.setattr(cuda_kernels, "matmul", full)
    with pytest.raises(BackendError, match="kv_cache_memory") as caught:
        backend.run(plan)
    assert caught.value.code == "out_of_device_memory"
    monkeypatch.undo()
    assert np.isfinite(backend.run(plan)).all()


def test_a_lost_device_stays_lost(monkeypatch):
    """As after an illegal address: the kernel's error is followed by errors of everything."""
    folder = MODELS["llama"]()
    backend = cuda_backend(folder)
    plan = BatchPlan([(0, [5], [2])], 1, "last")
    monkeypatch.setattr(cuda_kernels, "matmul", broken_kernel)
    monkeypatch.setattr(backend, "_wait", broken_kernel)
    for _ in range(2):
        with pytest.raises(BackendError, match="lost to this process") as caught:
            backend.run(plan)
        assert caught.value.code == "device_lost" and caught.value.hint
        monkeypatch.undo()
    backend.close()
    assert cuda_backend(folder).run(plan).shape == (1, 333)


def test_closed():
    backend = cuda_backend(MODELS["llama"]())
    backend.close()
    backend.close()
    for call in (lambda: backend.run(BatchPlan([(0, [5], [2])], 1, "last")), backend.info):
        with pytest.raises(BackendError, match="closed"):
            call()


def test_info():
    backend = cuda_backend(MODELS["qwen3"](), dtype="float16", kv_dtype="float16")
    info = backend.info()
    assert info["num_graphs"] == 0 and info["device"] == "cpu tensors"
    assert info["kv_bytes"] == sum(
        2 * 2 * g.num_layers * NUM_BLOCKS * BLOCK_SIZE * 2 * 24 for g in backend.program.kv_groups
    )
    assert info["scratch_bytes"] == backend.program.scratch_bytes(max_tokens=24, max_rows=24, itemsize=2)


def test_missing_tensor(monkeypatch):
    monkeypatch.setattr("pyrite.weights.reader.Weights.tensors", lambda self: {})
    with pytest.raises(CheckpointError, match="tensor is missing"):
        cuda_backend(MODELS["llama"]())


def test_unknown_dtype():
    with pytest.raises(ConfigError, match="unknown dtype"):
        cuda_backend(MODELS["llama"](), dtype="int3")


def test_keys_of_another_dtype():
    with pytest.raises(ConfigError, match="dtype of the matrices") as caught:
        cuda_backend(MODELS["llama"](), kv_dtype="float16")
    assert caught.value.field == "kv_cache_dtype"


@pytest.mark.parametrize(("most", "expected"), [(1, [1]), (2, [1, 2]), (5, [1, 2, 4, 5]), (16, [1, 2, 4, 8, 16])])
def test_buckets(most, expected):
    assert batch_buckets(most) == expected


def test_progress_counts_every_byte():
    seen = []
    backend = cuda_backend(MODELS["llama"](), progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] == backend.info()["weight_bytes"]
    assert seen == sorted(seen) and len({total for _, total in seen}) == 1


def test_trial_kernel():
    run_double(torch.device("cpu"))


def test_more_sequences_than_run_together():
    folder = MODELS["llama"]()
    with Rig(folder, cuda_backend(folder)) as rig:
        outputs = rig.generate([prompt(n) for n in range(1, MAX_SEQS + 4)], temperature=0.0, max_tokens=3)
    assert [len(output.outputs[0].token_ids) for output in outputs] == [3] * (MAX_SEQS + 3)


@pytest.mark.parametrize("count", [5, 256])
def test_candidates_are_the_best_of_each_row(count):
    folder, limit = MODELS["muse_glimmer"](), ORDINARY_IDS.stop
    backend = cuda_backend(folder, num_candidates=count)
    groups = len(backend.program.kv_groups)
    plan = BatchPlan([(0, [7, 8], [4]), (0, [9], [1])], groups, "all")
    found = backend.run_candidates(plan, limit)
    whole = backend.logits(range(3)).copy()
    best = np.argsort(-whole[:, :limit], axis=1, kind="stable")[:, :count]
    assert found.ids.tolist() == best.tolist() and found.num_tokens == limit
    assert np.array_equal(found.logits, np.take_along_axis(whole, best, axis=1))
    assert np.allclose(found.lse, np.log(np.exp(whole[:, :limit]).sum(axis=1)), atol=1e-5)
    assert np.array_equal(backend.logits([2, 0]), whole[[2, 0]])
    assert np.array_equal(backend.run(plan), whole)
    with pytest.raises(InternalError, match="no such row"):
        backend.logits([3])


class WholeRows:
    """A backend that hides what it can pick."""

    def __init__(self, backend):
        self.run, self.close = backend.run, backend.close


def test_tokens_drawn_from_candidates_are_those_of_whole_rows():
    folder, answers = MODELS["llama"](), []
    kinds = [
        {"temperature": 0.0},
        {"top_k": 4},
        {"top_p": 0.3, "temperature": 0.5},
        {"top_p": 0.95, "temperature": 2.0},
    ]
    for wrap in (lambda backend: backend, WholeRows):
        with Rig(folder, wrap(cuda_backend(folder, num_candidates=16))) as rig:
            outputs = [rig.generate([prompt(2)], seed=5, max_tokens=3, **kind)[0].outputs[0] for kind in kinds]
            answers.append([output.token_ids for output in outputs])
    assert answers[0] == answers[1]
