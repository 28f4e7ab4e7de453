"""The admission gate: every kind of prompt, and every bad one with its place."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyrite.errors import RequestError
from pyrite.params import SamplingParams
from pyrite.request import MAX_PROMPTS, AdmissionGate, parse_prompts

VOCAB = 300
MAX_LEN = 32
EOS = 299


class Bytes:
    def __init__(self, bos: int | None = None) -> None:
        self.bos_token_id = bos

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return list(text.encode("utf-8"))


def gate(*, bos=None, tokenizer=True, seed=1) -> AdmissionGate:
    return AdmissionGate(
        Bytes(bos) if tokenizer else None, vocab_size=VOCAB, max_model_len=MAX_LEN, eos_token_ids=[EOS], seed=seed
    )


def admit(prompts, params=None, **settings):
    return gate(**settings).admit(parse_prompts(prompts), params)


GOOD = {
    "text": ("ab", [(97, 98)]),
    "ids": ([1, 2, 3], [(1, 2, 3)]),
    "tuple of ids": ((1, 2), [(1, 2)]),
    "numpy integers": ([np.int64(1), np.int32(2)], [(1, 2)]),
    "texts": (["a", "b"], [(97,), (98,)]),
    "lists of ids": ([[1], [2, 3]], [(1,), (2, 3)]),
    "mixed kinds": (["a", [5], {"prompt": "b"}, {"prompt_token_ids": [6]}], [(97,), (5,), (98,), (6,)]),
    "dict": ({"prompt": "a"}, [(97,)]),
    "dict of ids": ({"prompt_token_ids": (7,), "images": None}, [(7,)]),
    "no prompts": ([], []),
    "whitespace": (" ", [(32,)]),
    "NUL and BOM": ("\0\ufeff", [(0, 0xEF, 0xBB, 0xBF)]),
    "edges of the vocabulary": ([0, VOCAB - 1], [(0, VOCAB - 1)]),
    "longest": ([1] * (MAX_LEN - 1), [(1,) * (MAX_LEN - 1)]),
}

BAD = {
    "number": (3, "prompts", "invalid_request"),
    "None": (None, "prompts", "invalid_request"),
    "bytes": (b"ab", "prompts", "invalid_request"),
    "None in list": (["a", None], "prompts[1]", "invalid_request"),
    "id among texts": (["a", 5], "prompts[1]", "invalid_request"),
    "text among ids": ([5, "a"], "prompt[1]", "invalid_request"),
    "list among ids": ([5, [6]], "prompt[1]", "invalid_request"),
    "bool id": ([1, True], "prompt[1]", "invalid_request"),
    "float id": ([1.0], "prompt[0]", "invalid_request"),
    "NaN id": ([[1, float("nan")]], "prompts[0][1]", "invalid_request"),
    "negative id": (["a", [1, 2, -1]], "prompts[1][2]", "invalid_request"),
    "id beyond": ({"prompt_token_ids": [VOCAB]}, "prompt.prompt_token_ids[0]", "invalid_request"),
    "huge id": ([2**63], "prompt[0]", "invalid_request"),
    "absurd id": ([10**6000], "prompt[0]", "invalid_request"),
    "empty text": ("", "prompt", "empty_prompt"),
    "empty ids": ([[1], []], "prompts[1]", "empty_prompt"),
    "too long": ([1] * MAX_LEN, "prompt", "context_length_exceeded"),
    "ten times too long": ({"prompt": "a" * 10 * MAX_LEN}, "prompt.prompt", "context_length_exceeded"),
    "10 MB": (["a", "x" * 10**7], "prompts[1]", "context_length_exceeded"),
    "many bytes": ("é" * 4000, "prompt", "context_length_exceeded"),
    "lone surrogate": ("ab\ud800", "prompt", "invalid_request"),
    "both keys": ({"prompt": "a", "prompt_token_ids": [1]}, "prompt", "invalid_request"),
    "no key": ([{}], "prompts[0]", "invalid_request"),
    "unknown key": ({"promt": "a"}, "prompt", "invalid_request"),
    "wrong type in dict": ({"prompt": 5}, "prompt.prompt", "invalid_request"),
    "text as ids": ({"prompt_token_ids": "12"}, "prompt.prompt_token_ids", "invalid_request"),
    "images": ({"prompt": "a", "images": ["x.png"]}, "prompt.images", "not_built_yet"),
    "audio": ([{"prompt": "a", "audio": b"x"}], "prompts[0].audio", "not_built_yet"),
    "10^5 prompts": (["a"] * 10**5, "prompts", "invalid_request"),
}


@pytest.mark.parametrize("name", GOOD)
def test_good_prompt(name):
    prompts, expected = GOOD[name]
    requests = admit(prompts)
    assert [r.prompt_token_ids for r in requests] == expected
    assert all(type(i) is int for r in requests for i in r.prompt_token_ids)


@pytest.mark.parametrize("name", BAD)
def test_bad_prompt(name):
    prompts, field, code = BAD[name]
    with pytest.raises(RequestError) as caught:
        admit(prompts)
    assert (caught.value.field, caught.value.code) == (field, code)
    assert len(str(caught.value)) < 500


def test_too_long_says_the_counts():
    with pytest.raises(RequestError, match="got 40 tokens, expected at most 31"):
        admit([1] * 40)


def test_empty_text_is_bos_where_there_is_one():
    assert admit("", bos=256)[0].prompt_token_ids == (256,)
    with pytest.raises(RequestError):
        admit([[]], bos=256)


def test_without_a_tokenizer_only_ids():
    assert admit([1], tokenizer=False)[0].prompt_token_ids == (1,)
    with pytest.raises(RequestError, match="no tokenizer"):
        admit("a", tokenizer=False)
    with pytest.raises(RequestError, match="no tokenizer"):
        admit([1], SamplingParams(stop="a"), tokenizer=False)


BAD_PARAMS = {
    "dict": ({"top_p": 1.0}, "sampling_params"),
    "too few": ([SamplingParams()], "sampling_params"),
    "too many": ([SamplingParams()] * 3, "sampling_params"),
    "wrong element": ([SamplingParams(), None], "sampling_params[1]"),
    "stop id beyond": (SamplingParams(stop_token_ids=[1, VOCAB]), "sampling_params.stop_token_ids[1]"),
    "stop id beyond in list": (
        [SamplingParams(), SamplingParams(stop_token_ids=[VOCAB])],
        "sampling_params[1].stop_token_ids[0]",
    ),
}


@pytest.mark.parametrize("name", BAD_PARAMS)
def test_bad_params(name):
    params, field = BAD_PARAMS[name]
    with pytest.raises(RequestError) as caught:
        admit(["a", "b"], params)
    assert caught.value.field == field


def test_what_a_request_carries():
    params = SamplingParams(max_tokens=500, stop_token_ids=[5], seed=9)
    request = admit("abc", params)[0]
    assert request.prompt == "abc" and request.params is params and request.seed == 9
    assert request.max_tokens == MAX_LEN - 3
    assert request.stop_token_ids == {5, EOS}
    assert admit("abc", SamplingParams(ignore_eos=True))[0].stop_token_ids == frozenset()
    assert admit([5], SamplingParams(max_tokens=4))[0].max_tokens == 4


def test_seeds_repeat_with_the_engine_seed_and_differ_between_requests():
    first, second = ([r.seed for r in admit(["a", "b"])] for _ in range(2))
    assert first == second and len(set(first)) == 2
    assert [r.seed for r in admit(["a"], seed=2)] != first[:1]
    assert admit(["a"], seed=None)[0].seed != admit(["a"], seed=None)[0].seed


def test_a_refused_call_draws_no_seed():
    one = gate()
    with pytest.raises(RequestError):
        one.admit(parse_prompts(["a", ""]), None)
    assert one.admit(parse_prompts("a"), None)[0].seed == admit("a")[0].seed


def test_limits():
    assert len(admit([[1]] * MAX_PROMPTS)) == MAX_PROMPTS
    with pytest.raises(RequestError):
        parse_prompts([[1]] * (MAX_PROMPTS + 1))
    with pytest.raises(RequestError, match="too many sequences"):
        admit([[1]] * 2000, SamplingParams(n=16))


scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.binary(max_size=5))
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.sampled_from(["prompt", "prompt_token_ids", "images", "x"]), inner, max_size=3),
    ),
    max_leaves=8,
)


@given(values)
def test_any_value_is_admitted_or_refused_with_a_typed_error(value):
    try:
        requests = admit(value)
    except RequestError as error:
        assert error.field and str(error)
    else:
        assert all(0 <= i < VOCAB for r in requests for i in r.prompt_token_ids)
        assert all(1 <= len(r.prompt_token_ids) < MAX_LEN for r in requests)
