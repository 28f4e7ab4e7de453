"""The engine on the hash model: what callers get, in every way a request can run and end."""

from __future__ import annotations

import gc
import itertools
import threading
import time
import weakref

import pytest
from hash_model import EOS, VOCAB_LIMIT, greedy, hash_logits, text_of
from pyrite.errors import BackendError
from pyrite.params import SamplingParams

GREEDY = SamplingParams(temperature=0.0, max_tokens=12)


def prompt_of(length: int, salt: int = 0) -> list[int]:
    return [(i * 7 + salt) % 200 + 1 for i in range(length)]


@pytest.mark.parametrize("length", [1, 15, 16, 17, 63, 100, 200])
def test_greedy_follows_the_model(rig, length):
    prompt = prompt_of(length)
    output = rig().one(prompt, temperature=0.0, max_tokens=20)
    expected = greedy(prompt, 20)
    assert output.finished
    assert output.prompt is None and output.prompt_token_ids == prompt
    completion = output.outputs[0]
    assert completion.token_ids == expected
    assert completion.text == text_of(expected)
    assert completion.finish_reason == ("stop" if expected[-1] == EOS else "length")
    assert completion.stop_reason is None and completion.logprobs is None and completion.cumulative_logprob is None


def test_a_batch_gives_what_each_gives_alone(rig):
    prompts = [prompt_of(n, salt) for salt, n in enumerate([1, 3, 63, 100, 16, 17, 5, 31, 40, 2, 9])]
    params = [SamplingParams(temperature=1.5, seed=salt, max_tokens=15, logprobs=2) for salt in range(len(prompts))]
    together = rig().generate(prompts, params)
    small = rig(max_num_batched_tokens=16, max_num_seqs=3)
    for prompt, p, batched in zip(prompts, params, together, strict=True):
        for engine in (rig(), small):
            alone = engine.generate([prompt], p)[0].outputs[0]
            assert alone.token_ids == batched.outputs[0].token_ids
            assert alone.logprobs == batched.outputs[0].logprobs


def test_outputs_come_in_the_order_of_prompts(rig):
    engine = rig()
    params = [SamplingParams(temperature=0.0, max_tokens=n) for n in (40, 1, 20)]
    outputs = engine.generate(["one", "two", "three"], params)
    assert [o.prompt for o in outputs] == ["one", "two", "three"]
    assert [len(o.outputs[0].token_ids) for o in outputs][1] == 1
    assert len({o.request_id for o in outputs}) == 3


def test_max_tokens_is_bounded_by_the_context(rig):
    output = rig(max_model_len=32).one(prompt_of(30), temperature=0.0, max_tokens=2**31 - 1, ignore_eos=True)
    assert len(output.outputs[0].token_ids) == 2
    assert output.outputs[0].finish_reason == "length"


def test_stop_token(rig):
    prompt = prompt_of(5)
    expected = greedy(prompt, 10, stops=())
    stop = expected[4]
    at = expected.index(stop)
    completion = rig().one(prompt, temperature=0.0, max_tokens=10, stop_token_ids=[stop], ignore_eos=True).outputs[0]
    assert completion.token_ids == expected[: at + 1]
    assert completion.text == text_of(expected[:at])
    assert (completion.finish_reason, completion.stop_reason) == ("stop", stop)
    kept = rig().one(
        prompt,
        temperature=0.0,
        max_tokens=10,
        stop_token_ids=[stop],
        ignore_eos=True,
        include_stop_str_in_output=True,
    )
    assert kept.outputs[0].text == text_of(expected[: at + 1])


@pytest.mark.parametrize("include", [False, True])
@pytest.mark.parametrize("width", [1, 2, 5])
def test_stop_string(rig, include, width):
    prompt = prompt_of(6)
    expected = greedy(prompt, 30, stops=())
    text = text_of(expected)
    stop = text[8 : 8 + width]
    at = text.index(stop)
    completion = rig().one(
        prompt,
        temperature=0.0,
        max_tokens=30,
        stop=["never there", stop],
        include_stop_str_in_output=include,
        ignore_eos=True,
    )
    completion = completion.outputs[0]
    assert completion.text == text[: at + (width if include else 0)]
    assert (completion.finish_reason, completion.stop_reason) == ("stop", stop)
    assert completion.token_ids == expected[: len(completion.token_ids)]


