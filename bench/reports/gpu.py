"""Tables of what `gpu_suite.py` found."""

from __future__ import annotations

from typing import Any

from reports.markdown import table


def gpu_tables(found: list[dict[str, Any]], *, ops: bool) -> str:
    """What `gpu_suite.py` found: its goals, and with `ops` every op beside its peers, slower ones included.

    Raises:
        ValueError: a result is of tiny sizes, whose numbers mean nothing.
    """
    parts = []
    for result in found:
        if result["tiny"]:
            raise ValueError("a result of tiny sizes is no measurement")
        parts.append(gpu_header(result) + "\n")
        goals = [["goal (on an H200)", "case", "got", "at least", "goal", ""], *result["goals"]]
        parts.append(table(goals))
        if ops:
            parts.append(
                table(
                    [["op", "dtype", "us", "p10 - p90", "GB/s", "TFLOP/s", "of the roof", "beside"], *gpu_rows(result)]
                )
            )
    return "\n".join(parts)


def gpu_rows(result: dict[str, Any]) -> list[list[str]]:
    """A row per op and shape, and one per model."""
    made = []
    for name, row in {**result["ops"], **result["end_to_end"]}.items():
        if "median_us" not in row:
            made.append([name, row.get("failed") or row["missing"], *[""] * 6])
            continue
        share = row.get("percent_of_roof", row.get("percent_of_weight_bytes"))
        peers = [
            f"{peer['ratio']:.2f}x {other}" if "ratio" in peer else f"no {other}"
            for other, peer in row["peers"].items()
        ]
        numbers = [f"{row[key]:.3g}" if key in row else "" for key in ("gb_s", "tflop_s")]
        spread_us = f"{row['p10_us']:.1f} - {row['p90_us']:.1f}"
        shown = "" if share is None else f"{share:.0f} % {row.get('roof', 'weight bytes')}"
        made.append([name, row["dtype"], f"{row['median_us']:.1f}", spread_us, *numbers, shown, ", ".join(peers)])
    return made


def gpu_header(result: dict[str, Any]) -> str:
    """Where the numbers come from, and which checks came before them."""
    head = result["header"]
    checks = []
    for section in ("parity", "sanitizer", "determinism"):
        parts = result[section].values()
        failed = sum("failed" in part for part in parts)
        missing = sum("missing" in part for part in parts)
        checks.append(f"{section}: {len(parts) - failed - missing} right, {failed} failed, {missing} not possible")
    roofs = [run["roofs"] for run in result["runs"] if "roofs" in run]
    told = "; ".join(
        f"{one['copy_gb_s']:.0f} GB/s copy, "
        + ", ".join(f"{peak:.0f} TFLOP/s {kind}" for kind, peak in one["tflop_s"].items())
        for one in roofs
    )
    return (
        f"{head['gpu']}, driver {head['driver']}, CUDA {head['cuda']}, torch {head['torch']}, triton {head['triton']}, "
        f"{head['date']}, commit {head['commit']}. {'; '.join(checks)}. Roofs of the same runs: {told}."
    )
