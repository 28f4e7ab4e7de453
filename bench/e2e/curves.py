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
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from decode_prefill import header, model_facts
from engines import LlamaCpp, Pyrite, parse
from quantized import LEFT, PROBE_BYTES

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


class Peer(LlamaCpp):
    """llama.cpp with a limit on the seconds of one measurement."""

    limit_s = 60.0

    def call(self, binary: str, flags: list[str]) -> subprocess.CompletedProcess[str]:
        """Raises subprocess.TimeoutExpired past the limit."""
        command = [str(self.binaries / binary), *flags]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=self.binaries, timeout=self.limit_s
        )


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

    def get(self, name: str, work: str, threads: int) -> Pyrite | Peer:
        """An engine for a point; pyrite's with a long context replaces the one without."""
        arguments = self.arguments
        if name.startswith("llama.cpp"):
            folder, gguf = arguments.peers / "llama" / "bin", arguments.peers / f"{arguments.name}-q4_0.gguf"
            return Peer(folder, gguf, threads, arguments.vocab)
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
    from pyrite import _core

    cell = rows.setdefault(f"{work} {threads}", {}).setdefault(name, {"tok_per_s": [], "bandwidth_gb_s": []})
    bandwidth = statistics.median(_core.read_bandwidth(PROBE_BYTES, threads, 3))
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
    before = json.loads(path.read_text()) if path.exists() else {"header": None}
    return before if before["header"] == result["header"] else result


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
    started, longest = time.monotonic(), 0.0
    result, engines = start(arguments, path), Engines(arguments)
    for part in parts(engines, result["rows"], arguments.curves, arguments.repeats):
        before = time.monotonic()
        if longest and before - started + longest > arguments.budget_s:
            return False
        point(engines, result["rows"], *part)
        path.write_text(json.dumps(result, indent=1) + "\n")
        longest = max(longest, time.monotonic() - before)
    return True


def main() -> None:
    """Parse arguments, measure, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--name", required=True)
    parser.add_argument("--quantization", default="int4")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--peers", type=Path, help="the folder that peers.sh filled")
    parser.add_argument("--curves", nargs="*", default=["batch", "threads", "prefill", "decode"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--point-s", type=float, default=60.0, help="the longest measurement of a peer")
    parser.add_argument(
        "--budget-s", type=float, default=float("inf"), help="stop about then, after one point at least"
    )
    arguments = parser.parse_args()
    arguments.vocab = model_facts(arguments.folder)["vocab"]
    Peer.limit_s = arguments.point_s
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"curves-{arguments.name}-{arguments.quantization}.json"
    done = run(arguments, path)
    print(path)
    sys.exit(0 if done else LEFT)


if __name__ == "__main__":
    main()
