"""The quantizations by name: the scheme of the layers' matrices, and that of the head.

`_g32`, `_g64` and `_g128` say how many weights make a group, `_asym` that each group has a zero of its own, `x4` that
four groups share a scale. `int4` is `int4_g32x4` and takes 4.25 bits per weight, `int8` is `int8_g64` and takes 8.25.
The head, and an embedding tied to it, has 8 bits under a 4-bit scheme, in groups of 64 or more, since it meets every
token's probability directly; `_head4` gives it the layers' scheme.
"""

from __future__ import annotations

from dataclasses import dataclass

from pyrite.errors import ConfigError
from pyrite.quant.scheme import GROUP_SIZES, GROUPS_PER_SCALE, QuantScheme


@dataclass(frozen=True, slots=True)
class Quantization:
    """What `quantization="name"` means.

    Args:
        name: in full.
        layers: the scheme of every matrix of a linear but the head's.
        head: the scheme of the head, and of an embedding tied to it.
    """

    name: str
    layers: QuantScheme
    head: QuantScheme


def quantization(name: object) -> Quantization:
    """The quantization of that name.

    Raises:
        ConfigError: there is none; the message lists those there are.
    """
    if isinstance(name, str) and name in QUANTIZATIONS:
        return QUANTIZATIONS[name]
    raise ConfigError("unknown scheme", got=repr(name)[:40], expected=", ".join(QUANTIZATIONS), field="quantization")


def _all() -> dict[str, Quantization]:
    eights = {size: QuantScheme(f"int8_g{size}", 8, size, symmetric=True) for size in GROUP_SIZES}
    found = {scheme.name: Quantization(scheme.name, scheme, scheme) for scheme in eights.values()}
    fours = [
        QuantScheme(f"int4_g{size}{'' if symmetric else '_asym'}", 4, size, symmetric)
        for size in GROUP_SIZES
        for symmetric in (True, False)
    ]
    fours.insert(
        0, QuantScheme(f"int4_g32x{GROUPS_PER_SCALE}", 4, 32, symmetric=True, groups_per_scale=GROUPS_PER_SCALE)
    )
    for four in fours:
        found[four.name] = Quantization(four.name, four, eights[max(four.group_size, 64)])
        found[f"{four.name}_head4"] = Quantization(f"{four.name}_head4", four, four)
    return found


_BY_NAME = _all()
_SHORT = {"int8": "int8_g64", "int4": "int4_g32x4", "int4_head4": "int4_g32x4_head4"}

QUANTIZATIONS: dict[str, Quantization] = {**{name: _BY_NAME[full] for name, full in _SHORT.items()}, **_BY_NAME}
"""By name, in the order that messages list them; the short names first."""
