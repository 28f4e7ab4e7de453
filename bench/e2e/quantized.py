"""Integer weights on a CPU against llama.cpp, ik_llama.cpp and OpenVINO GenAI in one interleaved run.

    python bench/e2e/quantized.py FOLDER --name NAME --out bench/results [--peers DIR] [--quantization int4]
        [--isa avx2] [--workloads decode_0 ...] [--engines REGEX] [--repeats 5] [--budget-s 160]

Each repeat measures every engine once on every workload, one after another, with the read bandwidth of the machine
(and its arithmetic peak) right before and after. Workloads are those of `engines.py`; the peers are what `PEERS` says
for the quantization, as far as DIR has them, and the result says which it had not. Before anything is timed, every
engine's output is checked: pyrite's tokens must be the same on one thread and on all, alone and beside others, a peer's
the same in two runs. Bytes per token are those of all weights and, at a depth, of the keys and values: formats differ,
so they stand beside the ratios.

The result is written after every workload of every repeat. A run goes on where an earlier one of the same commit,
machine and day stopped, so `--budget-s` does it in pieces: exit status 3 says that something is left.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from engines import DECODE_TOKENS, Engine, IkLlamaCpp, LlamaCpp, OpenVino, Pyrite, parse
from facts import model_facts, prefill_flops
from harness import LEFT, Budget, header, parser, read_bandwidth, result_path, resumed, write

WORKLOADS = ("decode_0", "prefill_512", "batch_16", "decode_2048")
SINGLE = ("decode_0", "prefill_512", "decode_2048")

PEERS: dict[str, dict[str, tuple[str, str, tuple[str, ...]]]] = {
    "int4": {
        "llama.cpp Q4_0": ("llama", "q4_0", WORKLOADS),
        "llama.cpp Q4_0 --repack 0": ("llama", "q4_0", WORKLOADS[:2]),
        "llama.cpp Q4_K_M --repack 0": ("llama", "q4_k_m", ("prefill_512",)),
        "ik_llama.cpp Q4_0 -rtr 1": ("ik", "q4_0", SINGLE),
        "OpenVINO GenAI Q4_0": ("ov", "q4_0", WORKLOADS),
    },
    "int4_head4": {
        "llama.cpp Q4_0 --pure": ("llama", "q4_0-pure", WORKLOADS),
        "llama.cpp Q4_0 --pure --repack 0": ("llama", "q4_0-pure", WORKLOADS[:2]),
    },
    "int8": {
        "llama.cpp Q8_0": ("llama", "q8_0", WORKLOADS),
        "ik_llama.cpp Q8_0 -rtr 1": ("ik", "q8_0", SINGLE),
        "OpenVINO GenAI Q8_0": ("ov", "q8_0", WORKLOADS),
    },
    "int4 avx2": {"llama.cpp Q4_0 for AVX2": ("llama-avx2", "q4_0", WORKLOADS)},
}
"""By quantization and instruction level: each peer's folder, GGUF type, and the workloads it is measured on. A way to
run a peer that loses to its default everywhere is left out of the slow workloads."""


def peers(arguments: argparse.Namespace) -> tuple[dict[str, Engine], dict[str, str]]:
    """The peers that are there and chosen, and why the others are not."""
    key = f"{arguments.quantization} {arguments.isa or ''}".strip()
    found: dict[str, Engine] = {}
    absent: dict[str, str] = {}
    for name, (folder, kind, workloads) in PEERS.get(key, {}).items():
        if not re.search(arguments.engines, name) or not set(workloads) & set(arguments.workloads):
            continue
        if arguments.peers is None:
            absent[name] = "no --peers"
            continue
        gguf = arguments.peers / f"{arguments.name}-{kind}.gguf"
        tool = arguments.peers / folder / "bin" / ("python" if folder == "ov" else "llama-bench")
        missing = [path.name for path in (tool, gguf) if not path.exists()]
        if missing:
            absent[name] = f"no {' and no '.join(missing)}"
        elif folder == "ov":
            found[name] = OpenVino(tool, gguf, arguments.threads)
        elif folder == "ik":
            found[name] = IkLlamaCpp(tool.parent, gguf, arguments.threads, arguments.vocab)
        else:
            repack = "--repack 0" not in name
            found[name] = LlamaCpp(tool.parent, gguf, arguments.threads, arguments.vocab, repack=repack)
    return found, absent


def ours(arguments: argparse.Namespace) -> dict[str, Engine]:
    """pyrite, and pyrite with 8-bit keys and values where a context is measured."""
    works = arguments.workloads
    longest = max(64, *(size for kind, size in map(parse, works) if kind != "batch"))
    first = f"pyrite {arguments.quantization}"
    found: dict[str, Engine] = {}
    for name, kv_cache_dtype in ((first, "auto"), (f"{first}, int8 KV", "int8")):
        if re.search(arguments.engines, name) and (kv_cache_dtype == "auto" or _deep(works)):
            found[name] = Pyrite(
                arguments.folder,
                arguments.quantization,
                arguments.threads,
                longest=longest,
                kv_cache_dtype=kv_cache_dtype,
            )
    return found


def _deep(workloads: list[str]) -> list[str]:
    return [work for work in workloads if parse(work)[0] == "decode" and parse(work)[1] > 0]


def wanted(name: str, work: str, arguments: argparse.Namespace) -> bool:
    """Whether an engine is measured on a workload."""
    if name.endswith("int8 KV"):
        return work in _deep([work])
    known = PEERS.get(f"{arguments.quantization} {arguments.isa or ''}".strip(), {})
    return name not in known or work in known[name][2]


def check(engines: dict[str, Engine], arguments: argparse.Namespace) -> dict[str, str]:
    """What was verified of the outputs before timing."""
    found = {name: engine.check() for name, engine in engines.items()}
    one = Pyrite(arguments.folder, arguments.quantization, 1, longest=64)
    for name, engine in engines.items():
        if isinstance(engine, Pyrite) and not name.endswith("int8 KV"):
            assert engine.tokens([24]) == one.tokens([24]), "tokens depend on the number of threads"
            found[name] += ", on one thread and on all"
    return found


def probe(work: str, arguments: argparse.Namespace) -> tuple[float, dict[str, float]]:
    """Read bandwidth in GB/s, and before a prefill or a batch the arithmetic peaks."""
    from pyrite import _core

    kinds = () if parse(work)[0] == "decode" else arguments.peaks
    return read_bandwidth(arguments.threads), {
        kind: statistics.median(_core.peak_flops(kind, arguments.threads, 3, arguments.isa)) for kind in kinds
    }


def measure(result: dict[str, Any], work: str, repeat: int, engines: dict[str, Engine], arguments: Any) -> None:
    """One repeat of one workload: every engine that lacks it, in turn."""
    for name, engine in engines.items():
        samples = result["samples"][name].get(work, [])
        if len(samples) > repeat or f"{name}, {work}" in result["absent"]:
            continue
        before, peaks = probe(work, arguments)
        try:
            speed = engine.measure(work, 1000 * (repeat + 1))
        except subprocess.CalledProcessError as error:
            result["absent"][f"{name}, {work}"] = f"it ended with status {error.returncode}"
            continue
        after, later = probe(work, arguments)
        result["samples"][name].setdefault(work, []).append(speed)
        result["bandwidth_gb_s"][name].setdefault(work, []).append((before + after) / 2)
        for kind in peaks:
            result["peak_samples"].setdefault(kind, []).extend([peaks[kind], later[kind]])
        print(f"{repeat} {work} {name}: {speed:.1f} tok/s (read {before:.1f}, {after:.1f} GB/s)", file=sys.stderr)


def start(arguments: argparse.Namespace, path: Path, engines: dict[str, Engine]) -> dict[str, Any]:
    """The earlier result at `path` where it is of this commit, machine and day, and else a new one."""
    from pyrite import _core

    facts = model_facts(arguments.folder)
    result: dict[str, Any] = {
        "model": arguments.name,
        "quantization": arguments.quantization,
        "isa": _core.cpu_info()["isa"] if arguments.isa is None else arguments.isa,
        "header": header(arguments.threads),
        "flags": "llama.cpp -fa 1 -lm none, ik_llama.cpp -fa 1",
        "facts": facts,
        "absent": {},
        "checked": {},
        "kv_bytes_per_token": {},
        "weight_bytes": {},
        "versions": {},
        "samples": {},
        "bandwidth_gb_s": {},
        "peak_samples": {},
    }
    result = resumed(path, result, "isa")
    values = 2 * facts["layers"] * facts["kv_width"]
    for name, engine in engines.items():
        result["kv_bytes_per_token"][name] = engine.kv_bytes_per_token(values)
        result["weight_bytes"][name] = engine.weight_bytes()
        result["versions"][name] = engine.version()
        for key in ("samples", "bandwidth_gb_s"):
            result[key].setdefault(name, {})
    return result


def finish(result: dict[str, Any]) -> dict[str, Any]:
    """`result` with what follows from its samples: medians of the peaks, bytes and operations of a token."""
    facts = result["facts"]
    works = {work for samples in result["samples"].values() for work in samples}
    operations = {}
    for work in works:
        kind, size = parse(work)
        if kind != "decode":
            each = prefill_flops(facts, size) / size
            operations[work] = each if kind == "prefill" else 2.0 * facts["parameters"]
    result["operations_per_token"] = operations
    result["bytes_per_token"] = {
        name: {work: weights + _kv(result, name, work) for work in sorted(works) if parse(work)[0] == "decode"}
        for name, weights in result["weight_bytes"].items()
    }
    result["roof_kind"] = result["quantization"][:4]  # of codes of 4 bits, or of 8
    result["peaks"] = {kind: statistics.median(values) for kind, values in result["peak_samples"].items()}
    return result


def _kv(result: dict[str, Any], name: str, work: str) -> float:
    depth = parse(work)[1]
    return result["kv_bytes_per_token"][name] * (depth + DECODE_TOKENS // 2) if depth else 0.0


def summary(result: dict[str, Any]) -> str:
    """A table: median, percent of the bandwidth or of the integer peak, and pyrite's ratio repeat by repeat."""
    first = next(iter(result["samples"]))
    lines = []
    for work in sorted({work for samples in result["samples"].values() for work in samples}):
        for name, samples in result["samples"].items():
            speeds = samples.get(work)
            if not speeds:
                continue
            text = f"{work:12} {name:30} {statistics.median(speeds):8.1f} tok/s"
            if work in result["bytes_per_token"][name]:
                size = result["bytes_per_token"][name][work] / 1e9
                shares = [100 * v * size / r for v, r in zip(speeds, result["bandwidth_gb_s"][name][work], strict=True)]
                text += f", {1e3 * size:6.1f} MB a token, {statistics.median(shares):3.0f} % of the bandwidth"
            elif (kind := result["roof_kind"]) in result["peaks"]:
                rate = statistics.median(speeds) * result["operations_per_token"][work]
                text += f", {100 * rate / result['peaks'][kind]:3.0f} % of the {kind} peak"
            pairs = list(zip(result["samples"][first].get(work, []), speeds, strict=False))
            if name != first and pairs:
                text += f", {first} is {statistics.median(a / b for a, b in pairs):.2f}x"
            lines.append(text)
    return "\n".join(lines + [f"{name}: not measured, {why}" for name, why in result["absent"].items()])


