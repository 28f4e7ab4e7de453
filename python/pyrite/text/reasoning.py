"""Separates what a model thinks from what it answers, by the marks that its own chat template writes.

The marks are found by rendering a conversation whose reasoning and answer are known: what stands before, between and
around them is how this model says "I think" (`<think>`, ` to=self<|message|>`) and "I answer".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pyrite.errors import RequestError
from pyrite.text.chat_template import ChatTemplate
from pyrite.text.detokenize import IncrementalDetokenizer
from pyrite.text.tokenizer import Tokenizer

_REASONING = "reasoning-7f3a"
_ANSWER = "answer-7f3a"


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """The text a model writes around its reasoning, special tokens included.

    Args:
        opening: from the end of the generation prompt to the first word of the reasoning.
        closing: from the last word of the reasoning to the first word of the answer.
        direct: from the end of the generation prompt to an answer without reasoning; may be empty.
    """

    opening: str
    closing: str
    direct: str

    @classmethod
    def derive(cls, template: ChatTemplate) -> ReasoningFormat | None:
        """Read the format off a template; None when it shows no reasoning."""
        question = {"role": "user", "content": "question"}
        plain = {"role": "assistant", "content": _ANSWER}
        prompt = _render(template, [question], True)
        thought = _render(template, [question, {**plain, "reasoning_content": _REASONING}], False)
        answered = _render(template, [question, plain], False)
        if prompt is None or thought is None or answered is None:
            return None
        opening, found, rest = thought.removeprefix(prompt).partition(_REASONING)
        closing, found_answer, _ = rest.partition(_ANSWER)
        if not thought.startswith(prompt) or not found or not found_answer or not opening or not closing:
            return None
        direct = answered.removeprefix(prompt).partition(_ANSWER)[0] if answered.startswith(prompt) else ""
        return cls(opening, closing, direct)


def _render(template: ChatTemplate, messages: list[dict[str, Any]], add_generation_prompt: bool) -> str | None:
    try:
        return template.render(messages, add_generation_prompt=add_generation_prompt)
    except RequestError:
        return None


class ReasoningSplitter:
    """A detokenizer for one answer in a chat: gives out the answer's text and keeps the reasoning apart.

    Output that does not follow the format is the answer, as it is. Nothing that was given out is taken back.

    Args:
        tokenizer: whose ids these are.
        marks: how this model marks its reasoning.
    """

    def __init__(self, tokenizer: Tokenizer, marks: ReasoningFormat) -> None:
        self._tokenizer = tokenizer
        self._marks = marks
        self._raw = IncrementalDetokenizer(tokenizer, skip_special_tokens=False)
        self._answer: IncrementalDetokenizer | None = None
        self._thinking = False
        self._held = ""
        self._reasoning: list[str] = []

    @property
    def reasoning(self) -> str | None:
        """What was thought so far; None when the model did not think."""
        return "".join(self._reasoning) if self._thinking or self._reasoning else None

    def push(self, ids: Sequence[int]) -> str:
        """Take further ids; returns the text of the answer that they completed."""
        text = ""
        for token_id in ids:
            if self._answer is not None:
                text += self._answer.push([token_id])
            else:
                self._held += self._raw.push([token_id])
                text += self._advance()
        return text

    def flush(self) -> str:
        """The text still held when the completion ended."""
        if self._answer is not None:
            return self._answer.flush()
        self._held += self._raw.flush()
        rest = self._without_special(self._held)
        self._held = ""
        if not self._thinking:
            return rest
        self._reasoning.append(rest)
        return ""

    def _advance(self) -> str:
        """Move on as far as the held text allows; returns text of the answer."""
        if not self._thinking:
            if self._held.startswith(self._marks.opening):
                self._thinking = True
                self._held = self._held.removeprefix(self._marks.opening)
            elif self._marks.direct and self._held.startswith(self._marks.direct):
                return self._begin_answer(self._held.removeprefix(self._marks.direct))
            elif any(mark.startswith(self._held) for mark in (self._marks.opening, self._marks.direct)):
                return ""
            else:
                return self._begin_answer(self._without_special(self._held))
        thought, closed, rest = self._held.partition(self._marks.closing)
        if closed:
            self._reasoning.append(thought)
            return self._begin_answer(rest)
        kept = _overlap(self._held, self._marks.closing)
        self._reasoning.append(self._held[: len(self._held) - kept])
        self._held = self._held[len(self._held) - kept :]
        return ""

    def _begin_answer(self, text: str) -> str:
        self._answer = IncrementalDetokenizer(self._tokenizer)
        self._held = ""
        return text

    def _without_special(self, text: str) -> str:
        for token_id in self._tokenizer.special_token_ids:
            text = text.replace(self._tokenizer.token(token_id) or "\0", "")
        return text


def _overlap(text: str, mark: str) -> int:
    """Length of the longest end of `text` that is a beginning of `mark`."""
    return next((n for n in range(min(len(text), len(mark) - 1), 0, -1) if text.endswith(mark[:n])), 0)
