"""Plots of committed results: `e2e/curves.py`, and the ops of `pyrite bench MODEL --json` beside the measured roofs."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

Points = list[tuple[float, float]]

SIZE = (5.6, 3.6)
DPI = 100
MARKERS = "os^DvP*Xp<>hd8H"
SMALLEST_SHARE = 0.02
"""Ops that take less of a step than this are not in the roofline."""


def draw_all(curves: list[dict[str, Any]], ops: list[dict[str, Any]], folder: Path) -> list[Path]:
    """Draw every plot there is data for; the files written."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for result in curves:
        for name, draw in (
            ("decode", decode_over_context),
            ("prefill", prefill_over_length),
            ("batch", batch_and_threads),
        ):
            written.append(save(draw, result, folder / f"{name}-{result['model']}.png"))
    written += [save(roofline, result, folder / f"roofline-{result['model']}.png") for result in ops]
    return written


def save(draw: Callable[[Axes, dict[str, Any]], str], result: dict[str, Any], path: Path) -> Path:
    """One figure, titled, as a small PNG of few colors and without a time in it."""
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(draw(axes, result), fontsize=9)
    axes.grid(True, which="both", alpha=0.25)
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=DPI, metadata={"Software": None})
    return path


def title(result: dict[str, Any], what: str) -> str:
    """Two lines: what it is, and where it was measured."""
    head = result["header"]
    cpu = head["cpu"].partition(" (")[0]
    return f"{result['model']}: {what}\n{cpu}, {head['threads']} threads, {head['date']}, commit {head['commit']}"


def series(result: dict[str, Any], kind: str, threads: int, what: str = "tok_per_s") -> dict[str, Points]:
    """(size, median tokens per second, or `what` else) by engine for one kind of work."""
    found: dict[str, Points] = {}
    for key, row in result["rows"].items():
        work, num_threads = key.split()
        name, size = work.split("_")
        if name != kind or int(num_threads) != threads:
            continue
        for engine, cell in row.items():
            if cell[what]:
                found.setdefault(engine, []).append((float(size), statistics.median(cell[what])))
    return {engine: sorted(points) for engine, points in found.items()}


def lines(axes: Axes, found: dict[str, Points], style: str = "o-", suffix: str = "") -> None:
    """One line an engine."""
    for engine, points in found.items():
        color = "C1" if engine.startswith("llama") else "C2" if "KV" in engine else "C0"
        axes.plot(*zip(*points, strict=True), style, label=engine + suffix, color=color, markersize=4)


def decode_over_context(axes: Axes, result: dict[str, Any]) -> str:
    """Tokens per second of one sequence over what is in its context, and the read bandwidth measured at each point."""
    threads = result["header"]["threads"]
    lines(axes, series(result, "decode", threads))
    axes.set(xlabel="tokens in the context", ylabel="decode, tok/s", ylim=(0, None))
    memory, style = axes.twinx(), {"linestyle": ":", "color": "0.6", "linewidth": 1}
    for points in list(series(result, "decode", threads, "bandwidth_gb_s").values())[:1]:
        memory.plot(*zip(*points, strict=True), **style)
        axes.plot([], [], label="read bandwidth (right)", **style)
    memory.set(ylabel="GB/s", ylim=(0, None))
    return title(result, "decode over context length")


def prefill_over_length(axes: Axes, result: dict[str, Any]) -> str:
    """Tokens per second of a prompt over its length."""
    lines(axes, series(result, "prefill", result["header"]["threads"]))
    axes.set(xlabel="tokens of the prompt", ylabel="prefill, tok/s", ylim=(0, None))
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:.0f}")
    return title(result, "prefill over prompt length")


def batch_and_threads(axes: Axes, result: dict[str, Any]) -> str:
    """Tokens per second of all sequences over their number, and the same of one thread at the ends."""
    lines(axes, series(result, "batch", result["header"]["threads"]))
    one = {**series(result, "decode", 1)}
    for engine, points in series(result, "batch", 1).items():
        one[engine] = [(1.0, speed) for size, speed in one.get(engine, []) if size == 0] + points
    lines(axes, one, "s--", ", 1 thread")
    axes.set(xlabel="sequences", ylabel="decode of all, tok/s", ylim=(0, None), xticks=[1, 2, 4, 8, 16])
    return title(result, "decode of many sequences, on one thread and on all")


def roofline(axes: Axes, result: dict[str, Any]) -> str:
    """Every op of every work: operations a second over operations per byte, below the measured roofs."""
    result = {**result["report"], "model": result["model"], "header": result["header"]}
    bandwidth = result["bandwidth_gb_s"]
    for kind, peak in result["peak_gop_s"].items():
        ends = [0.5, peak / bandwidth, 4096.0]
        axes.plot(ends, [min(x * bandwidth, peak) for x in ends], "-", color="0.6", linewidth=1)
        axes.annotate(kind, (ends[-1], peak), fontsize=8, ha="right", va="bottom")
    shown = [
        (number, op)
        for number, work in enumerate(result["works"])
        for op in work["ops"]
        if op["operations"] and op["num_bytes"] and op["share"] >= SMALLEST_SHARE
    ]
    markers = dict(zip(dict.fromkeys(op["op"] for _, op in shown), MARKERS, strict=False))
    for number, op in shown:
        at = op["operations"] / op["num_bytes"], op["operations"] / op["milliseconds"] / 1e6
        axes.plot(*at, markers.get(op["op"], "."), color=f"C{number}", markersize=5)
    for number, work in enumerate(result["works"]):
        axes.plot([], [], "-", color=f"C{number}", linewidth=4, label=work["name"])
    for name, marker in markers.items():
        axes.plot([], [], marker, color="0.4", markersize=5, label=name)
    axes.set(xscale="log", yscale="log", xlabel="operations per byte", ylabel="Gop/s")
    return title(result, f"ops of {result['quantization']} below the roofs, {bandwidth:.0f} GB/s read")
