"""Turns token ids into text while they arrive.

The pieces joined equal `Tokenizer.decode` of all the ids, no piece ends inside a code point, nothing is ever taken
back, and the work is linear in the number of ids. Text that the next id might still change is held until it cannot.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Protocol

from pyrite.text.tokenizer import Tokenizer

# A code point has at most four bytes, each of which may be a token of its own; beyond that a U+FFFD is final.
_MAX_INCOMPLETE = 8
_REPLACEMENT = "\ufffd"


class _Decoder(Protocol):
    def push(self, ids: Sequence[int]) -> str: ...

    def flush(self) -> str: ...


class IncrementalDetokenizer:
    """The growing text of one completion.

    Args:
        tokenizer: whose ids these are.
        skip_special_tokens: leave special tokens out of the text.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True) -> None:
        skipped = tokenizer.special_token_ids if skip_special_tokens else frozenset()
        kinds = _decoder_kinds(tokenizer)
        self._decoder: _Decoder
        if kinds == ["ByteLevel"]:
            self._decoder = _ByteLevel(tokenizer, skipped)
        else:
            self._decoder = _Windowed(tokenizer, skipped, byte_fallback="ByteFallback" in kinds)

    def push(self, ids: Sequence[int]) -> str:
        """Take further ids; returns the text that they completed, often empty, never revised later."""
        return self._decoder.push(ids)

    def flush(self) -> str:
        """The text still held when the completion ended. Bytes that never became a code point are U+FFFD."""
        return self._decoder.flush()


class _ByteLevel:
    """Byte-level BPE: every token is bytes, so the text is an incremental UTF-8 decoding of them."""

    def __init__(self, tokenizer: Tokenizer, skipped: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._skipped = skipped
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, ids: Sequence[int]) -> str:
        pieces = []
        for token_id in ids:
            token = None if token_id in self._skipped else self._tokenizer.token(token_id)
            if token is not None:
                pieces.append(_token_bytes(token))
        return self._utf8.decode(b"".join(pieces))

    def flush(self) -> str:
        text = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return text


class _Windowed:
    """Any other decoder: decode the new ids behind those of the last piece, which give them their context.

    The context matters because decoders treat the first token apart (a leading space is stripped). Where the decoder
    has byte fallback, a run of byte tokens is text only once it has ended: one bad byte turns the whole run to U+FFFD.
    """

    def __init__(self, tokenizer: Tokenizer, skipped: frozenset[int], byte_fallback: bool) -> None:
        self._tokenizer = tokenizer
        self._skipped = skipped
        self._byte_fallback = byte_fallback
        self._context: list[int] = []
        self._pending: list[int] = []

    def push(self, ids: Sequence[int]) -> str:
        self._pending += [i for i in ids if i not in self._skipped and self._tokenizer.token(i) is not None]
        if not self._pending or (self._byte_fallback and self._is_byte(self._pending[-1])):
            return ""
        before, text = self._decode(self._context), self._decode(self._context + self._pending)
        if not text.startswith(before):
            return ""
        if text.endswith(_REPLACEMENT) and len(self._pending) < _MAX_INCOMPLETE:
            return ""
        self._context, self._pending = self._pending, []
        return text[len(before) :]

    def flush(self) -> str:
        before, text = self._decode(self._context), self._decode(self._context + self._pending)
        self._context, self._pending = self._context + self._pending, []
        return text[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False) if ids else ""

    def _is_byte(self, token_id: int) -> bool:
        token = self._tokenizer.token(token_id) or ""
        return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


@lru_cache(maxsize=1)
def _byte_of_char() -> dict[str, int]:
    """GPT-2's table: printable bytes stand for themselves, the others for characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in set(printable)]
    table.update({chr(0x100 + n): byte for n, byte in enumerate(others)})
    return table


@lru_cache(maxsize=65536)
def _token_bytes(token: str) -> bytes:
    """The bytes of a byte-level token; one with a character outside the table (an added token) is plain UTF-8."""
    table = _byte_of_char()
    try:
        return bytes([table[char] for char in token])
    except KeyError:
        return token.encode("utf-8")


def _decoder_kinds(tokenizer: Tokenizer) -> list[str]:
    """The types of the decoder, a sequence flattened."""
    decoder = tokenizer.backend.decoder
    return [] if decoder is None else _kinds(json.loads(decoder.__getstate__()))


def _kinds(decoder: dict[str, Any]) -> list[str]:
    if decoder.get("type") == "Sequence":
        return [kind for part in decoder.get("decoders", []) for kind in _kinds(part)]
    return [str(decoder.get("type"))]
