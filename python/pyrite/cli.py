"""The command line: `pyrite generate | info | bench | env`. A thin shell; heavy modules load when they are needed.

Exit codes: 0 done, 1 the engine failed, 2 the user's input is wrong, 130 interrupted.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pyrite.errors import CapacityError, PyriteError

if TYPE_CHECKING:
    from pyrite.llm import LLM
    from pyrite.params import SamplingParams

app = typer.Typer(
    name="pyrite",
    help="Run open-weight language models on this machine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

_Model = Annotated[str | None, typer.Option(help="A model folder or Hub id; the starter model when left out.")]
_Threads = Annotated[int | None, typer.Option(help="Worker threads; the physical cores when left out.")]
_MaxLen = Annotated[int | None, typer.Option(help="Most tokens of a sequence, prompt included.")]
_Quantization = Annotated[str | None, typer.Option(help="int4, int8, ...; float weights when left out.")]
_Dtype = Annotated[str, typer.Option(help="auto, float32, float16 or bfloat16.")]


def main() -> None:
    """Entry point: typed errors as two lines without a traceback."""
    try:
        app(prog_name="pyrite", standalone_mode=False)
    except typer.Exit as done:
        sys.exit(done.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except PyriteError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ValueError | CapacityError) else 1)
    except Exception as error:
        show = getattr(error, "show", None)  # a usage error of the command line parser
        if show is None:
            raise
        show()
        sys.exit(getattr(error, "exit_code", 2))


@app.callback()
def _setup() -> None:
    from pyrite.settings import Environment

    level = Environment.read().log
    logging.basicConfig(level=level.upper(), format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("pyrite").setLevel(level.upper())


@app.command()
def generate(
    prompt: Annotated[str | None, typer.Argument(help="The prompt; standard input when left out.")] = None,
    model: _Model = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text as it is, without the chat template.")] = False,
    system: Annotated[str | None, typer.Option(help="A system message, where the chat template is used.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Most new tokens; what fits when left out.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 always takes the most likely token.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Keep the k most likely tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Keep the likely tokens that reach this probability.")] = None,
    min_p: Annotated[float | None, typer.Option(help="Drop tokens less likely than this times the likeliest.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same text.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Stop before this text; may be repeated.")] = None,
    dtype: _Dtype = "auto",
    quantization: _Quantization = None,
    max_model_len: _MaxLen = None,
    num_threads: _Threads = None,
) -> None:
    """Generate text and stream it to standard output.

    A model with a chat template answers the prompt as a user's message, unless --raw is given.
    """
    from pyrite.errors import RequestError
    from pyrite.llm import LLM

    if prompt is None:
        if sys.stdin.isatty():
            raise RequestError(
                "no prompt", hint='pyrite generate "Once upon a time", or pipe a text in', field="PROMPT"
            )
        prompt = sys.stdin.read()
    given = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "seed": seed,
        "stop": stop or None,
    }
    overrides = {name: value for name, value in given.items() if value is not None}
    settings: Any = {"dtype": dtype, "quantization": quantization, "max_model_len": max_model_len}
    with LLM(model, **settings, num_threads=num_threads) as llm:
        chat = not raw and llm.has_chat_template
        if system is not None and not chat:
            raise RequestError("a system message needs a chat template", field="--system")
        params = _params(llm, overrides)
        messages: Any = [{"role": "system", "content": system}] if system is not None else []
        source = [*messages, {"role": "user", "content": prompt}] if chat else prompt
        _write(llm, source, params)


def _params(llm: LLM, overrides: dict[str, Any]) -> SamplingParams:
    """The model's own defaults with the command line's values on top."""
    import dataclasses

    return dataclasses.replace(llm.default_params, **overrides)


def _write(llm: LLM, source: object, params: SamplingParams) -> None:
    from pyrite.errors import BackendError

    output = None
    with llm.stream(source, params) as outputs:
        for output in outputs:
            sys.stdout.write(output.delta)
            sys.stdout.flush()
    sys.stdout.write("\n")
    if output is not None and output.outputs[0].error is not None:
        raise BackendError(output.outputs[0].error)


@app.command()
def info(
    folder: Annotated[
        str | None, typer.Argument(help="A model folder or Hub id; the starter model when left out.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    dtype: _Dtype = "auto",
    quantization: _Quantization = None,
    max_model_len: _MaxLen = None,
    max_num_seqs: Annotated[int, typer.Option(help="Sequences that run together.")] = 16,
) -> None:
    """Describe a model and the memory it would take. Reads headers only."""
    from pyrite.memory import open_for, plan_memory
    from pyrite.settings import EngineConfig
    from pyrite.source import resolve_folder

    config = EngineConfig(
        dtype=dtype, quantization=quantization, max_model_len=max_model_len, max_num_seqs=max_num_seqs
    )
    model = open_for(resolve_folder(folder), config)
    plan = plan_memory(model, config)
    facts: dict[str, Any] = {
        "folder": str(Path(model.folder).resolve()),
        **plan.to_dict(),
        "checkpoint_bytes": model.weights.source.num_bytes(),  # type: ignore[attr-defined]
        "skipped_tensors": len(model.skipped),
        "vocab_size": model.config.vocab_size,
        "hidden_size": model.config.hidden_size,
        "intermediate_size": model.config.intermediate_size,
        "num_layers": model.config.num_layers,
        "num_heads": model.config.num_heads,
        "num_kv_heads": model.config.num_kv_heads,
        "head_dim": model.config.head_dim,
        "max_position_embeddings": model.config.max_position_embeddings,
        "tie_word_embeddings": model.config.tie_word_embeddings,
    }
    _print(facts, as_json)


@app.command()
def bench(
    model: Annotated[
        str | None, typer.Argument(help="A model folder or Hub id; the starter model when left out.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    dtype: _Dtype = "auto",
    quantization: _Quantization = None,
    kv_cache_dtype: Annotated[str, typer.Option(help="auto, or a type of keys and values.")] = "auto",
    prompt_tokens: Annotated[int, typer.Option(help="Tokens of the prompt whose prefill is timed.")] = 512,
    context_tokens: Annotated[int, typer.Option(help="Context of the second decode.")] = 2048,
    sequences: Annotated[int, typer.Option(help="Sequences that decode together in the third.")] = 16,
    decode_tokens: Annotated[int, typer.Option(help="Tokens drawn per sequence and measurement.")] = 32,
    repeats: Annotated[int, typer.Option(help="Measurements of each kind of work.")] = 3,
    num_threads: _Threads = None,
) -> None:
    """Measure a model on this machine: bytes, operations and time of every op, and what bounds it."""
    from pyrite.benchmark import Work, benchmark

    work = Work(prompt_tokens, context_tokens, sequences, decode_tokens, repeats)
    settings: dict[str, Any] = {"dtype": dtype, "quantization": quantization, "kv_cache_dtype": kv_cache_dtype}
    report = benchmark(model, work, **settings, num_threads=num_threads)
    print(json.dumps(report.to_dict(), indent=2) if as_json else report)


@app.command()
def env(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Show the versions, the processor and the settings that pyrite sees."""
    import dataclasses
    import importlib.metadata
    import platform

    from pyrite.engine.build import machine
    from pyrite.settings import Environment
    from pyrite.system import free_memory_bytes

    facts: dict[str, Any] = {"python": platform.python_version(), "platform": platform.platform()}
    for name in ("numpy", "tokenizers", "safetensors", "huggingface_hub", "torch", "triton"):
        try:
            facts[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            facts[name] = None
    variables = {f"PYRITE_{name.upper()}": value for name, value in dataclasses.asdict(Environment.read()).items()}
    _print({**machine(), **facts, "free_memory_bytes": free_memory_bytes(), **variables}, as_json)


def _print(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(facts, indent=2, default=str))
        return
    for name, value in facts.items():
        if name == "kv_groups":
            for index, group in enumerate(value):
                window = "full" if group["window"] is None else f"window {group['window']}"
                size = _size(group["num_blocks"] * group["block_bytes"])
                layers, blocks = group["num_layers"], group["num_blocks"]
                print(f"{f'kv_group {index}':<26}{window}, {layers} layers, {blocks} blocks, {size}")
        else:
            print(f"{name:<26}{_shown(name, value)}")


def _shown(name: str, value: object) -> str:
    if isinstance(value, list | tuple):
        return "; ".join(map(str, value))
    if not isinstance(value, int) or isinstance(value, bool):
        return str(value)
    return f"{value:,} ({_size(value)})" if name.endswith("_bytes") else f"{value:,}"


def _size(num_bytes: int) -> str:
    size = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{size:.4g} {unit}"
