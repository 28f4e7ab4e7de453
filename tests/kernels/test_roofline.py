"""Costs counted by hand or by brute force, the timer without a GPU, and what roofs make of both."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyrite_kernels import roofline
from pyrite_kernels.roofline import (
    Cost,
    Roofs,
    Timing,
    attention_cost,
    grouped_cost,
    matmul_cost,
    measure_roofs,
    quantized_bytes,
    rotations,
    take_turns,
    tensors_cost,
)

HEADS = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 8, "itemsize": 2, "kv_itemsize": 1}


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(0, 40)), min_size=1, max_size=4), st.none() | st.integers(1, 50)
)
def test_attention_counts_the_pairs_that_are_seen(sequences, window):
    sequences = [(length, min(length, new)) for length, new in sequences]
    pairs, keys = 0, 0
    for length, new in sequences:
        seen = [
            {key for key in range(p + 1) if window is None or key > p - window} for p in range(length - new, length)
        ]
        pairs += sum(map(len, seen))
        keys += len(set().union(*seen))
    queries = sum(new for _, new in sequences)
    expected = Cost(2 * keys * 2 * 8 * 1 + 2 * queries * 4 * 8 * 2, 4 * pairs * 4 * 8)
    assert attention_cost(sequences, window=window, **HEADS) == expected


def test_products():
    assert matmul_cost(3, 5, 7, itemsize=2) == Cost(2 * (5 * 7 + 3 * 7 + 3 * 5), 2 * 3 * 5 * 7)
    assert matmul_cost(3, 6, 7, itemsize=2, out_columns=3).bytes == 2 * (6 * 7 + 3 * 7 + 3 * 3)
    assert matmul_cost(3, 5, 7, itemsize=2, residual=True, out_itemsize=4).bytes == 2 * (35 + 21) + 2 * 15 * 4
    weight = quantized_bytes(64, 128, 4, 32)
    assert weight == 64 * 128 // 2 + 64 * 4 * 4
    assert matmul_cost(1, 64, 128, itemsize=2, weight_bytes=weight).bytes == weight + 2 * (128 + 64)


def test_experts_without_rows_are_not_read():
    assert grouped_cost([2, 0, 1], 5, 7, itemsize=2) == Cost(2 * (2 * 35 + 3 * 12), 2 * 3 * 35)
    assert grouped_cost([0, 0, 3], 5, 7, itemsize=2, expert_bytes=11).bytes == 11 + 2 * 3 * 12


def test_costs_add_up():
    x = torch.zeros(3, 4, dtype=torch.float16)
    assert tensors_cost(x, None, x) == Cost(48)
    assert Cost(1, 2) + Cost(3, 4) == Cost(4, 6)


def test_the_nearer_roof_bounds():
    roofs = Roofs(100.0, {"bf16": 10.0}, {"fp8": "no"})
    moving, computing = Cost(10**6, 10**6), Cost(10**6, 10**9)
    assert roofs.floor_us(moving, "bf16") == pytest.approx(10.0)
    assert roofs.floor_us(computing, "bf16") == pytest.approx(100.0)
    assert (roofs.bound(moving, "bf16"), roofs.bound(computing, "bf16")) == ("copy", "bf16")
    assert roofs.floor_us(computing, "copy") == pytest.approx(10.0)
    assert roofs.floor_us(computing, "fp8") is None and roofs.bound(computing, "fp8") == "copy"


def test_percentiles_are_samples():
    timing = Timing(tuple(float(i) for i in range(1, 11)), "wall")
    assert (timing.median_us, timing.percentile_us(10), timing.percentile_us(90)) == (5.5, 1.0, 9.0)
    assert Timing((3.0,), "wall").percentile_us(10) == 3.0


def test_contenders_take_turns_over_all_inputs(monkeypatch):
    monkeypatch.setattr(roofline, "interpreted", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    order = []
    made = take_turns(
        {"a": [lambda: order.append("a0"), lambda: order.append("a1")], "b": [lambda: order.append("b")]}, rounds=3
    )
    assert order == ["a0", "a1", "b"] * 3
    assert {name: len(timing.samples_us) for name, timing in made.items()} == {"a": 3, "b": 3}
    assert made["a"].method == "wall" and rotations(1) == 1


def test_roofs_are_measured_or_named_missing():
    roofs = measure_roofs(tiny=True)
    assert roofs.copy_gb_s > 0 and roofs.tflop_s["f32"] > 0
    assert set(roofs.tflop_s) | set(roofs.missing) == {"bf16", "f16", "f32", "int8", "fp8"}
    assert all(roofs.missing.values())
