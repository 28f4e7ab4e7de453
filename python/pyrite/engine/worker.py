"""The engine thread: takes submissions and cancellations, steps the loop, hands out what the steps produced."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

from pyrite import _core
from pyrite.engine.loop import Loop, StepResult
from pyrite.engine.sequence import CompletionState
from pyrite.errors import BackendError

if TYPE_CHECKING:
    from pyrite.backends.base import Backend
    from pyrite.engine.handle import RequestHandle
    from pyrite.engine.sequence import Vocabulary

_logger = logging.getLogger("pyrite")

Command = tuple[Literal["start", "cancel", "stop"], "Sequence[RequestHandle]"]

JOIN_SLICE_S = 0.1
_SUMMED = ("queue_ms", "ttft_ms", "tpot_ms", "e2e_ms")


class Worker:
    """Everything the engine thread touches. Other threads call only `post`, `metrics`, `alive` and `shut_down`.

    It knows nothing of the `Engine` in front of it, so that a forgotten `LLM` is collected and closes itself.

    Args:
        vocab_limit: token ids from here on are never drawn.
    """

    def __init__(
        self, scheduler: _core.Scheduler, backend: Backend, *, vocabulary: Vocabulary, vocab_limit: int
    ) -> None:
        self._loop = Loop(scheduler, backend)
        self._vocabulary = vocabulary
        self._vocab_limit = vocab_limit
        self._inbox: queue.SimpleQueue[Command] = queue.SimpleQueue()
        # Guards _closed, _thread, _totals and _stats. Reentrant: a collected stream may cancel itself at any point.
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None
        self._closed: BackendError | None = None
        self._stopping = False
        self._next_seq_id = 0
        self._running: dict[int, tuple[RequestHandle, CompletionState]] = {}
        self._totals: dict[str, float] = {}
        self._stats = scheduler.stats()

    # --- called by other threads

    def post(self, kind: Literal["start", "cancel"], handles: Sequence[RequestHandle]) -> None:
        """Have the engine thread start or cancel requests between two steps. The first call starts the thread.

        Raises:
            BackendError: the engine was closed or died, or its thread cannot be started.
        """
        with self._lock:
            if self._closed is not None:
                raise _copy(self._closed)
            if self._thread is None:
                thread = threading.Thread(target=self.run, name="pyrite-engine", daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:
                    raise BackendError("the engine thread cannot be started", got=error) from error
                self._thread = thread
            self._inbox.put((kind, handles))

    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def shut_down(self) -> None:
        """Abort everything, end the thread and wait for it, free the backend. Idempotent."""
        with self._lock:
            if self._thread is None:
                self._end(_closed_error())
            elif self._closed is None:
                self._inbox.put(("stop", ()))
        thread = self._thread
        while thread is not None and thread.is_alive() and thread is not threading.current_thread():
            thread.join(JOIN_SLICE_S)

    def metrics(self) -> dict[str, float]:
        """Sums over all requests, and the scheduler's counters as of the last step."""
        with self._lock:
            metrics = {**self._totals, **self._stats}
        steps = metrics.get("decode_steps", 0)
        metrics["mean_decode_batch"] = metrics.get("decode_tokens", 0) / steps if steps else 0.0
        return metrics

    # --- called by the engine thread

    def run(self) -> None:
        """The thread's body: until `stop`, or until the engine breaks."""
        error = _closed_error()
        try:
            while not self._stopping:
                self._turn()
        except BaseException as cause:
            _logger.exception("the engine thread died")
            error = BackendError(
                f"the engine died of {type(cause).__name__}: {cause}",
                code="engine_dead",
                hint="make a new LLM; please report this with the log",
            )
            self._die(error)
        finally:
            self._end(error)
            self._drain(error)

    def _end(self, error: BackendError) -> None:
        """Refuse everything from now on and free the backend."""
        with self._lock:
            if self._closed is None:
                self._closed = error
        self._loop.backend.close()

    def _start(self, handles: Sequence[RequestHandle]) -> None:
        """Queue new requests with the scheduler."""
        for handle in handles:
            request = handle.request
            states = []
            for index in range(request.params.n):
                states.append(CompletionState(self._next_seq_id, request, index, self._vocabulary, self._vocab_limit))
                self._next_seq_id += 1
            with handle.condition:
                handle.completions = states
                for state in states:
                    self._add(handle, state)
        self._publish(handle for handle in handles if handle.ended())

    def _cancel(self, handles: Sequence[RequestHandle]) -> None:
        """End requests on the caller's wish. Unknown and finished ones are left as they are."""
        handles = [handle for handle in handles if not handle.finished]
        for handle in handles:
            with handle.condition:
                for completion in handle.completions:
                    if not completion.finished:
                        completion.abort()
                        self._forget(completion)
        self._publish(handles)

    def _add(self, handle: RequestHandle, state: CompletionState) -> None:
        request = handle.request
        try:
            self._loop.scheduler.add(
                state.seq_id,
                request.prompt_token_ids,
                max_tokens=request.max_tokens,
                stop_token_ids=sorted(request.stop_token_ids),
                prompt_logprobs=state.index == 0 and request.params.prompt_logprobs is not None,
                salt=b"",
            )
        except Exception as error:
            state.fail(f"{type(error).__name__}: {error}")
        else:
            self._running[state.seq_id] = (handle, state)

    def _turn(self) -> None:
        """Take all commands, waiting for one when idle, then run one step."""
        if not self._running:
            self._obey(self._inbox.get())
        while not self._stopping:
            try:
                self._obey(self._inbox.get_nowait())
            except queue.Empty:
                break
        if self._running and not self._stopping:
            self._deliver(self._loop.step(self._running))

    def _obey(self, command: Command) -> None:
        kind, handles = command
        if kind == "start":
            self._start(handles)
        elif kind == "cancel":
            self._cancel(handles)
        else:
            self._stopping = True
            self._cancel(self._handles())

    def _handles(self) -> list[RequestHandle]:
        return list({id(handle): handle for handle, _ in self._running.values()}.values())

    def _deliver(self, result: StepResult) -> None:
        touched: dict[str, RequestHandle] = {}
        for seq_id, epoch in result.scheduled.items():
            handle, completion = self._running[seq_id]
            with handle.condition:
                self._apply(handle, completion, epoch, result)
            if completion.finished:
                self._forget(completion)
            touched[handle.request_id] = handle
        self._publish(touched.values())

    def _apply(self, handle: RequestHandle, completion: CompletionState, epoch: int, result: StepResult) -> None:
        """Write one sequence's share of a step; a fault here (of the detokenizer, say) ends this sequence alone."""
        seq_id = completion.seq_id
        if completion.epoch is None:
            completion.num_cached_tokens = result.cached.get(seq_id, 0)
        completion.scheduled(epoch)
        handle.note_scheduled(result.began)
        try:
            for row in result.prompt_rows.get(seq_id, ()):
                handle.add_prompt_row(row)
            if seq_id in result.samples:
                if completion.index == 0:
                    handle.note_token()
                completion.append(result.samples[seq_id], result.ended.get(seq_id))
            if seq_id in result.failed:
                completion.fail(result.failed[seq_id])
        except Exception as error:
            _logger.exception("delivering a token failed")
            completion.fail(f"{type(error).__name__}: {error}")

    def _forget(self, completion: CompletionState) -> None:
        self._running.pop(completion.seq_id, None)
        self._loop.scheduler.finish(completion.seq_id)

    def _publish(self, handles: Iterable[RequestHandle]) -> None:
        """Bring the numbers up to date, then wake the readers: what they see then includes their request."""
        stats = self._loop.scheduler.stats()
        with self._lock:
            self._stats = stats
        for handle in handles:
            with handle.condition:
                if handle.ended():
                    handle.finish()
                    self._count(handle)
            handle.publish()

    def _count(self, handle: RequestHandle) -> None:
        metrics = handle.metrics()
        counts: dict[str, float] = {
            "num_requests_finished": 1,
            "num_prompt_tokens": metrics.num_prompt_tokens,
            "num_generated_tokens": metrics.num_generated_tokens,
            "num_cached_tokens": metrics.num_cached_tokens,
        }
        counts |= {f"{name}_sum": getattr(metrics, name) or 0.0 for name in _SUMMED}
        for completion in handle.completions:
            name = f"num_finished_{completion.finish_reason}"
            counts[name] = counts.get(name, 0) + 1
        with self._lock:
            for name, value in counts.items():
                self._totals[name] = self._totals.get(name, 0) + value

    def _die(self, error: BackendError) -> None:
        for handle in self._handles():
            handle.fail(_copy(error))
            handle.publish()
        self._running.clear()

    def _drain(self, error: BackendError) -> None:
        """Fail what was submitted after the last look at the inbox; nothing is posted after `end`."""
        while True:
            try:
                kind, handles = self._inbox.get_nowait()
            except queue.Empty:
                return
            for handle in handles if kind == "start" else ():
                handle.fail(_copy(error))
                handle.publish()


def _closed_error() -> BackendError:
    return BackendError("the engine is closed", code="engine_closed", hint="make a new LLM")


def _copy(error: BackendError) -> BackendError:
    """A fresh exception of the same content, since raising one object in many threads mixes their tracebacks."""
    return BackendError(error.what, code=error.code, hint=error.hint)
