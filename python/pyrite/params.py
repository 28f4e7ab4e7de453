"""How one request is sampled and when it ends: `SamplingParams`, validated where it is made.

Names and defaults follow vLLM where it has the parameter and llama.cpp where only that has it. Limits are in this file.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyrite.describe import describe
from pyrite.errors import RequestError

MAX_COMPLETIONS = 16
MAX_STOP_STRINGS = 16
MAX_STOP_BYTES = 256
MAX_STOP_TOKEN_IDS = 1024
MAX_LOGPROBS = 20
MAX_TEMPERATURE = 100.0
GREEDY_BELOW = 1e-6
"""Temperatures under this are greedy: the most likely token, ties to the lowest id."""

_INT32_MAX = 2**31 - 1

_NOT_BUILT = (
    "typical_p",
    "top_n_sigma",
    "xtc_probability",
    "xtc_threshold",
    "dry_multiplier",
    "dry_base",
    "dry_allowed_length",
    "dry_penalty_last_n",
    "dry_sequence_breakers",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "allowed_token_ids",
    "bad_words",
    "min_tokens",
    "json",
    "regex",
    "grammar",
    "choice",
)

_logger = logging.getLogger("pyrite")


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Sampling and stopping of one request. `SamplingParams()` is neutral: temperature 1 and no filter.

    Args:
        n: completions of the same prompt, 1 to 16. They differ in their draws and share nothing else.
        temperature: 0 to 100; under 1e-6 is greedy.
        top_k: keep the k most likely tokens; 0 or -1 keeps all.
        top_p: keep the smallest set of likely tokens whose probability reaches this, in (0, 1].
        min_p: drop tokens less likely than this times the most likely one, in [0, 1].
        typical_p, top_n_sigma, xtc_*, dry_*: filters of llama.cpp. Not built yet.
        repetition_penalty, presence_penalty, frequency_penalty: not built yet.
        logit_bias, allowed_token_ids, bad_words: not built yet.
        seed: fixes the draws, 0 to 2^64 - 1. None: drawn from the engine's seed, or at random.
        stop: a string or at most 16 of them, each at most 256 bytes of UTF-8; the text ends before the first one.
        stop_token_ids: at most 1024 ids that end the text, beside the model's own end of sequence.
        include_stop_str_in_output: keep the stop string, or the text of the stop token.
        ignore_eos: do not stop at the model's own end of sequence.
        max_tokens: at most this many new tokens; None, or more than the context has room for: what fits.
        min_tokens: not built yet.
        logprobs: report this many of the most likely tokens per position, 0 to 20, and the drawn one; None: none.
        prompt_logprobs: the same for the prompt's tokens.
        json, regex, grammar, choice: structured output. Not built yet.

    Raises:
        RequestError: a value is of the wrong type, out of range or not finite, or its feature is not built yet.
    """

    n: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    top_n_sigma: float = -1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = None
    allowed_token_ids: Sequence[int] | None = None
    bad_words: Sequence[str] | None = None
    seed: int | None = None
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    max_tokens: int | None = None
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    json: Any = None
    regex: str | None = None
    grammar: str | None = None
    choice: Sequence[str] | None = None

    def __post_init__(self) -> None:
        _check_int("n", self.n, 1, MAX_COMPLETIONS)
        self._set("temperature", _check_float("temperature", self.temperature, 0.0, MAX_TEMPERATURE))
        _check_int("top_k", self.top_k, -1, _INT32_MAX)
        self._set("top_p", _check_float("top_p", self.top_p, 0.0, 1.0, above=True))
        self._set("min_p", _check_float("min_p", self.min_p, 0.0, 1.0))
        if self.seed is not None:
            _check_int("seed", self.seed, 0, 2**64 - 1)
        self._set("stop", _check_stop(self.stop))
        self._set("stop_token_ids", _check_ids("stop_token_ids", self.stop_token_ids))
        for name in ("include_stop_str_in_output", "ignore_eos"):
            if not isinstance(getattr(self, name), bool):
                raise _bad(name, "not a bool", getattr(self, name), "True or False")
        if self.max_tokens is not None:
            _check_int("max_tokens", self.max_tokens, 1, _INT32_MAX)
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                _check_int(name, getattr(self, name), 0, MAX_LOGPROBS)
        self._refuse_unbuilt()

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _refuse_unbuilt(self) -> None:
        for name in _NOT_BUILT:
            value = getattr(self, name)
            if isinstance(value, list):
                value = tuple(value)
            neutral = _DEFAULTS[name]
            # `True == 1`, and an array compares to an array: only the default itself, of a plain type, passes.
            plain = value is None or type(value) in (int, float, str, tuple)
            if not plain or value != neutral:
                raise RequestError(
                    "this sampling parameter is not built yet",
                    got=describe(value),
                    expected=f"{neutral!r}, its neutral value",
                    hint="leave it out",
                    code="not_built_yet",
                    field=name,
                )

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature < GREEDY_BELOW

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop` as a tuple."""
        return self.stop if isinstance(self.stop, tuple) else ()

    @classmethod
    def from_generation_config(cls, config: Mapping[str, Any]) -> SamplingParams:
        """What the model's `generation_config.json` asks for; used when no sampling parameters are passed.

        As in Hugging Face, sampling is off unless `do_sample` is true. `max_new_tokens` becomes `max_tokens`.
        A setting that is not built yet is left out with a warning.

        Raises:
            RequestError: a value is out of range.
        """
        values: dict[str, Any] = {}
        if config.get("do_sample", False):
            names = ("temperature", "top_k", "top_p", "min_p")
            values = {name: config[name] for name in names if config.get(name) is not None}
        else:
            values["temperature"] = 0.0
        if config.get("max_new_tokens") is not None:
            values["max_tokens"] = config["max_new_tokens"]
        for name in ("typical_p", "repetition_penalty"):
            if config.get(name) is not None and config[name] != _DEFAULTS[name]:
                _logger.warning("generation_config.json: %s=%r is not built yet and left out", name, config[name])
        return cls(**values)


_DEFAULTS: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(SamplingParams)}


def _bad(field: str, what: str, got: object, expected: str) -> RequestError:
    return RequestError(what, got=describe(got), expected=expected, field=field)


def _check_int(field: str, value: object, low: int, high: int) -> None:
    expected = f"an integer from {low} to {high}"
    if isinstance(value, bool) or not isinstance(value, int):
        raise _bad(field, "not an integer", value, expected)
    if not low <= value <= high:
        raise _bad(field, "out of range", value, expected)


def _check_float(field: str, value: object, low: float, high: float, *, above: bool = False) -> float:
    """`value` as a float in [low, high], or in (low, high] with `above`."""
    expected = f"a number in {'(' if above else '['}{low:g}, {high:g}]"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _bad(field, "not a number", value, expected)
    if isinstance(value, int) and abs(value) > 2**53:
        raise _bad(field, "out of range", value, expected)
    number = float(value)
    if not math.isfinite(number):
        raise _bad(field, "not a finite number", value, expected)
    if not (low < number if above else low <= number) or number > high:
        raise _bad(field, "out of range", value, expected)
    return number


def _check_stop(stop: object) -> tuple[str, ...]:
    """`stop` as a tuple of strings."""
    if stop is None:
        return ()
    expected = f"at most {MAX_STOP_STRINGS} non-empty strings of at most {MAX_STOP_BYTES} bytes"
    if isinstance(stop, str):
        stops: tuple[object, ...] = (stop,)
    elif isinstance(stop, list | tuple):
        stops = tuple(stop)
    else:
        raise _bad("stop", "not a string or a list of strings", stop, expected)
    if len(stops) > MAX_STOP_STRINGS:
        raise _bad("stop", "too many stop strings", len(stops), expected)
    checked = []
    for index, text in enumerate(stops):
        field = "stop" if isinstance(stop, str) else f"stop[{index}]"
        if not isinstance(text, str):
            raise _bad(field, "not a string", text, expected)
        if not text:
            raise _bad(field, "an empty stop string", text, expected)
        try:  # a long string is refused before it is encoded
            num_bytes = len(text) if len(text) > MAX_STOP_BYTES else len(text.encode("utf-8"))
        except UnicodeEncodeError as error:
            raise _bad(field, "not valid Unicode", ascii(text), "no lone surrogates") from error
        if num_bytes > MAX_STOP_BYTES:
            raise _bad(field, "stop string too long", f"{num_bytes} or more bytes", expected)
        checked.append(text)
    return tuple(checked)


def _check_ids(field: str, ids: object) -> tuple[int, ...]:
    """Token ids as a tuple; whether they are in the vocabulary is checked at admission."""
    if ids is None:
        return ()
    expected = f"at most {MAX_STOP_TOKEN_IDS} token ids"
    if not isinstance(ids, list | tuple):
        raise _bad(field, "not a list of token ids", ids, expected)
    if len(ids) > MAX_STOP_TOKEN_IDS:
        raise _bad(field, "too many token ids", len(ids), expected)
    for index, token_id in enumerate(ids):
        _check_int(f"{field}[{index}]", token_id, 0, _INT32_MAX)
    return tuple(ids)
