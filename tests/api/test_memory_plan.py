"""Sizing: every group holds the same tokens, nothing goes over budget, one sequence always fits."""

from __future__ import annotations

from types import SimpleNamespace

import pyrite.memory
import pytest
from pyrite.errors import CapacityError, ConfigError
from pyrite.memory import plan_memory
from pyrite.models.program import Buffer, KvGroup, Parameter, Program, Slot, View
from pyrite.settings import EngineConfig

FULL = KvGroup(window=None, num_layers=2, num_kv_heads=2, head_dim=8)
WINDOWED = KvGroup(window=100, num_layers=6, num_kv_heads=2, head_dim=8)
FULL_TOKEN_BYTES = 2 * 2 * 2 * (8 * 2 + 4)
PADDED = 64 * 16 + 32 * 16
"""Weights of the two matrices below, their rows padded to panels of 32."""


def opened(groups=(FULL,), dtype="BF16", longest=1024):
    program = Program(
        vocab_size=50,
        buffers=(Buffer("x", "T", 16, 0),),
        parameters=(
            Parameter("embedding", "matrix", (50, 16), ("embed",)),
            Parameter("qkv", "matrix", (24, 16), ("q", "k"), (16, 8)),
            Parameter("norm", "vector", (16,), ("norm",)),
        ),
        rope_tables=(),
        kv_groups=tuple(groups),
        ops=(),
        logits=View(0, 0, 16),
        slots=(Slot("T", 16), Slot("R", 50)),
    )
    tensors = {"embed": (dtype, (50, 16)), "q": (dtype, (16, 16)), "k": (dtype, (8, 16)), "norm": (dtype, (16,))}
    return SimpleNamespace(
        program=program,
        weights=SimpleNamespace(tensors=lambda: tensors),
        config=SimpleNamespace(architecture="Toy", max_position_embeddings=longest),
        kept_float=(),
    )


@pytest.fixture(autouse=True)
def free_memory(monkeypatch):
    """A machine with 1 GiB free, whatever runs beside."""
    monkeypatch.setattr(pyrite.memory, "free_memory_bytes", lambda: 1 << 30)


def test_counts_bytes_and_parameters():
    plan = plan_memory(opened(), EngineConfig(max_num_batched_tokens=100, max_num_seqs=4))
    assert plan.num_parameters == 50 * 16 + 24 * 16 + 16
    assert plan.weight_bytes == 2 * PADDED + 4 * 16
    assert plan.scratch_bytes == 4 * (100 * 16 + 64 * 50)
    assert plan.logits_bytes == 4 * 64 * 50
    assert plan.total_bytes == plan.weight_bytes + plan.kv_bytes + plan.scratch_bytes + plan.logits_bytes
    assert plan.to_dict()["total_bytes"] == plan.total_bytes


@pytest.mark.parametrize(
    ("stored", "dtype", "kv_cache_dtype", "expected", "itemsize"),
    [
        ("BF16", "auto", "auto", "int16", 2),
        ("F16", "auto", "auto", "int16", 2),
        ("F32", "auto", "auto", "float32", 4),
        ("F16", "auto", "float32", "float32", 2),
        ("BF16", "float32", "auto", "float32", 4),
        ("F32", "float16", "auto", "int16", 2),
        ("F32", "float16", "bfloat16", "bfloat16", 2),
    ],
)
def test_dtypes(stored, dtype, kv_cache_dtype, expected, itemsize):
    plan = plan_memory(opened(dtype=stored), EngineConfig(dtype=dtype, kv_cache_dtype=kv_cache_dtype))
    assert plan.kv_cache_dtype == expected
    assert plan.weight_bytes == itemsize * PADDED + 4 * 16


def test_takes_what_all_sequences_need_and_no_more():
    plan = plan_memory(opened(), EngineConfig(max_num_seqs=4))
    assert plan.max_model_len == 1024 and plan.capacity_tokens == 4 * 1024
    assert plan.kv_groups[0].num_blocks == 4 * 1024 // 128
    assert plan.kv_bytes == 4 * 1024 * FULL_TOKEN_BYTES


def test_takes_at_most_half_of_the_free_memory(monkeypatch):
    monkeypatch.setattr(pyrite.memory, "free_memory_bytes", lambda: 400_000)
    plan = plan_memory(opened(), EngineConfig(max_num_seqs=64, max_num_batched_tokens=64))
    rest = plan.weight_bytes + plan.scratch_bytes + plan.logits_bytes
    assert plan.kv_bytes <= (400_000 - rest) // 2 < plan.kv_bytes + plan.kv_groups[0].block_bytes


@pytest.mark.parametrize("block_size", [16, 32, 256])
@pytest.mark.parametrize("budget_blocks", [10, 33, 57])
def test_budget_is_kept_over_several_groups(block_size, budget_blocks):
    config = EngineConfig(
        kv_cache_memory=budget_blocks * block_size * 4 * FULL_TOKEN_BYTES, block_size=block_size, max_num_seqs=2
    )
    plan = plan_memory(opened((WINDOWED, FULL)), config)
    assert plan.kv_bytes <= (config.kv_cache_memory or 0)
    windowed, full = plan.kv_groups
    assert full.num_blocks * block_size == plan.capacity_tokens >= plan.max_model_len
    assert windowed.num_blocks <= full.num_blocks
    most = 2 * (-(-99 // block_size) + 2) + -(-512 // block_size)
    assert windowed.num_blocks == min(full.num_blocks, most)


def test_default_context_shrinks_with_a_warning(caplog):
    plan = plan_memory(opened(), EngineConfig(kv_cache_memory=100 * FULL_TOKEN_BYTES, block_size=32))
    assert plan.max_model_len == plan.capacity_tokens == 96
    assert "shrinks from 1024 to 96" in caplog.text


def test_explicit_context_that_cannot_fit():
    with pytest.raises(CapacityError, match="one sequence"):
        plan_memory(opened(), EngineConfig(kv_cache_memory=100 * FULL_TOKEN_BYTES, max_model_len=97, block_size=32))
    assert plan_memory(opened(), EngineConfig(kv_cache_memory=100 * FULL_TOKEN_BYTES, max_model_len=96, block_size=32))


def test_not_even_one_block():
    with pytest.raises(CapacityError, match=f"expected {128 * FULL_TOKEN_BYTES} bytes"):
        plan_memory(opened(), EngineConfig(kv_cache_memory=1))


def test_longer_than_the_model():
    with pytest.raises(ConfigError, match="at most 1024"):
        plan_memory(opened(), EngineConfig(max_model_len=1025))


def test_more_than_is_free():
    with pytest.raises(CapacityError, match="free"):
        plan_memory(opened(), EngineConfig(kv_cache_memory=1 << 31))


def test_model_larger_than_memory(monkeypatch):
    monkeypatch.setattr(pyrite.memory, "free_memory_bytes", lambda: 1000)
    with pytest.raises(CapacityError, match="does not fit"):
        plan_memory(opened(), EngineConfig())
