"""The admission gate: raw input in, validated immutable requests out. The engine accepts nothing else.

Every door (Python, command line, later HTTP and batch files) goes through `AdmissionGate`. Limits, applied before any
work that is proportional to the input: 10,000 prompts and 20,000 sequences per call; a text of at most 128 bytes per
token of the context (4 KiB at least); what `pyrite.params` says about parameters.

An empty string is a prompt only where the tokenizer has a BOS token, which it then consists of. An empty list of token
ids never is. An empty list of prompts is no prompt at all and gives an empty result.
"""

from __future__ import annotations

import hashlib
import numbers
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pyrite.describe import describe
from pyrite.errors import RequestError
from pyrite.params import SamplingParams

if TYPE_CHECKING:
    import numpy as np

MAX_PROMPTS = 10_000
MAX_SEQUENCES = 20_000
BYTES_PER_TOKEN = 128
MIN_TEXT_BYTES = 4096

_PROMPT_KINDS = 'a string, a list of token ids, or a dict with "prompt" or "prompt_token_ids"'


class TokenizerLike(Protocol):
    """What admission needs of a tokenizer."""

    @property
    def bos_token_id(self) -> int | None:
        """Id of the beginning-of-sequence token, if there is one."""
        ...

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`."""
        ...


@dataclass(frozen=True, slots=True)
class RawPrompt:
    """A prompt whose kind is known and whose content is not checked yet.

    Exactly one of `text` and `token_ids` is set. `place` names it in errors. `add_special_tokens`: a plain text gets
    the tokenizer's BOS, a rendered chat has its own. `split_reasoning`: an assistant's turn follows, whose thinking is
    told apart from its answer.
    """

    place: str
    text: str | None = None
    token_ids: Sequence[object] | None = None
    add_special_tokens: bool = True
    split_reasoning: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """A request that can run: all numbers in range, all ids inside the vocabulary, and short enough for the context.

    Args:
        prompt: the text, where one was given.
        prompt_token_ids: at least one, fewer than `max_model_len`.
        params: validated.
        max_tokens: what `params` ask for, or the room left in the context if that is less.
        stop_token_ids: all ids that end it, the model's own included unless `ignore_eos`.
        seed: of its draws.
        split_reasoning: whether thinking is told apart from the answer.
        keep_logits: where `params` ask for prompt_logprobs: called on the engine's thread with each position from 1 on
            and the logits that predict the token there, `[vocab_size]` f32, valid during the call.
    """

    prompt: str | None
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    max_tokens: int
    stop_token_ids: frozenset[int]
    seed: int
    split_reasoning: bool = False
    keep_logits: Callable[[int, np.ndarray], None] | None = None


class AdmissionGate:
    """Turns prompts and sampling parameters into requests. Safe to use from many threads.

    Args:
        tokenizer: None where the model folder has none; then only token ids are prompts.
        vocab_size: rows of the model's embedding.
        max_model_len: most tokens of one sequence.
        eos_token_ids: the model's own ends of sequence.
        default_params: used where a caller passes none.
        seed: makes the seeds of requests without one reproducible; None draws them from the system.
    """

    def __init__(
        self,
        tokenizer: TokenizerLike | None,
        *,
        vocab_size: int,
        max_model_len: int,
        eos_token_ids: Iterable[int] = (),
        default_params: SamplingParams | None = None,
        seed: int | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._max_model_len = max_model_len
        self._eos = frozenset(eos_token_ids)
        self._default = default_params or SamplingParams()
        self._seed = seed
        self._admitted = 0
        self._lock = threading.Lock()

    def admit(self, prompts: Sequence[RawPrompt], sampling_params: object) -> list[Request]:
        """Check everything; nothing has run when this raises.

        Args:
            prompts: from `parse_prompts`, or rendered chats.
            sampling_params: None, one `SamplingParams`, or a list of as many as there are prompts.

        Raises:
            RequestError: names the place, such as `prompts[3]` or `sampling_params[3].stop_token_ids[0]`.
        """
        params = self._spread(sampling_params, len(prompts))
        total = sum(p.n for _, p in params)
        if total > MAX_SEQUENCES:
            raise RequestError(
                "too many sequences in one call", got=total, expected=f"at most {MAX_SEQUENCES}", field="n"
            )
        checked = []
        for prompt, (place, p) in zip(prompts, params, strict=True):
            self._check_params(place, p)
            checked.append((prompt, self._token_ids(prompt), p))
        return [self._request(prompt, ids, p) for prompt, ids, p in checked]

    def _request(self, prompt: RawPrompt, ids: tuple[int, ...], params: SamplingParams) -> Request:
        room = self._max_model_len - len(ids)
        stops = frozenset(params.stop_token_ids or ())
        return Request(
            prompt=prompt.text,
            prompt_token_ids=ids,
            params=params,
            max_tokens=room if params.max_tokens is None else min(params.max_tokens, room),
            stop_token_ids=stops if params.ignore_eos else stops | self._eos,
            seed=self._draw_seed() if params.seed is None else params.seed,
            split_reasoning=prompt.split_reasoning,
        )

    def _draw_seed(self) -> int:
        with self._lock:
            count = self._admitted
            self._admitted += 1
        if self._seed is None:
            return int.from_bytes(os.urandom(8), "little")
        text = f"pyrite request seed {self._seed} {count}".encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")

    def _spread(self, sampling_params: object, count: int) -> list[tuple[str, SamplingParams]]:
        """One (place, parameters) per prompt."""
        if sampling_params is None:
            return [("sampling_params", self._default)] * count
        if isinstance(sampling_params, SamplingParams):
            return [("sampling_params", sampling_params)] * count
        if not isinstance(sampling_params, list | tuple):
            raise RequestError(
                "not sampling parameters",
                got=type(sampling_params).__name__,
                expected="SamplingParams, or a list of them",
                field="sampling_params",
            )
        if len(sampling_params) != count:
            raise RequestError(
                "as many sampling parameters as prompts are needed",
                got=len(sampling_params),
                expected=count,
                hint="pass one SamplingParams to use it for all",
                field="sampling_params",
            )
        spread = []
        for index, params in enumerate(sampling_params):
            place = f"sampling_params[{index}]"
            if not isinstance(params, SamplingParams):
                raise RequestError(
                    "not sampling parameters", got=type(params).__name__, expected="SamplingParams", field=place
                )
            spread.append((place, params))
        return spread

    def _check_params(self, place: str, params: SamplingParams) -> None:
        for index, token_id in enumerate(params.stop_token_ids or ()):
            if token_id >= self._vocab_size:
                raise RequestError(
                    "token id outside the vocabulary",
                    got=token_id,
                    expected=f"0 to {self._vocab_size - 1}",
                    field=f"{place}.stop_token_ids[{index}]",
                )
        if params.stop_strings and self._tokenizer is None:
            raise RequestError("this model has no tokenizer, so no text to find stop strings in", field=f"{place}.stop")

    def _token_ids(self, prompt: RawPrompt) -> tuple[int, ...]:
        if prompt.token_ids is not None:
            self._check_length(prompt.place, len(prompt.token_ids))
            return check_token_ids(prompt.place, prompt.token_ids, self._vocab_size)
        ids = self._encode(prompt)
        if not ids:
            bos = self._tokenizer.bos_token_id if self._tokenizer is not None else None
            if bos is None or not prompt.add_special_tokens:
                raise _empty(prompt.place, "this model has no beginning-of-sequence token to start from")
            ids = [bos]
        self._check_length(prompt.place, len(ids))
        return check_token_ids(prompt.place, ids, self._vocab_size)

    def _encode(self, prompt: RawPrompt) -> list[int]:
        text = prompt.text or ""
        if self._tokenizer is None:
            raise RequestError("this model has no tokenizer", hint="pass prompt_token_ids", field=prompt.place)
        limit = max(BYTES_PER_TOKEN * self._max_model_len, MIN_TEXT_BYTES)
        try:
            num_bytes = len(text) if len(text) > limit else len(text.encode("utf-8"))
        except UnicodeEncodeError as error:
            raise RequestError(
                "text is not valid Unicode",
                got=f"a lone surrogate at character {error.start}",
                field=prompt.place,
            ) from None
        if num_bytes > limit:
            raise RequestError(
                "prompt too long",
                got=f"{num_bytes} or more bytes",
                expected=f"at most {limit} for a context of {self._max_model_len} tokens",
                code="context_length_exceeded",
                field=prompt.place,
            )
        try:
            return self._tokenizer.encode(text, add_special_tokens=prompt.add_special_tokens)
        except RequestError as error:
            error.field = error.field or prompt.place
            raise

    def _check_length(self, place: str, num_tokens: int) -> None:
        if num_tokens >= self._max_model_len:
            raise RequestError(
                "prompt too long",
                got=f"{num_tokens} tokens",
                expected=f"at most {self._max_model_len - 1}, so that one new token fits the context",
                hint="shorten the prompt, or load the model with a larger max_model_len",
                code="context_length_exceeded",
                field=place,
            )


def parse_prompts(prompts: object) -> list[RawPrompt]:
    """Tell which kinds of prompt `prompts` holds: one prompt, or a list of them. Contents are checked at admission.

    Raises:
        RequestError: a value is no prompt, or a list mixes token ids with prompts.
    """
    if isinstance(prompts, str | dict):
        return [_parse_one("prompt", prompts)]
    if not isinstance(prompts, list | tuple):
        raise RequestError(
            "not a prompt", got=type(prompts).__name__, expected=f"{_PROMPT_KINDS}, or a list", field="prompts"
        )
    if prompts and isinstance(prompts[0], numbers.Number):
        return [RawPrompt("prompt", token_ids=prompts)]
    if len(prompts) > MAX_PROMPTS:
        raise RequestError(
            "too many prompts in one call", got=len(prompts), expected=f"at most {MAX_PROMPTS}", field="prompts"
        )
    parsed = []
    for index, prompt in enumerate(prompts):
        place = f"prompts[{index}]"
        if isinstance(prompt, numbers.Number):
            raise RequestError("a token id among prompts", got=describe(prompt), expected=_PROMPT_KINDS, field=place)
        parsed.append(_parse_one(place, prompt))
    return parsed


def _parse_one(place: str, prompt: object) -> RawPrompt:
    if isinstance(prompt, str):
        return RawPrompt(place, text=prompt)
    if isinstance(prompt, list | tuple):
        return RawPrompt(place, token_ids=prompt)
    if not isinstance(prompt, dict):
        raise RequestError("not a prompt", got=type(prompt).__name__, expected=_PROMPT_KINDS, field=place)
    for key in ("images", "audio"):
        if prompt.get(key):
            raise RequestError(
                f"{key} in prompts are not built yet",
                code="not_built_yet",
                hint="leave them out",
                field=f"{place}.{key}",
            )
    unknown = [key for key in prompt if key not in ("prompt", "prompt_token_ids", "images", "audio")]
    if unknown:
        raise RequestError("unknown key in a prompt", got=describe(unknown[0]), expected=_PROMPT_KINDS, field=place)
    text, ids = prompt.get("prompt"), prompt.get("prompt_token_ids")
    if (text is None) == (ids is None):
        got = "neither" if text is None else "both"
        raise RequestError(
            'a prompt needs "prompt" or "prompt_token_ids"', got=got, expected="one of them", field=place
        )
    if text is not None:
        if not isinstance(text, str):
            raise RequestError("not a string", got=type(text).__name__, field=f"{place}.prompt")
        return RawPrompt(f"{place}.prompt", text=text)
    if not isinstance(ids, list | tuple):
        raise RequestError("not a list of token ids", got=type(ids).__name__, field=f"{place}.prompt_token_ids")
    return RawPrompt(f"{place}.prompt_token_ids", token_ids=ids)


def check_token_ids(place: str, ids: Sequence[object], vocab_size: int) -> tuple[int, ...]:
    """The ids as plain integers inside the vocabulary, at least one.

    Raises:
        RequestError: names the index of the first bad one.
    """
    if not ids:
        raise _empty(place, "no token ids were given")
    expected = f"an integer from 0 to {vocab_size - 1}"
    if set(map(type, ids)) == {int} and min(ids) >= 0 and max(ids) < vocab_size:  # type: ignore[type-var,operator]
        return tuple(ids)  # type: ignore[arg-type]
    checked = []
    for index, token_id in enumerate(ids):
        if isinstance(token_id, bool) or not isinstance(token_id, numbers.Integral):
            raise _bad_id("not a token id", place, index, token_id, expected)
        if not 0 <= int(token_id) < vocab_size:
            raise _bad_id("token id outside the vocabulary", place, index, token_id, expected)
        checked.append(int(token_id))
    return tuple(checked)


def _bad_id(what: str, place: str, index: int, token_id: object, expected: str) -> RequestError:
    return RequestError(what, got=describe(token_id), expected=expected, field=f"{place}[{index}]")


def _empty(place: str, why: str) -> RequestError:
    return RequestError(f"empty prompt, and {why}", code="empty_prompt", field=place)
