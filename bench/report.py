"""Make the tables of README.md and bench/README.md from the JSON files in bench/results.

    python bench/report.py [--check]

The tables stand between `<!-- bench:begin ... -->` and `<!-- bench:end -->`. `--check` writes nothing and fails when
one is stale.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"(<!-- bench:begin[^>]*-->\n).*?(<!-- bench:end -->)", re.DOTALL)


def results(kind: str) -> list[dict[str, Any]]:
    """All committed results of a kind ("cpu", "load", "quality" or "gpu"), by name."""
    return [json.loads(path.read_text()) for path in sorted((ROOT / "bench" / "results").glob(f"{kind}-*.json"))]


def spread(values: list[float], digits: int) -> str:
    """Median [min max]."""
    return f"{statistics.median(values):.{digits}f} [{min(values):.{digits}f} {max(values):.{digits}f}]"


def ratio(ours: list[float], theirs: list[float]) -> str:
    """Median of the ratios taken repeat by repeat."""
    return f"{statistics.median(a / b for a, b in zip(ours, theirs, strict=True)):.2f}x"


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


def load_table(found: list[dict[str, Any]]) -> str:
    """Loading in a new process, files in the page cache."""
    cells = [
        [
            "load, 2 threads",
            "weights",
            "LLM(...)",
            "to the first token",
            "from the start of the process",
            "a plain read",
            "peak memory",
        ]
    ]
    for result in found:
        one = {"": {key: result[key] for key in ("median", "peak_share") if key in result}}
        for kind, row in result.get("rows", one).items():
            kinds = {"quantize": ", the first start", "packed": ", from the packed file"}
            median, quantization = row["median"], result["quantization"]
            cells.append(
                [
                    f"{result['model']}{f' {quantization}' if quantization else ''}{kinds.get(kind, '')}",
                    f"{median['weight_bytes'] / 1e9:.3f} GB",
                    f"{median['load_s']:.2f} s",
                    f"{median['first_token_s']:.2f} s",
                    f"{median['process_to_first_token_s']:.2f} s",
                    f"{median['plain_read_s']:.2f} s",
                    f"{row['peak_share']:.2f}x the weights",
                ]
            )
    return table(cells) if found else ""


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


WORKLOADS = {
    "decode_0": "decode",
    "decode_2048": "decode at 2048 tokens",
    "prefill_512": "prefill 512",
    "batch_16": "16 sequences",
}


def quantized_table(found: list[dict[str, Any]]) -> str:
    """Integer weights against llama.cpp's, every workload of every engine."""
    if not found:
        return ""
    head, peaks = found[0]["header"], found[0]["peaks"]
    commits = ", ".join(sorted({result["header"]["commit"] for result in found}))
    lines = [
        f"Integer weights: {head['cpu']}, {head['threads']} threads, {head['date']}, commit {commits}; "
        f"{peaks['int8'] / 1e9:.0f} Gop/s int8. llama.cpp with `{found[0]['flags']['llama.cpp']}`. Median [min max] of "
        "interleaved repeats; a ratio is the median of the ratios. Bandwidth was read right before each sample.",
        "",
        "| model | work | engine | tok/s | pyrite is | MB per token | of read bandwidth | of int8 peak |",
        "|" + "---|" * 8,
    ]
    for result in found:
        for work, words in WORKLOADS.items():
            for name, samples in result["samples"].items():
                if work in samples:
                    lines.append("| " + " | ".join(quantized_row(result, work, words, name)) + " |")
    return "\n".join(lines) + "\n"


def quantized_row(result: dict[str, Any], work: str, words: str, name: str) -> list[str]:
    """The cells of one workload of one engine."""
    ours, speeds = next(iter(result["samples"].values()))[work], result["samples"][name][work]
    num_bytes = result["bytes_per_token"].get(name, {}).get(work)
    of_bandwidth = of_peak = moved = "-"
    if num_bytes is not None:
        roofs = result["bandwidth_gb_s"][name][work]
        share = statistics.median(v * num_bytes / roof / 1e7 for v, roof in zip(speeds, roofs, strict=True))
        of_bandwidth, moved = f"{share:.0f} %", f"{num_bytes / 1e6:.0f}"
    if work == "prefill_512":
        done = statistics.median(speeds) / 512 * result["prefill_flops"]
        of_peak = f"{100 * done / result['peaks']['int8']:.0f} %"
    label = f"{result['model']} {result['quantization']}"
    return [label, words, name, spread(speeds, 1), ratio(ours, speeds), moved, of_bandwidth, of_peak]


def taken_core_table(found: list[dict[str, Any]]) -> str:
    """Decode while another process takes a core, beside one thread that has a core to itself."""
    cells = [["a core taken by another process", "threads", "decode tok/s", "of one thread beside it"]]
    for result in found:
        alone = result["samples"]["1 threads, one core taken"]
        for row, samples in result["samples"].items():
            threads, _, taken = row.partition(" threads")
            share = ratio(samples, alone) if taken else ""
            label = f"{result['model']} {result['quantization']}, {'yes' if taken else 'no'}"
            cells.append([label, threads, spread(samples, 1), share])
    return table(cells) if found else ""


def quality_table(found: list[dict[str, Any]]) -> str:
    """What quantized weights cost in quality, by divergence from the float model."""
    lines = []
    for result in found:
        lines += [
            f"Quality of quantized weights on the {result['model']} model: {result['tokens']} tokens of "
            f"{result['documents']} held-out documents, mean over {result['cuts']} cuts into groups, weights alone "
            "(`bench/quality/weights.py`).",
            "",
            "| weights of the layers | bits per weight | weight error | KL to float, 1e-4 nats | 99th percentile | "
            "same top token | perplexity |",
            "|" + "---|" * 7,
        ]
        for name, row in sorted(result["table"].items(), key=lambda item: -item[1]["bits"]):
            error = f" ± {1e4 * row['kl_mean_error']:.2f}" if "kl_mean_error" in row else ""
            cells = [
                name,
                f"{row['bits']:g}",
                f"{100 * row.get('weight_error', 0):.2f} %",
                f"{1e4 * row['kl_mean']:.2f}{error}",
                f"{1e4 * row['kl_p99']:.1f}",
                f"{100 * row['same_top']:.2f} %",
                f"{row['perplexity']:.4f}",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n" if lines else ""


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


def table(cells: list[list[str]]) -> str:
    """Markdown; the first row is the head."""
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "---|" * len(cells[0]), *lines[1:]]) + "\n"


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


def main() -> None:
    """Rewrite the blocks, or check them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    parts = (
        speed_table(results("cpu")),
        quantized_table(results("quantized")),
        taken_core_table(results("taken-core")),
        load_table(results("load")),
        quality_table(results("quality")),
    )
    stale = []
    for path in (ROOT / "README.md", ROOT / "bench" / "README.md"):
        gpu = gpu_tables(results("gpu"), ops=path.parent.name == "bench")
        text = "\n".join(part for part in (*parts, gpu) if part)
        old = path.read_text()
        new = BLOCK.sub(lambda match, text=text: match[1] + text + match[2], old)
        if new != old:
            stale.append(path.name)
            if not check:
                path.write_text(new)
    if check and stale:
        sys.exit(f"stale tables, run python bench/report.py: {', '.join(stale)}")


if __name__ == "__main__":
    main()
