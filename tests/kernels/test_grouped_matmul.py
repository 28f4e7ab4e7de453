"""`grouped_matmul` against its twin, a row's bits against `matmul` and `qmatmul`, and the sort that prepares rows.

What bits show in Triton's interpreter is said in `test_matmul.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pyrite_kernels import QuantizedWeight, grouped_matmul, matmul, qmatmul, sort_by_expert
from pyrite_kernels.grouped_matmul import launch, reference
from pyrite_kernels.grouped_matmul.cases import CASES, GroupedCase, GroupedInputs, make_inputs
from pyrite_kernels.testing import assert_close, device, poisoned

F16, F32 = torch.float16, torch.float32
BY_NAME = {case.name: case for case in CASES}
BIT_CASES = [BY_NAME[name] for name in ("two_spans_f16", "many_rows_two_spans", "int4", "int4_sym_two_spans_f16")]


def bounds(dtype: torch.dtype) -> dict[str, float]:
    """f32 differs by the order of sums; f16 by the rounding of the output."""
    return {"max_error": 2e-5, "rms_error": 2e-6} if dtype == F32 else {"max_error": 4e-3, "rms_error": 4e-4}


def one_expert(weight: torch.Tensor | QuantizedWeight, expert: int) -> torch.Tensor | QuantizedWeight:
    """The weight of one expert, as `matmul` or `qmatmul` takes it."""
    if isinstance(weight, torch.Tensor):
        return weight[expert]
    words, params = weight.words[expert], weight.params[expert]
    return dataclasses.replace(weight, words=words, params=params, shape=weight.shape[1:])


def by_expert(x: GroupedInputs, case: GroupedCase) -> torch.Tensor:
    """Each row alone through `matmul` or `qmatmul`, with its expert's weight."""
    experts = [expert for expert, size in enumerate(case.sizes) for _ in range(size)]
    product: Callable[..., torch.Tensor] = qmatmul if case.bits else matmul
    return torch.cat([product(x.x[i : i + 1], one_expert(x.weight, e)) for i, e in enumerate(experts)])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_parity_and_rows_of_no_expert_are_left_alone(case: GroupedCase) -> None:
    x = make_inputs(case)
    out = poisoned((case.rows, case.out_features), case.dtype)
    assert grouped_matmul(x.x, x.weight, x.group_sizes, out=out) is out
    expected = reference.grouped_matmul(x.x, x.weight, x.group_sizes, out=poisoned(out.shape, case.dtype))
    assert_close(out, expected, **bounds(case.dtype))
    assert out[sum(case.sizes) :].isnan().all() and not out[: sum(case.sizes)].isnan().any()


@pytest.mark.parametrize("case", BIT_CASES, ids=lambda case: case.name)
@pytest.mark.parametrize(("programs", "most"), [(512, 3), (0, 99)], ids=["split_few", "whole_many"])
def test_a_row_has_the_bits_that_it_has_alone(
    case: GroupedCase, programs: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "SPLIT_PROGRAMS", programs)
    case = dataclasses.replace(case, sizes=tuple(min(size, most) for size in case.sizes), tail=0)
    x = make_inputs(case)
    got = grouped_matmul(x.x, x.weight, x.group_sizes)
    some = dataclasses.replace(case, sizes=tuple(min(size, 2) for size in case.sizes))
    rows = [sum(case.sizes[:e]) + i for e, size in enumerate(some.sizes) for i in range(size)]
    assert torch.equal(got[rows], by_expert(dataclasses.replace(x, x=x.x[rows]), some))


@pytest.mark.parametrize("bits", [0, 4])
def test_a_row_has_the_same_bits_whatever_the_group_sizes(bits: int) -> None:
    case = GroupedCase("", (1, 66, 2), 34, 1088, bits=bits)
    x = make_inputs(case)
    whole = grouped_matmul(x.x, x.weight, x.group_sizes)
    alone = torch.tensor([0, 1, 0], dtype=torch.int32, device=device())
    for row in (1, 66):
        assert torch.equal(grouped_matmul(x.x[row : row + 1], x.weight, alone)[0], whole[row])
    others = torch.cat([poisoned((4, 1088), F32), x.x[5:6], poisoned((1, 1088), F32)])
    sizes = torch.tensor([2, 3, 1], dtype=torch.int32, device=device())
    assert torch.equal(grouped_matmul(others, x.weight, sizes)[4], whole[5])


