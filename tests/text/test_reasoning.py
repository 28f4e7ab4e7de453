"""Reasoning and answer are told apart by the marks of the model's own template."""

from __future__ import annotations

import pytest
from folders import byte_level_json
from hypothesis import given
from hypothesis import strategies as st
from pyrite.text import ChatTemplate, Tokenizer
from pyrite.text.reasoning import ReasoningFormat, ReasoningSplitter

CHANNELS = (
    "{% for m in messages %}{% if m.role == 'assistant' and m.reasoning_content %}<|start|>assistant to=self<|message|>"
    "{{ m.reasoning_content }}<|eom|>{% endif %}<|start|>{{ m.role }}{{ ' to=user' if m.role == 'assistant' }}"
    "<|message|>{{ m.content }}<|eot|>{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
THINK = (
    "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' and m.reasoning_content %}<think>\n"
    "{{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
PLAIN = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
MARKS = ReasoningFormat(" to=self<|message|>", "<|eom|><|start|>assistant to=user<|message|>", " to=user<|message|>")


def test_formats_are_read_off_the_template() -> None:
    assert ReasoningFormat.derive(ChatTemplate(CHANNELS)) == MARKS
    assert ReasoningFormat.derive(ChatTemplate(THINK)) == ReasoningFormat("<think>\n", "\n</think>\n\n", "")
    assert ReasoningFormat.derive(ChatTemplate(PLAIN)) is None


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    import tokenizers

    backend = tokenizers.Tokenizer.from_str(byte_level_json())
    backend.add_special_tokens(["<|start|>", "<|message|>", "<|eom|>", "<|eot|>"])
    return Tokenizer(backend)


def split(tokenizer: Tokenizer, text: str, marks: ReasoningFormat = MARKS) -> tuple[str | None, str]:
    splitter = ReasoningSplitter(tokenizer, marks)
    pieces = [splitter.push([token_id]) for token_id in tokenizer.encode(text, add_special_tokens=False)]
    return splitter.reasoning, "".join([*pieces, splitter.flush()])


@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        (" to=user<|message|>Hello.<|eot|>", None, "Hello."),
        (" to=self<|message|>Hm.<|eom|><|start|>assistant to=user<|message|>Yes.<|eot|>", "Hm.", "Yes."),
        (" to=self<|message|><|eom|><|start|>assistant to=user<|message|>Yes.", "", "Yes."),
        ("No header at all.<|eot|>", None, "No header at all."),
        (" to=us", None, " to=us"),
        ("", None, ""),
    ],
)
def test_channels(tokenizer: Tokenizer, text: str, reasoning: str | None, answer: str) -> None:
    assert split(tokenizer, text) == (reasoning, answer)


def test_reasoning_that_was_cut_off_is_no_answer(tokenizer: Tokenizer) -> None:
    splitter = ReasoningSplitter(tokenizer, MARKS)
    ids = tokenizer.encode(" to=self<|message|>Let me see<|eom|><|sta", add_special_tokens=False)
    assert splitter.push(ids) + splitter.flush() == ""
    assert splitter.reasoning is not None
    assert splitter.reasoning.startswith("Let me see")


def test_think_tags(tokenizer: Tokenizer) -> None:
    marks = ReasoningFormat("<think>\n", "\n</think>\n\n", "")
    assert split(tokenizer, "<think>\na < b\n</think>\n\nSo b.", marks) == ("a < b", "So b.")
    assert split(tokenizer, "So b.", marks) == (None, "So b.")
    assert split(tokenizer, "<thin air", marks) == (None, "<thin air")


@given(st.text(max_size=30), st.text(max_size=30))
def test_whatever_is_said_comes_out(tokenizer: Tokenizer, thought: str, answer: str) -> None:
    text = f"{MARKS.opening}{thought}{MARKS.closing}{answer}"
    assert split(tokenizer, text) == (thought, answer)
