"""`LLM`: load a model, generate text. Everything it does is done elsewhere; this is where it comes together."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from pyrite.chat import is_conversation, parse_conversations, refuse_unbuilt, template_variables
from pyrite.engine.build import build_engine
from pyrite.errors import ConfigError, RequestError
from pyrite.memory import open_for, plan_memory
from pyrite.models.folder import read_json
from pyrite.params import SamplingParams
from pyrite.request import AdmissionGate, RawPrompt, Request, parse_prompts
from pyrite.settings import EngineConfig, Environment
from pyrite.source import resolve_folder
from pyrite.text import ChatTemplate, IncrementalDetokenizer, Tokenizer
from pyrite.text.reasoning import ReasoningFormat, ReasoningSplitter

if TYPE_CHECKING:
    from pyrite.engine.engine import OutputStream
    from pyrite.outputs import RequestOutput
    from pyrite.receipt import EngineRows, QuantizationReport
    from pyrite.source import OpenModel

_logger = logging.getLogger("pyrite")


class LLM:
    """A loaded model that generates text. Safe to use from many threads; starts no process.

    Args:
        model: a folder in Hugging Face form, a Hub id, or None for the small model that ships with pyrite.
        device, dtype, quantization, kv_cache_dtype, kv_cache_memory, max_model_len, max_num_seqs,
            max_num_batched_tokens, max_num_mixed_prefill_tokens, block_size, enable_prefix_caching, num_threads,
            speculative, seed, revision, strict: see `pyrite.settings.EngineConfig`.

    Raises:
        ConfigError: a bad setting, an unknown model, or a value whose feature is not built yet.
        CheckpointError: a model folder that cannot be trusted.
        CapacityError: it does not fit in memory.
        BackendError: the GPU that was asked for does not work.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        device: str = "auto",
        dtype: str = "auto",
        quantization: str | None = None,
        kv_cache_dtype: str = "auto",
        kv_cache_memory: int | None = None,
        max_model_len: int | None = None,
        max_num_seqs: int = 16,
        max_num_batched_tokens: int = 512,
        max_num_mixed_prefill_tokens: int | None = None,
        block_size: int = 128,
        enable_prefix_caching: bool = True,
        num_threads: int | None = None,
        speculative: object = None,
        seed: int | None = None,
        revision: str | None = None,
        strict: bool = False,
    ) -> None:
        config = EngineConfig(
            device=device,
            dtype=dtype,
            quantization=quantization,
            kv_cache_dtype=kv_cache_dtype,
            kv_cache_memory=kv_cache_memory,
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            max_num_mixed_prefill_tokens=max_num_mixed_prefill_tokens,
            block_size=block_size,
            enable_prefix_caching=enable_prefix_caching,
            num_threads=num_threads,
            speculative=speculative,
            seed=seed,
            revision=revision,
            strict=strict,
        )
        environment = Environment.read()
        opened = open_for(resolve_folder(model, config.revision), config)
        self._folder = opened.folder
        self._tokenizer = _load_tokenizer(opened)
        self._template = _load_template(opened.folder)
        generation = _generation_config(opened.folder)
        plan = plan_memory(opened, config)
        _logger.info("memory plan: %s", plan)
        self._config, self._plan = config, plan
        vocab_size = opened.program.vocab_size
        vocab_limit = vocab_size if self._tokenizer is None else min(vocab_size, self._tokenizer.vocab_size)
        with tqdm(desc="loading", unit="B", unit_scale=True, delay=1.0, leave=False) as bar:
            self._engine = build_engine(
                opened,
                config,
                environment,
                plan,
                vocabulary=None if self._tokenizer is None else _Text(self._tokenizer, self._template),
                vocab_limit=vocab_limit,
                progress=lambda done, total: _show(bar, done, total),
            )
        self._default_params = _default_params(generation)
        self._gate = AdmissionGate(
            self._tokenizer,
            vocab_size=vocab_size,
            max_model_len=plan.max_model_len,
            eos_token_ids=_eos_token_ids(opened, self._tokenizer, generation),
            default_params=self._default_params,
            seed=config.seed,
        )
        self._vocab_limit = vocab_limit

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer.

        Raises:
            ConfigError: the model folder has none.
        """
        if self._tokenizer is None:
            raise ConfigError("the model folder has no tokenizer.json", hint="use prompt_token_ids")
        return self._tokenizer

    @property
    def default_params(self) -> SamplingParams:
        """What is used where no sampling parameters are passed: the model's generation_config.json."""
        return self._default_params

    @property
    def has_chat_template(self) -> bool:
        """Whether `chat` can be used."""
        return self._template is not None

    def generate(
        self,
        prompts: object,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Generate for one prompt or many, and wait for all of them.

        Args:
            prompts: a string, a list of token ids, a dict `{"prompt": ...}` or `{"prompt_token_ids": ...}`, or a list
                of those. A plain string gets the tokenizer's BOS.
            sampling_params: one for all, or a list of the same length; None takes the model's generation_config.json.
            use_tqdm: show progress.

        Returns:
            One output per prompt, in their order.

        Raises:
            RequestError: a prompt or parameter is refused; nothing has run then.
            BackendError: the engine is closed or died.
        """
        return self._run(self._gate.admit(parse_prompts(prompts), sampling_params), use_tqdm)

    def chat(
        self,
        messages: object,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        reasoning: str | None = None,
        thinking_budget: int | None = None,
        answer_reserve: int | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Answer one conversation, or a list of conversations, in the model's chat format.

        Args:
            messages: a list of `{"role": ..., "content": ...}`, or a list of such lists.
            reasoning, thinking_budget, answer_reserve, tools: not built yet.
            add_generation_prompt: end the prompt where the model's answer begins.
            chat_template_kwargs: further variables of the template.

        Raises:
            RequestError, BackendError: as `generate`; also what the template refuses.
        """
        refuse_unbuilt(reasoning=reasoning, thinking_budget=thinking_budget, answer_reserve=answer_reserve, tools=tools)
        prompts = self._render(messages, add_generation_prompt, chat_template_kwargs)
        return self._run(self._gate.admit(prompts, sampling_params), use_tqdm)

    def stream(
        self,
        prompt_or_messages: object,
        sampling_params: SamplingParams | None = None,
        *,
        add_generation_prompt: bool = True,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        **chat_options: Any,
    ) -> OutputStream:
        """Generate for one prompt or conversation and iterate over what there is so far.

        Each output is cumulative; `delta` is what is new in it. A reader that is slower than the model gets fewer and
        larger ones. Leaving the loop early (or `close()`) cancels the request.

        Raises:
            RequestError, BackendError: as `generate`, before the first step.
        """
        refuse_unbuilt(**chat_options)
        if is_conversation(prompt_or_messages):
            prompts = self._render(prompt_or_messages, add_generation_prompt, chat_template_kwargs)
        elif chat_template_kwargs is not None:
            raise RequestError("a plain prompt uses no chat template", field="chat_template_kwargs")
        else:
            prompts = parse_prompts(prompt_or_messages)
        if len(prompts) != 1:
            raise RequestError(
                "stream takes one prompt", got=len(prompts), expected=1, hint="use generate", field="prompt"
            )
        return self._engine.stream(self._gate.admit(prompts, sampling_params)[0])

    def apply_chat_template(
        self,
        messages: object,
        *,
        add_generation_prompt: bool = True,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt that `chat` would use for one conversation.

        Raises:
            RequestError: the conversation is refused, or the model has no chat template.
        """
        prompts = self._render(messages, add_generation_prompt, chat_template_kwargs)
        if len(prompts) != 1:
            raise RequestError("one conversation is expected", got=len(prompts), expected=1, field="messages")
        return prompts[0].text or ""

    def metrics(self) -> dict[str, float]:
        """Sums over all finished requests, the scheduler's counters and gauges, mean_decode_batch, bytes as planned.

        On the CPU also `weights_from_packed_file`: 1 when this load read what an earlier one had quantized, else 0.
        """
        planned = {name: getattr(self._plan, name) for name in ("weight_bytes", "kv_bytes", "scratch_bytes")}
        return {**self._engine.metrics(), **planned}

    def quantization_report(
        self, text: str | Sequence[int] | None = None, *, window_tokens: int = 256
    ) -> QuantizationReport:
        """Compare this quantized model with its float model on a text: what the quantization cost.

        The float model is loaded from the same folder, on the same device, and closed again. Other requests may run
        meanwhile.

        Args:
            text: what both models read, or its token ids; None takes a text of a few hundred words that comes with
                pyrite.
            window_tokens: the text is cut into pieces of so many tokens, each read on its own after a BOS.

        Raises:
            RequestError: this model is not quantized, or the text is empty or has ids outside the vocabulary.
            ConfigError: a text, and the model folder has no tokenizer.
            CapacityError: the float model does not fit in memory beside this one.
            CheckpointError: the folder has changed.
            BackendError: the engine is closed, or a model gives NaN.
        """
        from pyrite import receipt
        from pyrite.receipt_text import TEXT

        if self._config.quantization is None:
            raise RequestError(
                "this model is not quantized", hint='LLM(model, quantization="int4")', field="quantization"
            )
        window_tokens = receipt.check_window_tokens(window_tokens, self._plan.max_model_len - 1)
        windows = receipt.cut_windows(*self._text_ids(TEXT if text is None else text), window_tokens)
        config, plan = receipt.plan_float_model(
            self._folder, self._config, self._plan, max(map(len, windows)), self._vocab_limit
        )
        with LLM(self._folder, **dataclasses.asdict(config)) as floats:
            found = receipt.compare(self._logit_rows(), floats._logit_rows(), windows)
        return receipt.QuantizationReport(
            quantization=self._config.quantization,
            **dataclasses.asdict(found),
            weight_bytes=self._plan.weight_bytes,
            float_weight_bytes=plan.weight_bytes,
            bits_per_weight=8 * self._plan.weight_bytes / self._plan.num_parameters,
            float_bits_per_weight=8 * plan.weight_bytes / plan.num_parameters,
            num_parameters=plan.num_parameters,
            kept_float=self._plan.kept_float,
        )

    def close(self) -> None:
        """Abort what runs and free the memory. Idempotent; also done at exit, and when the object is collected."""
        self._engine.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _render(
        self, messages: object, add_generation_prompt: bool, chat_template_kwargs: Mapping[str, Any] | None
    ) -> list[RawPrompt]:
        conversations = parse_conversations(messages)
        if self._template is None:
            raise RequestError(
                "this model has no chat template",
                hint="use generate, with a prompt in the model's own format",
                code="no_chat_template",
                field="messages",
            )
        variables = template_variables(chat_template_kwargs)
        prompts = []
        for place, conversation in conversations:
            try:
                text = self._template.render(conversation, add_generation_prompt=add_generation_prompt, **variables)
            except RequestError as error:
                error.field = place + (error.field or "").removeprefix("messages")
                raise
            prompts.append(RawPrompt(place, text=text, add_special_tokens=False, split_reasoning=add_generation_prompt))
        return prompts

    def _text_ids(self, text: str | Sequence[int]) -> tuple[list[int], list[int]]:
        """(token ids, the BOS that comes before them or nothing) of a text; ids are taken as they are."""
        if not isinstance(text, str):
            if not isinstance(text, list | tuple):
                raise RequestError(
                    "not a text", got=type(text).__name__, expected="a string or token ids", field="text"
                )
            return list(text), []
        ids, bos = self.tokenizer.encode(text, add_special_tokens=False), self.tokenizer.bos_token_id
        return ids, [bos] if bos is not None and self.tokenizer.encode(text)[:1] == [bos] else []

    def _logit_rows(self) -> EngineRows:
        from pyrite.receipt import EngineRows

        return EngineRows(self._engine, self._gate, self._vocab_limit)

    def _run(self, requests: list[Request], use_tqdm: bool) -> list[RequestOutput]:
        outputs: list[RequestOutput | None] = [None] * len(requests)
        num_tokens = 0
        with tqdm(total=len(requests), desc="generating", unit="prompt", disable=not use_tqdm) as bar:
            for index, output in self._engine.run(requests):
                outputs[index] = output
                num_tokens += output.metrics.num_generated_tokens
                elapsed = bar.format_dict["elapsed"] if use_tqdm else 0.0
                if elapsed:
                    bar.set_postfix_str(f"{num_tokens / elapsed:.1f} tok/s", refresh=False)
                bar.update()
        return [output for output in outputs if output is not None]


class _PlainText(IncrementalDetokenizer):
    """All of the text; nothing is told apart."""

    reasoning = None


class _Text:
    """The engine's view of a tokenizer, and of how the model's chat format marks its thinking."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate | None) -> None:
        self._tokenizer = tokenizer
        self._marks = None if template is None else ReasoningFormat.derive(template)

    def detokenizer(self, split_reasoning: bool) -> _PlainText | ReasoningSplitter:
        if split_reasoning and self._marks is not None:
            return ReasoningSplitter(self._tokenizer, self._marks)
        return _PlainText(self._tokenizer)

    def decode_token(self, token_id: int) -> str:
        return self._tokenizer.decode([token_id], skip_special_tokens=False)


def _show(bar: tqdm[Any], done: int, total: int) -> None:
    bar.total = total
    bar.update(done - bar.n)


def _load_tokenizer(model: OpenModel) -> Tokenizer | None:
    if not (model.folder / "tokenizer.json").exists():
        _logger.warning("the model folder has no tokenizer.json: prompts are token ids, and texts stay empty")
        return None
    tokenizer = Tokenizer.from_folder(model.folder)
    tokenizer.check_vocab(model.program.vocab_size)
    return tokenizer


def _load_template(folder: Path) -> ChatTemplate | None:
    """The chat template, if the folder has one; a malformed one is an error now rather than at the first chat."""
    config = read_json(folder, "tokenizer_config.json") if (folder / "tokenizer_config.json").exists() else {}
    listed = config.get("chat_template")
    if isinstance(listed, list):
        listed = next((t for t in listed if isinstance(t, dict) and t.get("name") == "default"), None)
    if listed is None and not (folder / "chat_template.jinja").exists():
        return None
    return ChatTemplate.from_folder(folder)


def _generation_config(folder: Path) -> dict[str, Any] | None:
    return read_json(folder, "generation_config.json") if (folder / "generation_config.json").exists() else None


def _default_params(generation: Mapping[str, Any] | None) -> SamplingParams:
    """What `generation_config.json` asks for; neutral parameters where there is none."""
    if generation is None:
        return SamplingParams()
    try:
        return SamplingParams.from_generation_config(generation)
    except RequestError as error:
        raise ConfigError(
            error.what, got=error.got, expected=error.expected, field=f"generation_config.json: {error.field}"
        ) from error


def _eos_token_ids(model: OpenModel, tokenizer: Tokenizer | None, generation: Mapping[str, Any] | None) -> set[int]:
    """The ends of sequence: the tokenizer knows; without one those of `generation_config.json`, else of the config."""
    if tokenizer is not None:
        return set(tokenizer.eos_token_ids)
    listed = (generation or {}).get("eos_token_id")
    listed = listed if isinstance(listed, list) else [listed]
    return {i for i in listed if type(i) is int and 0 <= i < model.program.vocab_size} or set(
        model.config.eos_token_ids
    )
