"""The model's tokenizer: Hugging Face `tokenizers` with what a model folder says about special tokens.

What becomes of special tokens in text follows Hugging Face: a plain prompt gets what the post-processor of
`tokenizer.json` adds (usually the beginning of sequence; `add_bos_token` in `tokenizer_config.json` has no effect
beside a `tokenizer.json`, as in transformers 5), and a special token's string inside a prompt **is** that token. A
rendered chat is encoded with `add_special_tokens=False`, since templates write their own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pyrite.errors import CheckpointError, RequestError
from pyrite.text.folder import MAX_TOKENIZER_BYTES, named_tokens, read_object, read_text

if TYPE_CHECKING:
    import tokenizers

_FILE = "tokenizer.json"
_T = TypeVar("_T")


class Tokenizer:
    """Text to token ids and back. Immutable; safe to use from many threads.

    Args:
        backend: the `tokenizers` object; padding and truncation are switched off in it.
        bos_token_id, pad_token_id: None where the folder names none.
        eos_token_ids: any of these ends a text; empty where the folder names none.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        bos_token_id: int | None = None,
        eos_token_ids: Sequence[int] = (),
        pad_token_id: int | None = None,
    ) -> None:
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._bos_token_id = bos_token_id
        self._eos_token_ids = tuple(eos_token_ids)
        self._pad_token_id = pad_token_id
        ids = backend.get_vocab(with_added_tokens=True).values()
        if not ids:
            raise CheckpointError("the vocabulary is empty", field=_FILE)
        if len(set(ids)) != len(ids):
            raise CheckpointError("two tokens share an id", field=_FILE)
        self._vocab_size = max(ids) + 1
        added = backend.get_added_tokens_decoder()
        self._special_ids = frozenset(token_id for token_id, token in added.items() if token.special)

    @classmethod
    def from_folder(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """Read `tokenizer.json` and, where they exist, the other files that name special tokens.

        `eos_token_ids` is the first of: `eos_token_id` of `generation_config.json` (one or a list), of `config.json`
        (its `text_config` too), the `eos_token` of the tokenizer's own files. `bos_token_id` and `pad_token_id` take
        the tokenizer's own files first, then those two.

        Raises:
            CheckpointError: a file is missing, too large, or malformed.
        """
        folder = Path(path)
        text = read_text(folder, _FILE, MAX_TOKENIZER_BYTES)
        if text is None:
            raise CheckpointError("the model folder has no such file", field=_FILE)
        backend = _guard(lambda: _parse(text))
        names = named_tokens(folder)
        _guard(lambda: _add_tokens(backend, read_object(folder, "tokenizer_config.json") or {}, names))
        # Parts that contradict each other show only in use.
        _guard(lambda: backend.decode(backend.encode("a", add_special_tokens=True).ids))
        configs = _configs(folder)
        own_eos = _own_id(backend, names, "eos_token")
        eos = _configured(configs, "eos_token_id") or ([] if own_eos is None else [own_eos])
        return cls(
            backend,
            bos_token_id=_single(backend, names, configs, "bos_token"),
            eos_token_ids=eos,
            pad_token_id=_single(backend, names, configs, "pad_token"),
        )

    @property
    def backend(self) -> tokenizers.Tokenizer:
        """The `tokenizers` object underneath. Do not change it."""
        return self._backend

    @property
    def vocab_size(self) -> int:
        """The largest id plus one, added tokens included. The embedding may have more rows; those are never drawn."""
        return self._vocab_size

    @property
    def bos_token_id(self) -> int | None:
        """Beginning of sequence."""
        return self._bos_token_id

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Ends of sequence; may be empty."""
        return self._eos_token_ids

    @property
    def pad_token_id(self) -> int | None:
        """Padding. Nothing in pyrite pads; here for completeness."""
        return self._pad_token_id

    @property
    def special_token_ids(self) -> frozenset[int]:
        """Ids that `decode` leaves out unless told otherwise."""
        return self._special_ids

    def check_vocab(self, embedding_rows: int) -> None:
        """Refuse a tokenizer that does not fit the model.

        Raises:
            CheckpointError: an id is not below `embedding_rows`.
        """
        expected = f"ids below the {embedding_rows} rows of the embedding"
        if self._vocab_size > embedding_rows:
            token = self.token(self._vocab_size - 1)
            got = f"id {self._vocab_size - 1} ({token!r})"
            raise CheckpointError("the tokenizer does not fit the model", got=got, expected=expected, field=_FILE)
        named = {
            "bos_token_id": [self._bos_token_id],
            "eos_token_id": self._eos_token_ids,
            "pad_token_id": [self._pad_token_id],
        }
        for field, ids in named.items():
            for token_id in ids:
                if token_id is not None and token_id >= embedding_rows:
                    raise CheckpointError(
                        "a special token is out of range", got=token_id, expected=expected, field=field
                    )

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text.

        Args:
            add_special_tokens: let the post-processor add what it adds (usually BOS); False for rendered chats.

        Raises:
            RequestError: not a string, a lone surrogate, or a text that the tokenizer cannot handle.
        """
        if not isinstance(text, str):
            raise RequestError("the text cannot be encoded", got=type(text).__name__, expected="a string")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            got = f"a lone surrogate at character {error.start}"
            raise RequestError("the text is not valid Unicode", got=got) from None
        try:
            return self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        except BaseException as error:
            if not _is_failure(error):
                raise
            raise RequestError("the tokenizer cannot handle this text", got=type(error).__name__) from error

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of some ids; bytes that are no UTF-8 become U+FFFD, ids without a token become nothing.

        Raises:
            RequestError: an id is negative, too large for 32 bits, or not an integer.
        """
        try:
            return self._backend.decode(ids, skip_special_tokens=skip_special_tokens)
        except (TypeError, OverflowError) as error:
            raise RequestError("the ids cannot be decoded", got=str(error), expected="token ids") from error

    def token(self, token_id: int) -> str | None:
        """The vocabulary's own spelling of an id, such as `Ġthe`; None where there is no such token."""
        return self._backend.id_to_token(token_id) if 0 <= token_id < self._vocab_size else None


def _parse(text: str) -> tokenizers.Tokenizer:
    import tokenizers

    return tokenizers.Tokenizer.from_str(text)


def _is_failure(error: BaseException) -> bool:
    """Whether this came out of the tokenizer: an ordinary error, or a Rust panic (which is no `Exception`)."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def _guard(load: Callable[[], _T]) -> _T:
    try:
        return load()
    except CheckpointError:
        raise
    except BaseException as error:
        if not _is_failure(error):
            raise
        raise CheckpointError("the file is malformed", got=str(error)[:200], field=_FILE) from error


def _add_tokens(backend: tokenizers.Tokenizer, config: dict[str, Any], names: dict[str, str | None]) -> None:
    """Take what only `tokenizer_config.json` says: further tokens, and which named ones are special."""
    from tokenizers import AddedToken

    listed = config.get("added_tokens_decoder") or {}
    if not isinstance(listed, dict) or not all(key.isdecimal() and isinstance(v, dict) for key, v in listed.items()):
        raise CheckpointError("malformed", field="tokenizer_config.json: added_tokens_decoder")
    for token_id, entry in sorted((int(key), value) for key, value in listed.items()):
        content = entry.get("content")
        if not isinstance(content, str):
            raise CheckpointError("malformed", field=f"tokenizer_config.json: added_tokens_decoder[{token_id}]")
        if backend.token_to_id(content) is None:
            flags = {
                key: bool(entry.get(key, False)) for key in ("lstrip", "rstrip", "single_word", "normalized", "special")
            }
            backend.add_tokens([AddedToken(content, **flags)])
        if backend.token_to_id(content) != token_id:
            raise CheckpointError(
                "an added token has two ids",
                got=f"{content!r} at {token_id}",
                expected=backend.token_to_id(content),
                field="tokenizer_config.json: added_tokens_decoder",
            )
    special = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    for content in names.values():
        if content and content not in special and backend.token_to_id(content) is not None:
            backend.add_special_tokens([AddedToken(content, special=True, normalized=False)])


def _configs(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """Where ids of special tokens may stand, the file that decides first."""
    config = read_object(folder, "config.json") or {}
    text_config = config.get("text_config")
    return [
        ("generation_config.json", read_object(folder, "generation_config.json") or {}),
        ("config.json", config),
        ("config.json: text_config", text_config if isinstance(text_config, dict) else {}),
    ]


def _configured(configs: list[tuple[str, dict[str, Any]]], key: str) -> list[int]:
    """The ids of the first file that has any."""
    for file, config in configs:
        value = config.get(key)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        for token_id in ids:
            if type(token_id) is not int or not 0 <= token_id < 1 << 31:
                raise CheckpointError("wrong value", got=token_id, expected="a token id", field=f"{file}: {key}")
        if ids:
            return list(dict.fromkeys(ids))
    return []


def _own_id(backend: tokenizers.Tokenizer, names: dict[str, str | None], name: str) -> int | None:
    content = names.get(name)
    if content is None:
        return None
    token_id = backend.token_to_id(content)
    if token_id is None:
        raise CheckpointError(
            "the vocabulary has no such token", got=repr(content), field=f"tokenizer_config.json: {name}"
        )
    return token_id


def _single(
    backend: tokenizers.Tokenizer, names: dict[str, str | None], configs: list[tuple[str, dict[str, Any]]], name: str
) -> int | None:
    if name in names:
        return _own_id(backend, names, name)
    ids = _configured(configs, f"{name}_id")
    return ids[0] if ids else None
