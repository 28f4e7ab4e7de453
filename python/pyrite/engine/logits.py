"""The logits of one step: run it, draw from it, and fetch no more of it than that takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pyrite import _core
from pyrite.backends.base import CandidateBackend, SamplingBackend

if TYPE_CHECKING:
    import numpy as np

    from pyrite.backends.base import Backend, Candidates

Draw = tuple[int, _core.Sampler, int]
"""(row, sampler, position of the new token in its sequence)."""


class StepLogits:
    """Runs a plan where it is made.

    A backend that picks candidates is asked for them when a draw of the step may do with them; a draw for which they do
    not suffice gets its whole row. Which of the two a draw takes follows from its own row and settings, and its token
    is the same with either.

    Args:
        draws: those that `draw` will be asked for.
        vocab_limit: of all samplers.
    """

    def __init__(self, backend: Backend, plan: _core.StepPlan, draws: Sequence[Draw], vocab_limit: int) -> None:
        self._device: CandidateBackend | None = None
        self._sample = backend.sample if isinstance(backend, SamplingBackend) else _core.sample
        if isinstance(backend, CandidateBackend):
            count = min(backend.num_candidates, vocab_limit)
            self._sparing = [sampler.may_use_candidates(count) for _, sampler, _ in draws]
            if any(self._sparing):
                self._device = backend
        if self._device is None:
            self._whole = backend.run(plan)
        else:
            self._candidates: Candidates = self._device.run_candidates(plan, vocab_limit)
        self._draws = draws

    def rows(self, rows: Sequence[int]) -> tuple[np.ndarray, Sequence[int]]:
        """(logits [n, vocab_size] f32, where in them each of these rows is); valid until the next call."""
        if self._device is None:
            return self._whole, rows
        return self._device.logits(rows), range(len(rows))

    def draw(self) -> list[_core.Sample | None]:
        """One token for each of the draws; None for a row without a finite logit."""
        if self._device is None:
            return self._sample(self._whole, self._draws)
        samples: list[_core.Sample | None] = [None] * len(self._draws)
        sparing = [index for index, may in enumerate(self._sparing) if may]
        found = self._candidates
        drawn = _core.sample_candidates(
            found.ids, found.logits, found.lse, found.num_tokens, [self._draws[index] for index in sparing]
        )
        for index, sample in zip(sparing, drawn, strict=True):
            samples[index] = sample
        missing = [index for index, sample in enumerate(samples) if sample is None]
        if missing:
            logits, places = self.rows([self._draws[index][0] for index in missing])
            requests = [(place, *self._draws[index][1:]) for place, index in zip(places, missing, strict=True)]
            for index, sample in zip(missing, self._sample(logits, requests), strict=True):
                samples[index] = sample
        return samples
