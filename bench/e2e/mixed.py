"""A long prompt beside decodes: what four readers notice while a prompt of 4,000 tokens is prefilled.

    python bench/e2e/mixed.py FOLDER --name NAME --out bench/results [--quantization int4] [--pieces 128 512]

Four sequences decode, each read by a thread of its own through `LLM.stream`. When they have run for a while, a request
with the long prompt comes in; when its first token is out, the four go on as long as before. The time between two
tokens of a reader is counted as before, during or after; as during when any of it lay between these two events, since
the step that draws the prompt's first token hands out the readers' tokens too. This is done for every
`max_num_mixed_prefill_tokens` in `--pieces` (the first is the default); the prompt also runs alone, and the four
readers must get the tokens that they get without the prompt.
"""

from __future__ import annotations

import json
import statistics
import sys
import threading
import time
from typing import Any

from engines import prompt
from harness import header, parser, result_path, write

READERS = 4
CONTEXT = 64
LONG_PROMPT = 4000
MOST_TOKENS = 1500
BESIDE_S = 1.5
"""Seconds that the readers run before the long prompt comes, and after it."""
PHASES = ("before", "during", "after")


class Reader(threading.Thread):
    """One stream and when its tokens came."""

    def __init__(self, llm: Any, ids: list[int], count: int) -> None:
        super().__init__()
        self.llm, self.ids, self.count = llm, ids, count
        self.times: list[float] = []
        self.tokens: list[int] = []
        self.enough = threading.Event()

    def run(self) -> None:
        """Read until there is enough; a reader that got several tokens at once notes them all at that time."""
        from pyrite import SamplingParams

        params = SamplingParams(temperature=0.0, max_tokens=self.count, ignore_eos=True)
        for step in self.llm.stream({"prompt_token_ids": self.ids}, params):
            self.tokens = list(step.outputs[0].token_ids)
            self.times += [time.perf_counter()] * (len(self.tokens) - len(self.times))
            if self.enough.is_set():
                break


def together(llm: Any, vocab: int, seed: int) -> dict[str, Any]:
    """Four readers, for a while with the long prompt beside them; times in milliseconds."""
    readers = [Reader(llm, prompt(CONTEXT, vocab, i), MOST_TOKENS) for i in range(READERS)]
    for reader in readers:
        reader.start()
    time.sleep(BESIDE_S)
    late = Reader(llm, prompt(LONG_PROMPT, vocab, seed), 1)
    came = time.perf_counter()
    late.run()
    done = late.times[0]
    time.sleep(BESIDE_S)
    gaps: dict[str, list[float]] = {phase: [] for phase in PHASES}
    for reader in readers:
        reader.enough.set()
        reader.join()
        for earlier, later in zip(reader.times, reader.times[1:], strict=False):
            phase = "before" if later <= came else "during" if earlier < done else "after"
            gaps[phase].append(1e3 * (later - earlier))
    return {"gaps_ms": gaps, "prompt_ms": 1e3 * (done - came), "tokens": [reader.tokens for reader in readers]}


def undisturbed(llm: Any, vocab: int, counts: list[int]) -> list[list[int]]:
    """The readers' first tokens with nothing beside them, one sequence at a time."""
    readers = [Reader(llm, prompt(CONTEXT, vocab, i), count) for i, count in enumerate(counts)]
    for reader in readers:
        reader.run()
    return [reader.tokens for reader in readers]


def alone(llm: Any, vocab: int, seed: int) -> float:
    """Milliseconds to the first token of the long prompt with nothing beside it."""
    reader = Reader(llm, prompt(LONG_PROMPT, vocab, seed), 1)
    started = time.perf_counter()
    reader.run()
    return 1e3 * (reader.times[0] - started)


def spread(values: list[float]) -> dict[str, float]:
    """Median, 95th percentile and maximum."""
    ordered = sorted(values)
    return {
        "median": statistics.median(ordered),
        "p95": ordered[min(len(ordered) - 1, round(0.95 * (len(ordered) - 1)))],
        "max": ordered[-1],
        "count": len(ordered),
    }


def measure(folder: str, quantization: str | None, threads: int, piece: int, repeats: int) -> dict[str, Any]:
    """All repeats with prompt pieces of at most so many tokens beside decodes."""
    from pyrite import LLM

    keywords: dict[str, Any] = {
        "quantization": quantization,
        "num_threads": threads,
        "max_num_mixed_prefill_tokens": piece,
    }
    with LLM(
        folder, max_model_len=LONG_PROMPT + 64, max_num_seqs=READERS + 1, enable_prefix_caching=False, **keywords
    ) as llm:
        vocab = llm.tokenizer.vocab_size
        runs, alones = [], []
        for repeat in range(repeats):
            alones.append(alone(llm, vocab, 100 + repeat))
            run = together(llm, vocab, repeat)
            told = {phase: round(statistics.median(gaps), 1) for phase, gaps in run["gaps_ms"].items()}
            print(
                f"{piece} tokens a piece: prompt {run['prompt_ms']:.0f} ms, between tokens {told} ms", file=sys.stderr
            )
            runs.append(run)
        tokens = runs[0]["tokens"]
        assert undisturbed(llm, vocab, [len(one) for one in tokens]) == tokens, "the prompt changed the readers' tokens"
    gaps = {phase: [gap for run in runs for gap in run["gaps_ms"][phase]] for phase in PHASES}
    return {
        "max_num_mixed_prefill_tokens": piece,
        "gap_ms": {phase: spread(values) for phase, values in gaps.items()},
        "prompt_ms": [run["prompt_ms"] for run in runs],
        "prompt_alone_ms": alones,
    }


def main() -> None:
    """Parse arguments, measure, write the JSON."""
    options = parser(__doc__, quantization="int4", threads=2, repeats=3)
    options.add_argument("--pieces", type=int, nargs="*", default=[128, 512])
    arguments = options.parse_args()
    rows = [
        measure(arguments.folder, arguments.quantization, arguments.threads, piece, arguments.repeats)
        for piece in arguments.pieces
    ]
    result = {
        "model": arguments.name,
        "quantization": arguments.quantization,
        "header": header(arguments.threads),
        "readers": READERS,
        "prompt_tokens": LONG_PROMPT,
        "checked": "the readers' tokens are those that each gets alone",
        "rows": rows,
    }
    path = result_path(arguments, "mixed", arguments.quantization)
    write(path, result)
    print(json.dumps(rows, indent=1))
    print(path)


if __name__ == "__main__":
    main()
