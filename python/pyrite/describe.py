"""Values of callers, shown inside error messages: short, in ASCII, and never an error of their own."""

from __future__ import annotations

_LIMIT = 80


def describe(value: object) -> str:
    """`value` as at most 80 printable characters."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, str | bytes | list | tuple) and len(value) > _LIMIT:
        text = f"{value[:20]!a}... ({type(value).__name__} of {len(value)})"
    else:
        try:
            text = ascii(value)
        except Exception:  # a caller's own __repr__ may do anything
            text = f"a {type(value).__name__}"
    return text if len(text) <= _LIMIT else text[: _LIMIT - 3] + "..."
