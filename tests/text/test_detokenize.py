"""Text that arrives in pieces is the text that arrives whole."""

from __future__ import annotations

import time

import pytest
from folders import byte_level_json, prefix_space_json
from hypothesis import given, settings
from hypothesis import strategies as st
from pyrite.text import IncrementalDetokenizer, Tokenizer
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models


def _word_level() -> str:
    words = ["<s>", "a", "##b", "c", ".", "##d"]
    backend = Backend(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="<s>"))
    backend.decoder = decoders.WordPiece(cleanup=False)
    return backend.to_str()


def _metaspace() -> str:
    backend = Backend(models.BPE({"▁": 0, "▁a": 1, "b": 2, "▁▁": 3}, []))
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    return backend.to_str()


def _no_decoder() -> str:
    return Backend(models.BPE({"a": 0, "b": 1}, [])).to_str()


SOURCES = {
    "byte_level": byte_level_json,
    "prefix_space": prefix_space_json,
    "word_piece": _word_level,
    "metaspace": _metaspace,
    "no_decoder": _no_decoder,
}
TOKENIZERS = {name: Tokenizer(Backend.from_str(source())) for name, source in SOURCES.items()}


def _pieces(tokenizer: Tokenizer, ids: list[int], step: int = 1, skip: bool = True) -> list[str]:
    stream = IncrementalDetokenizer(tokenizer, skip_special_tokens=skip)
    pieces = [stream.push(ids[i : i + step]) for i in range(0, len(ids), step)]
    return [*pieces, stream.flush()]


@pytest.mark.parametrize("name", TOKENIZERS)
@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_any_ids_in_any_pieces(name: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[name]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 2), max_size=40))
    skip, step = data.draw(st.booleans()), data.draw(st.integers(1, 4))
    assert "".join(_pieces(tokenizer, ids, step, skip)) == tokenizer.decode(ids, skip)


@pytest.mark.parametrize("name", ["byte_level", "prefix_space"])
@given(text=st.text(st.sampled_from("abthe .,é語🦀\u0301\u200d👩‍🏳️\n"), max_size=30))
@settings(max_examples=300, deadline=None)
def test_text_survives_and_no_piece_splits_a_code_point(name: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.encode(text)
    pieces = _pieces(tokenizer, ids)
    assert "".join(pieces) == tokenizer.decode(ids)
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_code_point_of_four_tokens_comes_out_whole() -> None:
    tokenizer = TOKENIZERS["byte_level"]
    table = tokenizer.backend.get_vocab()
    ids = [table[char] for char in "ðŁĲį"]  # the four bytes of U+1F40D
    assert _pieces(tokenizer, ids) == ["", "", "", "🐍", ""]
    assert _pieces(tokenizer, ids[:3]) == ["", "", "", "\ufffd"]
    assert _pieces(tokenizer, [*ids[:2], table["a"]]) == ["", "", "\ufffda", ""]


def test_byte_fallback_runs_are_held_until_they_end() -> None:
    tokenizer = TOKENIZERS["prefix_space"]
    crab = [tokenizer.backend.token_to_id(f"<0x{byte:02X}>") for byte in "🦀".encode()]
    a = tokenizer.backend.token_to_id("▁a")
    assert _pieces(tokenizer, [a, *crab, a]) == ["a", "", "", "", "", "🦀 a", ""]
    assert _pieces(tokenizer, [a, *crab, crab[0], a])[-2] == "\ufffd" * 5 + " a"


def test_pieces_come_promptly() -> None:
    tokenizer = TOKENIZERS["byte_level"]
    pieces = _pieces(tokenizer, tokenizer.encode("The quick brown fox", add_special_tokens=False))
    assert all(pieces[:-1])


@pytest.mark.parametrize("name", ["byte_level", "prefix_space"])
def test_the_work_is_linear_even_for_bytes_that_are_no_text(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    token = "Ģ" if name == "byte_level" else "<0x80>"
    ids = [tokenizer.backend.token_to_id(token)] * 100_000
    start = time.process_time()
    assert "".join(_pieces(tokenizer, ids)) == "\ufffd" * len(ids)
    # Decoding everything anew at each id would take 5 * 10^9 tokens.
    assert time.process_time() - start < 10
