"""What a kernel must move and compute, how fast this machine can do either, and a timer that waits for the device."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from pyrite_kernels.testing import device, interpreted

Call = Callable[[], object]

L2_MULTIPLE = 3
"""Buffers rotate until their bytes are this many times the last cache level."""

MOST_ROTATIONS = 64
REPLAY_US = 2000.0
"""About how long one sample lasts; shorter calls are repeated within it."""


@dataclass(frozen=True)
class Cost:
    """The least that an op must do: every input read once, every output written once.

    Args:
        bytes: moved through device memory.
        flops: multiplications and additions of the products, 2 per pair.
    """

    bytes: int
    flops: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.bytes + other.bytes, self.flops + other.flops)


@dataclass(frozen=True)
class Timing:
    """Durations of one call in microseconds, over the rounds of a run.

    Args:
        samples_us: one per round.
        method: "graph" (CUDA graph of many calls, between events), "events" (calls between events, launches
            included), or "wall" (a host clock, without a GPU).
    """

    samples_us: tuple[float, ...]
    method: str

    @property
    def median_us(self) -> float:
        """Median over the rounds."""
        return statistics.median(self.samples_us)

    def percentile_us(self, percent: int) -> float:
        """The sample below which `percent` of them lie, by nearest rank."""
        ordered = sorted(self.samples_us)
        return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


@dataclass(frozen=True)
class Roofs:
    """Rates measured on this machine in this process.

    Args:
        copy_gb_s: of a large copy, bytes read and written counted.
        tflop_s: of a large cuBLAS product, by kind ("bf16", "f16", "f32", "int8", "fp8").
        missing: kind -> why it could not be measured.
    """

    copy_gb_s: float
    tflop_s: dict[str, float]
    missing: dict[str, str] = field(default_factory=dict)

    def floor_us(self, cost: Cost, kind: str) -> float | None:
        """The shortest time for a cost, or None where the roof of its arithmetic is missing.

        Args:
            kind: of arithmetic; "copy" where only bytes count.
        """
        moving = cost.bytes / self.copy_gb_s / 1e3
        if kind == "copy" or cost.flops == 0:
            return moving
        peak = self.tflop_s.get(kind)
        return None if peak is None else max(moving, cost.flops / peak / 1e6)

    def bound(self, cost: Cost, kind: str) -> str:
        """Which roof is nearer, "copy" or `kind`."""
        peak = self.tflop_s.get(kind)
        if kind == "copy" or peak is None:
            return "copy"
        return kind if cost.flops / peak / 1e6 > cost.bytes / self.copy_gb_s / 1e3 else "copy"


# Costs of ops.


def attention_cost(
    sequences: Sequence[tuple[int, int]],
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    itemsize: int,
    kv_itemsize: int,
    window: int | None = None,
) -> Cost:
    """Causal attention of a batch over its paged cache; only keys that some query sees are counted.

    Args:
        sequences: (tokens in the cache after the step, new tokens of the step) of each.
        itemsize, kv_itemsize: bytes of an element of q and out, and of the cache.
        window: as in `ragged_prefill`.
    """
    reach = window or 1 << 62
    pairs = sum(_visible_pairs(length, new, reach) for length, new in sequences)
    keys = sum(min(length, new + reach - 1) for length, new in sequences if new)
    queries = sum(new for _, new in sequences)
    moved = 2 * keys * num_kv_heads * head_dim * kv_itemsize + 2 * queries * num_heads * head_dim * itemsize
    return Cost(moved, 4 * pairs * num_heads * head_dim)


def _visible_pairs(length: int, new: int, reach: int) -> int:
    """Queries times the keys that each sees: the sum of min(p + 1, reach) over p in [length - new, length)."""
    whole = min(max(reach - (length - new), 0), new)  # of the first queries, which see every key before them
    first = length - new + 1
    return whole * first + whole * (whole - 1) // 2 + (new - whole) * min(reach, length)


def quantized_bytes(out_features: int, in_features: int, bits: int, group_size: int) -> int:
    """Bytes of an integer weight: its codes, and per group an f16 scale and a zero of 2 bytes."""
    return out_features * in_features * bits // 8 + 4 * out_features * (in_features // group_size)


def matmul_cost(
    rows: int,
    out_features: int,
    in_features: int,
    *,
    itemsize: int,
    weight_bytes: int | None = None,
    residual: bool = False,
    out_columns: int | None = None,
    out_itemsize: int | None = None,
) -> Cost:
    """x [rows, in_features] times a weight [out_features, in_features].

    Args:
        itemsize: bytes of an element of x, and of out unless `out_itemsize` says otherwise.
        weight_bytes: of the weight; of a float one with `itemsize` when left out.
        residual: whether as much as the output is read too.
        out_columns: of the output where it is not `out_features`, as of a GLU.
    """
    weight = out_features * in_features * itemsize if weight_bytes is None else weight_bytes
    out = rows * (out_columns or out_features) * (out_itemsize or itemsize) * (2 if residual else 1)
    return Cost(weight + rows * in_features * itemsize + out, 2 * rows * out_features * in_features)


def grouped_cost(
    group_sizes: Sequence[int], out_features: int, in_features: int, *, itemsize: int, expert_bytes: int | None = None
) -> Cost:
    """Rows sorted by expert; the weights of an expert without rows are not read.

    Args:
        expert_bytes: of one expert's weight; of a float one when left out.
    """
    one = out_features * in_features * itemsize if expert_bytes is None else expert_bytes
    rows = sum(group_sizes)
    touched = sum(1 for size in group_sizes if size)
    moved = touched * one + rows * (in_features + out_features) * itemsize
    return Cost(moved, 2 * rows * out_features * in_features)


def tensors_cost(*tensors: torch.Tensor | None) -> Cost:
    """Tensors that are read or written once; list one that is updated in place twice."""
    return Cost(sum(t.numel() * t.element_size() for t in tensors if t is not None))


# The timer.


def rotations(bytes_of_one: int) -> int:
    """How many sets of inputs of a size must take turns so that none is still in the last cache; 1 without a GPU."""
    if interpreted() or not torch.cuda.is_available():
        return 1
    cache = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    return min(MOST_ROTATIONS, 1 + L2_MULTIPLE * cache // max(1, bytes_of_one))


def take_turns(
    contenders: Mapping[str, Sequence[Call]], *, rounds: int = 30, budget_s: float = 2.0
) -> dict[str, Timing]:
    """Time several ways of doing one thing, in turns, so that drifts of the clock meet all of them.

    Args:
        contenders: name -> the same call on each set of inputs, used in rotation.
        rounds: samples of each, fewer where the budget does not last; at least 3, without a GPU 1.
        budget_s: about how long all of it may take, preparation not counted.
    """
    if interpreted() or not torch.cuda.is_available():
        return _take_turns_on_host(contenders, 1 if interpreted() else rounds)
    runs = {name: _prepare(calls) for name, calls in contenders.items()}
    round_s = sum(run.sample_us for run in runs.values()) / 1e6
    rounds = max(3, min(rounds, int(budget_s / round_s))) if round_s else rounds
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            samples[name].append(_between_events(run.go) / run.num_calls)
    return {name: Timing(tuple(samples[name]), runs[name].method) for name in runs}


@dataclass
class _Run:
    """A sample's worth of calls, ready to go."""

    go: Call
    num_calls: int
    sample_us: float
    method: str


