"""`QuantizedWeight`: 4- or 8-bit integer weights in the form that kernels read, and how it is made.

A weight is (code - zero) * scale, the scale shared by `group_size` inputs of a row. The canonical form has a byte per
code; here the codes of 32 bits / `bits` inputs share a word, and words lie in the order that a program streams them:

- `words` i32 [out_features / 64, in_features / K, 64, 16] where K = 16 * 32 / bits: a tile of 64 rows and K inputs is
  4 KiB of its own. Word j of a row has in slot p the code of input 16 * p + j of the tile.
- The code of slot p begins at bit `SLOT_BITS[bits][p]` of the word, and wraps around after bit 31: turned by a few
  fixed rotations, each code comes to lie in the mantissa of an f32.
- `params` i32 [groups, out_features to a multiple of 64]: the bits of the f16 scale below, the zero above.

Rows and inputs beyond the weight's have code 0 and scale 0. A weight of several experts has one more dimension, first.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

SLOT_BITS: dict[int, tuple[int, ...]] = {4: (11, 15, 19, 31, 3, 7, 23, 27), 8: (15, 23, 7, 31)}
"""By bits: where in a word the code of each slot begins."""

WORDS = 16
TILE_ROWS = 64

FACTORS: dict[tuple[int, bool], tuple[float, ...]] = {
    (4, False): (1.0, 1.04, 1.02, 0.98, 0.96, 0.94, 0.92, 0.9, 0.875, 0.86, 0.84, 0.82, 0.8, 0.78, 0.76, 0.74),
    (4, True): (1.0, 0.98, 0.94, 1.02, 1.12, 0.92, 0.96, 1.04, 0.9, 1.1, 0.88, 1.15, 0.86, 0.84, 0.82, 0.78),
    (8, False): (1.0, 1.004, 1.002, 0.998, 0.996, 0.9921875, 0.99, 0.985),
    (8, True): (1.0, 1.002, 0.998, 1.004, 0.996, 1.006, 1.008, 0.994),
}
"""By (bits, symmetric): the candidates for a group's scale, as factors on that of its whole range."""

_LANES = 16
_ROUND_AT_ONCE = 1 << 24  # weights of which candidates are tried at a time


