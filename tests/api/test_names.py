"""Public names and signatures, frozen: a change here is a change for every user."""

from __future__ import annotations

import dataclasses
import inspect

import pyrite
from pyrite.memory import MemoryPlan
from pyrite.outputs import CompletionOutput, Logprob, RequestMetrics, RequestOutput
from pyrite.params import SamplingParams
from pyrite.receipt import QuantizationReport
from pyrite.settings import EngineConfig

NAMES = [
    "BackendError",
    "CapacityError",
    "CheckpointError",
    "CompletionOutput",
    "ConfigError",
    "InternalError",
    "LLM",
    "Logprob",
    "MemoryPlan",
    "PyriteError",
    "QuantizationReport",
    "RequestError",
    "RequestMetrics",
    "RequestOutput",
    "SamplingParams",
    "SessionBusyError",
    "ShapeError",
    "__version__",
    "errors",
    "plan",
    "register_family",
]

LLM_METHODS = {
    "__init__": "model=None, *, device='auto', dtype='auto', quantization=None, kv_cache_dtype='auto', "
    "kv_cache_memory=None, max_model_len=None, max_num_seqs=16, max_num_batched_tokens=512, "
    "max_num_mixed_prefill_tokens=None, block_size=128, "
    "enable_prefix_caching=True, num_threads=None, speculative=None, seed=None, revision=None, strict=False",
    "generate": "prompts, sampling_params=None, *, use_tqdm=True",
    "chat": "messages, sampling_params=None, *, reasoning=None, thinking_budget=None, answer_reserve=None, tools=None, "
    "add_generation_prompt=True, chat_template_kwargs=None, use_tqdm=True",
    "stream": "prompt_or_messages, sampling_params=None, *, add_generation_prompt=True, chat_template_kwargs=None, "
    "**chat_options",
    "apply_chat_template": "messages, *, add_generation_prompt=True, chat_template_kwargs=None",
    "metrics": "",
    "quantization_report": "text=None, *, window_tokens=256",
    "close": "",
    "__enter__": "",
    "__exit__": "*exc",
}

FIELDS = {
    SamplingParams: "n temperature top_k top_p min_p typical_p top_n_sigma xtc_probability xtc_threshold "
    "dry_multiplier dry_base dry_allowed_length dry_penalty_last_n dry_sequence_breakers repetition_penalty "
    "presence_penalty frequency_penalty logit_bias allowed_token_ids bad_words seed stop stop_token_ids "
    "include_stop_str_in_output ignore_eos max_tokens min_tokens logprobs prompt_logprobs json regex grammar choice",
    RequestOutput: "request_id prompt prompt_token_ids prompt_logprobs outputs finished metrics",
    CompletionOutput: "index text token_ids cumulative_logprob logprobs finish_reason stop_reason reasoning error "
    "delta",
    Logprob: "logprob rank decoded_token",
    RequestMetrics: "queue_ms ttft_ms tpot_ms e2e_ms num_prompt_tokens num_generated_tokens num_cached_tokens "
    "preemptions",
    MemoryPlan: "architecture num_parameters weight_bytes kv_bytes scratch_bytes logits_bytes kv_groups kv_cache_dtype "
    "block_size max_num_seqs max_model_len capacity_tokens device dtype quantization kept_float",
    QuantizationReport: "quantization num_tokens kl_mean kl_max same_top perplexity float_perplexity weight_bytes "
    "float_weight_bytes bits_per_weight float_bits_per_weight num_parameters kept_float",
}


def signature_of(function: object) -> str:
    """Names and defaults, without annotations."""
    signature = inspect.signature(function)  # type: ignore[arg-type]
    bare = [p.replace(annotation=inspect.Parameter.empty) for name, p in signature.parameters.items() if name != "self"]
    text = str(inspect.Signature(bare))
    return text[1:-1]


def test_names():
    assert sorted(pyrite.__all__) == sorted(NAMES)
    assert set(NAMES) <= set(dir(pyrite))
    for name in NAMES:
        assert getattr(pyrite, name) is not None
    assert callable(pyrite.plan)


def test_signatures_of_llm():
    found = {n: signature_of(f) for n, f in vars(pyrite.LLM).items() if inspect.isfunction(f) and not n.startswith("_")}
    dunders = {n: signature_of(vars(pyrite.LLM)[n]) for n in ("__init__", "__enter__", "__exit__")}
    assert {**found, **dunders} == LLM_METHODS
    properties = [n for n, f in vars(pyrite.LLM).items() if isinstance(f, property)]
    assert sorted(properties) == ["default_params", "has_chat_template", "tokenizer"]


def test_engine_config_has_the_keywords_of_llm():
    keywords = [name for name in inspect.signature(pyrite.LLM).parameters if name != "model"]
    assert [f.name for f in dataclasses.fields(EngineConfig)] == keywords
    defaults = {f.name: f.default for f in dataclasses.fields(EngineConfig)}
    assert defaults == {n: p.default for n, p in inspect.signature(pyrite.LLM).parameters.items() if n != "model"}


def test_signature_of_plan():
    assert signature_of(pyrite.plan) == "model=None, **keywords"


def test_fields():
    for cls, names in FIELDS.items():
        assert [f.name for f in dataclasses.fields(cls)] == names.split()
