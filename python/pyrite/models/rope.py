"""Rotary frequencies: kinds `default`, `linear`, `llama3` and `yarn`, in both spellings that configs use.

Old configs have `rope_theta` and `rope_scaling` (`type` or `rope_type`), newer ones `rope_parameters`. Where both are
there they must agree. Frequencies are computed in double precision and rounded once to f32, so that every backend
multiplies positions by the same numbers.
"""

from __future__ import annotations

import math
import struct

from pyrite.errors import ConfigError
from pyrite.models.fields import Fields, shorten
from pyrite.models.program import RopeTable

DEFAULT_THETA = 10000.0
"""transformers' value where a config names none."""

THETA_RANGE = (2.0, 1e12)
"""Long-context llamas go beyond 4e10."""

MAX_POSITIONS = 1 << 28
"""Largest context length that a config may claim, in tokens."""

_KIND_KEYS = {
    "default": frozenset[str](),
    "linear": frozenset({"factor"}),
    "llama3": frozenset({"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}),
    "yarn": frozenset(
        {
            "factor",
            "original_max_position_embeddings",
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
            "truncate",
        }
    ),
}
_SHARED_KEYS = frozenset({"rope_type", "type", "rope_theta", "partial_rotary_factor"})
_OTHER_KEYS = frozenset({"short_factor", "long_factor", "mrope_section"})
_MEANINGFUL = frozenset().union(*_KIND_KEYS.values()) | _OTHER_KEYS


def read_rope(config: Fields, *, head_dim: int, max_positions: int) -> tuple[RopeTable, float, list[str]]:
    """Read the rope keys of a config.

    Args:
        config: the text model's config; `rope_theta`, `rope_scaling` and `rope_parameters` are read from it.
        head_dim: even; all of a head rotates.
        max_positions: `max_position_embeddings`.

    Returns:
        The table, theta, and the names of unknown keys.

    Raises:
        ConfigError: unknown kind, a key this kind does not have, a value out of range, or two spellings that disagree.
    """
    rope = _rope_fields(config)
    kind = _kind(rope)
    outer_theta = config.number("rope_theta", *THETA_RANGE, None)
    theta = rope.number("rope_theta", *THETA_RANGE, DEFAULT_THETA if outer_theta is None else outer_theta)
    if outer_theta is not None and theta != outer_theta:
        raise rope.error("rope_theta", "contradicts rope_theta outside", expected=f"{outer_theta:g}")
    rope.fixed({"partial_rotary_factor": (None, 1, 1.0)})
    for key in sorted(_MEANINGFUL - _KIND_KEYS[kind]):
        if rope.data.get(key) is not None:
            raise rope.error(key, f"not a parameter of rope type {kind!r}")
    inv_freq = [theta ** -(2 * a / head_dim) for a in range(head_dim // 2)]
    scale = 1.0
    if kind == "linear":
        factor = _factor(rope)
        inv_freq = [f / factor for f in inv_freq]
    elif kind == "llama3":
        inv_freq = _llama3(rope, inv_freq, max_positions)
    elif kind == "yarn":
        inv_freq, scale = _yarn(rope, inv_freq, theta, head_dim, max_positions)
    table = RopeTable(tuple(_f32(f) for f in inv_freq), _f32(scale))
    return table, theta, rope.unknown(_SHARED_KEYS | _MEANINGFUL)


def _rope_fields(config: Fields) -> Fields:
    """The one object of rope parameters, whichever spelling it has."""
    new, old = (config.get(key, None) for key in ("rope_parameters", "rope_scaling"))
    if new and old and new != old:
        raise config.error("rope_scaling", "contradicts rope_parameters", expected=shorten(new))
    name = "rope_scaling" if old and not new else "rope_parameters"
    value = config.data.get(name)
    return Fields({} if value is None else value, f"{config.where}{name}.")


def _kind(rope: Fields) -> str:
    kind, old = rope.get("rope_type", None), rope.get("type", None)
    if kind is not None and old is not None and kind != old:
        raise rope.error("type", "contradicts rope_type", expected=shorten(kind))
    kind = "default" if kind is None and old is None else (kind if kind is not None else old)
    if not isinstance(kind, str) or kind not in _KIND_KEYS:
        field = rope.where + ("rope_type" if "rope_type" in rope.data else "type")
        raise ConfigError(
            "unknown rope type", got=shorten(kind), expected="one of " + ", ".join(sorted(_KIND_KEYS)), field=field
        )
    return kind


def _factor(rope: Fields) -> float:
    return rope.number("factor", 1.0, 1e6)


def _original_positions(rope: Fields, max_positions: int) -> int:
    return rope.integer("original_max_position_embeddings", 1, MAX_POSITIONS, max_positions)


def _llama3(rope: Fields, inv_freq: list[float], max_positions: int) -> list[float]:
    """Slow long waves by the factor, keep short ones, blend in between. Source: Llama 3.1, arXiv 2407.21783."""
    factor = _factor(rope)
    low = rope.number("low_freq_factor", 1e-6, 1e6)
    high = rope.number("high_freq_factor", 1e-6, 1e6)
    if high <= low:
        raise rope.error("high_freq_factor", "not above low_freq_factor", expected=f"more than {low:g}")
    original = _original_positions(rope, max_positions)
    scaled = []
    for freq in inv_freq:
        turns = original * freq / (2 * math.pi)  # rotations within the original context
        smooth = min(max((turns - low) / (high - low), 0.0), 1.0)
        scaled.append((1 - smooth) * freq / factor + smooth * freq)
    return scaled


def _yarn(
    rope: Fields, inv_freq: list[float], theta: float, head_dim: int, max_positions: int
) -> tuple[list[float], float]:
    """Interpolate slow frequencies, keep fast ones, ramp in between; scale cos and sin. Source: arXiv 2309.00071."""
    original = _original_positions(rope, max_positions)
    factor = rope.number("factor", 1.0, 1e6, None)
    if factor is None:
        factor = max(max_positions / original, 1.0)
    attention_factor = rope.number("attention_factor", 1e-6, 1e6, None)
    mscale = rope.number("mscale", 0.0, 1e6, None)
    mscale_all_dim = rope.number("mscale_all_dim", 0.0, 1e6, None)
    beta_fast = rope.number("beta_fast", 1e-6, 1e6, None) or 32.0
    beta_slow = rope.number("beta_slow", 1e-6, 1e6, None) or 1.0
    truncate = rope.boolean("truncate", True)
    if beta_fast < beta_slow:
        raise rope.error("beta_fast", "below beta_slow", expected=f"at least {beta_slow:g}")

    def magnitude(mscale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0

    if attention_factor is None:
        both = mscale and mscale_all_dim
        attention_factor = magnitude(mscale) / magnitude(mscale_all_dim) if both else magnitude(1.0)

    def dimension(rotations: float) -> float:
        """The pair that turns `rotations` times within the original context."""
        return head_dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension(beta_fast), dimension(beta_slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    scaled = []
    for pair, freq in enumerate(inv_freq):
        ramp = min(max((pair - low) / (high - low), 0.0), 1.0)
        scaled.append(freq / factor * ramp + freq * (1 - ramp))
    return scaled, attention_factor


def _f32(value: float) -> float:
    return struct.unpack("<f", struct.pack("<f", value))[0]
