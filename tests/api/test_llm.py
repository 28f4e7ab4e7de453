"""`LLM` on tiny random checkpoints: every way to ask, and every way to be refused, on one engine."""

from __future__ import annotations

import gc
import itertools
import shutil

import pytest
from pyrite import LLM, BackendError, CapacityError, CheckpointError, ConfigError, RequestError, SamplingParams
from tiny_models import FAMILIES, tiny

GREEDY = SamplingParams(temperature=0.0, max_tokens=12)
PROMPT = "the quick brown fox"


@pytest.fixture(scope="module", params=FAMILIES)
def llm(request):
    with LLM(tiny(request.param), max_num_seqs=4, max_model_len=256, seed=1) as made:
        yield made
        blocks_are_back(made)


@pytest.fixture(scope="module")
def one():
    """One family is enough where the model does not matter."""
    with LLM(tiny("muse_glimmer"), max_num_seqs=4, max_model_len=128, max_num_batched_tokens=32, seed=1) as made:
        made.golden = made.generate(PROMPT, GREEDY, use_tqdm=False)[0].outputs[0].token_ids
        yield made
        blocks_are_back(made)


def blocks_are_back(llm):
    metrics = llm.metrics()
    group = 0
    while f"group{group}_total" in metrics:
        assert metrics[f"group{group}_used"] == 0
        assert metrics[f"group{group}_free"] + metrics[f"group{group}_cached"] == metrics[f"group{group}_total"]
        group += 1
    assert group


def test_generate(llm):
    outputs = llm.generate([PROMPT, "seven small boats"], GREEDY, use_tqdm=False)
    assert [o.prompt for o in outputs] == [PROMPT, "seven small boats"]
    for output in outputs:
        completion = output.outputs[0]
        assert output.finished and output.prompt_token_ids == llm.tokenizer.encode(output.prompt)
        assert 1 <= len(completion.token_ids) <= 12
        assert completion.text == llm.tokenizer.decode(completion.token_ids)
        assert completion.finish_reason in ("stop", "length")


def test_batch_and_single_agree_to_the_bit(llm):
    prompts = [PROMPT * n for n in (1, 2, 3, 5)] + ["a", "lazy dog", "0123456789", "old stone bridge"]
    params = [SamplingParams(seed=n, max_tokens=10, logprobs=3, ignore_eos=True) for n in range(len(prompts))]
    together = llm.generate(prompts, params, use_tqdm=False)
    for prompt, p, batched in zip(prompts, params, together, strict=True):
        alone = llm.generate(prompt, p, use_tqdm=False)[0].outputs[0]
        assert alone.token_ids == batched.outputs[0].token_ids
        assert alone.logprobs == batched.outputs[0].logprobs


def test_stream_and_generate_agree(llm):
    seen = list(llm.stream(PROMPT, GREEDY))
    final = llm.generate(PROMPT, GREEDY, use_tqdm=False)[0].outputs[0]
    assert seen[-1].outputs[0].token_ids == final.token_ids
    assert "".join(output.delta for output in seen) == final.text
    lengths = [len(output.outputs[0].token_ids) for output in seen]
    assert all(a < b or b == lengths[-1] for a, b in itertools.pairwise(lengths))


def test_chat_uses_the_template(llm):
    messages = [{"role": "user", "content": "hello"}]
    text = llm.apply_chat_template(messages)
    assert text == "<|bos|><user>hello\n<assistant>"
    output = llm.chat(messages, GREEDY, use_tqdm=False)[0]
    assert output.prompt == text
    assert output.prompt_token_ids == llm.tokenizer.encode(text, add_special_tokens=False)
    assert output.prompt_token_ids.count(0) == 1
    assert list(llm.stream(messages, GREEDY))[-1].outputs[0].token_ids == output.outputs[0].token_ids
    assert len(llm.chat([messages, messages], GREEDY, use_tqdm=False)) == 2
    assert not llm.apply_chat_template(messages, add_generation_prompt=False).endswith("<assistant>")


def test_generation_config_is_the_default(one):
    assert one.default_params.greedy
    completion = one.generate(PROMPT, use_tqdm=False)[0].outputs[0]
    assert completion.token_ids[: len(one.golden)] == one.golden
    assert len(completion.token_ids) > len(one.golden) or completion.finish_reason == "stop"


def test_prompt_logprobs_agree_with_logprobs(one):
    params = SamplingParams(temperature=0.0, max_tokens=6, logprobs=2, ignore_eos=True)
    generated = one.generate(PROMPT, params, use_tqdm=False)[0]
    ids = generated.prompt_token_ids + generated.outputs[0].token_ids
    again = one.generate([ids], SamplingParams(max_tokens=1, prompt_logprobs=2), use_tqdm=False)[0]
    assert again.prompt_logprobs is not None
    assert again.prompt_logprobs[len(generated.prompt_token_ids) :] == generated.outputs[0].logprobs


def test_metrics(one):
    before = one.metrics()
    params = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)
    one.generate(["a", "lazy dog", "old bridge", "fox"], params, use_tqdm=False)
    after = one.metrics()
    assert after["num_requests_finished"] - before["num_requests_finished"] == 4
    assert after["num_generated_tokens"] - before["num_generated_tokens"] == 80
    assert after["mean_decode_batch"] > 1


