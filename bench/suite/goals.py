"""What the kernels must reach on an H200, as data, and the judgement of a result by it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from suite.attention import SDPA
from suite.eight_bit import SCALED_MM
from suite.linear import CUBLAS, GEMLITE

MB = 1 << 20
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Goal:
    """One goal.

    Args:
        name: of the kernel and its condition.
        unit: of the numbers, and what they are relative to.
        at_least, goal: the least that will do, and what is wanted; the most that will do where `smaller_is_better`.
        applies: whether a row of the report is meant.
        value: of the row, given all rows by name; None where it was not measured.
    """

    name: str
    unit: str
    at_least: float
    goal: float
    applies: Callable[[Row], bool]
    value: Callable[[Row, Mapping[str, Row]], float | None]
    smaller_is_better: bool = False


@dataclass(frozen=True)
class Verdict:
    """A goal on one row; `share` is the part of `at_least` that is reached, 1 or more where it is met."""

    goal: Goal
    row: str
    value: float | None
    share: float | None

    @property
    def state(self) -> str:
        """ "goal", "met", "missed" or "not measured"."""
        if self.value is None or self.share is None:
            return "not measured"
        reached = self.value <= self.goal.goal if self.goal.smaller_is_better else self.value >= self.goal.goal
        return "goal" if reached else "met" if self.share >= 1.0 else "missed"


def against(peer: str) -> Callable[[Row, Mapping[str, Row]], float | None]:
    """How many times as fast as a peer."""
    return lambda row, rows: row["peers"].get(peer, {}).get("ratio")


def of_copy(row: Row, rows: Mapping[str, Row]) -> float | None:
    """Percent of the copy roof."""
    return row["percent_of_copy"]


def of_weight_bytes(row: Row, rows: Mapping[str, Row]) -> float | None:
    """Percent of the roof of reading all weights once per step."""
    return row.get("percent_of_weight_bytes")


def microseconds(row: Row, rows: Mapping[str, Row]) -> float | None:
    """Median time."""
    return row["median_us"]


def of_own(name: str) -> Callable[[Row, Mapping[str, Row]], float | None]:
    """Rate relative to another row of ours in TFLOP/s."""

    def value(row: Row, rows: Mapping[str, Row]) -> float | None:
        other = rows.get(name)
        return row["tflop_s"] / other["tflop_s"] if other else None

    return value


def _op(name: str, **limits: Any) -> Callable[[Row], bool]:
    """Rows of an op; a limit `least_x` or `most_x` is on `sizes["x"]`, any other on `sizes` or the row by equality."""

    def applies(row: Row) -> bool:
        if row["op"] != name:
            return False
        sizes = row["sizes"]
        for key, limit in limits.items():
            kind, _, size = key.partition("_")
            if kind in ("least", "most"):
                got = sizes.get(size, 0)
                if got < limit if kind == "least" else got > limit:
                    return False
            elif sizes.get(key, row.get(key)) != limit:
                return False
        return True

    return applies


SMALL_OPS = (
    "rms_norm",
    "rms_norm_int8",
    "rms_norm_fp8",
    "quantize_rows_int8",
    "quantize_rows_fp8",
    "qk_norm_rope_store",
    "store_kv",
    "glu",
    "gate",
    "embed",
    "scale_softcap",
    "select_candidates",
)
PREFILL = _op("ragged_prefill", dtype="bf16", head_dim=128, window=0, seqs=1, least_new=4096)
CONTIGUOUS = "ragged_prefill/s4096_d128_mha"


def _small(**limits: Any) -> Callable[[Row], bool]:
    tests = [_op(name, **limits) for name in SMALL_OPS]
    return lambda row: any(test(row) for test in tests)


def _decode(model: str, weights: str) -> Callable[[Row], bool]:
    return lambda row: (
        row["op"] == "decode"
        and (row["shape"], row["dtype"], row["sizes"]["batch"])
        == (
            model,
            weights,
            1,
        )
    )


GOALS = (
    Goal("prefill attention bf16 D128, S >= 4K", "x torch's flash path", 1.2, 1.4, PREFILL, against(SDPA[1])),
    Goal("prefill attention bf16 D128, S >= 4K", "x cuDNN", 0.65, 0.78, PREFILL, against(SDPA[2])),
    Goal(
        "paged + ragged + GQA prefill",
        "x our contiguous case",
        0.90,
        0.97,
        lambda row: row["op"] == "ragged_prefill" and row["shape"] == "ragged_d128_gqa4",
        of_own(CONTIGUOUS),
    ),
    Goal(
        "decode attention, >= 256 MB of KV", "% of copy", 75, 90, _op("paged_decode", least_kv_bytes=256 * MB), of_copy
    ),
    Goal(
        "bf16 matmul, M >= 2048", "x cuBLAS", 0.90, 1.0, _op("matmul", dtype="bf16", least_rows=2048), against(CUBLAS)
    ),
    Goal("bf16 matmul, M <= 16", "% of copy", 75, 88, _op("matmul", dtype="bf16", most_rows=16), of_copy),
    Goal("W4A16, M <= 16", "x cuBLAS bf16", 2.8, 3.5, _op("qmatmul", bits=4, most_rows=16), against(CUBLAS)),
    Goal("W4A16, M <= 16", "x gemlite", 1.0, 1.15, _op("qmatmul", bits=4, most_rows=16), against(GEMLITE)),
    Goal("W4A16, M >= 1024", "x cuBLAS bf16", 0.60, 0.85, _op("qmatmul", bits=4, least_rows=1024), against(CUBLAS)),
    Goal(
        "FP8 per-channel, M >= 2048",
        "x torch scaled_mm",
        0.90,
        1.0,
        _op("fp8_matmul", blockwise=0, least_rows=2048),
        against(SCALED_MM),
    ),
    Goal("W8A8 int8, M >= 2048", "x cuBLAS bf16", 1.3, 1.6, _op("int8_matmul", least_rows=2048), against(CUBLAS)),
    Goal("grouped decode, int4", "% of copy", 55, 70, _op("grouped_matmul", bits=4, most_rows=512), of_copy),
    Goal("fused small ops, >= 64 MB", "% of copy", 85, 93, _small(least_bytes=64 * MB), of_copy),
    Goal("fused small ops, decode size", "us", 4, 2.5, _small(rows=1), microseconds, smaller_is_better=True),
    Goal("decode batch 1, 8B bf16", "% of weight bytes", 72, 85, _decode("llama-3.1-8b", "bf16"), of_weight_bytes),
    Goal("decode batch 1, 8B int4", "% of weight bytes", 45, 60, _decode("llama-3.1-8b", "int4"), of_weight_bytes),
    Goal("decode batch 1, 1B bf16", "% of weight bytes", 50, 68, _decode("llama-3.2-1b", "bf16"), of_weight_bytes),
)


def judge(rows: Mapping[str, Row], goals: tuple[Goal, ...] = GOALS) -> list[Verdict]:
    """Every goal on every row that it is about, the worst first; a goal without a row is not measured."""
    verdicts = []
    for goal in goals:
        meant = [(name, row) for name, row in rows.items() if "missing" not in row and goal.applies(row)]
        for name, row in meant:
            value = goal.value(row, rows)
            share = (
                None if value is None else goal.at_least / value if goal.smaller_is_better else value / goal.at_least
            )
            verdicts.append(Verdict(goal, name, value, share))
        if not meant:
            verdicts.append(Verdict(goal, "", None, None))
    return sorted(verdicts, key=lambda v: (v.share is None, v.share or 0.0))


def describe(verdict: Verdict) -> list[str]:
    """Cells of a line: goal, row, value with its unit, at least, goal, state."""
    goal = verdict.goal
    value = "-" if verdict.value is None else f"{verdict.value:.3g} {goal.unit}"
    return [goal.name, verdict.row or "-", value, f"{goal.at_least:g}", f"{goal.goal:g}", verdict.state]
