"""Roofline plots of a suite's JSON, one PNG per kind of arithmetic. Needs matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def draw(data: dict[str, Any], folder: Path) -> list[Path]:
    """Write `roofline-<kind>.png` for every kind of arithmetic whose roof was measured.

    Args:
        data: what `result.Result` keeps.
        folder: where to.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    measured = [run["roofs"] for run in data["runs"] if "roofs" in run]
    rows = [row for row in data["ops"].values() if "median_us" in row and row["flops"]]
    written: list[Path] = []
    if not measured:
        return written
    roofs = measured[-1]
    for kind in sorted({row["kind"] for row in rows} & set(roofs["tflop_s"])):
        figure = Figure(figsize=(9, 6), layout="constrained")
        axes = figure.add_subplot()
        for op in sorted({row["op"] for row in rows if row["kind"] == kind}):
            mine = [row for row in rows if (row["op"], row["kind"]) == (op, kind)]
            axes.plot([row["flops"] / row["bytes"] for row in mine], [row["tflop_s"] for row in mine], "o", label=op)
        low, high = axes.get_xlim()
        low = max(low, 0.1)
        ridge = roofs["tflop_s"][kind] * 1e3 / roofs["copy_gb_s"]  # flops per byte where the roofs meet
        at = [low, ridge, max(high, 2 * ridge)]
        axes.plot(
            at, [min(x * roofs["copy_gb_s"] / 1e3, roofs["tflop_s"][kind]) for x in at], "k-", label="measured roofs"
        )
        axes.set(xscale="log", yscale="log", xlabel="flops per byte", ylabel="TFLOP/s")
        axes.set_title(f"{data['header']['gpu']}, {kind}, commit {data['header']['commit']}")
        axes.grid(True, which="both", alpha=0.3)
        axes.legend()
        path = folder / f"roofline-{kind}.png"
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120)
        written.append(path)
    return written
