"""What quantizing weights costs on the starter model: ours and llama.cpp's round-to-nearest types in one harness.

    python bench/quality/weights.py [--out bench/results] [--documents N]

Every matrix of the decoder's layers is replaced by its quantized and dequantized self; the head, the embedding and the
activations stay float, for every scheme alike. The model then reads held-out documents of its training's distribution,
in f32, teacher-forced; each position's distribution is compared with the float model's.

Which weights are rounded up is a draw of a lottery, and a small model shows it: so every scheme is measured with
several cuts of the columns into groups (they are rolled first, and back), the mean beside its standard error.

Q4_0 and Q8_0 are ggml's `quantize_row_q4_0_ref` and `quantize_row_q8_0_ref` (groups of 32, one f16 scale).
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyrite
import torch
from pyrite.quant.reference import quantize
from pyrite.quant.scheme import QuantScheme
from pyrite.quant.schemes import QUANTIZATIONS
from starter_training import chat
from starter_training.documents import document
from starter_training.model import HIDDEN_SIZE
from transformers import AutoTokenizer, MuseGlimmerForConditionalGeneration

ROOT = Path(__file__).resolve().parent.parent.parent
STARTER = ROOT / "python" / "pyrite" / "starter"
SEED = 20_000
GGML_GROUP = 32
CUTS = (0, 4, 8, 13, 17, 21, 25, 29, 34, 38, 42, 46, 50, 55, 59, 63)
"""By how many columns a matrix is rolled before it is cut into groups: no two give the same groups of 32."""

Dequantized = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Contender:
    """A way to store a matrix.

    Args:
        name: as the table shows it.
        bits: per weight, scales and zeros counted.
        apply: `[out_features, in_features]` f32 to what is read back, f32.
    """

    name: str
    bits: float
    apply: Dequantized


def q4_0(weight: np.ndarray) -> np.ndarray:
    """ggml's Q4_0: the value of largest magnitude becomes code 0 of 0..15, so that its scale is max / -8."""
    groups = weight.reshape(-1, GGML_GROUP).astype(np.float32)
    largest = np.take_along_axis(groups, np.abs(groups).argmax(1)[:, None], 1)
    scale = largest / np.float32(-8)
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)
    codes = np.minimum((groups * inverse + np.float32(8.5)).astype(np.int32), 15)
    return ((codes - 8) * scale.astype(np.float16).astype(np.float32)).astype(np.float32).reshape(weight.shape)


def q8_0(weight: np.ndarray) -> np.ndarray:
    """ggml's Q8_0: max|x| / 127."""
    groups = weight.reshape(-1, GGML_GROUP).astype(np.float32)
    scale = np.abs(groups).max(1, keepdims=True) / np.float32(127)
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)
    codes = np.copysign(np.floor(np.abs(groups * inverse) + np.float32(0.5)), groups)
    return (codes * scale.astype(np.float16).astype(np.float32)).reshape(weight.shape)


def contenders() -> list[Contender]:
    """llama.cpp's two types, then every scheme of ours whose groups divide the model's 192 columns."""
    schemes = {q.layers.name: q.layers for q in QUANTIZATIONS.values() if q.layers.fits(HIDDEN_SIZE)}
    ours = [
        Contender(f"pyrite {s.name}", bits_per_weight(s), lambda w, s=s: quantize(w, s).dequantize())
        for s in schemes.values()
    ]
    return [Contender("llama.cpp Q4_0", 4.5, q4_0), Contender("llama.cpp Q8_0", 8.5, q8_0), *ours]


def bits_per_weight(scheme: QuantScheme) -> float:
    """Bits of storage per weight of a matrix."""
    inputs = scheme.group_size * scheme.groups_per_scale
    return 8 * scheme.packed_bytes(1, inputs) / inputs


