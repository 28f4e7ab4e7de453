"""Reads the small text files of a model folder, with a size cap and typed errors."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from pyrite.errors import CheckpointError

MAX_TOKENIZER_BYTES = 64 << 20
MAX_CONFIG_BYTES = 16 << 20
MAX_TEMPLATE_BYTES = 1 << 20

_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def read_text(folder: Path, name: str, max_bytes: int) -> str | None:
    """The UTF-8 text of a regular file, or None when there is no such file.

    Raises:
        CheckpointError: not a regular file, larger than `max_bytes`, not readable, or not UTF-8.
    """
    try:
        # Without O_NONBLOCK, opening a FIFO would wait for a writer.
        descriptor = os.open(folder / name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise CheckpointError("the file cannot be opened", got=error.strerror, field=name) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CheckpointError("not a regular file", field=name)
    with os.fdopen(descriptor, "rb") as file:
        try:
            data = file.read(max_bytes + 1)
        except OSError as error:
            raise CheckpointError("the file cannot be read", got=error.strerror, field=name) from error
    if len(data) > max_bytes:
        raise CheckpointError("the file is too large", expected=f"at most {max_bytes} bytes", field=name)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError("the file is not UTF-8", got=f"a bad byte at {error.start}", field=name) from error


def read_object(folder: Path, name: str) -> dict[str, Any] | None:
    """A file that holds one JSON object, or None when there is no such file.

    Raises:
        CheckpointError: as `read_text`, and for anything but a JSON object.
    """
    text = read_text(folder, name, MAX_CONFIG_BYTES)
    if text is None:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else str(error)
        raise CheckpointError("the file is not JSON", got=reason, field=name) from error
    if not isinstance(value, dict):
        raise CheckpointError("wrong content", got=type(value).__name__, expected="a JSON object", field=name)
    return value


def named_tokens(folder: Path) -> dict[str, str | None]:
    """`bos_token`, `eos_token`, ... as `tokenizer_config.json` spells them, else `special_tokens_map.json`.

    A name that neither file mentions is missing here; one that is null in the file that decides is None.

    Raises:
        CheckpointError: a file is malformed, or a token is neither a string, null, nor `{"content": "..."}`.
    """
    tokens: dict[str, str | None] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        config = read_object(folder, file) or {}
        for name in _NAMED_TOKENS:
            if name not in config:
                continue
            value = config[name]
            content = value.get("content") if isinstance(value, dict) else value
            if content is not None and not isinstance(content, str):
                raise CheckpointError(
                    "wrong type", got=type(content).__name__, expected="a string or null", field=f"{file}: {name}"
                )
            tokens[name] = content
    return tokens
