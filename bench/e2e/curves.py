"""The rows of the plots: speed over context length, prompt length, number of sequences and threads.

    python bench/e2e/curves.py FOLDER --name NAME --out bench/results [--peers DIR] [--repeats 3] [--budget-s 160]

pyrite in int4 (and with 8-bit keys and values) beside llama.cpp Q4_0, in turns, point by point, with the read bandwidth
before each. A point that takes a peer longer than `--point-s` is left out for it, as are all larger ones of its curve;
one that takes a third of that is measured once.
The file is written after every point, and a run goes on where an earlier one of the same commit, machine and day
stopped; exit status 3 says that something is left.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engines import LlamaCpp, Pyrite, parse
from facts import model_facts
from harness import LEFT, Budget, header, parser, read_bandwidth, result_path, resumed, write

Part = tuple[str, str, int, int]
"""Engine, workload, threads, repeat."""

CONTEXTS = (0, 512, 1024, 2048, 4096, 8192, 16384)
PROMPTS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
SEQUENCES = (1, 2, 4, 8, 16)
THREADS = (1, 2)


def curves(names: list[str]) -> dict[str, list[tuple[str, int]]]:
    """Points of these curves as (workload, threads), the slow ones of an axis last."""
    full = THREADS[-1]
    every = {
        "batch": [(f"batch_{n}", full) for n in SEQUENCES],
        "threads": [(work, n) for n in THREADS for work in ("decode_0", "prefill_512", "batch_16")],
        "prefill": [(f"prefill_{n}", full) for n in PROMPTS],
        "decode": [(f"decode_{n}", full) for n in CONTEXTS],
    }
    return {name: points for name, points in every.items() if name in names}


class Engines:
    """The engines by threads, made when they are first asked for; at most two of pyrite's live at a time."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.made = arguments, {}

    def names(self, work: str) -> list[str]:
        """Of the engines that a point is measured on."""
        deep = parse(work)[0] == "decode" and parse(work)[1] > 0
        gguf = self.arguments.peers and self.arguments.peers / f"{self.arguments.name}-q4_0.gguf"
        return [
            f"pyrite {self.arguments.quantization}",
            *([f"pyrite {self.arguments.quantization}, int8 KV"] if deep else []),
            *(["llama.cpp Q4_0"] if gguf and gguf.exists() else []),
        ]

    def get(self, name: str, work: str, threads: int) -> Pyrite | LlamaCpp:
        """An engine for a point; pyrite's with a long context replaces the one without."""
        arguments = self.arguments
        if name.startswith("llama.cpp"):
            folder, gguf = arguments.peers / "llama" / "bin", arguments.peers / f"{arguments.name}-q4_0.gguf"
            return LlamaCpp(folder, gguf, threads, arguments.vocab, limit_s=arguments.point_s)
        kind, size = parse(work)
        longest = max(CONTEXTS) if kind == "decode" and size else max(PROMPTS)
        key = (name, threads, longest)
        if key not in self.made:
            self.made = {old: engine for old, engine in self.made.items() if old[1:] == key[1:]}
            dtype = "int8" if name.endswith("int8 KV") else "auto"
            self.made[key] = Pyrite(
                arguments.folder, arguments.quantization, threads, longest=longest, kv_cache_dtype=dtype
            )
        return self.made[key]


def lacking(engines: Engines, rows: dict[str, Any], work: str, threads: int, repeat: int) -> list[str]:
    """The engines that a repeat of a point is still to be measured on."""
    found = []
    for name in engines.names(work):
        cell = rows.get(f"{work} {threads}", {}).get(name, {"tok_per_s": []})
        smaller = [
            row.get(name, {})
            for key, row in rows.items()
            if parse(key.split()[0])[0] == parse(work)[0] and parse(key.split()[0])[1] < parse(work)[1]
        ]
        over = "left_out" in cell or any("left_out" in other for other in smaller)
        if len(cell["tok_per_s"]) <= repeat and not over and not (repeat and cell.get("once")):
            found.append(name)
    return found


def point(engines: Engines, rows: dict[str, Any], name: str, work: str, threads: int, repeat: int) -> None:
    """One repeat of one point on one engine."""
    cell = rows.setdefault(f"{work} {threads}", {}).setdefault(name, {"tok_per_s": [], "bandwidth_gb_s": []})
    bandwidth = read_bandwidth(threads)
    started = time.monotonic()
    try:
        speed = engines.get(name, work, threads).measure(work, 1000 * (repeat + 1))
    except subprocess.TimeoutExpired:
        cell["left_out"] = f"longer than {engines.arguments.point_s:.0f} s"
        return
    if name.startswith("llama.cpp") and time.monotonic() - started > engines.arguments.point_s / 3:
        cell["once"] = True
    cell["tok_per_s"].append(speed)
    cell["bandwidth_gb_s"].append(bandwidth)
    print(f"{work} on {threads}: {name} {speed:.1f} tok/s ({bandwidth:.1f} GB/s)", file=sys.stderr)


def start(arguments: argparse.Namespace, path: Path) -> dict[str, Any]:
    """The earlier result at `path` where it is of this commit, machine and day, and else a new one."""
    result = {
        "model": arguments.name,
        "quantization": arguments.quantization,
        "header": header(max(THREADS)),
        "flags": "llama.cpp -fa 1 -lm none",
        "rows": {},
    }
    return resumed(path, result)


def parts(engines: Engines, rows: dict[str, Any], names: list[str], repeats: int) -> Iterator[Part]:
    """What is still to be measured, in order; asked for one by one, since a part may make others needless."""
    for points in curves(names).values():
        for work, threads in points:
            for repeat in range(repeats):
                for name in engines.names(work):
                    if name in lacking(engines, rows, work, threads, repeat):
                        yield name, work, threads, repeat


def run(arguments: argparse.Namespace, path: Path) -> bool:
    """Measure what is missing; whether all is there."""
    budget = Budget(arguments.budget_s)
    result, engines = start(arguments, path), Engines(arguments)
    for part in parts(engines, result["rows"], arguments.curves, arguments.repeats):
        if budget.ends():
            return False
        point(engines, result["rows"], *part)
        write(path, result)
    return True


def main() -> None:
    """Parse arguments, measure, write the JSON."""
    options = parser(__doc__, quantization="int4", repeats=3, peers=None, budget_s=float("inf"))
    options.add_argument("--curves", nargs="*", default=["batch", "threads", "prefill", "decode"])
    options.add_argument("--point-s", type=float, default=60.0, help="the longest measurement of a peer")
    arguments = options.parse_args()
    arguments.vocab = model_facts(arguments.folder)["vocab"]
    path = result_path(arguments, "curves", arguments.quantization)
    done = run(arguments, path)
    print(path)
    sys.exit(0 if done else LEFT)


if __name__ == "__main__":
    main()
