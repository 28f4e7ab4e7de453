"""The engine as other threads see it: submit, wait, cancel, close."""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from pyrite.engine.handle import RequestHandle
from pyrite.engine.sequence import NoVocabulary, Vocabulary
from pyrite.engine.worker import Worker
from pyrite.errors import BackendError

if TYPE_CHECKING:
    from pyrite import _core
    from pyrite.backends.base import Backend
    from pyrite.outputs import RequestOutput
    from pyrite.request import Request

WAIT_SLICE_S = 0.1
"""Callers wait in slices of this length, so that Ctrl-C is answered and a dead engine is noticed."""

_request_ids = itertools.count()


class Engine:
    """Runs requests of many threads on one engine thread, which the first request starts.

    Closed by `close`, at exit, and when nobody refers to it any more.

    Args:
        scheduler, backend: owned from here on.
        vocabulary: text; None for a model without a tokenizer.
        vocab_limit: token ids from here on are never drawn.
        facts: about the load, for `metrics`.
    """

    def __init__(
        self,
        scheduler: _core.Scheduler,
        backend: Backend,
        *,
        vocabulary: Vocabulary | None = None,
        vocab_limit: int,
        facts: Mapping[str, float] | None = None,
    ) -> None:
        self._facts = dict(facts or {})
        self._vocabulary = vocabulary or NoVocabulary()
        self._worker = Worker(scheduler, backend, vocabulary=self._vocabulary, vocab_limit=vocab_limit)
        self._pid = os.getpid()
        self._close = weakref.finalize(self, _shut_down, self._worker, self._pid)

    def run(self, requests: Sequence[Request]) -> Iterator[tuple[int, RequestOutput]]:
        """Submit requests and yield (index, final output) of each as it ends. Leaving early cancels the rest.

        Raises:
            BackendError: the engine is closed, died, or belongs to the parent of this process.
        """
        outbox: queue.SimpleQueue[RequestHandle] = queue.SimpleQueue()
        handles = self._handles(requests, outbox)
        index_of = {handle.request_id: index for index, handle in enumerate(handles)}
        left = len(handles)
        try:
            self._worker.post("start", handles)
            while left:
                try:
                    handle = outbox.get(timeout=WAIT_SLICE_S)
                except queue.Empty:
                    self._check_alive()
                    continue
                left -= 1
                if handle.failure is not None:
                    raise handle.failure
                yield index_of[handle.request_id], handle.snapshot()[1]
        finally:
            if left:
                self._cancel(handles)

    def stream(self, request: Request) -> OutputStream:
        """Submit one request and return an iterator over its cumulative outputs.

        Raises:
            BackendError: as `run`.
        """
        handle = self._handles([request], None)[0]
        self._worker.post("start", [handle])
        return OutputStream(self, handle)

    def metrics(self) -> dict[str, float]:
        """Sums over all finished requests, the scheduler's counters as of the last step, and facts about the load."""
        self._check_process()
        return {**self._worker.metrics(), **self._facts}

    def close(self) -> None:
        """Abort what runs, end the thread, free the memory. Idempotent."""
        self._close()

    def _handles(
        self, requests: Sequence[Request], outbox: queue.SimpleQueue[RequestHandle] | None
    ) -> list[RequestHandle]:
        self._check_process()
        return [RequestHandle(str(next(_request_ids)), r, self._vocabulary, outbox) for r in requests]

    def _cancel(self, handles: Sequence[RequestHandle]) -> None:
        if os.getpid() != self._pid:  # a lock may have been held when the process forked
            return
        with contextlib.suppress(BackendError):  # a closed engine has cancelled everything
            self._worker.post("cancel", handles)

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise BackendError(
                "this engine belongs to the parent process; threads do not survive a fork",
                hint="make the LLM in the child, or start processes with spawn",
                code="forked_engine",
            )

    def _check_alive(self) -> None:
        self._check_process()
        if not self._worker.alive():
            raise BackendError("the engine thread is gone", code="engine_dead", hint="make a new LLM")


class OutputStream:
    """Iterator over the cumulative outputs of one request; each has what is new in `delta`.

    Dropping or closing it before the end cancels the request.
    """

    def __init__(self, engine: Engine, handle: RequestHandle) -> None:
        self._engine = engine
        self._handle = handle
        self._version = 0
        self._text_seen: list[int] = []
        self._num_tokens = 0
        self._done = False

    def __iter__(self) -> OutputStream:
        return self

    def __next__(self) -> RequestOutput:
        """The next output; waits until there is something new.

        Raises:
            BackendError: the engine died.
        """
        if self._done:
            raise StopIteration
        try:
            while True:
                while not self._handle.wait(self._version, WAIT_SLICE_S):
                    self._engine._check_alive()
                if self._handle.failure is not None:
                    raise self._handle.failure
                self._version, output = self._handle.snapshot(self._text_seen)
                num_tokens = output.metrics.num_generated_tokens
                if output.finished or num_tokens > self._num_tokens:
                    self._num_tokens, self._done = num_tokens, output.finished
                    return output
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Cancel the request unless it has ended. Idempotent."""
        if not self._done:
            self._done = True
            if not self._handle.finished:
                self._engine._cancel([self._handle])

    def __enter__(self) -> OutputStream:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


def _shut_down(worker: Worker, pid: int) -> None:
    if os.getpid() == pid:  # a forked child has no thread to join
        worker.shut_down()
