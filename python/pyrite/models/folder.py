"""Reads the JSON files of a model folder as hostile input: bounded, regular files inside it, no duplicate keys."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

from pyrite.errors import CheckpointError
from pyrite.models.config import ModelConfig

MAX_CONFIG_BYTES = 4 << 20


def load_config(folder: str | os.PathLike[str], *, strict: bool = False) -> ModelConfig:
    """Read `config.json` of a model folder.

    Raises:
        CheckpointError: the file is missing or not a JSON object that can be trusted.
        ConfigError: see `ModelConfig.from_hf`.
    """
    return ModelConfig.from_hf(read_json(folder, "config.json"), strict=strict)


def read_json(folder: str | os.PathLike[str], name: str, *, max_bytes: int = MAX_CONFIG_BYTES) -> dict:
    """Parse one JSON object of a model folder.

    A link may lead inside the folder, or to the blobs of the Hugging Face cache that the folder is a snapshot of.

    Raises:
        CheckpointError: missing, not a regular file, outside the folder, larger than `max_bytes`, or not a JSON object
            with distinct keys.
    """
    data = _read_bytes(Path(folder), name, max_bytes)
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_distinct)
    except RecursionError:
        raise CheckpointError("nested too deep", field=name) from None
    except ValueError as error:  # bad UTF-8, bad JSON, a number of too many digits, a key twice
        reason = str(error) if isinstance(error, _DuplicateKey) else "not valid JSON"
        raise CheckpointError(reason, field=name) from None
    if not isinstance(value, dict):
        raise CheckpointError("not a JSON object", got=type(value).__name__, field=name)
    return value


def _read_bytes(folder: Path, name: str, max_bytes: int) -> bytes:
    try:
        root, path = folder.resolve(strict=True), (folder / name).resolve(strict=True)
        roots = [root] + ([root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [])
        inside = any(path.is_relative_to(allowed) for allowed in roots)
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC) if inside else -1
    except (OSError, ValueError, RuntimeError) as error:  # missing, unreadable, NUL in the name, a loop of links
        what = "not found" if isinstance(error, FileNotFoundError) else "cannot be opened"
        hint = "a model folder holds config.json and safetensors files"
        raise CheckpointError(what, hint=hint, field=name) from None
    if descriptor < 0:
        raise CheckpointError("leads outside the model folder", code="unsafe_path", field=name)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError("not a regular file", field=name)
        if status.st_size > max_bytes:
            raise CheckpointError("too large", got=status.st_size, expected=f"at most {max_bytes} bytes", field=name)
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(max_bytes)
    except OSError:
        raise CheckpointError("cannot be read", field=name) from None
    finally:
        os.close(descriptor)


class _DuplicateKey(ValueError):
    pass


def _distinct(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise _DuplicateKey("the same key twice in one JSON object")
    return value
