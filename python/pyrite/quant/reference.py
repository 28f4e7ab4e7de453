"""The exact definition of quantized weights and of the CPU's integer matmul, in numpy. Slow; every backend's oracle.

All arithmetic is f32 with each operation rounded by itself (no fused multiply-add unless it says so), in an order that
vector code can follow, so that another implementation can give the same bytes. `tests/quant/golden.txt` holds some.

How a group `x` of `group_size` weights becomes codes, for each factor of `FACTORS[bits, symmetric]` in turn:

1. `low = min(0, min x)`, `high = max(0, max x)`.
2. `span = high - low` and `steps = max_code`; symmetric: `span = max(-low, high)` and `steps = middle`.
3. `scale = f16(clamp((span * factor) / steps, 2^-24, 65504))`, rounded to nearest even; from here on, its f32 value.
   The clamp makes every scale finite and not zero: a group of zeros, or one too small for f16, needs no other rule.
   Symmetric: the scale is negative if `high > -low`. Codes reach one step farther below the middle than above it, and
   the sign turns the weight of largest magnitude to that side.
4. `inverse = 1 / scale`, and `zero = clamp(round((-low * factor) * inverse), 0, max_code)`; symmetric: `middle`.
5. `code = clamp(round(x * inverse) + zero, 0, max_code)`. `round` is to nearest, ties to even, here and above.
6. `error`: the sum of `d * d` with `d = (code - zero) * scale - x`, in 16 lanes: lane l sums elements l, l + 16, ...
   ascending from 0, then lanes l and l + 8 are added, then l and l + 4, l + 2, l + 1. It may overflow to infinity.

The factor with the least error wins, the first of equals. The first factor is 1, plain rounding over the whole
range: the search can only beat it.

How four groups (or fewer, at the end of a row) that share a scale become codes, for each divisor of `DIVISORS` in turn:

1. Of each group, `range = max(-low, high) / 8`, and a sign, negative if `high > -low`.
2. `scale = clamp(largest range / divisor, 2^-18, 4064)`, rounded to seven significant bits, ties to even: every
   multiple of it up to 15 is an f16.
3. For each offset of `OFFSETS` in turn, `multiple = clamp(round(range / scale) + offset, 1, 15)` with the group's sign,
   `step = multiple * scale` (exact), `inverse = 1 / step`.
4. `code - 8 = clamp(fma(x, inverse, 1.5 * 2^23), 1.5 * 2^23 - 8, 1.5 * 2^23 + 7) - 1.5 * 2^23`: rounded, ties to even.
5. `error`: as above, but `d = fma(code - 8, -step, x)` and lanes add by `fma(d, d, sum)`. A group takes the offset with
   the least, the first of equals.

The divisor with the least sum of the groups' errors, added in their order, wins, the first of equals. The first divisor
gives the largest group 15 of the scale at the first offset, its whole range: again the search can only beat it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from pyrite.errors import CheckpointError, ShapeError
from pyrite.quant.scheme import QuantScheme

LANES = 16
SMALLEST_SCALE = np.float32(2.0**-24)
LARGEST_SCALE = np.float32(65504.0)
ACTIVATION_SPAN = 64
"""Most inputs that share a scale when activations become int8."""

FACTORS: dict[tuple[int, bool], tuple[float, ...]] = {
    (4, False): (1.0, 1.04, 1.02, 0.98, 0.96, 0.94, 0.92, 0.9, 0.875, 0.86, 0.84, 0.82, 0.8, 0.78, 0.76, 0.74),
    (4, True): (1.0, 0.98, 0.94, 1.02, 1.12, 0.92, 0.96, 1.04, 0.9, 1.1, 0.88, 1.15, 0.86, 0.84, 0.82, 0.78),
    (8, False): (1.0, 1.004, 1.002, 0.998, 0.996, 0.9921875, 0.99, 0.985),
    (8, True): (1.0, 1.002, 0.998, 1.004, 0.996, 1.006, 1.008, 0.994),
}
"""By (bits, symmetric): the candidates for a group's scale, as f32 factors on that of its whole range."""

DIVISORS = (15.0, 14.5, 14.0, 13.5)
"""The candidates for a scale that groups share: how many there are in that of the largest group's whole range, f32."""
OFFSETS = (0, -1, 1, -2)
"""The candidates for a group's multiple of it, from the nearest to its whole range."""
LARGEST_MULTIPLE = 15
SMALLEST_SHARED = np.float32(2.0**-18)
LARGEST_SHARED = np.float32(4064.0)
WHOLE = np.float32(1.5 * 2.0**23)
"""Adding it rounds a small f32 to a whole number."""


