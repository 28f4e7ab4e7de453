"""The receipt of a lossy step: what it did to the model's probabilities on a text.

For each position of the text both models give a distribution over the next token. The receipt holds the Kullback-
Leibler divergence of the quantized one from the float one, how often both have the same most likely token, and the
perplexity of each: exp of the mean negative log-probability of the token that follows. Logits come from running
engines, as those of a prompt that wants its logprobs: what is measured is what generates.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrite.describe import describe
from pyrite.errors import BackendError, CapacityError, RequestError
from pyrite.memory import open_for, plan_memory
from pyrite.params import SamplingParams
from pyrite.request import parse_prompts
from pyrite.system import free_memory_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from pyrite.engine.engine import Engine
    from pyrite.memory import MemoryPlan
    from pyrite.request import AdmissionGate
    from pyrite.settings import EngineConfig

LogitRows = Callable[[Sequence[int]], np.ndarray]
"""Token ids to the logits that follow each of them but the last: `[len(ids) - 1, vocab]` f32."""

MIN_WINDOW_TOKENS = 2
MAX_WINDOW_TOKENS = 65536
_ROWS_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class QuantizationReport:
    """A quantized model against its float model, on one text. `str()` of it is a table.

    Args:
        quantization: by name.
        num_tokens: positions compared.
        kl_mean, kl_max: KL(float || quantized) in nats, over positions.
        same_top: share of positions where both have the same most likely token, 0 to 1.
        perplexity, float_perplexity: of the text.
        weight_bytes, float_weight_bytes: of the loaded weights, padding included.
        bits_per_weight, float_bits_per_weight: those bytes in bits, over `num_parameters`.
        num_parameters: of the model, vectors included.
        kept_float: matrices that do not divide into groups, in words.
    """

    quantization: str
    num_tokens: int
    kl_mean: float
    kl_max: float
    same_top: float
    perplexity: float
    float_perplexity: float
    weight_bytes: int
    float_weight_bytes: int
    bits_per_weight: float
    float_bits_per_weight: float
    num_parameters: int
    kept_float: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and a list."""
        return {**dataclasses.asdict(self), "kept_float": list(self.kept_float)}

    def __str__(self) -> str:
        lines = [
            f"{self.quantization} against the float model, {self.num_tokens} tokens",
            f"KL(float || {self.quantization}): mean {self.kl_mean:.4g}, max {self.kl_max:.4g} nats",
            f"same top token: {100 * self.same_top:.1f} %",
            f"perplexity: {self.perplexity:.5g} (float {self.float_perplexity:.5g})",
            f"bits per weight: {self.bits_per_weight:.2f} (float {self.float_bits_per_weight:.2f}), "
            f"{self.weight_bytes / 1e6:,.1f} MB (float {self.float_weight_bytes / 1e6:,.1f} MB)",
        ]
        if self.kept_float:
            lines.append(f"stay float: {'; '.join(self.kept_float)}")
        return "\n  ".join(lines)


@dataclass(frozen=True, slots=True)
class Comparison:
    """What `compare` found; see `QuantizationReport`."""

    num_tokens: int
    kl_mean: float
    kl_max: float
    same_top: float
    perplexity: float
    float_perplexity: float


def compare(quantized: LogitRows, floats: LogitRows, windows: Iterable[Sequence[int]]) -> Comparison:
    """Compare two models on windows of token ids, each of which starts anew.

    Memory: `rows_bytes` of the longest window.

    Raises:
        BackendError: a model gives NaN or infinite logits.
    """
    divergences, same, losses, float_losses = [], [], [], []
    for ids in windows:
        both = quantized(ids), floats(ids)
        for start in range(0, len(ids) - 1, _ROWS_AT_ONCE):
            q, p = (_log_softmax(rows[start : start + _ROWS_AT_ONCE]) for rows in both)
            following = np.asarray(ids[start + 1 : start + 1 + len(p)])[:, None]
            divergences.append((np.exp(p) * (p - q)).sum(-1))
            same.append(p.argmax(-1) == q.argmax(-1))
            losses.append(-np.take_along_axis(q, following, -1)[:, 0])
            float_losses.append(-np.take_along_axis(p, following, -1)[:, 0])
    kl = np.maximum(np.concatenate(divergences), 0.0)  # rounding may leave -1e-17 where both are the same
    return Comparison(
        num_tokens=len(kl),
        kl_mean=float(kl.mean()),
        kl_max=float(kl.max()),
        same_top=float(np.concatenate(same).mean()),
        perplexity=_perplexity(losses),
        float_perplexity=_perplexity(float_losses),
    )


