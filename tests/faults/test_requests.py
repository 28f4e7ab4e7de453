"""Bad requests to a running engine: each gives a typed error, and the same engine answers the next good one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from pyrite import LLM, SamplingParams
from pyrite.describe import describe
from pyrite.errors import RequestError
from tiny_models import VOCAB_SIZE

GOOD = [3, 4, 5]
PROMPTS = {
    "empty-ids": [[]],
    "nothing-in-a-dict": {},
    "too-long-ids": [5] * 256,
    "too-long-among-good": [GOOD, [5] * 10_000],
    "id-at-vocab": [3, VOCAB_SIZE],
    "id-beyond-i32": [3, 2**31],
    "id-beyond-u64": [3, 2**64],
    "id-negative": [GOOD, [3, -1]],
    "id-float": [3.5],
    "id-nan": [math.nan],
    "id-bool": [True],
    "id-text": [3, "4"],
    "number": 3,
    "none": None,
    "bytes": b"abc",
    "surrogate": "\ud800",
    "megabytes": "x" * 10**7,
    "images": {"prompt": "a", "images": ["a.png"]},
}
NUMBERS: dict[str, tuple[object, ...]] = {
    "temperature": (-1, 101),
    "top_p": (0, 1.1, -0.5),
    "min_p": (-0.1, 1.1),
    "top_k": (-2, 2**31, 1.5),
    "seed": (-1, 2**64, 0.5),
    "n": (0, 17, 1.5),
    "max_tokens": (0, -1, 2**31, 1.5),
    "logprobs": (-1, 21, 0.5),
    "prompt_logprobs": (-1, 21, 0.5),
    "stop_token_ids": ([-1], [2**31], [0.5]),
}
NEVER = (math.nan, math.inf, -math.inf, 10**400, True, "1")
"""What no number may be, whichever it is."""
PARAMS = [(field, value) for field, values in NUMBERS.items() for value in (*values, *NEVER)]
OVER = [
    SamplingParams(stop_token_ids=[VOCAB_SIZE]),
    [SamplingParams(), SamplingParams()],
    {"temperature": 0.0},
    "greedy",
]


@pytest.mark.parametrize("name", PROMPTS)
def test_bad_prompt(bystander: LLM, canary: Callable[[], None], name: str) -> None:
    with pytest.raises(RequestError) as caught:
        bystander.generate(PROMPTS[name], SamplingParams(max_tokens=4), use_tqdm=False)
    assert caught.value.field is not None
    with pytest.raises(RequestError):
        next(iter(bystander.stream(PROMPTS[name], SamplingParams(max_tokens=4))))
    canary()


@pytest.mark.parametrize(("field", "value"), PARAMS, ids=[f"{f}={describe(v)[:20]}" for f, v in PARAMS])
def test_bad_number(bystander: LLM, canary: Callable[[], None], field: str, value: Any) -> None:
    with pytest.raises(RequestError) as caught:
        bystander.generate(GOOD, SamplingParams(**{field: value}), use_tqdm=False)
    assert (caught.value.field or "").startswith(field)
    canary()


@pytest.mark.parametrize("params", OVER, ids=["stop-id-at-vocab", "two-for-one-prompt", "dict", "text"])
def test_bad_params_for_this_model(bystander: LLM, canary: Callable[[], None], params: Any) -> None:
    with pytest.raises(RequestError):
        bystander.generate(GOOD, params, use_tqdm=False)
    canary()