BAD_CALLS = {
    "empty prompt": (lambda m: m.generate([[1], []]), "prompts[1]"),
    "too long": (lambda m: m.generate([[5] * 128]), "prompts[0]"),
    "id out of range": (lambda m: m.generate([[5, 333]]), "prompts[0][1]"),
    "negative id": (lambda m: m.generate([-1]), "prompt[0]"),
    "stop id": (lambda m: m.generate("a", SamplingParams(stop_token_ids=[333])), "sampling_params.stop_token_ids[0]"),
    "params of another length": (lambda m: m.generate(["a", "b"], [GREEDY]), "sampling_params"),
    "reasoning": (lambda m: m.chat([{"role": "user", "content": "a"}], reasoning="thinking"), "reasoning"),
    "tools": (lambda m: m.chat([{"role": "user", "content": "a"}], tools=[{}]), "tools"),
    "budget in stream": (lambda m: m.stream("a", thinking_budget=5), "thinking_budget"),
    "unknown option": (lambda m: m.stream("a", colour=5), "colour"),
    "stream of two": (lambda m: m.stream(["a", "b"]), "prompt"),
    "template variables": (lambda m: m.stream("a", chat_template_kwargs={"x": 1}), "chat_template_kwargs"),
    "own option": (
        lambda m: m.chat([{"role": "user", "content": "a"}], chat_template_kwargs={"messages": []}),
        "chat_template_kwargs",
    ),
    "no conversation": (lambda m: m.chat("hello"), "messages"),
    "empty conversation": (lambda m: m.chat([]), "messages"),
    "no role": (lambda m: m.chat([{"content": "a"}]), "messages[0].role"),
    "no role in second": (
        lambda m: m.chat([[{"role": "user", "content": "a"}], [{"role": "user", "content": "a"}, {}]]),
        "messages[1][1].role",
    ),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_refused_calls_leave_the_engine_as_it_was(one, name):
    call, field = BAD_CALLS[name]
    finished = one.metrics().get("num_requests_finished")
    with pytest.raises(RequestError) as caught:
        call(one)
    assert caught.value.field == field
    assert one.metrics().get("num_requests_finished") == finished
    assert one.generate(PROMPT, GREEDY, use_tqdm=False)[0].outputs[0].token_ids == one.golden
    blocks_are_back(one)


def test_settings_change_no_token(one):
    params = [SamplingParams(seed=n, max_tokens=16, logprobs=1, ignore_eos=True) for n in range(6)]
    prompts = [PROMPT * n for n in (1, 2, 3, 4)] + ["a", "the lazy dog"]
    expected = one.generate(prompts, params, use_tqdm=False)
    for settings in (
        {"max_num_batched_tokens": 16},
        {"max_num_batched_tokens": 61, "block_size": 16},
        {"num_threads": 2, "max_num_seqs": 8},
        {"enable_prefix_caching": False, "num_threads": 1, "block_size": 64},
    ):
        with LLM(tiny("muse_glimmer"), max_model_len=128, **settings) as other:
            found = other.generate(prompts, params, use_tqdm=False)
        for a, b in zip(expected, found, strict=True):
            assert a.outputs[0].token_ids == b.outputs[0].token_ids, settings
            assert a.outputs[0].logprobs == b.outputs[0].logprobs, settings


def test_use_after_close(tmp_path):
    llm = LLM(tiny("llama"))
    llm.generate("a", GREEDY, use_tqdm=False)
    llm.close()
    llm.close()
    with pytest.raises(BackendError, match="closed"):
        llm.generate("a", GREEDY, use_tqdm=False)
    with pytest.raises(BackendError, match="closed"):
        llm.stream("a")


def test_two_models_at_once_and_forgotten_ones():
    for family in ("llama", "qwen3", "llama"):
        llm = LLM(tiny(family))
        assert llm.generate("a", GREEDY, use_tqdm=False)[0].finished
    del llm
    gc.collect()


def test_folder_without_a_tokenizer(tmp_path):
    folder = tmp_path / "bare"
    shutil.copytree(tiny("llama"), folder)
    for path in (*folder.glob("tokenizer*"), *folder.glob("chat_template*"), *folder.glob("special*")):
        path.unlink()
    with LLM(folder) as llm:
        output = llm.generate([[5, 6, 7]], GREEDY, use_tqdm=False)[0]
        assert output.outputs[0].token_ids and output.outputs[0].text == ""
        assert not llm.has_chat_template
        with pytest.raises(RequestError, match="no tokenizer"):
            llm.generate("a")
        with pytest.raises(RequestError, match="no chat template"):
            llm.chat([{"role": "user", "content": "a"}])
        with pytest.raises(ConfigError, match=r"tokenizer\.json"):
            _ = llm.tokenizer


@pytest.mark.parametrize(
    ("settings", "error", "field"),
    [
        ({"device": "cuda"}, ConfigError, "device"),
        ({"quantization": "int5"}, ConfigError, "quantization"),
        ({"speculative": "ngram"}, ConfigError, "speculative"),
        ({"revision": "main"}, ConfigError, "revision"),
        ({"max_model_len": 10**6}, ConfigError, "max_model_len"),
        ({"kv_cache_memory": 10}, CapacityError, "kv_cache_memory"),
        ({"block_size": 48}, ConfigError, "block_size"),
    ],
)
def test_bad_settings(settings, error, field):
    with pytest.raises(error) as caught:
        LLM(tiny("llama"), **settings)
    assert caught.value.field == field


@pytest.mark.parametrize("model", ["/no/such/folder", "no such name", "../up", "a/b/c", "", 5, "\0"])
def test_bad_model(model):
    with pytest.raises(ConfigError) as caught:
        LLM(model)
    assert caught.value.field == "model"


def test_malformed_template_is_found_at_load(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny("llama"), folder)
    (folder / "chat_template.jinja").write_text("{% for %}")
    with pytest.raises(CheckpointError):
        LLM(folder)


def test_bad_generation_config(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny("llama"), folder)
    (folder / "generation_config.json").write_text('{"do_sample": true, "top_p": 7}')
    with pytest.raises(ConfigError) as caught:
        LLM(folder)
    assert caught.value.field == "generation_config.json: top_p"
