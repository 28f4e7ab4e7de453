"""`SamplingParams` refuses every bad value where it is made, and names the field."""

from __future__ import annotations

import dataclasses
import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyrite.describe import describe
from pyrite.errors import RequestError
from pyrite.params import SamplingParams

NAN, INF = math.nan, math.inf
NUMBERS = (NAN, INF, -INF, "1", None, True, [1.0], 10**400, -(10**400))

BAD = [
    *(("n", v) for v in (0, -1, 17, 10**6, 1.0, True, None, "2")),
    *(("temperature", v) for v in (*NUMBERS, -1, -1e-9, 100.5, 1e308)),
    *(("top_k", v) for v in (-2, 2**31, 1.5, True, None, "5", NAN)),
    *(("top_p", v) for v in (*NUMBERS, 0, 0.0, -0.1, 1.0000001)),
    *(("min_p", v) for v in (*NUMBERS, -0.1, 1.1)),
    *(("seed", v) for v in (-1, 2**64, 1.0, True, "1", 10**6000)),
    *(("stop", v) for v in ("", [""], ["a", ""], ["x"] * 17, "x" * 257, "é" * 129, 5, ["a", 5], {"a"}, "\ud800")),
    ("stop", ["a"] * 10**5),
    ("stop", "x" * 10**7),
    *(("stop_token_ids", v) for v in (5, "5", [-1], [2**31], [True], [1.0], [None], [1] * 1025, {1})),
    *(("include_stop_str_in_output", v) for v in (1, None, "yes")),
    *(("ignore_eos", v) for v in (0, None, "no")),
    *(("max_tokens", v) for v in (0, -1, 2**31, 2**63, 1e400, 5.0, True, "5")),
    *(("logprobs", v) for v in (-1, 21, True, 1.0, "1", 2**64)),
    *(("prompt_logprobs", v) for v in (-1, 21, True, 1.0)),
]

GOOD = {
    "n": (1, 16),
    "temperature": (0, 0.0, 1e-320, 0.7, 2, 100),
    "top_k": (-1, 0, 1, 2**31 - 1),
    "top_p": (1e-12, 0.9, 1, 1.0),
    "min_p": (0, 0.0, 1, 0.5),
    "seed": (None, 0, 2**64 - 1),
    "stop": (None, "a", [], ["a"] * 16, "x" * 256, "é" * 128, ("a", "b")),
    "stop_token_ids": (None, [], [0, 1], (5,), [1] * 1024),
    "max_tokens": (None, 1, 2**31 - 1),
    "logprobs": (None, 0, 20),
    "prompt_logprobs": (None, 0, 20),
}

NOT_BUILT = {
    "typical_p": 0.9,
    "top_n_sigma": 1.0,
    "xtc_probability": 0.5,
    "xtc_threshold": 0.2,
    "dry_multiplier": 0.8,
    "dry_base": 2.0,
    "dry_allowed_length": 3,
    "dry_penalty_last_n": 64,
    "dry_sequence_breakers": ["x"],
    "repetition_penalty": 1.1,
    "presence_penalty": 0.1,
    "frequency_penalty": -0.1,
    "logit_bias": {1: 1.0},
    "allowed_token_ids": [1],
    "bad_words": ["x"],
    "min_tokens": 1,
    "json": {},
    "regex": "a",
    "grammar": "root ::= x",
    "choice": ["a"],
}


@pytest.mark.parametrize(("field", "value"), BAD, ids=lambda v: describe(v)[:24])
def test_bad_value(field, value):
    with pytest.raises(RequestError) as caught:
        SamplingParams(**{field: value})
    assert caught.value.field is not None and caught.value.field.partition("[")[0] == field
    assert caught.value.code == "invalid_request"
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("field", GOOD)
def test_good_value(field):
    for value in GOOD[field]:
        SamplingParams(**{field: value})


@pytest.mark.parametrize("field", NOT_BUILT)
def test_what_is_not_built_is_refused_and_never_ignored(field):
    for value in (NOT_BUILT[field], True, NAN):
        with pytest.raises(RequestError, match="not built yet") as caught:
            SamplingParams(**{field: value})
        assert caught.value.field == field and caught.value.code == "not_built_yet"


def test_every_field_is_in_one_table():
    names = {f.name for f in dataclasses.fields(SamplingParams)}
    assert names == GOOD.keys() | NOT_BUILT.keys() | {"include_stop_str_in_output", "ignore_eos"}


def test_neutral_values_of_unbuilt_parameters_are_accepted():
    defaults = {f.name: f.default for f in dataclasses.fields(SamplingParams)}
    assert SamplingParams(**{name: defaults[name] for name in NOT_BUILT}) == SamplingParams()
    SamplingParams(dry_sequence_breakers=["\n", ":", '"', "*"])  # type: ignore[arg-type]


def test_message():
    with pytest.raises(RequestError) as caught:
        SamplingParams(top_p=1.5)
    assert str(caught.value) == "top_p: out of range: got 1.5, expected a number in (0, 1]"


def test_frozen_hashable_and_picklable():
    params = SamplingParams(stop=["a"], stop_token_ids=[1], temperature=0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        params.n = 2  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(params)) == params
    assert hash(params) == hash(dataclasses.replace(params))
    assert params.stop_strings == ("a",) and params.greedy
    assert not SamplingParams(temperature=1e-6).greedy and SamplingParams(temperature=9e-7).greedy


def test_generation_config():
    sampled = {
        "do_sample": True,
        "temperature": 0.6,
        "top_k": 20,
        "top_p": 0.95,
        "max_new_tokens": 30,
        "eos_token_id": 2,
    }
    assert SamplingParams.from_generation_config(sampled) == SamplingParams(
        temperature=0.6, top_k=20, top_p=0.95, max_tokens=30
    )
    assert SamplingParams.from_generation_config({**sampled, "do_sample": False}).greedy
    assert SamplingParams.from_generation_config({}).greedy
    with pytest.raises(RequestError):
        SamplingParams.from_generation_config({**sampled, "top_p": 2})


def test_generation_config_warns_of_what_is_not_built(caplog):
    SamplingParams.from_generation_config({"do_sample": True, "repetition_penalty": 1.05})
    assert "repetition_penalty" in caplog.text


@given(
    st.sampled_from([f.name for f in dataclasses.fields(SamplingParams)]),
    st.one_of(
        st.integers(),
        st.floats(),
        st.text(),
        st.booleans(),
        st.none(),
        st.lists(st.integers() | st.text()),
        st.binary(),
    ),
)
def test_any_value_is_taken_or_refused_with_a_typed_error(field, value):
    try:
        params = SamplingParams(**{field: value})
    except RequestError as error:
        assert error.field and str(error)
    else:
        hash(params)
