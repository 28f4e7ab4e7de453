"""Every way to get the logits of a whole sequence, by backend: the parameter of the parity tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from pyrite import _core
from pyrite.backends.base import Backend
from pyrite.backends.cpu import CpuBackend
from pyrite.backends.torch_ref import TorchReference, run_sequence
from pyrite.models import Program
from pyrite.weights.reader import Weights, open_weights
from tiny_models import SafetensorsSource

BLOCK_SIZE = 16

Runner = Callable[[Program, Path, Sequence[int], Sequence[int]], np.ndarray]
"""(program, folder, token ids, tokens per step) -> logits [len(token ids), vocab_size] f32."""


def run_reference(program: Program, folder: Path, token_ids: Sequence[int], chunks: Sequence[int]) -> np.ndarray:
    """The torch interpreter, on bytes read without pyrite."""
    return run_sequence(program, Weights(SafetensorsSource(folder)), token_ids, chunks)


def drive(backend: Backend, windows: Sequence[int | None], token_ids: Sequence[int], budget: int) -> np.ndarray:
    """Logits of every position, by way of the scheduler: the sequence is a prompt that wants its logprobs.

    Args:
        budget: tokens per step.
    """
    blocks = -(-len(token_ids) // BLOCK_SIZE) + 1
    scheduler = _core.Scheduler(
        groups=[(window, blocks) for window in windows],
        block_size=BLOCK_SIZE,
        max_num_seqs=1,
        max_num_batched_tokens=budget,
        max_logit_rows=budget,
        max_model_len=len(token_ids) + 1,
        enable_prefix_caching=False,
        hash_key=0,
    )
    options = {"max_tokens": 1, "stop_token_ids": [], "prompt_logprobs": True, "salt": b""}
    scheduler.add(0, token_ids, **options)
    logits = []
    while (plan := scheduler.plan()) is not None:
        assert len(plan.token_ids) <= budget
        assert plan.positions[plan.logit_rows].tolist() == plan.positions.tolist()
        logits.append(backend.run(plan).copy())
        (seq_id, epoch, _, _), (samples,) = plan.seqs[0], plan.samples
        scheduler.commit(plan, [(seq_id, epoch, [0])] if samples else [])
    assert not scheduler.has_work()
    scheduler.check()
    return np.concatenate(logits)


def run_scheduled(program: Program, folder: Path, token_ids: Sequence[int], chunks: Sequence[int]) -> np.ndarray:
    """The torch interpreter on the scheduler's plans, with steps of the first chunk's size."""
    num_blocks = [-(-len(token_ids) // BLOCK_SIZE) + 1] * len(program.kv_groups)
    weights = open_weights(folder)
    backend = TorchReference(program, weights, block_size=BLOCK_SIZE, num_blocks=num_blocks)
    return drive(backend, [group.window for group in program.kv_groups], token_ids, chunks[0])


def run_cpu(
    program: Program,
    folder: Path,
    token_ids: Sequence[int],
    chunks: Sequence[int],
    isa: str | None = None,
    kv_dtype: str = "float32",
) -> np.ndarray:
    """The Rust executor on the scheduler's plans, with steps of the first chunk's size."""
    backend = CpuBackend(
        program,
        _core.open_checkpoint(str(folder)),
        block_size=BLOCK_SIZE,
        num_blocks=[-(-len(token_ids) // BLOCK_SIZE) + 1] * len(program.kv_groups),
        max_tokens=chunks[0],
        max_rows=chunks[0],
        max_seqs=1,
        kv_dtype=kv_dtype,
        num_threads=2,
        isa=isa,
    )
    try:
        return drive(backend, [group.window for group in program.kv_groups], token_ids, chunks[0])
    finally:
        backend.close()


RUNNERS: dict[str, Runner] = {"torch_ref": run_reference, "torch_ref_scheduled": run_scheduled, "cpu": run_cpu}