@dataclass(frozen=True, slots=True)
class QuantizedMatrix:
    """A matrix in the canonical form; see `QuantScheme` for the shapes and dtypes."""

    scheme: QuantScheme
    codes: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray | None
    multiples: np.ndarray | None = None

    def dequantize(self) -> np.ndarray:
        """`[out_features, in_features]` f32: `(code - zero) * f32(scale)`, one rounding."""
        size = self.scheme.group_size
        codes = self.codes.reshape(len(self.codes), -1, size).astype(np.float32)
        scales = self.group_scales().astype(np.float32)[:, :, None]
        return ((codes - self.zeros_f32()[:, :, None]) * scales).reshape(self.codes.shape)

    def group_scales(self) -> np.ndarray:
        """`[out_features, in_features / group_size]` f16: a scale for each group, also where several share one."""
        if self.multiples is None:
            return self.scales
        each = np.repeat(self.scales.astype(np.float32), self.scheme.groups_per_scale, axis=1)
        return (each[:, : self.multiples.shape[1]] * self.multiples).astype(np.float16)

    def zeros_f32(self) -> np.ndarray:
        """`[out_features, in_features / group_size]` f32, the middle code where there are none stored."""
        if self.zeros is None:
            groups = self.codes.shape[1] // self.scheme.group_size
            return np.full((len(self.codes), groups), self.scheme.middle, np.float32)
        return self.zeros.astype(np.float32)


