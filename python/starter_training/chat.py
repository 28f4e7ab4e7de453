"""The chat format as plain string building: the fast twin of `chat_template.jinja`, used to write training text."""

from __future__ import annotations

import re
from pathlib import Path

from .kinds import Sample

TEMPLATE = (Path(__file__).parent / "chat_template.jinja").read_text(encoding="utf-8")

BOS, EOS, EOM, EOT = "<|begin_of_text|>", "<|end_of_text|>", "<|eom|>", "<|eot|>"
START, MESSAGE, PAD = "<|start|>", "<|message|>", "<|finetune_right_pad|>"
IMAGE, VIDEO = "<|patch|>", "<|video|>"
GENERATION_PROMPT = f"{START}assistant"
STRENGTHS = ("low", "medium", "high", "xhigh")

_REPLY = re.compile(
    r"^(?: to=self<\|message\|>(?P<thought>.*?)<\|eom\|><\|start\|>assistant)?"
    r" to=user<\|message\|>(?P<answer>.*?)<\|eot\|>$",
    re.DOTALL,
)


def render_system(system: str, strength: str) -> str:
    """Render BOS and the system message, which is always there."""
    head = f"{system}\n\n" if system else ""
    return f"{BOS}{START}system{MESSAGE}{head}Reasoning strength: {strength}.{EOT}"


def render_user(text: str) -> str:
    """Render a user message and the generation prompt after it."""
    return f"{START}user{MESSAGE}{text}{EOT}{GENERATION_PROMPT}"


def render_reply(answer: str, thought: str, strength: str) -> str:
    """Render what the model itself writes after the generation prompt."""
    thinking = "" if strength == "low" else f" to=self{MESSAGE}{thought}{EOM}{GENERATION_PROMPT}"
    return f"{thinking} to=user{MESSAGE}{answer}{EOT}"


def prompt_of(sample: Sample, strength: str) -> str:
    """Render everything before the graded reply."""
    text = render_system(sample.system, strength)
    for turn in sample.turns[:-1]:
        text += render_user(turn.user) + render_reply(turn.answer, turn.thought, strength)
    return text + render_user(sample.turns[-1].user)


def messages_of(sample: Sample, strength: str) -> list[dict[str, str]]:
    """The same prompt as the list of messages a caller would send."""
    messages = [{"role": "system", "content": sample.system}] if sample.system else []
    for turn in sample.turns:
        messages.append({"role": "user", "content": turn.user})
        reply = {"role": "assistant", "content": turn.answer}
        if strength != "low":
            reply["reasoning_content"] = turn.thought
        messages.append(reply)
    return messages[:-1]


def parse_reply(text: str) -> tuple[str, str] | None:
    """Split a raw reply, special tokens included, into (thought, answer); None if it breaks the format."""
    found = _REPLY.match(text)
    return (found["thought"] or "", found["answer"]) if found else None
