"""Reads values out of a hostile `config.json`: every number is checked before anything is computed from it."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from typing import Any

from pyrite.errors import ConfigError
from pyrite.models.spec import REQUIRED

log = logging.getLogger("pyrite")


def shorten(value: object) -> str:
    """`repr` of a value from outside, at most 80 characters and on one line."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"an integer of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


class Fields:
    """The keys of one JSON object, remembering which were read.

    Args:
        data: the object.
        where: prefix of its keys in messages, such as `text_config.`.

    Raises:
        ConfigError: `data` is not an object; and from every reader, for a value of the wrong type or out of range.
    """

    def __init__(self, data: object, where: str = "") -> None:
        if not isinstance(data, Mapping):
            raise ConfigError("not a JSON object", got=shorten(data), field=where.rstrip(".") or "config")
        self.data: Mapping[str, Any] = data
        self.where = where
        self.read: set[str] = set()

    def error(self, key: str, what: str, *, expected: object = None) -> ConfigError:
        """A ConfigError about the value of `key`."""
        return ConfigError(what, got=shorten(self.data.get(key)), expected=expected, field=self.where + key)

    def get(self, key: str, default: object = REQUIRED) -> Any:
        """The raw value, or `default`; null counts as absent where the default is None."""
        self.read.add(key)
        if key not in self.data:
            if default is REQUIRED:
                raise ConfigError("missing from the config", field=self.where + key)
            return default
        value = self.data[key]
        if value is None and default is not None:
            raise self.error(key, "null is not a value for this key")
        return value

    def integer(self, key: str, low: int, high: int, default: object = REQUIRED) -> Any:
        """An integer in `low..=high`; None only when the default is None."""
        value = self.get(key, default)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.error(key, "out of range", expected=f"an integer from {low} to {high}")
        return value

    def number(self, key: str, low: float, high: float, default: object = REQUIRED) -> Any:
        """A finite number in `low..=high`, as float; None only when the default is None."""
        value = self.get(key, default)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise self.error(key, "out of range", expected=f"a number from {low:g} to {high:g}")
        return float(value)

    def boolean(self, key: str, default: object = REQUIRED) -> Any:
        """True or False."""
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self.error(key, "not a boolean", expected="true or false")
        return value

    def array(self, key: str, length: int, default: object = REQUIRED) -> Any:
        """A list of `length` entries; None only when the default is None."""
        value = self.get(key, default)
        if value is None:
            return None
        if not isinstance(value, list | tuple) or len(value) != length:
            got = f"{len(value)} entries" if isinstance(value, list | tuple) else shorten(value)
            raise ConfigError("wrong length", got=got, expected=f"a list of {length} entries", field=self.where + key)
        return value

    def fixed(self, allowed: Mapping[str, tuple[object, ...]]) -> None:
        """Refuse keys whose value is not one of the implemented ones."""
        for key, values in allowed.items():
            if key in self.data and not any(_same(self.data[key], value) for value in values):
                raise self.error(key, "not implemented at this value", expected=" or ".join(map(repr, values)))
            self.read.add(key)

    def unknown(self, harmless: Iterable[str]) -> list[str]:
        """Full names of the keys that were neither read nor listed as harmless, sorted."""
        return sorted(self.where + str(key) for key in self.data.keys() - self.read - set(harmless))


def _same(value: object, allowed: object) -> bool:
    if isinstance(value, bool) or isinstance(allowed, bool):
        return value is allowed
    return value == allowed and not (isinstance(value, float) and math.isnan(value))


def report_unknown(keys: list[str], *, strict: bool) -> None:
    """Warn once about keys that pyrite does not know, or raise when `strict`.

    Raises:
        ConfigError: `strict` and there are any.
    """
    if not keys:
        return
    names = ", ".join(key[:80] for key in keys[:10]) + (f" and {len(keys) - 10} more" if len(keys) > 10 else "")
    if strict:
        raise ConfigError("unknown config keys", got=names, hint="strict=False ignores them with a warning")
    log.warning("config keys that pyrite does not know are ignored: %s", ascii(names)[1:-1])
