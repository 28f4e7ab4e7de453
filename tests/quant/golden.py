"""The golden bytes of `golden.txt`: inputs that reach every rule, and what the reference made of them.

`python tests/quant/golden.py` writes the file anew; do that only when the definition changes on purpose. Each line is
a key and little-endian bytes in hex. `weight` is f32 [8, 256], `x` f32 [3, 256] and `bias` f32 [8]; for each scheme
`NAME.codes` is u8 [8, 256], `NAME.scales` f16 and `NAME.zeros` u8 [8, 256 / group_size] (none when symmetric), and
`NAME.matmul` f32 [3, 8]. Where groups share a scale, `NAME.scales` has one for four groups, and `NAME.multiples` is i8.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pyrite.quant.reference import integer_matmul, quantize
from pyrite.quant.scheme import QuantScheme
from pyrite.quant.schemes import QUANTIZATIONS

PATH = Path(__file__).parent / "golden.txt"
ROWS, COLUMNS, TOKENS = 8, 256, 3


def schemes() -> dict[str, QuantScheme]:
    """Every scheme that some quantization uses, and 8 bits with zeros, which the contract allows too."""
    found = {s.name: s for q in QUANTIZATIONS.values() for s in (q.layers, q.head)}
    return {**found, "int8_g64_asym": QuantScheme("int8_g64_asym", 8, 64, symmetric=False)}


def inputs() -> dict[str, np.ndarray]:
    """Weights of every kind, one per row: see the lines."""
    rng = np.random.default_rng(20)
    weight = (rng.standard_normal((ROWS, COLUMNS)) * 0.02).astype(np.float32)
    weight[1] = np.abs(weight[1])  # one sign
    weight[2] = -np.abs(weight[2])
    weight[3, :128] = 0.0  # groups of zeros
    weight[3, 128:192] *= np.float32(1e-3)  # subnormal scales
    weight[3, 192:] *= np.float32(1e-6)  # the smallest scale
    weight[4, ::17] *= np.float32(40)  # outliers
    weight[5] = np.float32(0.5)  # all alike
    weight[6, :64] *= np.float32(1e9)  # beyond the largest scale
    weight[6, 64:128] = np.where(np.arange(64) % 2, np.float32(3e38), np.float32(-3e38))  # errors overflow
    weight[6, 128:] *= np.float32(1e-30)
    weight[7] = np.round(weight[7] * 300) / np.float32(64)  # ties
    x = rng.standard_normal((TOKENS, COLUMNS)).astype(np.float32)
    x[1, :64] = 0.0
    x[1, 64:128] *= np.float32(1e-42)  # subnormal activations
    x[2, 5] = np.float32(300)
    return {"weight": weight, "x": x, "bias": rng.standard_normal(ROWS).astype(np.float32)}


def outputs(given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the reference makes of them, by key."""
    found: dict[str, np.ndarray] = {}
    for name, scheme in schemes().items():
        matrix = quantize(given["weight"], scheme)
        found[f"{name}.codes"], found[f"{name}.scales"] = matrix.codes, matrix.scales
        if matrix.zeros is not None:
            found[f"{name}.zeros"] = matrix.zeros
        if matrix.multiples is not None:
            found[f"{name}.multiples"] = matrix.multiples
        found[f"{name}.matmul"] = integer_matmul(given["x"], matrix, given["bias"])
    return found


def read() -> dict[str, bytes]:
    """The committed bytes by key."""
    return {key: bytes.fromhex(value) for key, value in map(str.split, PATH.read_text().splitlines())}


if __name__ == "__main__":
    everything = {**inputs(), **outputs(inputs())}
    PATH.write_text("".join(f"{key} {value.tobytes().hex()}\n" for key, value in everything.items()))
