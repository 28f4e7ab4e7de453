"""Decode and prefill speed of one model folder: pyrite, transformers and llama.cpp in one interleaved run.

    python bench/e2e/decode_prefill.py FOLDER --name qwen3-0.6b --out bench/results \
        [--llama-bench PATH --gguf FILE] [--transformers float32 bfloat16] [--repeats 5] [--threads 2]

Every repeat runs each engine once, with the memory-bandwidth probe right before and after its decode; medians and
ratios are taken over the repeats. Prefill is one prompt of 512 tokens (time to the first token); decode is 64 tokens
after a prompt of 8 tokens. Greedy, no stop. The outputs are checked before anything is timed: each token that pyrite
chose must be the best one of transformers too, near ties allowed. The result is one JSON file; `bench/report.py`
makes the tables.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from typing import Any

import numpy as np
from facts import model_facts, prefill_flops
from harness import header, parser, result_path, write

PROMPT_TOKENS = 512
DECODE_PROMPT_TOKENS = 8
DECODE_TOKENS = 64
PROBE_BYTES = 1 << 30


def prompt(num_tokens: int, vocab: int, seed: int) -> list[int]:
    """Token ids that no engine has seen before."""
    return np.random.default_rng(seed).integers(5, vocab, num_tokens).tolist()


class Pyrite:
    """pyrite through its public API."""

    def __init__(self, folder: str, threads: int) -> None:
        from pyrite import LLM

        started = time.perf_counter()
        self.llm = LLM(
            folder,
            num_threads=threads,
            max_model_len=1024,
            max_num_seqs=4,
            max_num_batched_tokens=PROMPT_TOKENS,
            enable_prefix_caching=False,
        )
        self.load_s = time.perf_counter() - started

    def tokens(self, ids: list[int], count: int) -> list[int]:
        """Greedy continuation."""
        return list(self._run(ids, count).outputs[0].token_ids)

    def _run(self, ids: list[int], count: int) -> Any:
        from pyrite import SamplingParams

        params = SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True)
        return self.llm.generate({"prompt_token_ids": ids}, params, use_tqdm=False)[0]

    def prefill(self, ids: list[int]) -> float:
        """Tokens per second of the prompt."""
        return len(ids) / (self._run(ids, 1).metrics.ttft_ms / 1e3)

    def decode(self, ids: list[int], count: int) -> float:
        """Tokens per second after the first one."""
        return 1e3 / self._run(ids, count).metrics.tpot_ms


class Transformers:
    """Hugging Face transformers' `generate`, the model in one dtype."""

    def __init__(self, folder: str, threads: int, dtype: str) -> None:
        import torch
        import transformers

        torch.set_num_threads(threads)
        self.torch = torch
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()

    def _run(self, ids: list[int], count: int) -> tuple[list[int], float]:
        inputs = self.torch.tensor([ids])
        started = time.perf_counter()
        with self.torch.inference_mode():
            out = self.model.generate(
                inputs,
                attention_mask=self.torch.ones_like(inputs),
                max_new_tokens=count,
                min_new_tokens=count,
                do_sample=False,
                pad_token_id=0,
            )
        return out[0, len(ids) :].tolist(), time.perf_counter() - started

    def check(self, ids: list[int], got: list[int], vocab_limit: int) -> bool:
        """Whether each token of `got` is this model's best choice, near ties (0.05 in the logit) allowed.

        Ids from `vocab_limit` on belong to no token of the tokenizer, so pyrite never draws them.
        """
        with self.torch.inference_mode():
            logits = self.model(self.torch.tensor([ids + got])).logits[0, len(ids) - 1 : -1, :vocab_limit].float()
        chosen = logits[self.torch.arange(len(got)), self.torch.tensor(got)]
        return bool((logits.max(-1).values - chosen).max() < 0.05)

    def prefill(self, ids: list[int]) -> float:
        """Tokens per second of the prompt."""
        return len(ids) / self._run(ids, 1)[1]

    def decode(self, ids: list[int], count: int) -> float:
        """Tokens per second after the first one."""
        one, all_of_them = self._run(ids, 1)[1], self._run(ids, count)[1]
        return (count - 1) / (all_of_them - one)


