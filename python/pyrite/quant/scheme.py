"""`QuantScheme`: how a matrix becomes integers. The one description, for every backend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pyrite.errors import ConfigError

BITS = (4, 8)
GROUP_SIZES = (32, 64, 128)


@dataclass(frozen=True, slots=True)
class QuantScheme:
    """Integers in groups along the inputs of a matrix `[out_features, in_features]`.

    The canonical form is `codes` u8 `[out_features, in_features]`, one code per byte, 0 to `max_code`; `scales` f16
    `[out_features, in_features / group_size]`; `zeros` u8 of the same shape, or None when symmetric, which means
    `middle` everywhere. A weight is `(code - zero) * f32(scale)`. `quant/reference.py` says how they are found.

    Args:
        name: of the scheme, as in `quant/schemes.py`.
        bits: 4 or 8.
        group_size: inputs that share a scale: 32, 64 or 128.
        symmetric: whether zero is always the middle code.
        scale_dtype: "float16"; there is no other.

    Raises:
        ConfigError: a value that is not listed above.
    """

    name: str
    bits: int
    group_size: int
    symmetric: bool
    scale_dtype: str = "float16"

    def __post_init__(self) -> None:
        for field, allowed in (("bits", BITS), ("group_size", GROUP_SIZES), ("scale_dtype", ("float16",))):
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

    def fits(self, in_features: int) -> bool:
        """Whether a matrix with so many inputs divides into whole groups. One that does not stays float."""
        return in_features > 0 and in_features % self.group_size == 0

    def packed_bytes(self, out_features: int, in_features: int) -> int:
        """Bytes of a matrix with codes packed to `bits`, two bytes per scale and one per zero.

        Raises:
            ConfigError: `in_features` does not divide into groups.
        """
        if not self.fits(in_features):
            raise ConfigError(
                "inputs do not divide into groups", got=in_features, expected=f"a multiple of {self.group_size}"
            )
        groups = in_features // self.group_size
        return out_features * (in_features * self.bits // 8 + groups * (2 if self.symmetric else 3))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, one per field."""
        return {
            "name": self.name,
            "bits": self.bits,
            "group_size": self.group_size,
            "symmetric": self.symmetric,
            "scale_dtype": self.scale_dtype,
        }