def test_sizes_that_are_no_division_of_the_rows_write_nothing_else() -> None:
    x = make_inputs(GroupedCase("", (2, 1, 2), 34, 64))
    whole = grouped_matmul(x.x, x.weight, x.group_sizes)
    buffer = poisoned((9, 50), F32)
    wrong = torch.tensor([2, -7, 2**30], dtype=torch.int32, device=device())
    grouped_matmul(x.x, x.weight, wrong, out=buffer[2:-2, 8:42])
    inner = buffer[2:-2, 8:42].clone()
    assert torch.equal(inner[:2], whole[:2]) and torch.equal(inner[3:], whole[3:]) and not inner.isnan().any()
    buffer[2:-2, 8:42] = float("nan")
    assert buffer.isnan().all()


@pytest.mark.parametrize("name", ["empty_experts", "many_rows_two_spans", "int4"])
def test_a_wrong_expert_is_caught(name: str) -> None:
    case = BY_NAME[name]
    x = make_inputs(case)
    got = grouped_matmul(x.x, x.weight, x.group_sizes)[: sum(case.sizes)]
    right = dataclasses.replace(x, x=x.x[: sum(case.sizes)])
    assert_close(got, reference.grouped_matmul(right.x, x.weight, x.group_sizes), **bounds(F32))
    rolled = make_inputs(case).float_weight.roll(1, 0)
    moved = torch.cat([x.group_sizes[:1] + 1, x.group_sizes[1:]])
    moved[moved.argmax()] -= 1
    for weight, sizes in ((rolled, x.group_sizes), (x.weight, moved)):
        with pytest.raises(AssertionError, match="max error"):
            assert_close(got, reference.grouped_matmul(right.x, weight, sizes), **bounds(F32))


def test_an_expert_offset_that_is_off_by_a_row_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    x = make_inputs(BY_NAME["empty_experts"])
    expected = reference.grouped_matmul(x.x[:6], x.weight, x.group_sizes)
    assert_close(grouped_matmul(x.x, x.weight, x.group_sizes)[:6], expected, **bounds(F32))
    strides = launch._weight_strides(x.weight)
    monkeypatch.setattr(launch, "_weight_strides", lambda weight: (strides[0] - 64, *strides[1:]))
    with pytest.raises(AssertionError, match="max error"):
        assert_close(grouped_matmul(x.x, x.weight, x.group_sizes)[:6], expected, **bounds(F32))


def test_spans_that_are_not_the_weights_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    case = GroupedCase("", (1, 1), 34, 1056)
    x = make_inputs(case)
    expected = by_expert(x, case)
    assert torch.equal(grouped_matmul(x.x, x.weight, x.group_sizes), expected)
    monkeypatch.setattr(launch.float_launch, "span_length", lambda out_features, in_features: 384)
    assert not torch.equal(grouped_matmul(x.x, x.weight, x.group_sizes), expected)


