"""The Rust core: checkpoints, the CPU executor, the scheduler with its KV blocks, and the sampler."""

from collections.abc import Callable, Sequence
from typing import Any, final

import numpy as np

__all__ = [
    "Checkpoint",
    "CpuExecutor",
    "Sample",
    "Sampler",
    "Scheduler",
    "StepPlan",
    "StopMatcher",
    "UnpublishedFile",
    "__version__",
    "cpu_info",
    "matrix_bytes",
    "open_checkpoint",
    "peak_flops",
    "quantize_tensors",
    "read_bandwidth",
    "sample",
    "sample_candidates",
    "token_logprobs",
]

__version__: str

def cpu_info() -> dict[str, object]:
    """The processor as pyrite sees it.

    Keys: `isa` (level in use), `isa_levels` (supported ones), `physical_cores` (within affinity and cgroup quota).
    """

def matrix_bytes(rows: int, cols: int, *, dtype: str, quant: tuple[int, int, bool, int] | None = None) -> int:
    """Bytes that the CPU executor holds for a matrix `[rows, cols]`, padding included.

    Args:
        dtype: "float32", "float16" or "bfloat16", of floats.
        quant: (bits, group_size, symmetric, groups_per_scale) of integers, which `dtype` does not matter to.

    Raises:
        ConfigError: a value not listed here or in `quantize_tensors`, or columns that do not divide into groups.
    """

def read_bandwidth(num_bytes: int, num_threads: int, repeats: int) -> list[float]:
    """GB/s of `repeats` sequential reads of `num_bytes` shared by `num_threads` threads."""

def peak_flops(kind: str, num_threads: int, repeats: int, isa: str | None = None) -> list[float]:
    """Operations per second (a multiply-add is two) of register-resident multiply-adds, by the instructions of a level.

    Args:
        kind: "fp32", "bf16", "int4" (codes of 4 bits by 8-bit integers), "int8" or "int16".
        isa: instruction level; None takes the best one.

    Raises:
        ConfigError: another kind or level, or "bf16" at a level without it.
    """

def open_checkpoint(folder: str) -> Checkpoint:
    """Validate the safetensors headers and the shard index of a model folder; no tensor data is read.

    Raises:
        CheckpointError: see FAULTS 1-32; names the file, and the tensor where one is at fault.
    """

