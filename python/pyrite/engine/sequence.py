"""One completion while it is generated: its tokens, its text, its logprobs, and how it ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from pyrite import _core
from pyrite.outputs import CompletionOutput, Logprob, PositionLogprobs

if TYPE_CHECKING:
    from pyrite.request import Request


class Detokenizer(Protocol):
    """Turns a growing list of token ids into text, piece by piece."""

    @property
    def reasoning(self) -> str | None:
        """The thinking that was kept out of the text; None where there is none."""
        ...

    def push(self, ids: Sequence[int]) -> str:
        """Text that is complete with these further ids; may be empty."""
        ...

    def flush(self) -> str:
        """Text that was still incomplete."""
        ...


class Vocabulary(Protocol):
    """What the engine knows of text."""

    def detokenizer(self, split_reasoning: bool) -> Detokenizer:
        """A fresh one, for one completion."""
        ...

    def decode_token(self, token_id: int) -> str:
        """The text of one token alone."""
        ...


class NoVocabulary:
    """Stands in for a model without a tokenizer: all text is empty."""

    reasoning = None

    def detokenizer(self, split_reasoning: bool) -> Detokenizer:
        """Itself: it keeps nothing."""
        return self

    def push(self, ids: Sequence[int]) -> str:
        """No text."""
        return ""

    def flush(self) -> str:
        """No text."""
        return ""

    def decode_token(self, token_id: int) -> str:
        """No text."""
        return ""


class CompletionState:
    """Written by the engine thread and read by waiting threads, both under the lock of the request's handle.

    Args:
        seq_id: the scheduler's id of this sequence.
        index: which of the request's completions.
        vocab_limit: ids from here on are never drawn.
    """

    def __init__(self, seq_id: int, request: Request, index: int, vocabulary: Vocabulary, vocab_limit: int) -> None:
        params = request.params
        self.seq_id = seq_id
        self.index = index
        self.request = request
        self.vocab_limit = vocab_limit
        self.sampler = _core.Sampler(
            temperature=0.0 if params.greedy else params.temperature,
            top_k=params.top_k,
            top_p=params.top_p,
            min_p=params.min_p,
            seed=request.seed,
            stream=index,
            vocab_limit=vocab_limit,
            logprobs=params.logprobs,
        )
        self.token_ids: list[int] = []
        self.finish_reason: str | None = None
        self.stop_reason: str | int | None = None
        self.error: str | None = None
        self.epoch: int | None = None
        self.num_cached_tokens = 0
        self._detokenizer = vocabulary.detokenizer(request.split_reasoning)
        self._matcher = _core.StopMatcher(params.stop_strings) if params.stop_strings else None
        self._pieces: list[str] = []
        self._decode = vocabulary.decode_token
        self._samples: list[_core.Sample] = []
        self._logprobs: list[PositionLogprobs] = []
        self._cumulative_logprob = 0.0

    @property
    def finished(self) -> bool:
        """Whether it has ended, for any reason."""
        return self.finish_reason is not None

    def scheduled(self, epoch: int) -> None:
        """Note a step that works on this sequence; its epoch counts how often it was preempted before."""
        self.epoch = epoch

    @property
    def preemptions(self) -> int:
        """How often it lost its KV blocks and was computed again."""
        return self.epoch or 0

    def append(self, sample: _core.Sample, ended: str | None) -> None:
        """Take a drawn token.

        Args:
            ended: "stop" or "length" when the scheduler ended the sequence with this token. A stop string that the
                token completes ends it too, and goes before "length".
        """
        token_id = sample.token_id
        self.token_ids.append(token_id)
        if sample.logprob is not None:
            self._samples.append(sample)
            self._cumulative_logprob += sample.logprob
        params = self.request.params
        if ended != "stop" or params.include_stop_str_in_output:
            self._release(self._detokenizer.push([token_id]))
        if ended is None or self.finished:
            return
        self._release(self._detokenizer.flush())
        if self.finished:
            return
        self._end(ended)
        if ended == "stop" and token_id in (params.stop_token_ids or ()):
            self.stop_reason = token_id

    def abort(self) -> None:
        """End on the caller's wish. Keeps what there is."""
        if not self.finished:
            self._end("abort")

    def fail(self, message: str) -> None:
        """End with an error. Keeps what there is."""
        if not self.finished:
            self.error = message
            self._end("error")

    def _end(self, reason: str) -> None:
        if self._matcher is not None:
            self._pieces.append(self._matcher.flush())
        self.finish_reason = reason

    def _release(self, text: str) -> None:
        """Add text up to the first stop string, which ends the sequence."""
        if not text:
            return
        if self._matcher is None:
            self._pieces.append(text)
            return
        released, match = self._matcher.push(text)
        self._pieces.append(released)
        if match is not None:
            stop = self.request.params.stop_strings[match]
            if self.request.params.include_stop_str_in_output:
                self._pieces.append(stop)
            self.finish_reason, self.stop_reason = "stop", stop

    def output(self, text_seen: int) -> CompletionOutput:
        """A copy for the caller; `text_seen` characters were delivered before."""
        text = "".join(self._pieces)
        self._pieces = [text]
        wanted = self.request.params.logprobs is not None
        for sample in self._samples[len(self._logprobs) :]:
            first = (sample.token_id, sample.logprob or 0.0, sample.rank or 0)
            self._logprobs.append(position_logprobs(first, sample.top, self._decode))
        return CompletionOutput(
            index=self.index,
            text=text,
            token_ids=list(self.token_ids),
            cumulative_logprob=self._cumulative_logprob if wanted else None,
            logprobs=list(self._logprobs) if wanted else None,
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
            reasoning=self._detokenizer.reasoning,
            error=self.error,
            delta=text[text_seen:],
        )


def position_logprobs(
    token: tuple[int, float, int], top: Sequence[tuple[int, float]], decode: Callable[[int], str]
) -> PositionLogprobs:
    """The vLLM shape of one position: `token` is (id, logprob, rank), `top` the most likely ids, best first."""
    token_id, logprob, rank = token
    entry = {token_id: Logprob(logprob, rank, decode(token_id))}
    for index, (other, other_logprob) in enumerate(top):
        if other != token_id:
            entry[other] = Logprob(other_logprob, index + 1, decode(other))
    return entry
