"""Benchmarks of the products by experts, and of the sort before them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial

import torch
from pyrite_kernels import grouped_matmul, sort_by_expert
from pyrite_kernels.grouped_matmul import cases, reference
from pyrite_kernels.grouped_matmul.cases import MOE_EXPERTS, MOE_TOP, GroupedCase, GroupedInputs
from pyrite_kernels.quantized import QuantizedWeight
from pyrite_kernels.roofline import Cost, grouped_cost, quantized_bytes
from pyrite_kernels.testing import assert_close, device

from suite.core import Bench, Missing, Ready, Trial, same
from suite.names import KINDS, dtype_name

GROUPED_MM = "torch grouped_mm"
TORCH_SORT = "torch sort"


def grouped_benches(*, tiny: bool) -> list[Bench]:
    """`grouped_matmul` beside torch's own, by the same float weight where ours is quantized."""
    made = []
    for case in (cases.CASES[0], cases.CASES[6]) if tiny else cases.BENCH_CASES:
        dtype, expert_bytes = dtype_name(case.dtype), None
        if case.bits:
            dtype += f" x int{case.bits} g{case.group_size}"
            expert_bytes = quantized_bytes(case.out_features, case.in_features, case.bits, case.group_size)
        cost = grouped_cost(
            case.sizes, case.out_features, case.in_features, itemsize=case.dtype.itemsize, expert_bytes=expert_bytes
        )
        sizes = {
            "rows": sum(case.sizes),
            "touched_experts": sum(size > 0 for size in case.sizes),
            "out_features": case.out_features,
            "in_features": case.in_features,
            "bits": case.bits,
        }
        trial = partial(_grouped_trial, case)
        made.append(Bench("grouped_matmul", case.name, dtype, KINDS[case.dtype], cost, trial, (GROUPED_MM,), sizes))
    return made


def sort_benches(*, tiny: bool) -> list[Bench]:
    """`sort_by_expert` beside torch's stable sort, which gives the order alone."""
    made = []
    for tokens in (3,) if tiny else (1, 64, 4096):
        experts, top = (6, 2) if tiny else (MOE_EXPERTS, MOE_TOP)
        cost = Cost(tokens * top * (8 + 4 + 4) + 4 * experts)
        trial = partial(_sort_trial, tokens, experts, top)
        sizes = {"rows": tokens * top, "experts": experts}
        made.append(Bench("sort_by_expert", f"{tokens}_tokens", "i64", "copy", cost, trial, (TORCH_SORT,), sizes))
    return made


@functools.lru_cache(maxsize=1)
def _shared(case: GroupedCase) -> GroupedInputs:
    """One weight for all sets of inputs: making it takes seconds, and it is larger than any cache."""
    x = cases.make_inputs(case)
    if isinstance(x.weight, QuantizedWeight):
        x.float_weight = x.weight.dequantize().to(case.dtype)
    return x


def _grouped_trial(case: GroupedCase, seed: int) -> Trial:
    """Each set of inputs has the same group sizes at other experts."""
    shared = _shared(case)
    rows, touched = sum(case.sizes), sum(size > 0 for size in case.sizes)
    sizes = shared.group_sizes.roll(seed * touched)
    x = GroupedInputs(shared.x, shared.weight, sizes, shared.float_weight)
    out = torch.empty((case.rows, case.out_features), dtype=case.dtype, device=x.x.device)

    def ours() -> torch.Tensor:
        return grouped_matmul(x.x, x.weight, x.group_sizes)[:rows]

    def check() -> None:
        expected = reference.grouped_matmul(x.x, x.weight, x.group_sizes)[:rows]
        assert_close(ours(), expected, max_error=5e-2, rms_error=1e-2)

    return Trial(
        lambda: grouped_matmul(x.x, x.weight, x.group_sizes, out=out),
        check,
        {GROUPED_MM: partial(_grouped_mm, x, rows, ours)},
    )


def _grouped_mm(x: GroupedInputs, rows: int, ours: Callable[[], torch.Tensor]) -> Ready:
    """torch's own, which takes bf16 and the ends of groups."""
    product = getattr(torch.nn.functional, "grouped_mm", None) or getattr(torch, "_grouped_mm", None)
    if product is None or not x.x.is_cuda or x.x.dtype != torch.bfloat16:
        raise Missing("needs torch's grouped_mm, and bf16 on a GPU")
    ends = x.group_sizes.cumsum(0, dtype=torch.int32)
    weight = x.float_weight.transpose(1, 2)
    same(product(x.x, weight, offs=ends)[:rows], ours())
    return Ready(lambda: product(x.x, weight, offs=ends))


def _sort_trial(tokens: int, experts: int, top: int, seed: int) -> Trial:
    make = torch.Generator().manual_seed(seed)
    ids = torch.rand((tokens, experts), generator=make).topk(top).indices.to(device())

    def check() -> None:
        for got, expected in zip(sort_by_expert(ids, experts), reference.sort_by_expert(ids, experts), strict=True):
            assert torch.equal(got, expected), "sort_by_expert differs from its twin"

    def peer() -> Ready:
        flat = ids.view(-1)
        same(torch.sort(flat, stable=True).indices.float(), sort_by_expert(ids, experts)[0].float())
        return Ready(lambda: torch.sort(flat, stable=True))

    return Trial(lambda: sort_by_expert(ids, experts), check, {TORCH_SORT: peer})
