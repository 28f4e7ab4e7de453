"""Decode while another process takes one core, against one thread that has a core to itself.

    python bench/e2e/taken_core.py FOLDER --name qwen3-0.6b --out bench/results [--quantization int4] [--repeats 5]

Each repeat measures greedy decode of 8 + 256 tokens four times: on all threads and on one, without and with a process
that spins for ever. All threads beside that process should never be slower than the one thread beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any

from decode_prefill import prompt
from harness import header, parser, result_path, write

TOKENS = 256


def spin() -> None:
    """Take a core for ever."""
    while True:
        pass


@contextlib.contextmanager
def other_process(wanted: bool) -> Iterator[None]:
    """Run `spin` beside the block, or nothing."""
    if not wanted:
        yield
        return
    process = multiprocessing.get_context("spawn").Process(target=spin, daemon=True)
    process.start()
    time.sleep(0.5)
    try:
        yield
    finally:
        process.kill()
        process.join()


def decode(llm: Any, seed: int) -> float:
    """Tokens per second of one greedy continuation."""
    from pyrite import SamplingParams

    params = SamplingParams(temperature=0.0, max_tokens=TOKENS, ignore_eos=True)
    prompts = {"prompt_token_ids": prompt(8, llm.tokenizer.vocab_size, seed)}
    return 1e3 / llm.generate(prompts, params, use_tqdm=False)[0].metrics.tpot_ms


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run everything and return the result as plain data."""
    from pyrite import LLM

    def load(threads: int) -> Any:
        return LLM(
            arguments.folder,
            quantization=arguments.quantization,
            num_threads=threads,
            max_model_len=TOKENS + 64,
            max_num_seqs=1,
            enable_prefix_caching=False,
        )

    engines = {str(threads): load(threads) for threads in (arguments.threads, 1)}
    samples: dict[str, list[float]] = {}
    for repeat in range(arguments.repeats):
        for taken in (False, True):
            with other_process(taken):
                for threads, llm in engines.items():
                    found = decode(llm, repeat)
                    row = f"{threads} threads{', one core taken' if taken else ''}"
                    print(f"{repeat} {row}: {found:.1f} tok/s", file=sys.stderr)
                    samples.setdefault(row, []).append(found)
    return {
        "model": arguments.name,
        "quantization": arguments.quantization,
        "header": header(arguments.threads),
        "samples": samples,
    }


def main() -> None:
    """Parse arguments, measure, write the JSON."""
    arguments = parser(__doc__, quantization="int4", threads=2, repeats=5).parse_args()
    path = result_path(arguments, "taken-core")
    result = measure(arguments)
    write(path, result)
    for row, found in result["samples"].items():
        print(f"{row:28} {statistics.median(found):7.1f} tok/s [{min(found):.1f} {max(found):.1f}]")
    print(path)


if __name__ == "__main__":
    main()
