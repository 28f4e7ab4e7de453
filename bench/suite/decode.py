"""Decode a model through `pyrite.LLM` and print what it took as JSON; a process of its own, so that memory goes back.

    python -m suite.decode FOLDER --device cuda --batch 1 [--quantization int4]

Greedy, 8 prompt tokens, no stop. Before timing, the sequences of the batch must come out as each does alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np

PROMPT_TOKENS = 8
CHECKED_TOKENS = 8


class Model:
    """A loaded model and its prompts."""

    def __init__(self, folder: Path, device: str, quantization: str | None, batch: int, tokens: int) -> None:
        from pyrite import LLM

        self.vocab_size = json.loads((folder / "config.json").read_text())["vocab_size"]
        self.llm = LLM(
            folder,
            device=device,
            quantization=quantization,
            max_model_len=PROMPT_TOKENS + tokens + 1,
            max_num_seqs=batch,
            max_num_batched_tokens=512,
            enable_prefix_caching=False,
        )

    def run(self, prompts: list[list[int]], tokens: int) -> list[Any]:
        """Outputs, one per prompt."""
        from pyrite import SamplingParams

        params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
        return self.llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)

    def prompts(self, count: int, seed: int) -> list[list[int]]:
        """Random ids."""
        draw = np.random.default_rng(seed)
        return [draw.integers(5, self.vocab_size, PROMPT_TOKENS).tolist() for _ in range(count)]

    def check(self, batch: int) -> None:
        """A sequence must not depend on its company.

        Raises:
            AssertionError: it does.
        """
        prompts = self.prompts(batch, 1)
        together = [one.outputs[0].token_ids for one in self.run(prompts, CHECKED_TOKENS)]
        for index in range(min(batch, 3)):
            alone = self.run([prompts[index]], CHECKED_TOKENS)[0].outputs[0].token_ids
            assert list(alone) == list(together[index]), f"sequence {index}: alone {alone}, together {together[index]}"
        assert all(len(ids) == CHECKED_TOKENS for ids in together), "a sequence ended early"


def read_bytes(model: Model, folder: Path) -> int:
    """Bytes of the weights that a decode step reads: all, less an embedding of which it reads only a few rows."""
    config = json.loads((folder / "config.json").read_text())
    table = 0 if config["tie_word_embeddings"] else 2 * config["vocab_size"] * config["hidden_size"]
    return int(model.llm.metrics()["weight_bytes"]) - table


def measure(
    folder: Path, device: str, quantization: str | None, batch: int, tokens: int, repeats: int
) -> dict[str, Any]:
    """Times per step over repeats, in microseconds; a step gives every sequence one token."""
    model = Model(folder, device, quantization, batch, tokens)
    model.check(batch)
    steps_us, first_ms = [], []
    for repeat in range(repeats + 1):  # the first is a warm-up
        outputs = model.run(model.prompts(batch, 100 + repeat), tokens)
        if repeat:
            steps_us.append(1e3 * statistics.median(one.metrics.tpot_ms for one in outputs))
            first_ms.append(statistics.median(one.metrics.ttft_ms for one in outputs))
    result = {"steps_us": steps_us, "ttft_ms": first_ms, "weight_bytes": read_bytes(model, folder), "tokens": tokens}
    model.llm.close()
    return result


def main() -> None:
    """Parse arguments, measure, print; a setting that is refused is printed as missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quantization")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = vars(parser.parse_args())
    from pyrite.errors import ConfigError

    try:
        print(json.dumps(measure(**arguments)))
    except ConfigError as error:
        print(json.dumps({"missing": str(error).partition("\n")[0]}))


if __name__ == "__main__":
    main()
