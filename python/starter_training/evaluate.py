"""Measure an exported folder: `python -m starter_training.evaluate --model FOLDER`. Writes evaluation.json into it.

Greedy decoding with transformers, f32 arithmetic on the shipped bfloat16 weights. Every question lies on the held-out
side of the split; an answer counts only if it is equal to the expected one, letter by letter.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from transformers import AutoTokenizer, MuseGlimmerForConditionalGeneration, PreTrainedTokenizerBase

from . import chat
from .corpus import draw_sample
from .documents import document
from .kinds import EXACT_KINDS, OPEN_KINDS, Sample
from .kinds.talk import names_hero

PER_KIND = 24
BATCH = 75
SEED = 20_000


@dataclass(frozen=True)
class Reply:
    """What the model wrote for one question."""

    sample: Sample
    text: str
    ended: bool

    @property
    def answer(self) -> str | None:
        """The answer channel, or None when the reply breaks the chat format."""
        parsed = chat.parse_reply(self.text)
        return parsed[1] if parsed else None

    @property
    def correct(self) -> bool:
        """Whether the answer is the expected one."""
        if self.sample.kind in OPEN_KINDS:
            return self.answer is not None and names_hero(self.sample, self.answer)
        return self.answer == self.sample.turns[-1].answer


def held_out_questions(kinds: tuple[str, ...]) -> list[Sample]:
    """Draw PER_KIND different held-out conversations of each kind."""
    chosen: list[Sample] = []
    for number, kind in enumerate(kinds):
        rng, seen = Random(SEED + number), set()
        while len(seen) < PER_KIND:
            sample = draw_sample(rng, True, kind)
            key = (sample.system, tuple(turn.user for turn in sample.turns))
            if key not in seen:
                seen.add(key)
                chosen.append(sample)
    return chosen


def count_overlap(questions: list[Sample], draws: int) -> int:
    """Count the questions that also turn up among `draws` training conversations per kind."""
    overlap = 0
    for kind in {sample.kind for sample in questions}:
        rng = Random(SEED - 1)
        asked = {(s.system, tuple(t.user for t in s.turns)) for s in questions if s.kind == kind}
        trained = (draw_sample(rng, False, kind) for _ in range(draws))
        overlap += len(asked & {(s.system, tuple(t.user for t in s.turns)) for s in trained})
    return overlap


def ask(
    model: MuseGlimmerForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, samples: list[Sample], strength: str
) -> list[Reply]:
    """Answer all samples greedily, in batches of prompts of similar length."""
    stops = set(model.generation_config.eos_token_id)
    pad = model.generation_config.pad_token_id
    order = sorted(samples, key=lambda s: (s.kind in OPEN_KINDS, len(chat.prompt_of(s, strength))))
    replies = []
    for i in range(0, len(order), BATCH):
        part = order[i : i + BATCH]
        prompts = [
            tokenizer.apply_chat_template(
                chat.messages_of(s, strength), add_generation_prompt=True, tokenize=False, reasoning_strength=strength
            )
            for s in part
        ]
        inputs = tokenizer(prompts, add_special_tokens=False, padding=True, return_tensors="pt")
        limit = 256 if any(s.kind in OPEN_KINDS for s in part) else 112
        with torch.inference_mode():
            out = model.generate(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], max_new_tokens=limit
            )
        for sample, row in zip(part, out[:, inputs["input_ids"].shape[1] :].tolist(), strict=True):
            ids = [token for token in row if token != pad]
            replies.append(Reply(sample, tokenizer.decode(ids), bool(ids) and ids[-1] in stops))
    return replies


def perplexity(
    model: MuseGlimmerForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, count: int
) -> dict[str, float]:
    """Perplexity per token of `count` held-out documents; the end token is counted, BOS is given."""
    rng = Random(SEED)
    loss, tokens, letters = 0.0, 0, 0
    for _ in range(count):
        text = document(rng, True)
        ids = tokenizer(text + chat.EOS, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            logits = model(input_ids=ids).logits[0, :-1].float()
        loss += torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
        tokens, letters = tokens + ids.shape[1] - 1, letters + len(text)
    return {"documents": count, "tokens": tokens, "perplexity": round(math.exp(loss / tokens), 3),
            "bits_per_character": round(loss / math.log(2) / letters, 4)}  # fmt: skip


def summarise(replies: list[Reply]) -> dict[str, object]:
    """Accuracy over all exact kinds and by kind, and how many replies ended by themselves."""
    exact = [r for r in replies if r.sample.kind not in OPEN_KINDS]
    kinds = {r.sample.kind for r in replies}
    by_kind = {kind: [r.correct for r in replies if r.sample.kind == kind] for kind in sorted(kinds)}
    return {
        "questions": len(exact),
        "correct": sum(r.correct for r in exact),
        "accuracy": round(sum(r.correct for r in exact) / len(exact), 4),
        "ended": round(sum(r.ended for r in replies) / len(replies), 4),
        "by_kind": {kind: f"{sum(marks)}/{len(marks)}" for kind, marks in by_kind.items()},
        "mistakes": [
            {
                "kind": r.sample.kind,
                "question": r.sample.turns[-1].user,
                "expected": r.sample.turns[-1].answer,
                "got": r.text,
            }
            for r in exact
            if not r.correct
        ],
    }


def main() -> None:
    """Parse the command line, measure, write evaluation.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="where to write the result (default: evaluation.json in the folder)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    begin = time.monotonic()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = MuseGlimmerForConditionalGeneration.from_pretrained(args.model, dtype=torch.float32).eval()
    questions = held_out_questions(EXACT_KINDS + OPEN_KINDS)
    result: dict[str, object] = {
        "method": "greedy, f32, exact match of the answer channel, held-out questions",
        "parameters": sum(p.numel() for p in model.parameters()),
        "questions_seen_in_20000_training_draws_per_kind": count_overlap(questions, 20_000),
        "documents": perplexity(model, tokenizer, 200),
    }
    for strength in ("low", "high"):
        summary = summarise(ask(model, tokenizer, questions, strength))
        result[strength] = summary
        print(strength, {key: value for key, value in summary.items() if key != "mistakes"}, flush=True)
    out = args.out or args.model / "evaluation.json"
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(
        result["documents"],
        f"overlap {result['questions_seen_in_20000_training_draws_per_kind']}, {time.monotonic() - begin:.0f} s",
    )


if __name__ == "__main__":
    main()