def _prepare(calls: Sequence[Call]) -> _Run:
    """Warm up, see how long a call takes, and capture enough of them in a CUDA graph."""
    for call in (*calls, *calls):
        call()
    torch.cuda.synchronize()
    one_us = _between_events(lambda: [call() for call in calls]) / len(calls)
    passes = max(1, round(REPLAY_US / max(one_us, 1.0) / len(calls)))
    num_calls = passes * len(calls)

    def all_of_them() -> None:
        for _ in range(passes):
            for call in calls:
                call()

    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            all_of_them()
    except Exception:  # a library that synchronizes or allocates by itself cannot be captured
        torch.cuda.synchronize()
        return _Run(all_of_them, num_calls, one_us * num_calls, "events")
    graph.replay()
    return _Run(graph.replay, num_calls, _between_events(graph.replay), "graph")


def _between_events(go: Call) -> float:
    """Microseconds of device time, waited for."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    go()
    end.record()
    end.synchronize()
    return 1e3 * start.elapsed_time(end)


def _take_turns_on_host(contenders: Mapping[str, Sequence[Call]], rounds: int) -> dict[str, Timing]:
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, calls in contenders.items():
            started = time.perf_counter()
            for call in calls:
                call()
            samples[name].append(1e6 * (time.perf_counter() - started) / len(calls))
    return {name: Timing(tuple(values), "wall") for name, values in samples.items()}


# The roofs.


def measure_roofs(*, tiny: bool = False) -> Roofs:
    """Measure a large copy and large products on random numbers.

    Args:
        tiny: sizes that show only that it runs.
    """
    make = torch.Generator(device=device()).manual_seed(0)
    copy_gb_s = _copy_rate(1 << 20 if tiny else 1 << 30, make)
    width = 128 if tiny else 8192
    peaks: dict[str, float] = {}
    missing: dict[str, str] = {}
    for kind, product in _PRODUCTS.items():
        try:
            call = product(width, make)
            call()
            took_us = take_turns({kind: [call]})[kind].median_us
        except (RuntimeError, NotImplementedError, AttributeError, ValueError, TypeError) as error:
            missing[kind] = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
            continue
        peaks[kind] = 2 * width**3 / took_us / 1e6
    return Roofs(copy_gb_s, peaks, missing)


def _copy_rate(size: int, make: torch.Generator) -> float:
    """GB/s, read and written, of a copy of `size` bytes."""
    source = torch.randint(0, 256, (size,), dtype=torch.uint8, device=make.device, generator=make)
    target = torch.empty_like(source)
    return 2 * size / take_turns({"copy": [lambda: target.copy_(source)]})["copy"].median_us / 1e3


def _float_product(dtype: torch.dtype) -> Callable[[int, torch.Generator], Call]:
    def make_call(width: int, make: torch.Generator) -> Call:
        a, b = (torch.randn((width, width), device=make.device, generator=make).to(dtype) for _ in range(2))
        return lambda: torch.mm(a, b.t())

    return make_call


def _int8_product(width: int, make: torch.Generator) -> Call:
    a, b = (
        torch.randint(-127, 128, (width, width), dtype=torch.int8, device=make.device, generator=make) for _ in range(2)
    )
    return lambda: torch._int_mm(a, b.t())  # pyright: ignore[reportPrivateImportUsage]


def _fp8_product(width: int, make: torch.Generator) -> Call:
    a, b = (torch.randn((width, width), device=make.device, generator=make).to(torch.float8_e4m3fn) for _ in range(2))
    one = torch.ones((), device=make.device)
    product = torch._scaled_mm  # pyright: ignore[reportPrivateImportUsage]
    return lambda: product(a, b.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True)


_PRODUCTS: dict[str, Callable[[int, torch.Generator], Call]] = {
    "bf16": _float_product(torch.bfloat16),
    "f16": _float_product(torch.float16),
    "f32": _float_product(torch.float32),
    "int8": _int8_product,
    "fp8": _fp8_product,
}