def run(arguments: argparse.Namespace, path: Path) -> bool:
    """Measure what is missing in the file at `path` until the budget ends; whether all of it is there."""
    budget = Budget(arguments.budget_s)
    engines = ours(arguments)
    others, absent = peers(arguments)
    engines |= others
    result = start(arguments, path, engines)
    result["absent"] = {name: why for name, why in (result["absent"] | absent).items() if name not in engines}
    if unchecked := {name: engine for name, engine in engines.items() if name not in result["checked"]}:
        result["checked"] |= check(unchecked, arguments)
        write(path, finish(result))
    for repeat in range(arguments.repeats):
        for work in arguments.workloads:
            mine = {name: engine for name, engine in engines.items() if wanted(name, work, arguments)}
            if all(
                len(result["samples"][name].get(work, [])) > repeat or f"{name}, {work}" in result["absent"]
                for name in mine
            ):
                continue
            if budget.ends():
                return False
            measure(result, work, repeat, mine, arguments)
            write(path, finish(result))
    print(summary(result))
    return True


def kinds(isa: str | None) -> list[str]:
    """Kinds of arithmetic that have a measurable peak at this instruction level."""
    from pyrite import _core
    from pyrite.errors import ConfigError

    found = []
    for kind in ("int4", "int8", "bf16", "fp32"):
        try:
            _core.peak_flops(kind, 1, 1, isa)
            found.append(kind)
        except ConfigError:
            continue
    return found


def main() -> None:
    """Parse arguments, measure, write the JSON."""
    options = parser(__doc__, quantization="int4", threads=2, repeats=5, peers=None, budget_s=float("inf"))
    options.add_argument("--isa", help="instruction level of pyrite (PYRITE_CPU_ISA)")
    options.add_argument("--engines", default="", metavar="REGEX", help="only engines whose names match")
    options.add_argument("--workloads", nargs="*", default=list(WORKLOADS))
    arguments = options.parse_args()
    if arguments.isa:
        os.environ["PYRITE_CPU_ISA"] = arguments.isa
    arguments.peaks = kinds(arguments.isa)
    arguments.vocab = model_facts(arguments.folder)["vocab"]
    path = result_path(arguments, "quantized", arguments.quantization, arguments.isa)
    done = run(arguments, path)
    print(path)
    sys.exit(0 if done else LEFT)


if __name__ == "__main__":
    main()
