"""The tokenizer of a folder: what it reads, what it adds, what it refuses."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from folders import BOS, CORPUS, END, EOS, PAD, TOKENIZER_CONFIG, byte_level_json, prefix_space_json, write
from pyrite.errors import CheckpointError, RequestError
from pyrite.text import Tokenizer
from pyrite.text.folder import MAX_TOKENIZER_BYTES

TEXTS = [*CORPUS[:3], "", " ", "\n\n", f"plain {EOS} inside", "a\x00b", "\ufeffbom", "x" * 5000, "e" + "\u0301" * 300]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path, byte_level_json(), tokenizer_config=TOKENIZER_CONFIG)


@pytest.mark.parametrize("source", [byte_level_json, prefix_space_json], ids=["byte_level", "prefix_space"])
@pytest.mark.parametrize("config", [{}, {"add_bos_token": True}, {"add_bos_token": False}], ids=str)
def test_agrees_with_transformers(tmp_path: Path, source, config) -> None:
    transformers = pytest.importorskip("transformers")
    names = TOKENIZER_CONFIG if source is byte_level_json else {"bos_token": "<s>", "eos_token": "</s>"}
    write(tmp_path, source(), tokenizer_config={"tokenizer_class": "PreTrainedTokenizerFast", **names, **config})
    ours, theirs = Tokenizer.from_folder(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert ours.bos_token_id == theirs.bos_token_id
    assert ours.eos_token_ids == (theirs.eos_token_id,)
    for text in TEXTS:
        for special in (True, False):
            ids = ours.encode(text, add_special_tokens=special)
            assert ids == theirs.encode(text, add_special_tokens=special)
            for skip in (True, False):
                assert ours.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip)
    assert ours.token(ours.bos_token_id) == theirs.convert_ids_to_tokens(theirs.bos_token_id)


def test_plain_text_gets_bos_and_rendered_text_does_not(folder: Path) -> None:
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.encode("a")[0] == tokenizer.bos_token_id == 0
    assert 0 not in tokenizer.encode("a", add_special_tokens=False)
    assert tokenizer.encode("") == [0]
    assert tokenizer.encode(f"{END}", add_special_tokens=False) == [3]


def test_properties(folder: Path) -> None:
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.vocab_size == 402
    assert tokenizer.special_token_ids == {0, 1, 2, 3}
    assert tokenizer.pad_token_id == 2
    assert (tokenizer.token(0), tokenizer.token(401), tokenizer.token(402), tokenizer.token(-1)) == (
        BOS,
        "《書》",
        None,
        None,
    )
    assert tokenizer.decode([1, *tokenizer.encode("hello"), 3]) == "hello"
    assert tokenizer.decode([5000]) == ""


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"generation_config": {"eos_token_id": [3, 1, 3]}, "config": {"eos_token_id": 2}}, (3, 1)),
        ({"generation_config": {"eos_token_id": 3}}, (3,)),
        ({"generation_config": {}, "config": {"eos_token_id": 2}}, (2,)),
        ({"config": {"text_config": {"eos_token_id": [2, 3]}}}, (2, 3)),
        ({"tokenizer_config": TOKENIZER_CONFIG}, (1,)),
        ({"special_tokens_map": {"eos_token": EOS}}, (1,)),
        ({"special_tokens_map": {"eos_token": EOS}, "tokenizer_config": {"eos_token": PAD}}, (2,)),
        ({}, ()),
    ],
    ids=str,
)
def test_ends_of_sequence(tmp_path: Path, files, expected) -> None:
    assert Tokenizer.from_folder(write(tmp_path, byte_level_json(), **files)).eos_token_ids == expected


def test_bos_of_the_config_counts_only_where_the_tokenizer_says_nothing(tmp_path: Path) -> None:
    write(tmp_path, byte_level_json(), generation_config={"bos_token_id": 3})
    assert Tokenizer.from_folder(tmp_path).bos_token_id == 3
    write(tmp_path, tokenizer_config={"bos_token": None})
    assert Tokenizer.from_folder(tmp_path).bos_token_id is None


def test_tokens_of_the_tokenizer_config_are_added(tmp_path: Path) -> None:
    extra = {"402": {"content": "<|late|>", "special": True}, "3": {"content": END, "special": True}}
    write(tmp_path, byte_level_json(), tokenizer_config={**TOKENIZER_CONFIG, "added_tokens_decoder": extra})
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.encode("<|late|>", add_special_tokens=False) == [402]
    assert 402 in tokenizer.special_token_ids
    write(tmp_path, tokenizer_config={"added_tokens_decoder": {"7": {"content": "<|late|>"}}})
    with pytest.raises(CheckpointError, match="two ids"):
        Tokenizer.from_folder(tmp_path)


def test_a_vocabulary_larger_than_the_embedding_is_refused(folder: Path) -> None:
    tokenizer = Tokenizer.from_folder(folder)
    tokenizer.check_vocab(402)
    tokenizer.check_vocab(1000)
    with pytest.raises(CheckpointError, match=r"got id 401 .*expected ids below the 401 rows"):
        tokenizer.check_vocab(401)
    write(folder, generation_config={"eos_token_id": 5000})
    with pytest.raises(CheckpointError, match="eos_token_id: a special token is out of range: got 5000"):
        Tokenizer.from_folder(folder).check_vocab(1000)


def _edit(change) -> str:
    data = json.loads(byte_level_json())
    change(data)
    return json.dumps(data)


MALFORMED = {
    "empty": "",
    "not_json": "{",
    "wrong_type": "[]",
    "no_model": "{}",
    "deep": "[" * 100_000,
    "vocab_of_strings": _edit(lambda d: d["model"]["vocab"].update(a="x")),
    "negative_id": _edit(lambda d: d["model"]["vocab"].update(a=-1)),
    "huge_id": _edit(lambda d: d["model"]["vocab"].update(a=2**63)),
    "merge_of_unknown": _edit(lambda d: d["model"]["merges"].append(["zzz", "yyy"])),
    "bad_regex": _edit(
        lambda d: d.update(
            pre_tokenizer={"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False}
        )
    ),
    "unknown_decoder": _edit(lambda d: d.update(decoder={"type": "Nope"})),
    "bos_id_without_token": _edit(lambda d: d["post_processor"]["special_tokens"].clear()),
    "shared_id": _edit(lambda d: d["model"]["vocab"].update(zz=4)),
    "no_tokens": json.dumps(
        {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}}
    ),
}


@pytest.mark.parametrize("text", MALFORMED.values(), ids=MALFORMED)
def test_malformed_files_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        Tokenizer.from_folder(write(tmp_path, text))
    assert caught.value.field == "tokenizer.json"
    assert str(tmp_path) not in str(caught.value)


def test_a_panic_of_the_tokenizer_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    PanicException = type("PanicException", (BaseException,), {})

    class Panicking:
        def __getattr__(self, name: str):
            raise PanicException("index out of bounds")

    monkeypatch.setattr("pyrite.text.tokenizer._parse", lambda text: Panicking())
    with pytest.raises(CheckpointError, match="malformed"):
        Tokenizer.from_folder(folder)
    monkeypatch.undo()
    tokenizer = Tokenizer.from_folder(folder)
    tokenizer._backend = Panicking()
    with pytest.raises(RequestError, match="PanicException"):
        tokenizer.encode("x")


def test_files_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        Tokenizer.from_folder(tmp_path)
    os.mkfifo(tmp_path / "tokenizer.json")
    with pytest.raises(CheckpointError, match="not a regular file"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.json").mkdir()
    with pytest.raises(CheckpointError, match="not a regular file"):
        Tokenizer.from_folder(tmp_path)


def test_a_file_above_the_cap_is_refused(tmp_path: Path) -> None:
    with open(tmp_path / "tokenizer.json", "wb") as file:
        file.truncate(MAX_TOKENIZER_BYTES + 1)
    with pytest.raises(CheckpointError, match="too large"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config": []},
        {"tokenizer_config": {"bos_token": 3}},
        {"tokenizer_config": {"eos_token": "<|nowhere|>"}},
        {"tokenizer_config": {"added_tokens_decoder": {"x": {}}}},
        {"tokenizer_config": {"added_tokens_decoder": {"1": {"content": 3}}}},
        {"generation_config": {"eos_token_id": "1"}},
        {"generation_config": {"eos_token_id": [1, -1]}},
        {"generation_config": {"eos_token_id": True}},
        {"generation_config": {"eos_token_id": 2**63}},
    ],
    ids=str,
)
def test_malformed_companions_are_refused(tmp_path: Path, files) -> None:
    with pytest.raises(CheckpointError):
        Tokenizer.from_folder(write(tmp_path, byte_level_json(), **files))


@pytest.mark.parametrize("text", ["a\ud800b", "\udfff", b"bytes", None, 3], ids=repr)
def test_text_that_is_none_is_refused(folder: Path, text) -> None:
    tokenizer = Tokenizer.from_folder(folder)
    with pytest.raises(RequestError):
        tokenizer.encode(text)
    assert tokenizer.decode(tokenizer.encode("still fine")) == "still fine"


@pytest.mark.parametrize("ids", [[-1], [2**32], ["a"], [1.5]], ids=repr)
def test_ids_that_are_none_are_refused(folder: Path, ids) -> None:
    with pytest.raises(RequestError):
        Tokenizer.from_folder(folder).decode(ids)
