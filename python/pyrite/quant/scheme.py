"""`QuantScheme`: how a matrix becomes integers. The one description, for every backend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pyrite.errors import ConfigError

BITS = (4, 8)
GROUP_SIZES = (32, 64, 128)
GROUPS_PER_SCALE = 4
"""Groups of 32 that share a scale, in the schemes where several do."""


@dataclass(frozen=True, slots=True)
class QuantScheme:
    """Integers in groups along the inputs of a matrix `[out_features, in_features]`.

    The canonical form is `codes` u8 `[out_features, in_features]`, one code per byte, 0 to `max_code`; `scales` f16
    `[out_features, in_features / group_size]`; `zeros` u8 of the same shape, or None when symmetric, which means
    `middle` everywhere. A weight is `(code - zero) * f32(scale)`. `quant/reference.py` says how they are found.

    Where four groups share a scale, `scales` is f16 `[out_features, groups / 4]`, rounded up, and `multiples` i8
    `[out_features, groups]`, -15 to 15: a group's scale is its multiple of the one that it shares, which f16 holds.

    Args:
        name: of the scheme, as in `quant/schemes.py`.
        bits: 4 or 8.
        group_size: inputs of a group: 32, 64 or 128.
        symmetric: whether zero is always the middle code.
        groups_per_scale: 1; or 4, for symmetric groups of 32 of 4 bits.
        scale_dtype: "float16"; there is no other.

    Raises:
        ConfigError: a value that is not listed above.
    """

    name: str
    bits: int
    group_size: int
    symmetric: bool
    groups_per_scale: int = 1
    scale_dtype: str = "float16"

    def __post_init__(self) -> None:
        shared = (self.bits, self.group_size, self.symmetric) == (4, 32, True)
        for field, allowed in (
            ("bits", BITS),
            ("group_size", GROUP_SIZES),
            ("groups_per_scale", (1, GROUPS_PER_SCALE) if shared else (1,)),
            ("scale_dtype", ("float16",)),
        ):
            value = getattr(self, field)
            if isinstance(value, bool) or value not in allowed:
                raise ConfigError(
                    f"not a {field} of a scheme",
                    got=repr(value)[:40],
                    expected=", ".join(map(str, allowed)),
                    field=field,
                )

    @property
    def max_code(self) -> int:
        """The largest code: 15 or 255."""
        return 2**self.bits - 1

    @property
    def middle(self) -> int:
        """The zero of a symmetric scheme: 8 or 128."""
        return 2 ** (self.bits - 1)

    @property
    def shared(self) -> bool:
        """Whether several groups share a scale."""
        return self.groups_per_scale > 1

    def fits(self, in_features: int) -> bool:
        """Whether a matrix with so many inputs divides into whole groups. One that does not stays float."""
        return in_features > 0 and in_features % self.group_size == 0

    def packed_bytes(self, out_features: int, in_features: int) -> int:
        """Bytes of a matrix with codes packed to `bits`, two bytes per scale and one per zero.

        A scale that groups share and their multiples of it take four bytes.

        Raises:
            ConfigError: `in_features` does not divide into groups.
        """
        if not self.fits(in_features):
            raise ConfigError(
                "inputs do not divide into groups", got=in_features, expected=f"a multiple of {self.group_size}"
            )
        groups = in_features // self.group_size
        per_scale = 4 if self.shared else 2 if self.symmetric else 3
        return out_features * (in_features * self.bits // 8 + -(-groups // self.groups_per_scale) * per_scale)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, one per field."""
        return {
            "name": self.name,
            "bits": self.bits,
            "group_size": self.group_size,
            "symmetric": self.symmetric,
            "groups_per_scale": self.groups_per_scale,
            "scale_dtype": self.scale_dtype,
        }
