"""Tables of `e2e/quantized.py`: integer weights beside the peers' formats."""

from __future__ import annotations

import statistics
from typing import Any

from reports.markdown import ratio, spread, table

KINDS = {"decode": "decode at {}", "prefill": "prefill {}", "batch": "{} sequences"}


def words(work: str) -> str:
    """A workload's name for readers."""
    kind, size = work.split("_")
    return "decode" if work == "decode_0" else KINDS[kind].format(size)


def ordered(found: list[dict[str, Any]]) -> list[str]:
    """All workloads of some results: decodes, prefills, batches, by size."""
    works = {work for result in found for samples in result["samples"].values() for work in samples}
    return sorted(works, key=lambda work: (list(KINDS).index(work.split("_")[0]), int(work.split("_")[1])))


def introduction(found: list[dict[str, Any]]) -> str:
    """Where the numbers come from and how to read them."""
    head = found[0]["header"]
    dates = ", ".join(sorted({result["header"]["date"] for result in found}))
    commits = ", ".join(sorted({result["header"]["commit"] for result in found}))
    native = [result for result in found if result["isa"] != "avx2"] or found
    peaks = [result["peaks"][result["roof_kind"]] for result in native if result["roof_kind"] in result["peaks"]]
    versions = sorted({version for result in found for version in result["versions"].values()})
    peak = f"{statistics.median(peaks or [0]) / 1e9:.0f} Gop/s with integers"
    return (
        f"Integer weights: {head['cpu']}, {head['threads']} threads, {dates}, commit {commits}; {peak}. "
        f"{'; '.join(versions)}; {found[0]['flags']}. Random weights of the real shapes; engines in turns, medians; a "
        "ratio (how many times as fast pyrite is in the same repeat) is the median of the repeats' ratios. MB are all "
        "bytes that a token needs: weights and, at a depth, keys and values. Percent is of the read bandwidth measured "
        "right around each sample (decode), or of the peak of the level's integer instructions (prefill, sequences).\n"
    )


def label(result: dict[str, Any]) -> str:
    """Model, weights, and the instruction level where one was forced."""
    level = " (AVX2)" if result["isa"] == "avx2" else ""
    return f"{result['model']} {result['quantization']}{level}"


def share(result: dict[str, Any], name: str, work: str) -> str:
    """Percent of the roof that binds this work."""
    speeds = result["samples"][name][work]
    num_bytes = result["bytes_per_token"].get(name, {}).get(work)
    if num_bytes is not None:
        roofs = result["bandwidth_gb_s"][name][work]
        return f"{statistics.median(v * num_bytes / roof / 1e7 for v, roof in zip(speeds, roofs, strict=True)):.0f} %"
    if result["roof_kind"] not in result["peaks"]:
        return "-"
    rate = statistics.median(speeds) * result["operations_per_token"][work]
    return f"{100 * rate / result['peaks'][result['roof_kind']]:.0f} %"


def megabytes(result: dict[str, Any], name: str, work: str) -> str:
    """Bytes of a token where they bind."""
    num_bytes = result["bytes_per_token"].get(name, {}).get(work)
    return "-" if num_bytes is None else f"{num_bytes / 1e6:.0f}"


def wide_table(found: list[dict[str, Any]]) -> str:
    """One row an engine, one column a workload: speed, share of the roof, ratio and bytes."""
    if not found:
        return ""
    works = ordered(found)
    cells = [["tok/s", "engine", *map(words, works)]]
    for result in found:
        first = next(iter(result["samples"]))
        for name, samples in result["samples"].items():
            row = [label(result), name]
            for work in works:
                if work not in samples:
                    row.append("")
                    continue
                text = f"{statistics.median(samples[work]):.1f}, {share(result, name, work)}"
                if (size := megabytes(result, name, work)) != "-":
                    text += f" of {size} MB"
                if name != first and work in result["samples"][first]:
                    text += f", **{ratio(result['samples'][first][work], samples[work])}**"
                row.append(text)
            cells.append(row)
    return f"{introduction(found)}\n{table(cells)}{missing(found)}"


def long_table(found: list[dict[str, Any]]) -> str:
    """One row a workload and engine, with the spread."""
    if not found:
        return ""
    cells = [["model", "work", "engine", "tok/s, median [min max]", "pyrite is", "MB per token", "of the roof"]]
    for result in found:
        first = next(iter(result["samples"]))
        for work in ordered([result]):
            for name, samples in result["samples"].items():
                if work in samples:
                    ours = result["samples"][first].get(work, [])
                    times = ratio(ours, samples[work]) if ours else "-"
                    row = [label(result), words(work), name, spread(samples[work], 1), times]
                    cells.append([*row, megabytes(result, name, work), share(result, name, work)])
    return f"{introduction(found)}\n{table(cells)}{missing(found)}"


def missing(found: list[dict[str, Any]]) -> str:
    """The peers that a run had not, and those whose outputs were not as they should be."""
    absent = sorted({f"{label(result)}: {name} ({why})" for result in found for name, why in result["absent"].items()})
    doubts = sorted(
        {
            f"{label(result)}: {name}, {told}"
            for result in found
            for name, told in result["checked"].items()
            if "BUT" in told
        }
    )
    lines = [("Not measured", absent), ("Outputs in doubt", doubts)]
    return "".join(f"\n{what}: {'; '.join(which)}.\n" for what, which in lines if which)
