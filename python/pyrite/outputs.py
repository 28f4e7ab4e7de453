"""What a request gives back. Field names and the shapes of logprobs are vLLM's."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Logprob:
    """One token at one position, in the model's raw distribution (before temperature and filters).

    `rank` is 1 for the most likely token. `decoded_token` is the token's text when decoded alone.
    """

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


PositionLogprobs = dict[int, Logprob]
"""Token id to `Logprob`, at one position: the token that stands there first, then the most likely ones, best first."""


@dataclass(frozen=True, slots=True)
class RequestMetrics:
    """Times and counts of one request. Times are in milliseconds on a monotonic clock, None until known.

    Args:
        queue_ms: from submission to the first step that worked on it.
        ttft_ms: from submission to the first new token.
        tpot_ms: mean time per token after the first one, of the first completion.
        e2e_ms: from submission to the end.
        num_prompt_tokens: tokens of the prompt.
        num_generated_tokens: new tokens of all completions.
        num_cached_tokens: prompt tokens that the prefix cache answered, of the first completion.
        preemptions: how often a completion lost its KV blocks and was computed again.
    """

    queue_ms: float | None = None
    ttft_ms: float | None = None
    tpot_ms: float | None = None
    e2e_ms: float | None = None
    num_prompt_tokens: int = 0
    num_generated_tokens: int = 0
    num_cached_tokens: int = 0
    preemptions: int = 0


@dataclass(slots=True)
class CompletionOutput:
    """One completion of a prompt.

    Args:
        index: 0 to n - 1.
        text: the text so far, without the stop string or end token unless that was asked for.
        token_ids: the new token ids so far, the ending token included.
        cumulative_logprob: sum of the drawn tokens' logprobs; None unless `logprobs` was asked for.
        logprobs: per new token; None unless asked for.
        finish_reason: "stop", "length", "abort" or "error"; None while it runs.
        stop_reason: the stop string or stop token id that ended it; None at the model's own end of sequence.
        reasoning: the thinking part of the text; None where it is not split off.
        error: what went wrong when `finish_reason` is "error".
        delta: on outputs of a stream, the text that is new since the output before.
    """

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: list[PositionLogprobs] | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    reasoning: str | None = None
    error: str | None = None
    delta: str = ""

    def finished(self) -> bool:
        """Whether this completion has ended."""
        return self.finish_reason is not None

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers; ready for `json.dumps`."""
        return dataclasses.asdict(self)


@dataclass(slots=True)
class RequestOutput:
    """The state of one request: final from `generate`, cumulative from `stream`.

    Args:
        request_id: unique within the process.
        prompt: the prompt's text; None when token ids were given.
        prompt_token_ids: the prompt's ids, special tokens included.
        prompt_logprobs: per prompt token, entry 0 None; None unless asked for.
        outputs: one per completion, by index.
        finished: whether all completions have ended.
        metrics: times and counts.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    prompt_logprobs: list[PositionLogprobs | None] | None
    outputs: list[CompletionOutput]
    finished: bool
    metrics: RequestMetrics = field(default_factory=RequestMetrics)

    @property
    def delta(self) -> str:
        """The first completion's new text."""
        return self.outputs[0].delta

    @property
    def num_cached_tokens(self) -> int:
        """Prompt tokens that the prefix cache answered."""
        return self.metrics.num_cached_tokens

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers; ready for `json.dumps` (which turns token id keys into strings)."""
        return dataclasses.asdict(self)