def test_stop_string_at_the_last_token_is_a_stop(rig):
    prompt = prompt_of(6)
    expected = greedy(prompt, 30, stops=())
    text = text_of(expected)
    stop = text[5:7]
    at = text.index(stop)
    needed = next(n for n in range(1, 31) if stop in text_of(expected[:n]))
    completion = rig().one(prompt, temperature=0.0, max_tokens=needed, stop=stop, ignore_eos=True).outputs[0]
    assert (completion.finish_reason, completion.stop_reason, completion.text) == ("stop", stop, text[:at])


def test_held_back_text_comes_out_at_the_end(rig):
    prompt = prompt_of(6)
    expected = greedy(prompt, 8, stops=())
    text = text_of(expected)
    completion = rig().one(prompt, temperature=0.0, max_tokens=8, stop=text[-3:] + "!", ignore_eos=True).outputs[0]
    assert (completion.finish_reason, completion.text) == ("length", text)


def test_n_completions_differ_and_repeat(rig):
    outputs = [rig().one("hello", n=4, seed=3, max_tokens=10, ignore_eos=True) for _ in range(2)]
    first, second = ([c.token_ids for c in output.outputs] for output in outputs)
    assert first == second
    assert len({tuple(ids) for ids in first}) == 4
    assert [c.index for c in outputs[0].outputs] == [0, 1, 2, 3]
    alone = rig().one("hello", n=1, seed=3, max_tokens=10, ignore_eos=True)
    assert alone.outputs[0].token_ids == first[0]


def test_seeds_come_from_the_engine_where_requests_have_none(rig):
    params = SamplingParams(max_tokens=12, ignore_eos=True)
    runs = [[o.outputs[0].token_ids for o in rig(seed=s).generate(["a", "a"], params)] for s in (5, 5, 6)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]
    assert runs[0][0] != runs[0][1]
    random = [rig(seed=None).one("a", max_tokens=12, ignore_eos=True).outputs[0].token_ids for _ in range(2)]
    assert random[0] != random[1]


def test_logprobs_have_the_shape_of_vllm(rig):
    prompt = prompt_of(4)
    completion = rig().one(prompt, temperature=0.0, max_tokens=5, logprobs=3, ignore_eos=True).outputs[0]
    assert completion.logprobs is not None and len(completion.logprobs) == 5
    for token_id, entry in zip(completion.token_ids, completion.logprobs, strict=True):
        assert next(iter(entry)) == token_id
        assert 3 <= len(entry) <= 4
        assert all(p.logprob <= 0 and p.rank is not None for p in entry.values())
    total = sum(entry[t].logprob for t, entry in zip(completion.token_ids, completion.logprobs, strict=True))
    assert completion.cumulative_logprob == pytest.approx(total)
    only = rig().one(prompt, temperature=0.0, max_tokens=5, logprobs=0, ignore_eos=True).outputs[0]
    assert only.logprobs is not None and [list(entry) for entry in only.logprobs] == [[t] for t in only.token_ids]


@pytest.mark.parametrize("budget", [7, 64])
def test_prompt_logprobs(rig, budget):
    import numpy as np

    prompt = prompt_of(40)
    engine = rig(max_num_batched_tokens=budget)
    for _ in range(2):  # the second time, a prefix cache must not hide the rows
        output = engine.one(prompt, temperature=0.0, max_tokens=1, prompt_logprobs=2)
        logprobs = output.prompt_logprobs
        assert logprobs is not None and len(logprobs) == 40 and logprobs[0] is None
        for position, entry in enumerate(logprobs[1:], start=1):
            assert entry is not None and prompt[position] in entry
            logits = hash_logits(prompt[:position])[:VOCAB_LIMIT].astype(np.float64)
            expected = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
            assert entry[prompt[position]].logprob == pytest.approx(expected[prompt[position]], abs=1e-4)


def test_stream_is_cumulative_and_its_deltas_add_up(rig):
    engine = rig()
    seen = list(engine.stream("stream", temperature=0.0, max_tokens=30, ignore_eos=True))
    final = engine.one("stream", temperature=0.0, max_tokens=30, ignore_eos=True)
    assert "".join(o.outputs[0].delta for o in seen) == final.outputs[0].text == seen[-1].outputs[0].text
    assert [o.finished for o in seen] == [False] * (len(seen) - 1) + [True]
    for before, after in itertools.pairwise(seen):
        ids = before.outputs[0].token_ids
        assert after.outputs[0].token_ids[: len(ids)] == ids


