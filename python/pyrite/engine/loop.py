"""One step of the engine: plan, run, sample, commit, and nothing else."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pyrite import _core
from pyrite.engine.logits import StepLogits
from pyrite.errors import InternalError

if TYPE_CHECKING:
    from pyrite.backends.base import Backend
    from pyrite.engine.handle import PromptRow, RequestHandle
    from pyrite.engine.logits import Draw
    from pyrite.engine.sequence import CompletionState

Running = Mapping[int, "tuple[RequestHandle, CompletionState]"]
"""What runs, by sequence id."""

NO_FINITE_LOGITS = "the model gave no finite logit at this position (code model_numerics)"

_logger = logging.getLogger("pyrite")


@dataclass(slots=True)
class StepResult:
    """What one step produced, by sequence id.

    Args:
        began: when, in seconds of perf_counter.
        scheduled: epochs of all sequences of the step.
        cached: prompt tokens that the prefix cache answered, of sequences that were never in a step before.
        samples: drawn tokens.
        prompt_rows: logprobs of prompt tokens.
        ended: "stop" or "length", as the scheduler decided.
        failed: what went wrong; those sequences are gone from the scheduler.
    """

    began: float = field(default_factory=time.perf_counter)
    scheduled: dict[int, int] = field(default_factory=dict)
    cached: dict[int, int] = field(default_factory=dict)
    samples: dict[int, _core.Sample] = field(default_factory=dict)
    prompt_rows: dict[int, list[PromptRow]] = field(default_factory=dict)
    ended: dict[int, str] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)


class Loop:
    """Drives one scheduler and one backend. Used by the engine thread alone."""

    def __init__(self, scheduler: _core.Scheduler, backend: Backend) -> None:
        self.scheduler = scheduler
        self.backend = backend

    def step(self, running: Running) -> StepResult:
        """Run one step over what is queued; there must be work.

        A fault of the backend ends the sequences of this step only.

        Raises:
            InternalError: the scheduler contradicts itself; nothing can be trusted any more.
        """
        result = StepResult()
        plan = self.scheduler.plan()
        if plan is None:
            raise InternalError("the scheduler has work and plans nothing")
        seqs = plan.seqs
        result.scheduled = {seq_id: epoch for seq_id, epoch, _, _ in seqs}
        for seq_id in result.scheduled:
            if running[seq_id][1].epoch is None:
                result.cached[seq_id] = self.scheduler.num_cached_tokens(seq_id) or 0
        try:
            _run(self.backend, plan, running, result)
        except Exception as error:
            _logger.exception("a step of %d sequences failed", len(seqs))
            result.samples.clear()
            result.prompt_rows.clear()
            result.failed = {seq_id: f"{type(error).__name__}: {error}" for seq_id in result.scheduled}
        for seq_id in result.failed:
            self.scheduler.finish(seq_id)
        drawn = [(seq_id, result.scheduled[seq_id], [s.token_id]) for seq_id, s in result.samples.items()]
        result.ended = dict(self.scheduler.commit(plan, drawn))
        return result


def _run(backend: Backend, plan: _core.StepPlan, running: Running, result: StepResult) -> None:
    """Run the step, draw a token for every sequence that wants one, and collect the logprobs of prompt tokens."""
    positions, logit_rows, samples = plan.positions, plan.logit_rows, plan.samples
    drawing: list[int] = []
    draws: list[Draw] = []
    prompts: list[tuple[int, range]] = []
    for index, (seq_id, _, first_row, num_rows) in enumerate(plan.seqs):
        handle, completion = running[seq_id]
        rows = range(first_row, first_row + num_rows)
        if completion.index == 0 and handle.request.params.prompt_logprobs is not None:
            prompts.append((seq_id, rows))
        if samples[index]:
            drawing.append(seq_id)
            draws.append((rows[-1], completion.sampler, int(positions[logit_rows[rows[-1]]]) + 1))
    vocab_limit = running[plan.seqs[0][0]][1].vocab_limit  # an engine has one
    logits = StepLogits(backend, plan, draws, vocab_limit)
    for seq_id, rows in prompts:
        row_positions = [int(positions[logit_rows[row]]) for row in rows]
        try:
            result.prompt_rows[seq_id] = _prompt_rows(*running[seq_id], logits, rows, row_positions)
        except Exception as error:
            result.failed[seq_id] = f"prompt_logprobs: {type(error).__name__}: {error}"
    for seq_id, sample in zip(drawing, logits.draw(), strict=True):
        if seq_id in result.failed:
            continue
        if sample is None:
            result.failed[seq_id] = NO_FINITE_LOGITS
        else:
            result.samples[seq_id] = sample


def _prompt_rows(
    handle: RequestHandle, completion: CompletionState, logits: StepLogits, rows: range, row_positions: list[int]
) -> list[PromptRow]:
    """Logprobs of the prompt tokens that these rows predict. The row at position p predicts the token at p + 1."""
    token_ids = handle.request.prompt_token_ids
    wanted, keep = handle.request.params.prompt_logprobs or 0, handle.request.keep_logits
    pairs = [(row, p + 1) for row, p in zip(rows, row_positions, strict=True) if handle.wants_prompt_row(p + 1)]
    if not pairs:
        return []
    whole, places = logits.rows([row for row, _ in pairs])
    found = []
    for place, (_, position) in zip(places, pairs, strict=True):
        token_id = token_ids[position]
        if keep is not None:
            keep(position, whole[place])
        logprob, rank, top = _core.token_logprobs(whole, place, token_id, wanted, completion.vocab_limit)
        found.append((position, token_id, logprob, rank, top))
    return found