class LlamaCpp:
    """llama-bench, one process a measurement; its own synthetic prompts of the same lengths."""

    def __init__(self, binary: str, gguf: str, threads: int) -> None:
        self.command = [binary, "-m", gguf, "-t", str(threads), "-r", "1", "-o", "json", "-fa", "1", "-lm", "none"]

    def _run(self, *flags: str) -> float:
        done = subprocess.run([*self.command, *flags], capture_output=True, text=True, check=True)
        return float(json.loads(done.stdout)[0]["avg_ts"])

    def prefill(self, ids: list[int]) -> float:
        """Tokens per second of the prompt."""
        return self._run("-p", str(len(ids)), "-n", "0")

    def decode(self, ids: list[int], count: int) -> float:
        """Tokens per second from an almost empty context."""
        return self._run("-p", "0", "-n", str(count))


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run everything and return the result as plain data."""
    from pyrite import _core

    facts = model_facts(arguments.folder)
    engines: dict[str, Any] = {"pyrite": Pyrite(arguments.folder, arguments.threads)}
    for dtype in arguments.transformers:
        engines[f"transformers {dtype}"] = Transformers(arguments.folder, arguments.threads, dtype)
    if arguments.llama_bench:
        engines["llama.cpp BF16"] = LlamaCpp(arguments.llama_bench, arguments.gguf, arguments.threads)

    limit = engines["pyrite"].llm.tokenizer.vocab_size
    short, long = (prompt(n, limit, n) for n in (DECODE_PROMPT_TOKENS, PROMPT_TOKENS))
    checks = [name for name in engines if name.startswith("transformers")]
    for name in checks:
        for ids in (short, long):
            assert engines[name].check(ids, engines["pyrite"].tokens(ids, 8), limit), f"pyrite disagrees with {name}"

    probes: list[float] = []
    flops: list[float] = []
    rows: dict[str, dict[str, list[float]]] = {name: {"prefill": [], "decode": []} for name in engines}
    for repeat in range(arguments.repeats + 1):  # the first is a warm-up
        probe = _core.read_bandwidth(PROBE_BYTES, arguments.threads, 3)
        peak = _core.peak_flops(arguments.roof, arguments.threads, 3)
        for name, engine in engines.items():
            before = _core.read_bandwidth(PROBE_BYTES, arguments.threads, 3)
            decode = engine.decode(short, DECODE_TOKENS)
            after = _core.read_bandwidth(PROBE_BYTES, arguments.threads, 3)
            prefill = engine.prefill(prompt(PROMPT_TOKENS, limit, 1000 + repeat))
            print(f"{repeat} {name}: prefill {prefill:.1f} tok/s, decode {decode:.2f} tok/s", file=sys.stderr)
            if repeat:
                rows[name]["prefill"].append(prefill)
                rows[name]["decode"].append(decode)
                rows[name].setdefault("bandwidth_gb_s", []).append(statistics.median(before + after))
        if repeat:
            probes += probe
            flops += peak
    return {
        "model": arguments.name,
        "dtype": "bfloat16",
        "header": header(arguments.threads),
        "facts": facts,
        "checked_against": checks,
        "isa": _core.cpu_info()["isa"],
        "load_s": engines["pyrite"].load_s,
        "roof_bandwidth_gb_s": statistics.median(probes),
        "roof_flops": statistics.median(flops),
        "roof_flops_kind": arguments.roof,
        "prefill_flops": prefill_flops(facts, PROMPT_TOKENS),
        "samples": rows,
    }


def main() -> None:
    """Parse arguments, measure, write the JSON."""
    from pyrite import _core

    options = parser(__doc__, threads=2, repeats=5)
    options.add_argument("--transformers", nargs="*", default=["bfloat16"], metavar="DTYPE")
    own = "bf16" if _core.cpu_info()["isa"] == "avx512bf16" else "fp32"
    options.add_argument("--roof", default=own, choices=["bf16", "fp32"], help="arithmetic roof of the prefill")
    options.add_argument("--llama-bench", help="llama.cpp's llama-bench")
    options.add_argument("--gguf", help="the same model as BF16 GGUF")
    arguments = options.parse_args()
    result = measure(arguments)
    path = result_path(arguments, "cpu", "bf16")
    write(path, result)
    print(path)


if __name__ == "__main__":
    main()
