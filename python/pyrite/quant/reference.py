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
"""

from __future__ import annotations

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


@dataclass(frozen=True, slots=True)
class QuantizedMatrix:
    """A matrix in the canonical form; see `QuantScheme` for the shapes and dtypes."""

    scheme: QuantScheme
    codes: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray | None

    def dequantize(self) -> np.ndarray:
        """`[out_features, in_features]` f32: `(code - zero) * f32(scale)`, one rounding."""
        size = self.scheme.group_size
        codes = self.codes.reshape(len(self.codes), -1, size).astype(np.float32)
        scales = self.scales.astype(np.float32)[:, :, None]
        return ((codes - self.zeros_f32()[:, :, None]) * scales).reshape(self.codes.shape)

    def zeros_f32(self) -> np.ndarray:
        """`[out_features, in_features / group_size]` f32, the middle code where there are none stored."""
        if self.zeros is None:
            return np.full(self.scales.shape, self.scheme.middle, np.float32)
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
    groups = weight.astype(np.float32).reshape(-1, scheme.group_size)
    codes = np.empty(groups.shape, np.uint8)
    scales = np.empty(len(groups), np.float16)
    zeros = np.empty(len(groups), np.uint8)
    least = np.full(len(groups), np.inf, np.float32)
    for index, factor in enumerate(FACTORS[scheme.bits, scheme.symmetric]):
        got = _round(groups, scheme, np.float32(factor))
        better = got[3] < least if index else np.ones(len(groups), bool)
        for best, one in zip((codes, scales, zeros, least), got, strict=True):
            best[better] = one[better]
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


def _sum_in_lanes(values: np.ndarray) -> np.ndarray:
    """Sums of `[G, group_size]` f32 along the groups, in the order of step 6: `[G]` f32."""
    lanes = np.zeros((len(values), LANES), np.float32)
    for start in range(0, values.shape[1], LANES):
        lanes = lanes + values[:, start : start + LANES]
    while lanes.shape[1] > 1:
        half = lanes.shape[1] // 2
        lanes = lanes[:, :half] + lanes[:, half:]
    return lanes[:, 0]


def quantize_activations(x: np.ndarray, span: int) -> tuple[np.ndarray, np.ndarray]:
    """Turn finite activations into int8, `span` of a row at a time.

    `scale = max|x| / 127` and `q = clamp(round(x / scale), -127, 127)`, all f32; a span whose scale is 0 (its values
    are zero, or round to it) has q = 0. The clamp matters only for subnormal scales.

    Args:
        x: `[rows, in_features]` f32, `in_features` a multiple of `span`.

    Returns:
        q `[rows, in_features]` i8 and scales `[rows, in_features / span]` f32.
    """
    spans = x.astype(np.float32).reshape(len(x), -1, span)
    scales = np.abs(spans).max(axis=2) / np.float32(127)
    divisor = np.where(scales == 0, np.float32(1), scales)[:, :, None]
    q = np.clip(np.rint(spans / divisor), np.float32(-127), np.float32(127))
    q = np.where(scales[:, :, None] == 0, np.float32(0), q)
    return q.astype(np.int8).reshape(x.shape), scales


def integer_matmul(x: np.ndarray, matrix: QuantizedMatrix, bias: np.ndarray | None = None) -> np.ndarray:
    """`x weight^T + bias` by the CPU's arithmetic: exact integer sums, one f32 fused multiply-add per span.

    Spans are `min(64, group_size)` inputs. For each, ascending:
    `sum = fma(f32(dot(q, codes) - zero * sum(q)), activation_scale * weight_scale, sum)`, from 0; then `+ bias`.

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
    span = min(ACTIVATION_SPAN, matrix.scheme.group_size)
    q, activation_scales = quantize_activations(x, span)
    weight_scales = matrix.scales.astype(np.float32)
    zeros = matrix.zeros_f32().astype(np.int32)
    total = np.zeros((len(x), out_features), np.float32)
    for index, start in enumerate(range(0, in_features, span)):
        group = start // matrix.scheme.group_size
        part = q[:, start : start + span].astype(np.int32)
        dots = part @ matrix.codes[:, start : start + span].astype(np.int32).T
        sums = dots - part.sum(axis=1, dtype=np.int32)[:, None] * zeros[:, group]
        factor = activation_scales[:, index, None] * weight_scales[:, group]
        total = fma(sums.astype(np.float32), factor, total)
    return total if bias is None else total + bias.astype(np.float32)


def fma(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """`a * b + c` of finite f32 arrays, rounded once to f32.

    The product is exact in f64. Its sum with `c` is rounded to odd there (an inexact result whose last bit is even
    moves to the neighbour on the side of what was lost), so that rounding to f32 afterwards is right.
    Source: Boldo and Melquiond, "Emulation of FMA and correctly rounded sums", IEEE Trans. Computers 57(4), 2008.
    """
    product = a.astype(np.float64) * b.astype(np.float64)
    addend = c.astype(np.float64)
    total = product + addend
    back = total - product
    lost = (product - (total - back)) + (addend - back)
    even = (np.ascontiguousarray(total).view(np.int64) & 1) == 0
    odd = np.nextafter(total, np.where(lost > 0, np.inf, -np.inf))
    with np.errstate(over="ignore"):
        return np.where((lost != 0) & even, odd, total).astype(np.float32)
