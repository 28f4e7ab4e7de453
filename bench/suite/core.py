"""What a kernel benchmark is, and how one is measured."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from pyrite_kernels.roofline import Call, Cost, Roofs, Timing, rotations, take_turns
from pyrite_kernels.testing import assert_close

OURS = "pyrite"


class Missing(Exception):
    """A peer that cannot run here; the text says why."""


@dataclass(frozen=True)
class Ready:
    """A peer's call on the inputs of a trial; `detail` says what it runs, such as the backend that was picked."""

    call: Call
    detail: str = ""


@dataclass
class Trial:
    """One set of inputs.

    Args:
        run: our call, and what the tensors of its result may be compared by.
        check: compares our result with the reference; raises AssertionError.
        peers: name -> what makes its call; raises `Missing`, or what its library raises.
    """

    run: Call
    check: Callable[[], None]
    peers: Mapping[str, Callable[[], Ready]] = field(default_factory=dict)


@dataclass(frozen=True)
class Bench:
    """A kernel on one shape.

    Args:
        op: folder of the op.
        shape: readable id, unique within the op.
        dtype: of the activations, and of what is packed.
        kind: of arithmetic, a kind of `Roofs.tflop_s`; "copy" where only bytes count.
        cost: the least bytes and flops.
        prepare: seed -> inputs.
        peers: names of the trial's peers, known before inputs exist.
        sizes: numbers that goals speak of ("rows", "seq", "bytes", ...).
    """

    op: str
    shape: str
    dtype: str
    kind: str
    cost: Cost
    prepare: Callable[[int], Trial]
    peers: tuple[str, ...] = ()
    sizes: Mapping[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """op/shape."""
        return f"{self.op}/{self.shape}"


def same(got: torch.Tensor, ours: torch.Tensor, *, max_error: float = 0.2, rms_error: float = 2e-2) -> None:
    """A peer must compute what we do, else its time means nothing.

    Raises:
        Missing: it computes something else.
    """
    try:
        assert_close(got, ours, max_error=max_error, rms_error=rms_error)
    except AssertionError as error:
        raise Missing(f"its result is another: {error}") from error


def trials_of(bench: Bench) -> list[Trial]:
    """As many sets of inputs as must take turns; the first is checked.

    Raises:
        AssertionError: the result is wrong, so nothing may be timed.
    """
    trials = [bench.prepare(0)]
    trials[0].check()
    return trials + [bench.prepare(seed) for seed in range(1, rotations(bench.cost.bytes))]


def peer_calls(name: str, trials: Sequence[Trial]) -> tuple[list[Call], str]:
    """A peer's call on every set of inputs, tried once, and its detail.

    Raises:
        Missing: it cannot run here.
    """
    try:
        ready = [trial.peers[name]() for trial in trials]
        ready[0].call()
    except Missing:
        raise
    except Exception as error:  # a peer's library may raise anything where it lacks something
        raise Missing(f"{type(error).__name__}: {first_line(error)}") from error
    return [one.call for one in ready], ready[0].detail


def measure(bench: Bench, roofs: Roofs, *, budget_s: float, rounds: int = 30) -> dict[str, Any]:
    """Check, then time a bench and its peers in turns.

    Args:
        roofs: of this run.
        budget_s: about how long the timing may take.
        rounds: samples of each.

    Returns:
        A row of the report: `describe` and `speeds`, and `peers`: name -> its time and ratio (how many times as fast as
        the peer we are; median over the rounds), or why it is missing.

    Raises:
        AssertionError: our result is wrong.
    """
    return measure_trials(bench, trials_of(bench), roofs, budget_s=budget_s, rounds=rounds)


def measure_trials(
    bench: Bench, trials: Sequence[Trial], roofs: Roofs, *, budget_s: float, rounds: int = 30
) -> dict[str, Any]:
    """`measure` with inputs that `trials_of` made."""
    contenders: dict[str, list[Call]] = {OURS: [trial.run for trial in trials]}
    peers: dict[str, dict[str, Any]] = {}
    for name in bench.peers:
        try:
            calls, detail = peer_calls(name, trials)
        except Missing as reason:
            peers[name] = {"missing": str(reason)}
            continue
        contenders[name] = calls
        peers[name] = {"detail": detail} if detail else {}
    timings = take_turns(contenders, rounds=rounds, budget_s=budget_s)
    ours = timings.pop(OURS)
    for name, timing in timings.items():
        ratios = [theirs / us for theirs, us in zip(timing.samples_us, ours.samples_us, strict=True)]
        peers[name] |= {
            "median_us": timing.median_us,
            "method": timing.method,
            "ratio": statistics.median(ratios),
            **rates(bench.cost, timing.median_us),
        }
    return describe(bench) | {"sets_of_inputs": len(trials)} | speeds(bench, ours, roofs) | {"peers": peers}


def describe(bench: Bench) -> dict[str, Any]:
    """What was measured, for JSON."""
    return {
        "op": bench.op,
        "shape": bench.shape,
        "dtype": bench.dtype,
        "kind": bench.kind,
        "sizes": dict(bench.sizes),
        "bytes": bench.cost.bytes,
        "flops": bench.cost.flops,
    }


def speeds(bench: Bench, timing: Timing, roofs: Roofs) -> dict[str, Any]:
    """Times, rates and shares of the roofs; a share whose roof is missing is None."""
    floor = roofs.floor_us(bench.cost, bench.kind)
    median = timing.median_us
    return {
        "median_us": median,
        "p10_us": timing.percentile_us(10),
        "p90_us": timing.percentile_us(90),
        "rounds": len(timing.samples_us),
        "method": timing.method,
        **rates(bench.cost, median),
        "roof": roofs.bound(bench.cost, bench.kind),
        "percent_of_roof": None if floor is None else 100 * floor / median,
        "percent_of_copy": 100 * bench.cost.bytes / median / 1e3 / roofs.copy_gb_s,
    }


def rates(cost: Cost, took_us: float) -> dict[str, float]:
    """GB/s and TFLOP/s."""
    return {"gb_s": cost.bytes / took_us / 1e3, "tflop_s": cost.flops / took_us / 1e6}


def first_line(error: BaseException) -> str:
    """What an error says, cut short."""
    return str(error).strip().partition("\n")[0][:300]