def test_slow_reader_does_not_stall_the_engine(rig):
    engine = rig()
    resume = threading.Event()
    engine.backend.fail_on = lambda step: resume.wait(5) if step > 3 else None
    stream = engine.stream("slow", temperature=0.0, max_tokens=100, ignore_eos=True)
    next(stream)
    resume.set()
    engine.wait_idle()  # the request runs to its end while nobody reads
    rest = list(stream)
    assert len(rest) == 1 and rest[0].finished
    assert len(rest[0].outputs[0].token_ids) == 100


def test_leaving_a_stream_cancels_it(rig):
    engine = rig()
    for output in engine.stream("leave", max_tokens=200, ignore_eos=True):
        assert not output.finished
        break
    steps = engine.backend.steps
    metrics = engine.wait_idle()
    assert metrics["num_finished_abort"] == 1
    assert engine.backend.steps <= steps + 2


def test_closing_a_stream_twice_and_after_its_end(rig):
    engine = rig()
    stream = engine.stream("x", max_tokens=100, ignore_eos=True)
    stream.close()
    stream.close()
    assert list(stream) == []
    engine.wait_idle()
    done = engine.stream("y", max_tokens=2, ignore_eos=True)
    assert list(done)[-1].finished
    done.close()
    assert engine.one("z", temperature=0.0, max_tokens=3).finished


def test_abandoned_generator_cancels_the_rest(rig):
    engine = rig(max_num_seqs=2)
    engine.backend.fail_on = lambda step: time.sleep(0.02)  # slow, so that none ends before the generator is closed
    params = SamplingParams(max_tokens=100, ignore_eos=True)
    short = SamplingParams(max_tokens=1, ignore_eos=True)
    results = engine.engine.run(engine.requests(["a", "b", "c", "d", "e"], [short, params, params, params, params]))
    next(results)
    results.close()
    metrics = engine.wait_idle()
    assert metrics["num_requests_finished"] == 5 and metrics["num_finished_abort"] == 4


def test_step_failure_ends_its_requests_and_no_others(rig):
    engine = rig()
    good = engine.generate(["first"], GREEDY)[0].outputs[0].token_ids

    def fail(step):
        raise BackendError("a planted fault")

    engine.backend.fail_on = fail
    outputs = engine.generate(["first", "second"], GREEDY)
    for output in outputs:
        assert output.outputs[0].finish_reason == "error"
        assert "a planted fault" in (output.outputs[0].error or "")
    engine.backend.fail_on = lambda step: None
    assert engine.generate(["first"], GREEDY)[0].outputs[0].token_ids == good


def test_failure_in_the_middle_keeps_what_was_there(rig):
    engine = rig()
    prompt = prompt_of(5)

    def fail(step):
        if step == 4:
            raise MemoryError("planted")

    engine.backend.fail_on = fail
    completion = engine.one(prompt, temperature=0.0, max_tokens=10, ignore_eos=True).outputs[0]
    assert completion.token_ids == greedy(prompt, 3, stops=())
    assert completion.finish_reason == "error"


def test_row_without_finite_logits_fails_alone(rig):
    engine = rig()
    bad, good = prompt_of(5), prompt_of(20, 3)
    engine.backend.nan_on = {tuple(bad + greedy(bad, 2, stops=()))}
    params = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
    outputs = engine.generate([bad, good], params)
    assert outputs[0].outputs[0].finish_reason == "error"
    assert "finite" in (outputs[0].outputs[0].error or "")
    assert outputs[0].outputs[0].token_ids == greedy(bad, 2, stops=())
    assert outputs[1].outputs[0].token_ids == greedy(good, 8, stops=())


def test_detokenizer_fault_ends_that_request_alone(rig):
    engine = rig()

    class Broken:
        reasoning = None

        def push(self, ids):
            raise ValueError("planted")

        def flush(self):
            return ""

    original = engine.engine._worker._vocabulary.detokenizer
    made = iter([Broken()])
    engine.engine._worker._vocabulary.detokenizer = lambda split: next(made, None) or original(split)
    outputs = engine.generate(["a", "b"], GREEDY)
    assert outputs[0].outputs[0].finish_reason == "error"
    assert outputs[1].outputs[0].finish_reason in ("stop", "length")