def rows_bytes(window_tokens: int, vocab: int) -> int:
    """Bytes that `compare` holds for a window: f32 logits of both models, and f64 of a few rows."""
    return 2 * 4 * window_tokens * vocab + 4 * 8 * _ROWS_AT_ONCE * vocab


class EngineRows:
    """`LogitRows` of a running engine; other requests may run beside.

    Args:
        vocab: logits of token ids from here on are left out.
    """

    def __init__(self, engine: Engine, gate: AdmissionGate, vocab: int) -> None:
        self._engine = engine
        self._gate = gate
        self._vocab = vocab

    def __call__(self, token_ids: Sequence[int]) -> np.ndarray:
        """See `LogitRows`.

        Raises:
            RequestError: an id outside the vocabulary, or too many.
            BackendError: the engine is closed, or a step failed.
        """
        params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
        request = self._gate.admit(parse_prompts({"prompt_token_ids": list(token_ids)}), params)[0]
        if max(request.prompt_token_ids) >= self._vocab:
            raise RequestError("the tokenizer has no such token", got=max(token_ids), field="text")
        rows = np.full((len(token_ids) - 1, self._vocab), np.nan, np.float32)

        def keep(position: int, logits: np.ndarray) -> None:
            rows[position - 1] = logits[: self._vocab]

        for _, output in self._engine.run([dataclasses.replace(request, keep_logits=keep)]):
            if output.outputs[0].error is not None:
                raise BackendError(output.outputs[0].error)
        return rows


def plan_float_model(
    folder: Path, config: EngineConfig, plan: MemoryPlan, window_tokens: int, vocab: int
) -> tuple[EngineConfig, MemoryPlan]:
    """The config and plan of the float model that a quantized one is compared with: same device, one short sequence.

    Args:
        config, plan: of the quantized model.

    Raises:
        CapacityError: it does not fit in memory beside the quantized one, with the logits of a window.
    """
    tokens = window_tokens + 1
    floats = dataclasses.replace(
        config,
        device=plan.device,
        quantization=None,
        kv_cache_memory=None,
        max_model_len=tokens,
        max_num_seqs=1,
        max_num_batched_tokens=min(config.max_num_batched_tokens, tokens),
        revision=None,
    )
    what, hint = "the float model does not fit in memory beside the quantized one", "free memory on this machine"
    try:
        needed = plan_memory(open_for(folder, floats), floats)
    except CapacityError as error:
        raise CapacityError(what, got=error.got, expected=error.expected, hint=hint) from error
    on_host = rows_bytes(window_tokens, vocab) + (needed.total_bytes if plan.device == "cpu" else 0)
    free = free_memory_bytes()
    if on_host > free:
        raise CapacityError(what, got=f"{free} bytes free", expected=on_host, hint=f"{hint}, or lower window_tokens")
    return floats, needed


def cut_windows(ids: Sequence[int], prefix: Sequence[int], window_tokens: int) -> list[list[int]]:
    """The text in windows of at most `window_tokens`, each with the prefix (a BOS) first.

    A last window that would hold a single token, with nothing to predict it from, is left out.

    Raises:
        RequestError: the text is too short to predict anything.
    """
    step = window_tokens - len(prefix)
    windows = [[*prefix, *ids[start : start + step]] for start in range(0, len(ids), max(step, 1))]
    windows = [window for window in windows if len(window) > 1]
    if step < 1 or not windows:
        raise RequestError("the text is too short to measure", got=f"{len(ids)} tokens", field="text")
    return windows


def check_window_tokens(value: object, most: int) -> int:
    """`value`, cut to `most`.

    Raises:
        RequestError: not an integer from 2 to 65536.
    """
    expected = f"an integer from {MIN_WINDOW_TOKENS} to {MAX_WINDOW_TOKENS}"
    if isinstance(value, bool) or not isinstance(value, int) or not MIN_WINDOW_TOKENS <= value <= MAX_WINDOW_TOKENS:
        raise RequestError("not a window", got=describe(value), expected=expected, field="window_tokens")
    return min(value, most)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    """Row-wise, f64."""
    if not np.isfinite(logits).all():
        raise BackendError("a model gave NaN or infinite logits", code="model_numerics")
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(-1, keepdims=True))
    return shifted


def _perplexity(losses: Sequence[np.ndarray]) -> float:
    """exp of the mean; infinite beyond what f64 holds."""
    mean = float(np.concatenate(losses).mean())
    return math.exp(mean) if mean < 700 else math.inf