@pytest.mark.parametrize("bits", [0, 4])
@pytest.mark.parametrize("tokens", [1, 4096])
def test_nothing_is_read_on_the_host(tokens: int, bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device there are no numbers to read: the grid is made of shapes."""
    grids: list[tuple[int, ...]] = []

    class Recorder:
        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            grids.append(grid)
            return lambda *arguments, **options: None

    for name in ("_tiled_kernel", "_split_kernel", "_merge_kernel", "_sort_kernel"):
        monkeypatch.setattr(launch, name, Recorder())
    monkeypatch.setattr(launch, "architecture", lambda device: "sm_90")
    order, _, sizes = sort_by_expert(torch.empty((tokens, 8), dtype=torch.int64, device="meta"), 128)
    weight: Any = torch.empty((128, 64, 4096), device="meta", dtype=F16)
    if bits:
        words = torch.empty((128, 1, 32, 64, 16), dtype=torch.int32, device="meta")
        params = torch.empty((128, 64, 64), dtype=torch.int32, device="meta")
        weight = QuantizedWeight(words, params, (128, 64, 4096), bits, 64, False)
    out = grouped_matmul(torch.empty((order.shape[0], 4096), device="meta", dtype=F16), weight, sizes)
    assert out.shape == (tokens * 8, 64) and len(grids) == (3 if tokens == 1 else 2)
    assert grids[0] == (129,) and all(isinstance(n, int) and n > 0 for grid in grids for n in grid)


@pytest.mark.parametrize("rows", [1, 2, 15, 16, 17, 200])
@pytest.mark.parametrize("experts", [1, 3, 64])
def test_the_grid_holds_any_division(rows: int, experts: int) -> None:
    make = torch.Generator().manual_seed(rows)
    worst = 0
    for spread in (1, 2, experts):
        for _ in range(20):
            ids = torch.randint(0, min(spread, experts), (rows,), generator=make)
            sizes = torch.bincount(ids)
            worst = max(worst, int(((sizes + 15) // 16).sum()))
    touched = min(rows, experts)
    sizes = torch.ones(touched, dtype=torch.int64)
    sizes[0] += rows - touched
    worst = max(worst, int(((sizes + 15) // 16).sum()))
    assert worst <= launch.max_tiles(rows, experts, 16) <= worst + 1


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize(("pairs", "experts"), [(1, 1), (2, 5), (100, 7), (1500, 3)])
def test_the_sort_is_stable_and_drops_what_is_no_expert(pairs: int, experts: int, dtype: torch.dtype) -> None:
    make = torch.Generator().manual_seed(pairs)
    ids = torch.randint(-1, experts + 1, (pairs,), generator=make).to(device(), dtype)
    expected = reference.sort_by_expert(ids, experts)
    for got, want in zip(sort_by_expert(ids, experts), expected, strict=True):
        assert got.dtype == torch.int32 and torch.equal(got, want)


def test_a_mixture_of_experts() -> None:
    """From routed tokens to joined results, as a model does it."""
    make = torch.Generator().manual_seed(0)
    x = torch.randn((5, 64), generator=make).to(device())
    weight = (torch.randn((6, 34, 64), generator=make) / 8).to(device())
    ids = torch.rand((5, 6), generator=make).topk(2).indices.to(device())
    ids[3] = -1  # a padded token
    order, inverse, sizes = sort_by_expert(ids, 6)
    rows = grouped_matmul(x[order // 2], weight, sizes, out=poisoned((10, 34), F32))
    got = rows[inverse].view(5, 2, 34)
    for token in (0, 1, 2, 4):
        expected = torch.einsum("koi,i->ko", weight[ids[token]], x[token])
        assert_close(got[token], expected, **bounds(F32))
    assert got[3].isnan().all()


def test_f16_rows_may_give_f32_results_and_slices_are_taken() -> None:
    x = make_inputs(GroupedCase("", (3, 2), 34, 72, F16))
    got = grouped_matmul(x.x, x.weight, x.group_sizes, out=poisoned((5, 34), F32))
    floats = dataclasses.replace(x, x=x.x.float(), float_weight=x.float_weight.float())
    assert_close(got, reference.grouped_matmul(floats.x, floats.float_weight, x.group_sizes), **bounds(F32))
    wide = torch.nn.functional.pad(x.x, (3, 2), value=float("nan"))[:, 3:-2]
    weight = torch.nn.functional.pad(x.float_weight, (0, 6, 1, 1), value=float("nan"))[:, 1:-1, :72]
    again = grouped_matmul(wide, weight, x.group_sizes, out=poisoned((5, 34), F32))
    assert torch.equal(again, got)


def test_no_rows() -> None:
    x = make_inputs(BY_NAME["one_expert"])
    assert grouped_matmul(x.x[:0], x.weight, x.group_sizes).shape == (0, 34)
    order, inverse, sizes = sort_by_expert(torch.empty((0, 2), dtype=torch.int32, device=device()), 3)
    assert order.shape == inverse.shape == (0,) and torch.equal(sizes, torch.zeros_like(sizes))


def test_a_broken_contract_is_a_value_error() -> None:
    x = make_inputs(BY_NAME["one_expert"])
    a, w, sizes = x.x, x.float_weight, x.group_sizes
    flat = QuantizedWeight.quantize(torch.ones((8, 64), device=device()), bits=4, group_size=64, symmetric=True)
    bad: list[tuple[Callable[[], Any], str]] = [
        (lambda: grouped_matmul(a[0], w, sizes), "shape of x"),
        (lambda: grouped_matmul(a[:, :8], w, sizes), "shape of x"),
        (lambda: grouped_matmul(a, w[0], sizes), "shape of weight"),
        (lambda: grouped_matmul(a, flat, sizes), "shape of weight"),
        (lambda: grouped_matmul(a.half(), w, sizes), "dtype of weight"),
        (lambda: grouped_matmul(a, w.transpose(1, 2).contiguous().transpose(1, 2), sizes), "last stride of weight"),
        (lambda: grouped_matmul(a, w, sizes.long()), "dtype of group_sizes"),
        (lambda: grouped_matmul(a, w, sizes.repeat(2)), "shape of group_sizes"),
        (lambda: grouped_matmul(a, w, sizes, out=a), "shape of out"),
        (lambda: grouped_matmul(a, w, sizes, out=a[:, :34].half()), "dtype of out"),
        (lambda: sort_by_expert(a, 3), "dtype of expert_ids"),
        (lambda: sort_by_expert(sizes, 0), "num_experts: got 0, expected 1 to 1024"),
        (lambda: sort_by_expert(sizes[None, None], 3), "shape of expert_ids"),
    ]
    for call, match in bad:
        with pytest.raises(ValueError, match=match):
            call()