@final
class Checkpoint:
    """Validated headers of one or more safetensors files."""

    def tensors(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Name to (dtype, shape); dtype in safetensors spelling: "F32", "BF16", ..."""

    def read(self, name: str) -> bytes:
        """The raw little-endian bytes of one tensor, read by `pread`.

        Raises:
            CheckpointError: unknown name, or the file changed since it was opened.
        """

    def num_bytes(self) -> int:
        """Sum of all tensor bytes."""

def quantize_tensors(
    checkpoint: Checkpoint,
    names: Sequence[str],
    *,
    bits: int,
    group_size: int,
    symmetric: bool,
    groups_per_scale: int,
    num_threads: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Float tensors, stacked along dimension 0, in the canonical quantized form of `quant/scheme.py`.

    Gives the bytes of `quant/reference.py`, on `num_threads` threads with the GIL released; memory held is the result
    and a few MB per thread.

    Args:
        names: matrices of F32, F16 or BF16 with the same number of columns, a multiple of `group_size`.
        bits: 4 or 8.
        group_size: 32, 64 or 128.
        groups_per_scale: 1; or 4, for 4 bits in symmetric groups of 32.

    Returns:
        codes u8 `[N, K]`, scales f16 `[N, K / group_size]` (also where groups share one), and zeros u8 of that shape,
        None when symmetric.

    Raises:
        CheckpointError: a tensor is missing, of the wrong shape or dtype, or has NaN or infinite weights (code
            `not_finite`); the field is its name.
        ConfigError: a value that is not listed above, or columns that do not divide into groups.
    """

@final
class CpuExecutor:
    """A packed model, its KV blocks and its threads: runs one program on the CPU."""

    def __new__(
        cls,
        program: str,
        checkpoint: Checkpoint,
        *,
        block_size: int,
        num_blocks: Sequence[int],
        max_tokens: int,
        max_rows: int,
        max_seqs: int,
        kv_dtype: str,
        weight_dtype: str | None,
        num_threads: int,
        isa: str | None,
        progress: Callable[[int, int], None] | None,
        packed_folder: str | None = None,
    ) -> CpuExecutor:
        """Load and pack every parameter of `program` (the JSON of `Program.to_json`).

        A matrix whose parameter has `"quant": {"bits": ..., "group_size": ..., "symmetric": ...}` is quantized on the
        way, from the checkpoint's values; its columns must divide into groups.

        Args:
            num_blocks: per KV group.
            kv_dtype: "float32", "float16", "bfloat16", "int16" or "int8".
            weight_dtype: convert matrices to this dtype; None keeps the checkpoint's.
            isa: force an instruction level; None takes the best one.
            progress: called with (bytes done, bytes in all) from the calling thread, signals checked in between.
            packed_folder: where packed files are kept. Quantized weights are read from the file there that was made
                from the same files; without one they are written to a new one, which `take_packed_notes` hands out.
                Nothing about a file makes a load fail.

        Raises:
            CheckpointError: a tensor is missing, has the wrong shape or dtype, or is to be quantized and not finite.
            CapacityError: weights, KV blocks or scratch do not fit in memory.
            ConfigError: unsupported value.
        """

    def run(self, plan: StepPlan, logits: np.ndarray) -> None:
        """Run one step with the GIL released; writes the first R rows of `logits` [>= R, vocab_size] f32.

        Raises:
            BackendError: a worker failed.
            ShapeError: `logits` or the plan does not fit this executor.
        """

    def sample(self, logits: np.ndarray, requests: Sequence[tuple[int, Sampler, int]]) -> list[Sample | None]:
        """`sample` with the rows shared over the threads of the executor, which must not run a step meanwhile."""

    def start_profile(self) -> None:
        """Measure every step from here on, from zero."""

    def end_profile(self) -> list[dict[str, Any]]:
        """What the steps since `start_profile` took, one entry per kind of op; measures no more.

        Keys: `op` (a matrix's name without its layer, or the kind of op), `arithmetic` (a kind of `peak_flops`),
        `calls`, `seconds` (wall time, barriers included), `bytes` (weights, keys and values, inputs and outputs, each
        once per call), `operations` (multiply-adds of products, as two). Empty when nothing was measured.
        """

    def info(self) -> dict[str, object]:
        """`isa`, `num_threads`, `weight_bytes`, `kv_bytes`, `scratch_bytes`, and whether `from_packed_file`."""

    def take_packed_notes(self) -> tuple[list[tuple[str, str, bool]], UnpublishedFile | None]:
        """What happened to packed files while loading, handed out once.

        Returns:
            Notes ("not used" or "not written", why, whether that is normal: the model has changed or is brand new), and
            the file that was written.
        """

@final
class UnpublishedFile:
    """A packed file that is complete but for being synced and getting its name. Removed when collected before."""

    def publish(self) -> str | None:
        """Wait for the disk, with the GIL released, and give the file its name; the reason when that fails."""

@final
class StepPlan:
    """One step, as the scheduler decided it. Arrays are i32 copies."""

    @property
    def seqs(self) -> list[tuple[int, int, int, int]]:
        """Per sequence: (id, epoch, first logit row, number of logit rows). Zero rows: a chunk that samples nothing."""
    @property
    def samples(self) -> list[bool]:
        """Per sequence: whether its last logit row is to be sampled (false in the middle of a prompt)."""
    @property
    def num_draft_tokens(self) -> list[int]: ...
    @property
    def token_ids(self) -> np.ndarray: ...
    @property
    def positions(self) -> np.ndarray: ...
    @property
    def cu_seqlens_q(self) -> np.ndarray: ...
    @property
    def seq_lens(self) -> np.ndarray: ...
    @property
    def logit_rows(self) -> np.ndarray: ...
    def block_table(self, group: int) -> np.ndarray:
        """[S, max_blocks] i32."""
    def slot_mapping(self, group: int) -> np.ndarray:
        """[T] i32."""
    def block_copies(self, group: int) -> list[tuple[int, int]]:
        """(source, destination) blocks to copy before the step."""

@final
class Scheduler:
    """Continuous batching over KV blocks: a plain state machine over ids."""

    def __new__(
        cls,
        *,
        groups: Sequence[tuple[int | None, int]],
        block_size: int,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_logit_rows: int,
        max_model_len: int,
        enable_prefix_caching: bool,
        hash_key: int,
        max_num_mixed_prefill_tokens: int | None = None,
    ) -> Scheduler:
        """A scheduler with its pools.

        `groups`: (window or None, number of blocks) per KV group. `hash_key` keys the prefix hashes of this engine.
        `max_num_mixed_prefill_tokens`: most tokens of a step that do not decode when others do; None: no such limit.
        """

    def add(
        self,
        seq_id: int,
        token_ids: Sequence[int],
        *,
        max_tokens: int,
        stop_token_ids: Sequence[int],
        prompt_logprobs: bool,
        salt: bytes,
    ) -> None:
        """Queue a sequence.

        Raises:
            RequestError: empty prompt, prompt longer than max_model_len - 1, id in use.
            CapacityError: the pools cannot hold it even when alone.
        """

    def plan(self) -> StepPlan | None:
        """Decide the next step; None when nothing is left to run."""

    def commit(self, plan: StepPlan, sampled: Sequence[tuple[int, int, Sequence[int]]]) -> list[tuple[int, str]]:
        """Take what a step produced: (id, epoch, tokens) for every sequence that sampled.

        Results of an old epoch are dropped. Returns (id, "stop" | "length") of the sequences that ended; they are gone.
        """

    def finish(self, seq_id: int) -> bool:
        """End a sequence from outside (stop string, abort). False when it is unknown: it ended before."""

    def has_work(self) -> bool: ...
    def num_cached_tokens(self, seq_id: int) -> int | None:
        """Prompt tokens that the prefix cache answered at the sequence's last admission."""
    def stats(self) -> dict[str, int]:
        """Counters since the start and gauges.

        `num_waiting`, `num_running`, `preemptions`, `prefix_query_tokens`, `prefix_hit_tokens`, `steps`,
        `decode_steps`, `decode_tokens`, `prefill_tokens`, and per KV group i `group{i}_total`, `group{i}_free`,
        `group{i}_cached`, `group{i}_used`.
        """

    def check(self) -> None:
        """Verify every invariant of the pools and states; InternalError names the broken one."""
    def reset_prefix_cache(self) -> int:
        """Forget cached blocks that no sequence uses; returns how many."""

@final
class Sampler:
    """How one completion's tokens are drawn. Immutable."""

    def __new__(
        cls,
        *,
        temperature: float,
        top_k: int,
        top_p: float,
        min_p: float,
        seed: int,
        stream: int,
        vocab_limit: int,
        logprobs: int | None,
    ) -> Sampler:
        """`top_k` 0 or -1 is off. `stream` is the completion's index. Ids from `vocab_limit` on are never drawn."""

    def may_use_candidates(self, num_candidates: int) -> bool:
        """Whether the best `num_candidates` tokens of a row may do for a draw; see `sample_candidates`."""

@final
class Sample:
    """One drawn token."""

    @property
    def token_id(self) -> int: ...
    @property
    def logprob(self) -> float | None:
        """Of the raw distribution, before temperature and filters; None unless `logprobs` was asked for."""
    @property
    def rank(self) -> int | None:
        """1 for the most likely token."""
    @property
    def top(self) -> list[tuple[int, float]]:
        """The most likely tokens with their logprobs, at most `logprobs` of them, best first."""

def sample(logits: np.ndarray, requests: Sequence[tuple[int, Sampler, int]]) -> list[Sample | None]:
    """Draw one token per request (row of `logits`, sampler, position of the new token in its sequence).

    A row without a single finite logit gives None: that request has failed, the others have not.
    """

def sample_candidates(
    ids: np.ndarray,
    logits: np.ndarray,
    lse: np.ndarray,
    num_tokens: int,
    requests: Sequence[tuple[int, Sampler, int]],
) -> list[Sample | None]:
    """Draw one token per request, as `sample` does, from the best tokens of each row: the same token, or None.

    None says that the best tokens do not decide the draw and `sample` must see the whole row. Logprobs are those of
    `sample` to within 1e-5, since they come from `lse`.

    Args:
        ids, logits: `[rows, n]` i32 and f32, n of 1 to `num_tokens`: the best tokens of each row in the order of logit
            descending, then id ascending, -0.0 and 0.0 being the same and NaN the largest.
        lse: `[rows]` f32, the natural log of the sum of exps of all logits, within 1e-4.
        num_tokens: ids of the row that exist; no sampler's `vocab_limit` is below it.

    Raises:
        InternalError: candidates that are not as above.
    """

def token_logprobs(
    logits: np.ndarray, row: int, token_id: int, top: int, vocab_limit: int
) -> tuple[float, int, list[tuple[int, float]]]:
    """(logprob, rank, most likely tokens) of `token_id` in a row's raw distribution.

    Ids from `vocab_limit` on do not exist.
    """

@final
class StopMatcher:
    """Finds the first of some stop strings in a growing text, in linear time."""

    def __new__(cls, stops: Sequence[str]) -> StopMatcher: ...
    def push(self, text: str) -> tuple[str, int | None]:
        """Feed the next piece of text.

        Returns (text that is now safe to release, None), or (text before the match, index of the stop string) once
        one is complete. At most the longest stop string less one character is held back.
        """
    def flush(self) -> str:
        """The text still held back, when the sequence ended for another reason."""