@dataclass(frozen=True)
class QuantizedWeight:
    """An integer weight, [out_features, in_features], or [experts, out_features, in_features].

    Made by `quantize` or `from_canonical`; the module says what the tensors hold.

    Args:
        words, params: as the module says, contiguous, on one device.
        shape: of the weight it stands for.
        bits: 4 or 8.
        group_size: 32, 64 or 128; a divisor of in_features.
        symmetric: whether every zero is the middle code, 2 ** (bits - 1).
    """

    words: torch.Tensor
    params: torch.Tensor
    shape: tuple[int, ...]
    bits: int
    group_size: int
    symmetric: bool

    @property
    def out_features(self) -> int:
        """Rows of the weight, of one expert."""
        return self.shape[-2]

    @property
    def in_features(self) -> int:
        """Inputs of a row."""
        return self.shape[-1]

    @property
    def device(self) -> torch.device:
        """Where both tensors are."""
        return self.words.device

    @property
    def nbytes(self) -> int:
        """Bytes of both tensors, padding included."""
        return self.words.nbytes + self.params.nbytes

    def to(self, device: torch.device | str) -> QuantizedWeight:
        """The same weight on another device."""
        words, params = self.words.to(device), self.params.to(device)
        return QuantizedWeight(words, params, self.shape, self.bits, self.group_size, self.symmetric)

    @classmethod
    def quantize(cls, weight: torch.Tensor, *, bits: int, group_size: int, symmetric: bool) -> QuantizedWeight:
        """Quantize a float weight, with the scale of each group that loses least among a fixed list.

        The scale of a group is that of its whole range times one of FACTORS, rounded to f16; the least sum of squared
        errors wins, the first of equals. All of it is in f32, each operation rounded by itself.

        Args:
            weight: [out_features, in_features] or [experts, out_features, in_features] f32 | f16 | bf16.
            bits: 4 or 8.
            group_size: 32, 64 or 128; a divisor of in_features.
            symmetric: whether the zero is always the middle code.

        Raises:
            ValueError: a number above is another, the shape does not fit, or a weight is NaN or infinite.
        """
        _check_scheme(weight, "weight", bits, group_size)
        _require(weight.dtype.is_floating_point, "dtype of weight", weight.dtype, "a float")
        _require(bool(weight.isfinite().all()), "weight", "NaN or infinity", "finite numbers")
        groups = weight.reshape(-1, group_size)
        chunks = [
            _round_best(chunk.float(), bits, symmetric) for chunk in groups.split(max(1, _ROUND_AT_ONCE // group_size))
        ]
        codes, scales, zeros = (torch.cat(parts) for parts in zip(*chunks, strict=True))
        per_group = (*weight.shape[:-1], weight.shape[-1] // group_size)
        return cls.from_canonical(
            codes.view(weight.shape),
            scales.view(per_group),
            None if symmetric else zeros.view(per_group),
            bits=bits,
            group_size=group_size,
        )

    @classmethod
    def from_canonical(
        cls,
        codes: torch.Tensor,
        scales: torch.Tensor,
        zeros: torch.Tensor | None,
        *,
        bits: int,
        group_size: int,
    ) -> QuantizedWeight:
        """Re-shuffle the canonical form, once, when a weight is loaded.

        Args:
            codes: [out_features, in_features] u8, or with experts before; each below 2 ** bits.
            scales: [out_features, in_features / group_size] f16, finite.
            zeros: of the shape of scales, u8, each below 2 ** bits; None when symmetric.
            bits: 4 or 8.
            group_size: 32, 64 or 128; a divisor of in_features.

        Raises:
            ValueError: a shape, dtype, device or number is not as above.
        """
        _check_scheme(codes, "codes", bits, group_size)
        expected = (*codes.shape[:-1], codes.shape[-1] // group_size)
        _check_part("codes", codes, tuple(codes.shape), torch.uint8, codes.device)
        _check_part("scales", scales, expected, torch.float16, codes.device)
        _require(bool(scales.isfinite().all()), "scales", "NaN or infinity", "finite numbers")
        _require(int(codes.max()) < 1 << bits, "largest of codes", int(codes.max()), f"below {1 << bits}")
        if zeros is not None:
            _check_part("zeros", zeros, expected, torch.uint8, codes.device)
            _require(int(zeros.max()) < 1 << bits, "largest of zeros", int(zeros.max()), f"below {1 << bits}")
        words = _pack_words(codes, bits)
        params = _pack_params(scales, zeros, bits, words.shape[-3] * block_inputs(bits) // group_size)
        return cls(words, params, tuple(codes.shape), bits, group_size, zeros is None)

    def to_canonical(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """(codes, scales, zeros) that `from_canonical` takes."""
        codes = _unpack_words(self.words, self.bits)[..., : self.out_features, : self.in_features]
        groups = self.in_features // self.group_size
        params = self.params[..., :groups, : self.out_features].transpose(-1, -2)
        scales = (params & 0xFFFF).to(torch.int16).view(torch.float16)
        return codes.contiguous(), scales, None if self.symmetric else (params >> 16).to(torch.uint8)

    def dequantize(self) -> torch.Tensor:
        """(code - zero) * scale, of this shape, f32: exact, since no product has more bits than f32 keeps."""
        codes, scales, zeros = self.to_canonical()
        middle = torch.full(scales.shape, 1 << (self.bits - 1), dtype=torch.uint8, device=self.device)
        zeros = (middle if zeros is None else zeros).float()
        groups = codes.float().view(*scales.shape, self.group_size)
        return ((groups - zeros[..., None]) * scales.float()[..., None]).view(self.shape)


def block_inputs(bits: int) -> int:
    """Inputs of a stored tile: 128 at 4 bits, 64 at 8."""
    return WORDS * 32 // bits


def _pack_words(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """`words` of codes [..., out_features, in_features]."""
    rows, inputs = codes.shape[-2:]
    block, slots = block_inputs(bits), 32 // bits
    padding = (0, -inputs % block, 0, -rows % TILE_ROWS)
    padded = torch.nn.functional.pad(codes, padding)
    tiles_n, tiles_k = padded.shape[-2] // TILE_ROWS, padded.shape[-1] // block
    tiled = padded.view(*codes.shape[:-2], tiles_n, TILE_ROWS, tiles_k, slots, WORDS)
    tiled = tiled.transpose(-4, -3)  # [..., tiles_n, tiles_k, TILE_ROWS, slots, WORDS]
    words = torch.zeros((*tiled.shape[:-2], WORDS), dtype=torch.int64, device=codes.device)
    for slot, bit in enumerate(SLOT_BITS[bits]):
        words |= tiled[..., slot, :].to(torch.int64) << bit
    words = (words & 0xFFFFFFFF) | (words >> 32)  # what passed bit 31 wraps around
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32).contiguous()


def _unpack_words(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes u8 [..., tiles_n * TILE_ROWS, tiles_k * block] of `words`."""
    wide = words.to(torch.int64) & 0xFFFFFFFF
    wide = wide | (wide << 32)
    slots = [((wide >> bit) & ((1 << bits) - 1)).to(torch.uint8) for bit in SLOT_BITS[bits]]
    tiled = torch.stack(slots, -2).transpose(-4, -3)  # [..., tiles_n, TILE_ROWS, tiles_k, slots, WORDS]
    return tiled.reshape(*words.shape[:-4], words.shape[-4] * TILE_ROWS, -1)


def _pack_params(scales: torch.Tensor, zeros: torch.Tensor | None, bits: int, groups: int) -> torch.Tensor:
    """`params`, with as many groups as whole tiles have."""
    low = scales.contiguous().view(torch.int16).to(torch.int32) & 0xFFFF
    high = torch.full_like(low, 1 << (bits - 1)) if zeros is None else zeros.to(torch.int32)
    params = (low | (high << 16)).transpose(-1, -2)  # [..., groups, out_features]
    rows = params.shape[-1]
    return torch.nn.functional.pad(params, (0, -rows % TILE_ROWS, 0, groups - params.shape[-2])).contiguous()


def _round_best(groups: torch.Tensor, bits: int, symmetric: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(codes u8 [G, group_size], scales f16 [G], zeros u8 [G]) of groups [G, group_size] f32 with the least error."""
    best: list[torch.Tensor] = []
    for factor in FACTORS[bits, symmetric]:
        got = _round(groups, bits, symmetric, torch.tensor(factor, dtype=torch.float32, device=groups.device))
        if not best:
            best = list(got)
            continue
        better = got[3] < best[3]
        for index, one in enumerate(got):
            chosen = better.view(-1, *[1] * (one.ndim - 1))
            best[index] = torch.where(chosen, one, best[index])
    return best[0].to(torch.uint8), best[1].to(torch.float16), best[2].to(torch.uint8)


def _round(
    groups: torch.Tensor, bits: int, symmetric: bool, factor: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(codes, scales, zeros, sums of squared errors), all f32, for one factor."""
    most, middle = float((1 << bits) - 1), float(1 << (bits - 1))
    low, high = groups.amin(1).clamp(max=0.0), groups.amax(1).clamp(min=0.0)
    raw = torch.maximum(-low, high) * factor / middle if symmetric else (high - low) * factor / most
    scale = raw.clamp(2.0**-24, 65504.0).to(torch.float16).float()
    if symmetric:  # codes reach farther below the middle: the largest weight goes there
        scale = torch.where(high > -low, -scale, scale)
    inverse = 1.0 / scale
    zero = torch.full_like(low, middle) if symmetric else (-low * factor * inverse).round().clamp(0.0, most)
    code = ((groups * inverse[:, None]).round() + zero[:, None]).clamp(0.0, most)
    difference = (code - zero[:, None]) * scale[:, None] - groups
    lanes = (difference * difference).view(len(groups), -1, _LANES)
    total = torch.zeros_like(lanes[:, 0])
    for index in range(lanes.shape[1]):  # 16 lanes, ascending, then folded: an order that no device changes
        total = total + lanes[:, index]
    while total.shape[1] > 1:
        half = total.shape[1] // 2
        total = total[:, :half] + total[:, half:]
    return code, scale, zero, total[:, 0]


def _require(condition: bool, what: str, got: object, expected: object) -> None:
    if not condition:
        raise ValueError(f"{what}: got {got}, expected {expected}")


def _check_scheme(x: torch.Tensor, name: str, bits: int, group_size: int) -> None:
    """Check the numbers of a scheme, and that they divide a weight."""
    _require(bits in SLOT_BITS, "bits", bits, "4 or 8")
    _require(group_size in (32, 64, 128), "group_size", group_size, "32, 64 or 128")
    shape = tuple(x.shape)
    _require(
        len(shape) in (2, 3) and 0 not in shape, f"shape of {name}", shape, "[out_features, in_features], not empty"
    )
    _require(shape[-1] % group_size == 0, f"in_features of {name}", shape[-1], f"a multiple of {group_size}")


def _check_part(name: str, x: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    """Check a tensor of the canonical form."""
    _require(tuple(x.shape) == shape, f"shape of {name}", tuple(x.shape), shape)
    _require(x.dtype == dtype, f"dtype of {name}", x.dtype, dtype)
    _require(x.device == device, f"device of {name}", x.device, device)