def test_dead_engine_tells_everybody(rig):
    engine = rig()

    def die(step):
        raise SystemExit("planted")

    engine.backend.fail_on = die
    with pytest.raises(BackendError, match="died"):
        engine.one("a", max_tokens=3)
    with pytest.raises(BackendError, match="died"):
        engine.one("a", max_tokens=3)
    with pytest.raises(BackendError, match="died"):
        engine.stream("a", max_tokens=3)
    engine.engine._worker._stats = dict.fromkeys(engine.engine._worker._stats, 0)  # what it had is lost with it
    engine.check_idle = lambda: None


def test_close_twice_and_use_after(rig):
    engine = rig()
    engine.one("a", max_tokens=2)
    engine.engine.close()
    engine.engine.close()
    with pytest.raises(BackendError, match="closed"):
        engine.one("a", max_tokens=2)
    with pytest.raises(BackendError, match="closed"):
        engine.stream("a")
    assert engine.backend.closed == 1
    assert not engine.backend.thread.is_alive()


def test_close_before_any_request(rig):
    engine = rig()
    engine.engine.close()
    assert engine.backend.closed
    with pytest.raises(BackendError, match="closed"):
        engine.one("a", max_tokens=2)


def test_close_aborts_what_runs(rig):
    engine = rig()
    stream = engine.stream("a", max_tokens=200, ignore_eos=True)
    next(stream)
    engine.engine.close()
    last = list(stream)[-1]
    assert last.finished and last.outputs[0].finish_reason == "abort"


def test_forgotten_engine_is_collected(rig):
    engine = rig()
    engine.one("a", max_tokens=2)
    thread, backend, gone = engine.backend.thread, engine.backend, weakref.ref(engine.engine)
    check = engine.engine._worker.metrics()
    assert check["num_running"] == 0
    engine.engine = None
    gc.collect()
    assert gone() is None
    thread.join(5)
    assert not thread.is_alive() and backend.closed
    engine.check_idle = lambda: None
    engine.engine = type("Closed", (), {"close": staticmethod(lambda: None)})