def quantize(weight: np.ndarray, scheme: QuantScheme, *, name: str = "weight") -> QuantizedMatrix:
    """Quantize a matrix as the module says.

    Args:
        weight: `[out_features, in_features]`, f32 (f16 widens exactly; bf16 is widened by the caller).
        scheme: its group size divides `in_features`.
        name: of the tensor, for the errors.

    Raises:
        CheckpointError: a weight is NaN or infinite.
        ShapeError: not a matrix of whole groups.
    """
    if weight.ndim != 2 or not scheme.fits(weight.shape[1]):
        expected = f"[out_features, a multiple of {scheme.group_size}]"
        raise ShapeError("cannot be quantized", got=weight.shape, expected=expected, field=name)
    if not np.isfinite(weight).all():
        raise CheckpointError("NaN or infinite weights cannot be quantized", field=name)
    if scheme.shared:
        return _quantize_shared(weight.astype(np.float32), scheme)
    groups = weight.astype(np.float32).reshape(-1, scheme.group_size)
    factors = FACTORS[scheme.bits, scheme.symmetric]
    codes, scales, zeros, _ = _least(_round(groups, scheme, np.float32(factor)) for factor in factors)
    shape = (weight.shape[0], weight.shape[1] // scheme.group_size)
    return QuantizedMatrix(
        scheme,
        codes.reshape(weight.shape),
        scales.reshape(shape),
        None if scheme.symmetric else zeros.reshape(shape),
    )


def _round(
    groups: np.ndarray, scheme: QuantScheme, factor: np.float32
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(codes, scales, zeros, errors) of groups `[G, group_size]` f32 for one factor: steps 1 to 6."""
    low = np.minimum(groups.min(axis=1), np.float32(0))
    high = np.maximum(groups.max(axis=1), np.float32(0))
    most = np.float32(scheme.max_code)
    with np.errstate(over="ignore"):
        if scheme.symmetric:
            raw = np.maximum(-low, high) * factor / np.float32(scheme.middle)
        else:
            raw = (high - low) * factor / most
        scales = np.clip(raw, SMALLEST_SCALE, LARGEST_SCALE).astype(np.float16)
        if scheme.symmetric:
            scales = np.where(high > -low, -scales, scales)
        scale = scales.astype(np.float32)
        inverse = np.float32(1) / scale
        if scheme.symmetric:
            zero = np.full(len(groups), scheme.middle, np.float32)
        else:
            zero = np.clip(np.rint(-low * factor * inverse), np.float32(0), most)
        code = np.clip(np.rint(groups * inverse[:, None]) + zero[:, None], np.float32(0), most)
        difference = (code - zero[:, None]) * scale[:, None] - groups
        errors = _sum_in_lanes(difference * difference)
    return code.astype(np.uint8), scales, zero.astype(np.uint8), errors


def _quantize_shared(weight: np.ndarray, scheme: QuantScheme) -> QuantizedMatrix:
    """Groups that share a scale; a row is filled up with groups of zeros, which add no error."""
    rows, together = len(weight), scheme.group_size * scheme.groups_per_scale
    count = weight.shape[1] // scheme.group_size
    padded = np.pad(weight, ((0, 0), (0, -weight.shape[1] % together)))
    groups = padded.reshape(-1, scheme.groups_per_scale, scheme.group_size)
    low = np.minimum(groups.min(axis=2), np.float32(0))
    high = np.maximum(groups.max(axis=2), np.float32(0))
    ranges = np.maximum(-low, high) / np.float32(8)
    signs = np.where(high > -low, np.float32(-1), np.float32(1))

    def share(divisor: float) -> tuple[np.ndarray, ...]:
        raw = ranges.max(axis=1) / np.float32(divisor)
        scales = _seven_bits(np.clip(raw, SMALLEST_SHARED, LARGEST_SHARED))
        codes, multiples, errors = _multiples(groups, ranges, signs, scales)
        total = np.zeros(len(groups), np.float32)
        with np.errstate(over="ignore"):
            for error in errors.T:
                total = total + error
        return scales, codes, multiples, total

    scales, codes, multiples, _ = _least(map(share, DIVISORS))
    return QuantizedMatrix(
        scheme,
        codes.reshape(rows, -1)[:, : weight.shape[1]].astype(np.uint8),
        scales.reshape(rows, -1).astype(np.float16),
        None,
        multiples.reshape(rows, -1)[:, :count].astype(np.int8),
    )


def _multiples(groups: np.ndarray, ranges: np.ndarray, signs: np.ndarray, scales: np.ndarray) -> tuple[np.ndarray, ...]:
    """(codes `[S, G, group_size]`, multiples and errors `[S, G]`) f32 of `S` times `G` groups, for scales `[S]`."""
    with np.errstate(over="ignore"):
        nearest = np.rint(ranges / scales[:, None])

    def multiply(offset: int) -> tuple[np.ndarray, ...]:
        multiples = np.clip(nearest + np.float32(offset), np.float32(1), np.float32(LARGEST_MULTIPLE)) * signs
        step = (multiples * scales[:, None])[:, :, None]
        whole = fma(groups, np.float32(1) / step, np.asarray(WHOLE))
        steps = np.clip(whole, WHOLE - np.float32(8), WHOLE + np.float32(7)) - WHOLE
        difference = fma(steps, -step, groups)
        lanes = np.zeros((*ranges.shape, LANES), np.float32)
        for start in range(0, groups.shape[2], LANES):
            part = difference[:, :, start : start + LANES]
            lanes = fma(part, part, lanes)
        return steps + np.float32(8), multiples, _fold(lanes)

    return _least(map(multiply, OFFSETS))


def _least(candidates: Iterable[tuple[np.ndarray, ...]]) -> tuple[np.ndarray, ...]:
    """Element by element the candidate whose error, its last array, is least, the first of equals."""
    remaining = iter(candidates)
    best = next(remaining)
    for other in remaining:
        better = other[-1] < best[-1]
        for kept, one in zip(best, other, strict=True):
            kept[better] = one[better]
    return best


def _seven_bits(values: np.ndarray) -> np.ndarray:
    """Normal f32 numbers rounded to seven significant bits, ties to even."""
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0xFFFF + (bits >> 17 & 1)) & np.uint32(0xFFFE0000)).astype(np.uint32).view(np.float32)


def _sum_in_lanes(values: np.ndarray) -> np.ndarray:
    """Sums of `[G, group_size]` f32 along the groups, in the order of step 6: `[G]` f32."""
    lanes = np.zeros((len(values), LANES), np.float32)
    for start in range(0, values.shape[1], LANES):
        lanes = lanes + values[:, start : start + LANES]
    return _fold(lanes)


def _fold(lanes: np.ndarray) -> np.ndarray:
    """`[..., LANES]` f32 added by halves: `[...]`."""
    with np.errstate(over="ignore"):
        while lanes.shape[-1] > 1:
            half = lanes.shape[-1] // 2
            lanes = lanes[..., :half] + lanes[..., half:]
    return lanes[..., 0]


def quantize_activations(x: np.ndarray, span: int) -> tuple[np.ndarray, np.ndarray]:
    """Turn finite activations into int8, `span` of a row at a time.

    `scale = max|x| / 127` and `q = clamp(round(x / scale), -127, 127)`, all f32; a span whose scale is 0 (its values
    are zero, or round to it) has q = 0. The clamp matters only for subnormal scales.

    Args:
        x: `[rows, in_features]` f32; the last span of a row may be shorter.

    Returns:
        q `[rows, in_features]` i8 and scales `[rows, in_features / span]`, rounded up, f32.
    """
    spans = np.pad(x.astype(np.float32), ((0, 0), (0, -x.shape[1] % span))).reshape(len(x), -1, span)
    scales = np.abs(spans).max(axis=2) / np.float32(127)
    divisor = np.where(scales == 0, np.float32(1), scales)[:, :, None]
    q = np.clip(np.rint(spans / divisor), np.float32(-127), np.float32(127))
    q = np.where(scales[:, :, None] == 0, np.float32(0), q)
    return q.astype(np.int8).reshape(len(x), -1)[:, : x.shape[1]], scales


def integer_matmul(x: np.ndarray, matrix: QuantizedMatrix, bias: np.ndarray | None = None) -> np.ndarray:
    """`x weight^T + bias` by the CPU's arithmetic: exact integer sums, one f32 fused multiply-add per span.

    Spans are `min(64, group_size)` inputs. For each, ascending:
    `sum = fma(f32(dot(q, codes) - zero * sum(q)), activation_scale * weight_scale, sum)`, from 0; then `+ bias`.
    Where groups share a scale, a span is all of them, and what is made f32 is the sum over its groups, each times its
    multiple.

    Args:
        x: `[rows, in_features]` f32, finite.
        bias: `[out_features]` f32.

    Returns:
        `[rows, out_features]` f32. A row's result depends on that row alone.

    Raises:
        ShapeError: `x` or `bias` does not fit the matrix.
    """
    out_features, in_features = matrix.codes.shape
    if x.ndim != 2 or x.shape[1] != in_features:
        raise ShapeError("x does not fit the matrix", got=x.shape, expected=f"[rows, {in_features}]", field="x")
    if bias is not None and bias.shape != (out_features,):
        raise ShapeError("bias does not fit the matrix", got=bias.shape, expected=(out_features,), field="bias")
    size, per_scale = matrix.scheme.group_size, matrix.scheme.groups_per_scale
    span = size * per_scale if matrix.scheme.shared else min(ACTIVATION_SPAN, size)
    q, activation_scales = quantize_activations(x, span)
    weight_scales = matrix.scales.astype(np.float32)
    each = matrix.codes.astype(np.int32) - np.repeat(matrix.zeros_f32().astype(np.int32), size, axis=1)
    if matrix.multiples is not None:
        each *= np.repeat(matrix.multiples.astype(np.int32), size, axis=1)
    total = np.zeros((len(x), out_features), np.float32)
    for index, start in enumerate(range(0, in_features, span)):
        sums = q[:, start : start + span].astype(np.int32) @ each[:, start : start + span].T
        factor = activation_scales[:, index, None] * weight_scales[:, start // (size * per_scale)]
        total = fma(sums.astype(np.float32), factor, total)
    return total if bias is None else total + bias.astype(np.float32)


def fma(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """`a * b + c` of f32 arrays, rounded once to f32. Infinity as `c` stays.

    The product is exact in f64. Its sum with `c` is rounded to odd there (an inexact result whose last bit is even
    moves to the neighbour on the side of what was lost), so that rounding to f32 afterwards is right.
    Source: Boldo and Melquiond, "Emulation of FMA and correctly rounded sums", IEEE Trans. Computers 57(4), 2008.
    """
    product = a.astype(np.float64) * b.astype(np.float64)
    addend = c.astype(np.float64)
    total = product + addend
    with np.errstate(invalid="ignore"):
        back = total - product
        lost = (product - (total - back)) + (addend - back)
    even = (np.ascontiguousarray(total).view(np.int64) & 1) == 0
    odd = np.nextafter(total, np.where(lost > 0, np.inf, -np.inf))
    with np.errstate(over="ignore"):
        return np.where((lost != 0) & even, odd, total).astype(np.float32)