def layer_matrices(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The weights of the decoder's linears, the head's left out."""
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if "language_model.layers." in name and parameter.ndim == 2
    }


def held_out(tokenizer: Any, count: int) -> Iterator[torch.Tensor]:
    """Token ids `[1, n]` of held-out documents."""
    rng = Random(SEED)
    for _ in range(count):
        yield tokenizer(document(rng, True) + chat.EOS, return_tensors="pt")["input_ids"]


def log_probabilities(model: torch.nn.Module, documents: list[torch.Tensor]) -> list[torch.Tensor]:
    """`[n - 1, vocab_size]` f32 natural logs of each document."""
    with torch.inference_mode():
        return [torch.log_softmax(model(input_ids=ids).logits[0, :-1].float(), -1) for ids in documents]


def compare(base: list[torch.Tensor], other: list[torch.Tensor], documents: list[torch.Tensor]) -> dict[str, float]:
    """KL(float || other) in nats, share of positions with the same top token, perplexity."""
    divergence, same, loss, tokens = [], 0, 0.0, 0
    for p, q, ids in zip(base, other, documents, strict=True):
        divergence.append((p.exp() * (p - q)).sum(-1))
        same += int((p.argmax(-1) == q.argmax(-1)).sum())
        loss -= float(q.gather(1, ids[0, 1:, None]).sum())
        tokens += len(p)
    every = torch.cat(divergence)
    return {
        "kl_mean": float(every.mean()),
        "kl_p99": float(every.quantile(0.99)),
        "same_top": same / tokens,
        "perplexity": float(np.exp(loss / tokens)),
    }


def replace_all(
    matrices: dict[str, torch.nn.Parameter], originals: dict[str, np.ndarray], apply: Dequantized, cut: int
) -> float:
    """Put every matrix's quantized self in its place; returns the root of the mean relative squared error."""
    errors = []
    for name, parameter in matrices.items():
        original = originals[name]
        got = np.roll(apply(np.roll(original, cut, 1)), -cut, 1)
        errors.append(float(((got - original) ** 2).sum() / (original**2).sum()))
        parameter.data.copy_(torch.from_numpy(got))
    return float(np.mean(errors) ** 0.5)


def summary(draws: list[dict[str, float]]) -> dict[str, float]:
    """Means over the cuts, and the standard error of the mean divergence."""
    means = {key: float(np.mean([draw[key] for draw in draws])) for key in draws[0]}
    spread = float(np.std([draw["kl_mean"] for draw in draws], ddof=1) / len(draws) ** 0.5)
    return means | {"kl_mean_error": spread}


def measure(count: int) -> dict[str, Any]:
    """Every contender on the same documents."""
    tokenizer = AutoTokenizer.from_pretrained(STARTER)
    model = MuseGlimmerForConditionalGeneration.from_pretrained(STARTER, dtype=torch.float32).eval()
    documents = list(held_out(tokenizer, count))
    matrices = layer_matrices(model)
    originals = {name: parameter.detach().numpy().copy() for name, parameter in matrices.items()}
    base = log_probabilities(model, documents)
    table: dict[str, Any] = {"float": compare(base, base, documents) | {"bits": 16.0}}
    for contender in contenders():
        draws = []
        for cut in CUTS:
            error = replace_all(matrices, originals, contender.apply, cut)
            draws.append(compare(base, log_probabilities(model, documents), documents) | {"weight_error": error})
        table[contender.name] = summary(draws) | {"bits": contender.bits}
        print(contender.name, {key: round(value, 7) for key, value in table[contender.name].items()}, flush=True)
    return {
        "model": "starter",
        "weights": sum(matrix.size for matrix in originals.values()),
        "documents": count,
        "cuts": len(CUTS),
        "tokens": sum(len(p) for p in base),
        "header": {
            "commit": subprocess.run(
                ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
            ).stdout.strip(),
            "python": platform.python_version(),
            "libraries": {"pyrite": pyrite.__version__, "torch": torch.__version__, "numpy": np.__version__},
        },
        "table": table,
    }


def main() -> None:
    """Measure and write quality-starter.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--documents", type=int, default=120)
    arguments = parser.parse_args()
    result = measure(arguments.documents)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "quality-starter.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
