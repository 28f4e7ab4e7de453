"""Draws from a device's candidates: the tokens of whole rows, whole rows only where they are needed."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hash_model import EOS, VOCAB_LIMIT, VOCAB_SIZE, ByteVocabulary, HashModel, greedy, hash_logits
from pyrite import _core
from pyrite.backends.base import Backend, CandidateBackend, Candidates
from pyrite.engine.engine import Engine
from pyrite.params import SamplingParams
from rig import Rig

PROMPTS = [[65 + (7 * n + i) % 26 for i in range(n)] for n in (1, 5, 30)]


class CandidateModel(HashModel):
    """The hash model as a device would have it, which notes how many whole rows were asked for.

    `steps_with` counts steps by whether candidates were asked for.
    """

    num_candidates = 8

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.fetched = 0
        self.steps_with = {True: 0, False: 0}

    def run(self, plan) -> np.ndarray:
        self.steps_with[False] += 1
        return super().run(plan)

    def run_candidates(self, plan, vocab_limit: int) -> Candidates:
        self.steps_with[True] += 1
        self.rows = super().run(plan)
        existing = self.rows[:, :vocab_limit].astype(np.float64)
        order = np.argsort(-existing, axis=1, kind="stable")[:, : self.num_candidates].astype(np.int32)
        top = np.take_along_axis(existing, order.astype(np.int64), axis=1)
        lse = np.log(np.exp(existing - existing.max(axis=1, keepdims=True)).sum(axis=1)) + existing.max(axis=1)
        return Candidates(order, top.astype(np.float32), lse.astype(np.float32), vocab_limit)

    def logits(self, rows) -> np.ndarray:
        self.fetched += len(rows)
        return self.rows[list(rows)]


class CandidateRig(Rig):
    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.engine.close()
        self.backend = CandidateModel(self.groups, 16)
        self.engine = Engine(self.scheduler, self.backend, vocabulary=ByteVocabulary(), vocab_limit=VOCAB_LIMIT)


@pytest.fixture
def rigs():
    made = [CandidateRig(), Rig()]
    yield made
    for rig in made:
        rig.check_idle()
        rig.engine.close()


def tokens(outputs) -> list[list[int]]:
    return [completion.token_ids for output in outputs for completion in output.outputs]


def test_which_backends_pick_candidates():
    assert isinstance(CandidateModel(((None, 4),), 16), CandidateBackend)
    model: Backend = HashModel(((None, 4),), 16)
    assert not isinstance(model, CandidateBackend)


SETTINGS = [
    pytest.param({"temperature": 0.0}, "none", id="greedy"),
    pytest.param({"top_k": 5}, "none", id="top_k"),
    pytest.param({"top_k": 8, "top_p": 0.7, "min_p": 0.02, "temperature": 1.7}, "none", id="all_filters"),
    pytest.param({"top_k": 9}, "never picked", id="top_k_too_large"),
    pytest.param({}, "never picked", id="no_filter"),
    pytest.param({"temperature": 0.0, "logprobs": 9}, "never picked", id="too_many_logprobs"),
    pytest.param({"top_p": 0.5, "temperature": 0.8}, "some", id="top_p"),
    pytest.param({"top_p": 0.9}, "some", id="top_p_flat"),
    pytest.param({"min_p": 0.3}, "some", id="min_p"),
]


@pytest.mark.parametrize(("params", "fetched"), SETTINGS)
def test_tokens_are_those_of_whole_rows(rigs, params, fetched):
    asked = SamplingParams(**{"n": 2, "seed": 3, "max_tokens": 12, "ignore_eos": True, **params})
    got, expected = (tokens(rig.generate([{"prompt_token_ids": p} for p in PROMPTS], asked)) for rig in rigs)
    assert got == expected
    backend = rigs[0].backend
    draws = sum(map(len, got))
    if fetched == "never picked":
        assert backend.steps_with[True] == 0 and backend.fetched == 0
    else:
        assert backend.steps_with[True] > 0
        assert {"none": backend.fetched == 0, "some": 0 < backend.fetched < draws}[fetched]


def test_requests_of_all_kinds_in_one_batch(rigs):
    """Each gets what it gets alone, logprobs to the bit: how it is drawn does not depend on the others."""
    kinds = [{"temperature": 0.0, "logprobs": 2}, {}, {"top_p": 0.8, "logprobs": 0}, {"top_k": 3}, {"min_p": 0.2}]
    asked = [SamplingParams(**{"seed": 3, "max_tokens": 8, "ignore_eos": True, **kind}) for kind in kinds]
    prompts = [{"prompt_token_ids": p} for p, _ in zip(itertools.cycle(PROMPTS), kinds, strict=False)]
    rig, whole = rigs
    together = rig.generate(prompts, asked)
    for prompt, params, output in zip(prompts, asked, together, strict=True):
        alone = rig.generate([prompt], params)[0].outputs[0]
        assert alone.token_ids == output.outputs[0].token_ids and alone.logprobs == output.outputs[0].logprobs
    for got, expected in zip(together, whole.generate(prompts, asked), strict=True):
        a, b = got.outputs[0], expected.outputs[0]
        assert a.token_ids == b.token_ids
        for ours, theirs in zip(a.logprobs or [], b.logprobs or [], strict=True):
            assert [(i, p.rank) for i, p in ours.items()] == [(i, p.rank) for i, p in theirs.items()]
            for p, q in zip(ours.values(), theirs.values(), strict=True):
                assert p.logprob <= 0 and p.logprob == pytest.approx(q.logprob, abs=1e-5)


def test_prompt_logprobs_fetch_their_rows(rigs):
    params = SamplingParams(temperature=0.0, max_tokens=2, prompt_logprobs=1, ignore_eos=True)
    got, expected = (rig.generate([{"prompt_token_ids": PROMPTS[2]}], params)[0] for rig in rigs)
    assert got.prompt_logprobs == expected.prompt_logprobs and tokens([got]) == tokens([expected])
    assert rigs[0].backend.fetched == 13  # of the second step, which draws too; the 16 of the first come whole


def test_ties_go_to_the_lowest_id(monkeypatch):
    def flat(ids):
        logits = np.round(hash_logits(ids))
        logits[VOCAB_LIMIT:] = 100
        return logits.astype(np.float32)

    monkeypatch.setattr("hash_model.hash_logits", flat)
    for params in ({"temperature": 0.0}, {"top_k": 6, "seed": 1}, {"top_p": 0.4, "seed": 1}):
        answers = []
        for rig in (CandidateRig(), Rig()):
            answers.append(tokens(rig.generate([{"prompt_token_ids": p} for p in PROMPTS], SamplingParams(**params))))
            rig.engine.close()
        assert answers[0] == answers[1]


def test_a_row_without_finite_logits_fails_alone(rigs):
    rig, bad, good = rigs[0], PROMPTS[1], PROMPTS[2]
    rig.backend.nan_on = {tuple(bad + greedy(bad, 2, stops=()))}
    params = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
    outputs = rig.generate([{"prompt_token_ids": bad}, {"prompt_token_ids": good}], params)
    assert outputs[0].outputs[0].finish_reason == "error" and "finite" in (outputs[0].outputs[0].error or "")
    assert outputs[1].outputs[0].token_ids == greedy(good, 6, stops=())


def test_a_model_whose_limit_is_forgotten_is_caught():
    sampler = _core.Sampler(
        temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, seed=0, stream=0, vocab_limit=EOS, logprobs=None
    )
    ids, logits = np.array([[VOCAB_SIZE - 1, 3]], np.int32), np.array([[9.0, 1.0]], np.float32)
    with pytest.raises(Exception, match="a limit that was not heeded"):
        _core.sample_candidates(ids, logits, np.array([9.0], np.float32), VOCAB_SIZE, [(0, sampler, 1)])
    assert _core.sample_candidates(ids[:, 1:], logits[:, 1:], np.array([1.0], np.float32), 9, [(0, sampler, 1)])[0]
