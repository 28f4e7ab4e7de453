"""The table of `e2e/decode_prefill.py`: float weights."""

from __future__ import annotations

import statistics
from typing import Any

from reports.markdown import ratio, spread


def speed_table(found: list[dict[str, Any]]) -> str:
    """Decode and prefill of every engine."""
    if not found:
        return ""
    head = result_header(found[0])
    columns = [
        "model",
        "engine",
        "decode tok/s",
        "of read bandwidth",
        "pyrite is",
        "prefill 512 tok/s",
        "of arithmetic peak",
        "pyrite is",
    ]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for result in found:
        lines += ["| " + " | ".join(row) + " |" for row in rows(result)]
    return f"{head}\n\n" + "\n".join(lines) + "\n"


def rows(result: dict[str, Any]) -> list[list[str]]:
    """One table row per engine."""
    ours = result["samples"]["pyrite"]
    table = []
    for name, samples in result["samples"].items():
        roofs = samples["bandwidth_gb_s"]
        weight_gb = result["facts"]["bytes"] / 1e9
        shares = [100 * speed * weight_gb / roof for speed, roof in zip(samples["decode"], roofs, strict=True)]
        of_bandwidth = statistics.median(shares)
        of_peak = 100 * statistics.median(samples["prefill"]) / 512 * result["prefill_flops"] / result["roof_flops"]
        table.append(
            [
                f"{result['model']} {result['dtype']}",
                name,
                spread(samples["decode"], 1),
                f"{of_bandwidth:.0f} %",
                ratio(ours["decode"], samples["decode"]),
                spread(samples["prefill"], 0),
                f"{of_peak:.0f} %",
                ratio(ours["prefill"], samples["prefill"]),
            ]
        )
    return table


def result_header(result: dict[str, Any]) -> str:
    """One sentence of where the numbers come from."""
    head = result["header"]
    libraries = ", ".join(f"{name} {number}" for name, number in head["libraries"].items())
    return (
        f"{head['cpu']}, {head['threads']} threads, {head['date']}, commit {head['commit']}, {libraries}. "
        f"Roofs of the same run: {result['roof_bandwidth_gb_s']:.1f} GB/s read, "
        f"{result['roof_flops'] / 1e9:.0f} GFLOP/s {result['roof_flops_kind']}. Random weights of the real shapes; "
        "median [min max] over interleaved repeats; a ratio is the median of the repeats' ratios."
    )
