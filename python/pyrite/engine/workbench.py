"""Runs one kind of work at a time on a scheduler and a backend, and times it: the engine without callers."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrite import _core
from pyrite.errors import BackendError

if TYPE_CHECKING:
    from pyrite.backends.cpu import CpuBackend


@dataclass(frozen=True, slots=True)
class Timed:
    """One measurement.

    Args:
        tokens: of the prompt, or drawn.
        seconds: wall time, planning and sampling included.
        ops: see `_core.CpuExecutor.end_profile`.
    """

    tokens: int
    seconds: float
    ops: list[dict[str, Any]]


class Workbench:
    """Prompts of random tokens, greedy draws.

    Args:
        scheduler, backend: idle, and used by nobody else.
        step_tokens: the scheduler's budget of a step.
        vocab_limit: prompts and draws stay below it.
    """

    def __init__(
        self,
        scheduler: _core.Scheduler,
        backend: CpuBackend,
        *,
        step_tokens: int,
        vocab_limit: int,
    ) -> None:
        self._scheduler, self._backend = scheduler, backend
        self._step_tokens, self._vocab_limit = step_tokens, vocab_limit
        self._random = np.random.default_rng(0)
        self._next_seq_id = 0
        self._sampler = _core.Sampler(
            temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, seed=0, stream=0, vocab_limit=vocab_limit, logprobs=None
        )

    def prefill(self, prompt_tokens: int) -> Timed:
        """One prompt to its first token."""
        (seq_id,) = self._add(1, prompt_tokens, max_tokens=2)
        self._backend.start_profile()
        began = time.perf_counter()
        while not self._step():
            pass
        timed = Timed(prompt_tokens, time.perf_counter() - began, self._backend.end_profile())
        self._scheduler.finish(seq_id)
        return timed

    def decode(self, sequences: int, context: int, steps: int) -> Timed:
        """`steps` tokens of each of `sequences` sequences whose prompts have `context` tokens."""
        # Those whose prompt is through draw tokens beside the others' prompts, at most one per step.
        early = sequences + sequences * context // self._step_tokens
        seq_ids = self._add(sequences, context, max_tokens=steps + early + 2)
        while self._step() < sequences:
            pass
        self._backend.start_profile()
        began = time.perf_counter()
        tokens = sum(self._step() for _ in range(steps))
        timed = Timed(tokens, time.perf_counter() - began, self._backend.end_profile())
        for seq_id in seq_ids:
            self._scheduler.finish(seq_id)
        return timed

    def close(self) -> None:
        """Free the backend."""
        self._backend.close()

    def _add(self, sequences: int, prompt_tokens: int, max_tokens: int) -> list[int]:
        first = self._next_seq_id
        self._next_seq_id += sequences
        for seq_id in range(first, self._next_seq_id):
            ids = self._random.integers(0, self._vocab_limit, prompt_tokens).tolist()
            self._scheduler.add(seq_id, ids, max_tokens=max_tokens, stop_token_ids=(), prompt_logprobs=False, salt=b"")
        return list(range(first, self._next_seq_id))

    def _step(self) -> int:
        """One step; returns how many sequences drew a token."""
        plan = self._scheduler.plan()
        if plan is None:
            raise BackendError("nothing is left to run", hint="a sequence ended early: please report this")
        logits = self._backend.run(plan)
        positions, logit_rows, samples = plan.positions, plan.logit_rows, plan.samples
        drawing, requests = [], []
        for index, (seq_id, epoch, first_row, num_rows) in enumerate(plan.seqs):
            if samples[index]:
                row = first_row + num_rows - 1
                drawing.append((seq_id, epoch))
                requests.append((row, self._sampler, int(positions[logit_rows[row]]) + 1))
        drawn = []
        for (seq_id, epoch), sample in zip(drawing, self._backend.sample(logits, requests), strict=True):
            if sample is None:
                raise BackendError("the model gave no finite logit", code="model_numerics")
            drawn.append((seq_id, epoch, [sample.token_id]))
        self._scheduler.commit(plan, drawn)
        return len(drawn)
