"""The contract between models and hardware: what each op of a program computes, and what a backend offers.

Notation: `x[t]` is row t of a view, T tokens in a step, R rows that want logits, S sequences. All activations are f32,
except on a GPU, where those of [T, width] have the dtype of the matrices (accumulation is in f32 and the logits are f32).
"Rows" below means T, or R after `select_rows`. Nothing aliases unless "in place" is said.

| op | reads | writes | computes |
|---|---|---|---|
| `embed` | ids [T] i32, weight [vocab, width] | out [T, width] | `out[t] = f32(weight[ids[t]])` |
| `rms_norm` | x [rows, width], weight [width] or none | out [rows, width] | `x / sqrt(mean(x^2) + eps) * (weight + weight_offset)`; without weight the factor is 1 |
| `head_norm` | x [rows, num_heads * head_dim], weight [head_dim] or none | x in place | as `rms_norm` over each head, then times `scale` |
| `linear` | x [rows, in], weight [out, in], bias [out] or none | out [rows, out] | `out[t][o] = sum_i x[t][i] * weight[o][i] + bias[o]` |
| `rope` | x [T, num_heads * head_dim], positions [T] | x in place | with h = len(inv_freq), angle = position * inv_freq[a], for a < h and each head: `(x[a], x[a+h]) -> scale * (x[a] cos - x[a+h] sin, x[a+h] cos + x[a] sin)`; elements from 2h on are untouched |
| `kv_store` | k, v [T, num_kv_heads * head_dim], slot_mapping [T] | cache of (group, layer) | key and value of token t at its slot, rounded to the cache's dtype; slot -1 stores nothing |
| `attention` | q [T, num_heads * head_dim], cache, block tables, seq_lens | out [T, num_heads * head_dim] | per head, softmax over keys j of `softmax_scale * q.k_j`, times v_j. Keys: `j <= p` and, with a window W, `j > p - W`, where p is the token's position. Query head h uses KV head `h // (num_heads / num_kv_heads)` |
| `glu` | gate, up [rows, width] | out [rows, width] | `silu(gate) * up`, `silu(z) = z / (1 + exp(-z))` |
| `gate` | x, gate [T, width] | x in place | `x * 1 / (1 + exp(-gate))` |
| `add` | x, y [rows, width] | x in place | `x + y` |
| `select_rows` | x [T, width], logit_rows [R] | out [R, width] | `out[r] = x[logit_rows[r]]` |
| `logits` | x [R, vocab] | x in place | `soft_cap * tanh(multiplier * x / soft_cap)`; without a cap `multiplier * x` |

Fused ops, made by the passes of `models/fuse.py` for the backends that name them. Each equals its parts in that order.

| op | reads | writes | computes |
|---|---|---|---|
| `linear_add` | x [rows, in], weight [out, in], bias [out] or none, residual [rows, out] | residual in place | `linear`, then `add` to the residual |
| `linear_glu` | x [rows, in], weight [2 * width, in], bias [2 * width] or none | out [rows, width] | `linear`, then `glu` of its first half (gate) and second half (up) |
| `add_rms_norm` | x, y [rows, width], weight [width] or none | x in place, out [rows, width] | `add`, then `rms_norm` of the sum |
| `qk_norm_rope_store` | q [T, num_heads * head_dim], k, v [T, num_kv_heads * head_dim], positions [T], slot_mapping [T] | q in place, cache of (group, layer) | `head_norm` of q and of k (each where given), `rope` of both (where a table is given), `kv_store`. The buffer of k keeps its old content |

A matrix with a scheme (`Parameter.quant`) is the integers that `quant/reference.py` finds. `embed` gives `(code - zero) *
scale` of a row. A linear on the CPU rounds its inputs to int8 and is `integer_matmul` of that module; on a GPU it takes
them as they are, times `(code - zero) * scale`.

Determinism (every backend): the result for a row may not depend on T, R, S, on other rows, on how a prompt was cut into
steps, on block size or numbers, or on the number of threads. The sum over `in` of a `linear` is cut into spans fixed by
the weight's shape; keys are cut at fixed absolute positions and partial results are merged in ascending order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from pyrite._core import Sample, Sampler, StepPlan
    from pyrite.models.program import KvGroup


class Backend(Protocol):
    """Runs one program on one device, and owns the bytes of weights, KV blocks and scratch."""

    def run(self, plan: StepPlan) -> np.ndarray:
        """Run one step.

        Block copies of the plan happen first. Keys and values of all its tokens are in the cache afterwards.

        Returns:
            [R, vocab_size] f32 logits, one row per entry of `plan.logit_rows`; valid until the next call.

        Raises:
            BackendError: the device failed; the cache content of this step's sequences is undefined.
        """
        ...

    def close(self) -> None:
        """Free the device memory. Idempotent."""
        ...


@runtime_checkable
class SamplingBackend(Backend, Protocol):
    """A backend with threads that wait between two steps, and draw tokens meanwhile."""

    def sample(self, logits: np.ndarray, requests: Sequence[tuple[int, Sampler, int]]) -> list[Sample | None]:
        """Draw as `_core.sample` does, to the same tokens.

        Args:
            logits: [R, vocab_size] f32, as `run` returned them.
            requests: (row of `logits`, sampler, position of the new token in its sequence).
        """
        ...


@dataclass(frozen=True, slots=True)
class Candidates:
    """The best tokens of each row of a step, as `_core.sample_candidates` takes them.

    Args:
        ids, logits: [R, n] i32 and f32, best first.
        lse: [R] f32, log-sum-exp of all logits of the row.
        num_tokens: ids below it were looked at.
    """

    ids: np.ndarray
    logits: np.ndarray
    lse: np.ndarray
    num_tokens: int


@runtime_checkable
class CandidateBackend(Backend, Protocol):
    """A backend whose logits lie on a device: it picks the best tokens there, and sends whole rows when asked."""

    num_candidates: int
    """How many tokens of a row it picks, where there are so many."""

    def run_candidates(self, plan: StepPlan, vocab_limit: int) -> Candidates:
        """Run one step as `run` does, and keep the logits on the device.

        A row's candidates depend on nothing but the row. They are valid until the next call.

        Args:
            vocab_limit: ids from here on do not exist; beyond the vocabulary it is the vocabulary's size.
        """
        ...

    def logits(self, rows: Sequence[int]) -> np.ndarray:
        """[len(rows), vocab_size] f32: rows of the last `run_candidates`, valid until the next call of any kind."""
        ...


def kv_block_bytes(group: KvGroup, block_size: int, kv_dtype: str) -> int:
    """Bytes of one block of a KV group: keys and values of `block_size` tokens in all its layers.

    Args:
        kv_dtype: "float32", "float16", "bfloat16", or "int16" and "int8": a code per element, rounded up to a multiple
            of four bytes, and a float32 scale.
    """
    itemsize = {"float32": 4, "float16": 2, "bfloat16": 2, "int16": 2, "int8": 1}
    head_bytes = group.head_dim * itemsize[kv_dtype]
    if kv_dtype in ("int8", "int16"):
        head_bytes = -(-head_bytes // 4) * 4 + 4
    return 2 * group.num_layers * group.num_kv_heads * head_bytes * block_size