def test_sixteen_threads_at_once(rig):
    engine = rig()
    expected = {i: greedy(prompt_of(i + 1, i), 12) for i in range(16)}
    found: dict[int, list] = {}

    def work(i):
        results = []
        for k in range(4):
            prompt = prompt_of(i + 1, i)
            if k % 2:
                stream = engine.stream(prompt, temperature=0.0, max_tokens=12)
                results.append(list(stream)[-1].outputs[0].token_ids)
            else:
                results.append(engine.one(prompt, temperature=0.0, max_tokens=12).outputs[0].token_ids)
        found[i] = results

    threads = [threading.Thread(target=work, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == {i: [ids] * 4 for i, ids in expected.items()}


def test_metrics(rig):
    engine = rig()
    outputs = engine.generate([prompt_of(20), prompt_of(30, 1)], SamplingParams(max_tokens=10, ignore_eos=True))
    for output in outputs:
        metrics = output.metrics
        assert metrics.queue_ms is not None and metrics.ttft_ms is not None and metrics.tpot_ms is not None
        assert 0 <= metrics.queue_ms <= metrics.ttft_ms <= (metrics.e2e_ms or 0)
        assert metrics.num_generated_tokens == 10 and metrics.preemptions == 0
    total = engine.engine.metrics()
    assert total["num_requests_finished"] == 2
    assert total["num_generated_tokens"] == 20 and total["num_prompt_tokens"] == 50
    assert total["mean_decode_batch"] == pytest.approx(total["decode_tokens"] / total["decode_steps"])
    assert total["mean_decode_batch"] > 1


def test_cancel_is_answered_within_one_step(rig):
    engine = rig()
    started = threading.Event()

    def slow(step):
        started.set()
        time.sleep(0.02)

    engine.backend.fail_on = slow
    stream = engine.stream("a", max_tokens=200, ignore_eos=True)
    started.wait(5)
    before = engine.backend.steps
    stream.close()
    engine.wait_idle()
    assert engine.backend.steps <= before + 1


def test_surplus_rows_are_never_drawn(rig):
    output = rig().one("a", temperature=2.0, seed=1, max_tokens=100, ignore_eos=True)
    assert max(output.outputs[0].token_ids) < VOCAB_LIMIT


def test_cancel_while_queued(rig):
    engine = rig(max_num_seqs=1)
    resume = threading.Event()
    engine.backend.fail_on = lambda step: resume.wait(5) if step == 2 else None
    first = engine.stream(prompt_of(5), temperature=0.0, max_tokens=5, ignore_eos=True)
    next(first)
    queued = engine.stream("never runs", max_tokens=5)
    queued.close()
    resume.set()
    assert list(first)[-1].outputs[0].token_ids == greedy(prompt_of(5), 5, stops=())
    assert engine.wait_idle()["num_finished_abort"] == 1


def test_cancel_in_the_middle_of_a_prompt(rig):
    engine = rig(max_num_batched_tokens=16)
    reached, resume = threading.Event(), threading.Event()

    def wait(step):
        if step == 3:
            reached.set()
            resume.wait(5)

    engine.backend.fail_on = wait
    stream = engine.stream(prompt_of(200), max_tokens=5)
    assert reached.wait(5)
    stream.close()
    resume.set()
    metrics = engine.wait_idle()
    assert engine.backend.steps == 3 and metrics["num_generated_tokens"] == 0


WINDOWS = [((None, 64),), ((20, 40), (None, 64)), ((None, 64), (1, 40), (33, 40))]


@pytest.mark.parametrize("groups", WINDOWS, ids=["full", "window and full", "full and two windows"])
@pytest.mark.parametrize("budget", [5, 16, 61, 512])
@pytest.mark.parametrize("block_size", [16, 32])
def test_tokens_do_not_depend_on_how_they_are_computed(rig, groups, budget, block_size):
    prompts = [prompt_of(n, n) for n in (1, 16, 17, 40, 90)]
    engine = rig(groups=groups, max_num_batched_tokens=budget, block_size=block_size)
    outputs = engine.generate(prompts, SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True))
    assert [o.outputs[0].token_ids for o in outputs] == [greedy(p, 20, stops=()) for p in prompts]


def test_prefix_cache_changes_no_token_and_is_counted(rig):
    engine = rig()
    prompt = prompt_of(100)
    first, second = (engine.one(prompt, temperature=0.0, max_tokens=8, ignore_eos=True) for _ in range(2))
    assert first.outputs[0].token_ids == second.outputs[0].token_ids == greedy(prompt, 8, stops=())
    assert first.num_cached_tokens == 0 and second.num_cached_tokens == 96
    metrics = engine.engine.metrics()
    assert metrics["prefix_hit_tokens"] == metrics["num_cached_tokens"] == 96
    off = rig(enable_prefix_caching=False)
    for _ in range(2):
        assert off.one(prompt, temperature=0.0, max_tokens=8, ignore_eos=True).num_cached_tokens == 0


def test_preempted_requests_give_the_same_tokens_and_logprobs(rig):
    prompts = [prompt_of(34, 1), prompt_of(35, 2), prompt_of(20, 3)]
    params = [SamplingParams(seed=s, max_tokens=50, ignore_eos=True, logprobs=1) for s in range(3)]
    small = rig(groups=((None, 7),), max_model_len=100)
    outputs = small.generate(prompts, params)
    metrics = small.engine.metrics()
    assert metrics["preemptions"] > 0
    assert sum(o.metrics.preemptions for o in outputs) == metrics["preemptions"]
    for output, expected in zip(outputs, rig().generate(prompts, params), strict=True):
        assert output.outputs[0].token_ids == expected.outputs[0].token_ids
        assert output.outputs[0].logprobs == expected.outputs[0].logprobs


def test_a_sequence_the_pool_cannot_hold_ends_with_an_error(rig):
    engine = rig(groups=((None, 4),), max_model_len=256)
    output = engine.one(prompt_of(100), max_tokens=100)
    assert output.outputs[0].finish_reason == "error" and "CapacityError" in (output.outputs[0].error or "")
    assert engine.one(prompt_of(10), temperature=0.0, max_tokens=5).outputs[0].error is None


def test_logprobs_of_generated_tokens_survive_prompt_logprobs_and_preemption(rig):
    prompts = [prompt_of(34, 1), prompt_of(35, 2), prompt_of(20, 3)]
    params = SamplingParams(seed=1, max_tokens=50, ignore_eos=True, prompt_logprobs=1)
    small = rig(groups=((None, 7),), max_model_len=100)
    for output, expected in zip(small.generate(prompts, params), rig().generate(prompts, params), strict=True):
        assert output.prompt_logprobs == expected.prompt_logprobs
        assert None not in (output.prompt_logprobs or [None])[1:]
