"""The quantizations by name: the scheme of the layers' matrices, and that of the head.

`int4` and `int8` have groups of 64; `_g32` and `_g128` say another size, `_sym` a zero that is always the middle
code. `int8` is symmetric: at 8 bits a zero per group buys next to nothing. The head, and an embedding tied to it, has
8 bits under a 4-bit scheme, since it meets every token's probability directly; `_head4` gives it the layers' scheme.
"""

from __future__ import annotations

from dataclasses import dataclass

from pyrite.errors import ConfigError
from pyrite.quant.scheme import QuantScheme


@dataclass(frozen=True, slots=True)
class Quantization:
    """What `quantization="name"` means.

    Args:
        name: as users write it.
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
    found: dict[str, Quantization] = {}
    sizes = {"": 64, "_g32": 32, "_g128": 128}
    eight = {suffix: QuantScheme(f"int8{suffix}", 8, size, symmetric=True) for suffix, size in sizes.items()}
    for scheme in eight.values():
        found[scheme.name] = Quantization(scheme.name, scheme, scheme)
    for symmetric in (False, True):
        for suffix, size in sizes.items():
            scheme = QuantScheme(f"int4{suffix}{'_sym' if symmetric else ''}", 4, size, symmetric)
            found[scheme.name] = Quantization(scheme.name, scheme, eight[suffix])
    for four in [q for q in found.values() if q.layers.bits == 4]:
        name = f"{four.name}_head4"
        found[name] = Quantization(name, four.layers, four.layers)
    return found


QUANTIZATIONS: dict[str, Quantization] = _all()
"""By name, in the order that messages list them."""
