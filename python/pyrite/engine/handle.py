"""One request while it runs: where the engine thread puts results and callers pick them up."""

from __future__ import annotations

import queue
import threading
import time
from typing import TYPE_CHECKING

from pyrite.engine.sequence import CompletionState, position_logprobs
from pyrite.outputs import PositionLogprobs, RequestMetrics, RequestOutput

if TYPE_CHECKING:
    from pyrite.engine.sequence import Vocabulary
    from pyrite.request import Request

PromptRow = tuple[int, int, float, int, list[tuple[int, float]]]
"""(position, token id, logprob, rank, most likely tokens) of one prompt token."""


class RequestHandle:
    """Shared by the engine thread and one or more waiting threads.

    The engine thread writes under `condition`; a reader takes a cumulative copy whenever it likes. A slow reader
    therefore costs nothing: what it missed is in its next copy.

    Args:
        outbox: told once, when the request has ended. None for a stream, whose reader waits on `condition`.
    """

    def __init__(
        self, request_id: str, request: Request, vocabulary: Vocabulary, outbox: queue.SimpleQueue[RequestHandle] | None
    ) -> None:
        self.request_id = request_id
        self.request = request
        self.condition = threading.Condition()
        self.completions: list[CompletionState] = []
        self.failure: BaseException | None = None
        self.finished = False
        self.version = 0
        self._outbox = outbox
        self._decode = vocabulary.decode_token
        self._prompt_rows: dict[int, PromptRow] = {}
        self._arrived = time.perf_counter()
        self._scheduled: float | None = None
        self._first_token: float | None = None
        self._ended: float | None = None

    def note_scheduled(self, began: float) -> None:
        """A step that began at `began` (perf_counter) worked on this request."""
        if self._scheduled is None:
            self._scheduled = began

    def note_token(self) -> None:
        """A token of the first completion was drawn."""
        if self._first_token is None:
            self._first_token = time.perf_counter()

    def wants_prompt_row(self, position: int) -> bool:
        """Whether the logprob of the prompt token at `position` is wanted and not there yet."""
        return position < len(self.request.prompt_token_ids) and position not in self._prompt_rows

    def add_prompt_row(self, row: PromptRow) -> None:
        """Take the logprobs of one prompt token."""
        self._prompt_rows[row[0]] = row

    def fail(self, error: BaseException) -> None:
        """The engine died: waiting callers raise `error`."""
        self.failure = error
        self.finished = True

    def ended(self) -> bool:
        """Whether all completions have ended and `finish` is due."""
        return not self.finished and all(c.finished for c in self.completions)

    def finish(self) -> None:
        """Mark the request finished. Called once, with the lock held."""
        self.finished = True
        self._ended = time.perf_counter()

    def publish(self) -> None:
        """Wake the readers. Called by the engine thread without the lock held."""
        with self.condition:
            self.version += 1
            self.condition.notify_all()
        if self.finished and self._outbox is not None:
            self._outbox.put(self)

    def wait(self, version: int, timeout: float) -> bool:
        """Wait until there is something newer than `version`; False after `timeout` seconds without."""
        with self.condition:
            return self.condition.wait_for(lambda: self.version != version, timeout)

    def snapshot(self, text_seen: list[int] | None = None) -> tuple[int, RequestOutput]:
        """The version and a cumulative copy.

        `text_seen`, characters per completion that were delivered before, is brought up to date.
        """
        with self.condition:
            seen = text_seen or [0] * len(self.completions)
            outputs = [c.output(seen[c.index]) for c in self.completions]
            if text_seen is not None:
                text_seen[:] = [len(output.text) for output in outputs]
            return self.version, RequestOutput(
                request_id=self.request_id,
                prompt=self.request.prompt,
                prompt_token_ids=list(self.request.prompt_token_ids),
                prompt_logprobs=self._prompt_logprobs(),
                outputs=outputs,
                finished=self.finished,
                metrics=self.metrics(),
            )

    def metrics(self) -> RequestMetrics:
        """Times and counts so far."""
        first = self.completions[0] if self.completions else None
        last = self._ended or time.perf_counter()
        later_tokens = len(first.token_ids) - 1 if first else 0
        tpot = None
        if self._first_token is not None and later_tokens > 0:
            tpot = 1e3 * (last - self._first_token) / later_tokens
        return RequestMetrics(
            queue_ms=_since(self._arrived, self._scheduled),
            ttft_ms=_since(self._arrived, self._first_token),
            tpot_ms=tpot,
            e2e_ms=_since(self._arrived, self._ended),
            num_prompt_tokens=len(self.request.prompt_token_ids),
            num_generated_tokens=sum(len(c.token_ids) for c in self.completions),
            num_cached_tokens=first.num_cached_tokens if first else 0,
            preemptions=sum(c.preemptions for c in self.completions),
        )

    def _prompt_logprobs(self) -> list[PositionLogprobs | None] | None:
        if self.request.params.prompt_logprobs is None:
            return None
        logprobs: list[PositionLogprobs | None] = [None] * len(self.request.prompt_token_ids)
        for position, token_id, logprob, rank, top in self._prompt_rows.values():
            logprobs[position] = position_logprobs((token_id, logprob, rank), top, self._decode)
        return logprobs


def _since(start: float, end: float | None) -> float | None:
    return None if end is None else 1e3 * (end - start)
