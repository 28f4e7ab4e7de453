"""Decode, prefill and 16 sequences with integer weights on a CPU, against llama.cpp in one interleaved run.

    python bench/e2e/quantized.py FOLDER --name NAME --llama-bin DIR --gguf Q4_0.gguf --out bench/results

Each repeat measures every engine once, one after another, with the read bandwidth of the machine right before. Four
workloads: decode after a prompt of 8 tokens ("decode_0"), decode at a depth of 2048 tokens ("decode_2048"), a prompt
of 512 tokens ("prefill_512"), and 16 sequences at once from an empty context ("batch_16", tokens per second of all).
llama.cpp runs as it comes and with `--repack 0`, its own synthetic prompts of the same lengths. Before anything is
timed, pyrite's tokens must be the same on one thread and on all, alone and beside others. Bytes per token are those
of all weights and, at a depth, of the keys and values: the formats of the two differ, so they stand beside the ratios.
A result of the same commit and machine that is there already keeps its other workloads: short runs can be joined.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from decode_prefill import PROBE_BYTES, header, model_facts, prefill_flops, prompt

WORKLOADS = ("decode_0", "decode_2048", "prefill_512", "batch_16")
DEPTH = 2048
PROMPT = 512
SEQUENCES = 16
DECODE_TOKENS = 48


class Pyrite:
    """pyrite through its public API."""

    def __init__(self, folder: str, quantization: str, threads: int) -> None:
        from pyrite import LLM

        self.llm = LLM(
            folder,
            quantization=quantization,
            num_threads=threads,
            max_model_len=DEPTH + 2 * DECODE_TOKENS,
            max_num_seqs=SEQUENCES,
            max_num_batched_tokens=PROMPT,
            enable_prefix_caching=False,
        )
        self.vocab = self.llm.tokenizer.vocab_size
        self.folder, self.quantization = folder, quantization

    def run(self, lengths: list[int], count: int, seed: int) -> list[Any]:
        """Greedy continuations of random prompts."""
        from pyrite import SamplingParams

        params = SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True)
        prompts = [{"prompt_token_ids": prompt(n, self.vocab, seed + i)} for i, n in enumerate(lengths)]
        return self.llm.generate(prompts, params, use_tqdm=False)

    def tokens(self, lengths: list[int], count: int) -> list[list[int]]:
        """Their token ids."""
        return [list(result.outputs[0].token_ids) for result in self.run(lengths, count, 0)]

    def measure(self, workload: str, seed: int) -> float:
        """Tokens per second."""
        if workload == "prefill_512":
            return PROMPT / (self.run([PROMPT], 1, seed)[0].metrics.ttft_ms / 1e3)
        if workload == "batch_16":
            results = self.run([8] * SEQUENCES, DECODE_TOKENS, seed)
            return SEQUENCES * 1e3 / statistics.median(result.metrics.tpot_ms for result in results)
        depth = DEPTH if workload == "decode_2048" else 8
        return 1e3 / self.run([depth], DECODE_TOKENS, seed)[0].metrics.tpot_ms

    def weight_bytes(self) -> int:
        """Bytes of the packed weights."""
        import pyrite

        return pyrite.plan(self.folder, quantization=self.quantization).weight_bytes


class LlamaCpp:
    """llama-bench and llama-batched-bench, one process a measurement."""

    def __init__(self, folder: str, gguf: str, threads: int, repack: bool) -> None:
        self.folder, self.gguf, self.repack = Path(folder), gguf, repack
        self.common = ["-m", gguf, "-t", str(threads), "-fa", "1", "-lm", "none"]

    def measure(self, workload: str, seed: int) -> float:
        """Tokens per second."""
        del seed  # its prompts are its own
        if workload == "batch_16":
            flags = ["-c", "2048", "-b", "2048", "-ub", "512", "-npp", "8", "-ntg", str(DECODE_TOKENS)]
            flags += ["-npl", str(SEQUENCES), "--output-format", "jsonl", *([] if self.repack else ["-nr"])]
            return float(self._last("llama-batched-bench", flags)["speed_tg"])
        flags = {
            "prefill_512": ["-p", str(PROMPT), "-n", "0"],
            "decode_0": ["-p", "0", "-n", str(DECODE_TOKENS)],
            "decode_2048": ["-p", "0", "-n", str(DECODE_TOKENS), "-d", str(DEPTH)],
        }[workload]
        flags += ["-r", "1", "-o", "jsonl", "--repack", str(int(self.repack))]
        return float(self._last("llama-bench", flags)["avg_ts"])

    def _last(self, binary: str, flags: list[str]) -> dict[str, Any]:
        command = [str(self.folder / binary), *self.common, *flags]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return json.loads([line for line in done.stdout.splitlines() if line.startswith("{")][-1])

    def weight_bytes(self) -> int:
        """Bytes of the file, its metadata included."""
        return Path(self.gguf).stat().st_size


def check(arguments: argparse.Namespace) -> list[str]:
    """What was verified of the outputs before timing."""
    alone = Pyrite(arguments.folder, arguments.quantization, 1).tokens([24], 8)
    engine = Pyrite(arguments.folder, arguments.quantization, arguments.threads)
    assert engine.tokens([24], 8) == alone, "tokens depend on the number of threads"
    assert engine.tokens([24, 9, 40], 8)[0] == alone[0], "tokens depend on the batch"
    return ["one thread", "batch of three"]


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run everything and return the result as plain data."""
    from pyrite import _core

    facts = model_facts(arguments.folder)
    checked = check(arguments)
    pyrite = Pyrite(arguments.folder, arguments.quantization, arguments.threads)
    pyrite.run([8], 8, 0)
    engines: dict[str, Any] = {f"pyrite {arguments.quantization}": pyrite}
    if arguments.llama_bin:
        name = f"llama.cpp {arguments.gguf_type}"
        engines[name] = LlamaCpp(arguments.llama_bin, arguments.gguf, arguments.threads, True)
        engines[f"{name} --repack 0"] = LlamaCpp(arguments.llama_bin, arguments.gguf, arguments.threads, False)
    samples = {name: {work: [] for work in arguments.workloads} for name in engines}
    roofs = {name: {work: [] for work in arguments.workloads} for name in engines}
    for repeat in range(arguments.repeats):
        for work in arguments.workloads:
            for name, engine in engines.items():
                roof = statistics.median(_core.read_bandwidth(PROBE_BYTES // 2, arguments.threads, 3))
                speed = engine.measure(work, 1000 * (repeat + 1))
                print(f"{repeat} {work} {name}: {speed:.1f} tok/s (read {roof:.1f} GB/s)", file=sys.stderr)
                samples[name][work].append(speed)
                roofs[name][work].append(roof)
                time.sleep(0.05)
    kv_bytes = 2 * 2 * facts["layers"] * facts["kv_width"] * (DEPTH + DECODE_TOKENS // 2)
    weights = {name: engine.weight_bytes() for name, engine in engines.items()}
    depth_bytes = {"decode_0": 0, "decode_2048": kv_bytes}
    kinds = [kind for kind in ("int8", "bf16", "fp32") if _has(kind)]
    return {
        "model": arguments.name,
        "quantization": arguments.quantization,
        "header": header(arguments.threads),
        "flags": {"llama.cpp": "-fa 1 -lm none" if arguments.llama_bin else None},
        "facts": facts,
        "checked_against": checked,
        "isa": _core.cpu_info()["isa"],
        "peaks": {kind: statistics.median(_core.peak_flops(kind, arguments.threads, 3)) for kind in kinds},
        "prefill_flops": prefill_flops(facts, PROMPT),
        "bytes_per_token": {
            name: {work: total + extra for work, extra in depth_bytes.items()} for name, total in weights.items()
        },
        "bandwidth_gb_s": roofs,
        "samples": samples,
    }


def _has(kind: str) -> bool:
    from pyrite import _core
    from pyrite.errors import ConfigError

    try:
        return bool(_core.peak_flops(kind, 1, 1))
    except ConfigError:
        return False


def summary(result: dict[str, Any]) -> str:
    """A table: median, percent of the bandwidth or of the int8 peak, and pyrite's ratio repeat by repeat."""
    ours = next(iter(result["samples"]))
    lines = []
    for work in result["samples"][ours]:
        for name, samples in result["samples"].items():
            speeds = samples[work]
            text = f"{work:12} {name:28} {statistics.median(speeds):8.1f} tok/s"
            if work in result["bytes_per_token"][name]:
                size = result["bytes_per_token"][name][work] / 1e9
                shares = [100 * v * size / r for v, r in zip(speeds, result["bandwidth_gb_s"][name][work], strict=True)]
                text += f", {1e3 * size:6.1f} MB a token, {statistics.median(shares):3.0f} % of the bandwidth"
            elif work == "prefill_512" and "int8" in result["peaks"]:
                rate = statistics.median(speeds) / PROMPT * result["prefill_flops"]
                text += f", {100 * rate / result['peaks']['int8']:3.0f} % of the int8 peak"
            if name != ours:
                pairs = zip(result["samples"][ours][work], speeds, strict=True)
                text += f", pyrite {statistics.median(a / b for a, b in pairs):.2f}x"
            lines.append(text)
    return "\n".join(lines)


def join(path: Path, result: dict[str, Any]) -> dict[str, Any]:
    """`result` with the workloads that only the earlier one at `path` has."""
    before = json.loads(path.read_text()) if path.exists() else {"header": None}
    if before["header"] == result["header"] and before["samples"].keys() == result["samples"].keys():
        for key in ("samples", "bandwidth_gb_s"):
            for name, works in before[key].items():
                result[key][name] = {**works, **result[key][name]}
    return result


def main() -> None:
    """Parse arguments, measure, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--name", required=True)
    parser.add_argument("--quantization", default="int4")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workloads", nargs="*", default=list(WORKLOADS), choices=WORKLOADS)
    parser.add_argument("--llama-bin", help="folder with llama-bench and llama-batched-bench")
    parser.add_argument("--gguf", help="the same model, quantized by llama-quantize")
    parser.add_argument("--gguf-type", default="Q4_0", help="its type, for the table")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"quantized-{arguments.name}-{arguments.quantization}.json"
    result = join(path, measure(arguments))
    print(summary(result))
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
