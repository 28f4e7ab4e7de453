"""`pyrite bench`: how fast a model runs on this machine, and what holds each op back.

Every kind of work is timed as a whole and op by op. An op moves bytes (weights, keys and values, inputs and outputs)
and does operations; the machine's read bandwidth and its arithmetic peak, both measured beside the work, say how long
that must take at least. The nearer of the two roofs is what bounds the op.
Source: the roofline model, Williams, Waterman and Patterson, CACM 52(4), 2009.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyrite.engine.build import build_workbench, machine, measure_bandwidth, measure_peak, num_threads
from pyrite.errors import ConfigError
from pyrite.memory import engine_config, open_for, plan_memory
from pyrite.settings import EngineConfig, Environment
from pyrite.source import resolve_folder

if TYPE_CHECKING:
    from pyrite.engine.workbench import Timed, Workbench

EMPTY_CONTEXT = 8
"""Tokens of the prompt where the context is called empty."""


@dataclass(frozen=True, slots=True)
class Work:
    """What to measure.

    Args:
        prompt_tokens: of the prompt whose prefill is timed.
        context_tokens: in the cache where decoding with a context is timed.
        sequences: that decode together.
        decode_tokens: drawn per sequence and measurement.
        repeats: measurements of each kind of work; the report has their medians.

    Raises:
        ConfigError: a number is below 1.
    """

    prompt_tokens: int = 512
    context_tokens: int = 2048
    sequences: int = 16
    decode_tokens: int = 32
    repeats: int = 3

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError("not a count", got=repr(value)[:40], expected="an integer from 1", field=name)

    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return max(self.prompt_tokens, self.context_tokens) + self.sequences + self.decode_tokens + EMPTY_CONTEXT


@dataclass(frozen=True, slots=True)
class OpReport:
    """One kind of op in one kind of work, per step.

    Args:
        milliseconds: median over the measurements.
        share: of the step's time, 0 to 1.
        num_bytes, operations: moved and done.
        achieved_gb_s, achieved_gop_s: of them in a second.
        attainable_ms: by the nearer roof; 0 where nothing is counted.
        reached: `attainable_ms` of `milliseconds`, 0 to 1 (more where caches held what is counted).
        bound: "bandwidth", "fp32", "bf16", "int4", "int8", "int16", or "" where nothing is counted.
    """

    op: str
    calls: float
    milliseconds: float
    share: float
    num_bytes: float
    operations: float
    achieved_gb_s: float
    achieved_gop_s: float
    attainable_ms: float
    reached: float
    bound: str


@dataclass(frozen=True, slots=True)
class WorkReport:
    """One kind of work.

    Args:
        bandwidth_gb_s: read by all threads just before each measurement, the roof of what moves bytes.
        tok_per_s: median over the measurements; `attainable_tok_per_s` is what the roofs would allow all ops together.
        step_ms: of one step; `engine_ms` of it is planning and sampling.
    """

    name: str
    bandwidth_gb_s: float
    tok_per_s: float
    attainable_tok_per_s: float
    step_ms: float
    engine_ms: float
    ops: tuple[OpReport, ...]


@dataclass(frozen=True, slots=True)
class BenchReport:
    """What `benchmark` found; `to_dict` and `str` show it.

    Args:
        machine: what `pyrite env` says of the processor; `isa` is the instruction level that was measured.
        bandwidth_gb_s: median over the kinds of work.
        peak_gop_s: per kind of arithmetic, of all threads in registers by the instructions of that level.
    """

    model: str
    quantization: str | None
    weight_bytes: int
    machine: dict[str, Any]
    threads: int
    bandwidth_gb_s: float
    peak_gop_s: dict[str, float]
    works: tuple[WorkReport, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists and numbers."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        peaks = ", ".join(f"{peak:,.0f} Gop/s {name}" for name, peak in self.peak_gop_s.items())
        lines = [
            f"{self.model}, {self.quantization or 'weights as they are'}, {self.weight_bytes / 1e6:,.1f} MB of weights",
            f"{self.machine['isa']}, {self.threads} threads, {self.bandwidth_gb_s:.1f} GB/s read, {peaks}",
        ]
        for work in self.works:
            share = work.tok_per_s / work.attainable_tok_per_s if work.attainable_tok_per_s else 0.0
            lines += [
                "",
                f"{work.name}: {work.tok_per_s:,.1f} tok/s, {100 * share:.0f} % of {work.attainable_tok_per_s:,.1f}; "
                f"{work.step_ms:.2f} ms a step, {work.engine_ms:.2f} of them planning and sampling; "
                f"{work.bandwidth_gb_s:.1f} GB/s read",
                f"  {'op':<24}{'calls':>6}{'ms':>9}{'share':>7}{'MB':>10}{'Gop':>9}{'GB/s':>8}{'Gop/s':>9}"
                f"{'best ms':>9}{'reached':>9}  bound by",
            ]
            lines += [f"  {_line(op)}" for op in work.ops]
        return "\n".join(lines)


def benchmark(model: str | None = None, work: Work | None = None, **keywords: Any) -> BenchReport:
    """Measure prefill, decode without and with a context, and decode of several sequences, on the CPU.

    Args:
        model: as `LLM` takes it.
        work: what to measure; prompts and contexts shrink to what the model and the memory hold.
        keywords: of `LLM`: dtype, quantization, kv_cache_dtype, num_threads, ...

    Raises:
        ConfigError, CheckpointError, CapacityError: as `LLM`; another device than the CPU.
    """
    work = work or Work()
    config = _config(keywords, work)
    environment = Environment.read()
    folder = resolve_folder(model, config.revision)
    opened = open_for(folder, config)
    most = opened.config.max_position_embeddings
    if work.longest() > most:
        room = max(1, most - work.longest() + max(work.prompt_tokens, work.context_tokens))
        work = dataclasses.replace(
            work, prompt_tokens=min(work.prompt_tokens, room), context_tokens=min(work.context_tokens, room)
        )
    config = dataclasses.replace(config, max_model_len=work.longest())
    plan = plan_memory(opened, config)
    threads = num_threads(config, environment)
    bench = build_workbench(opened, config, environment, plan, vocab_limit=opened.program.vocab_size)
    try:
        timed = _measure(bench, work, threads)
    finally:
        bench.close()
    kinds = sorted({op["arithmetic"] for runs in timed.values() for _, run in runs for op in run.ops})
    facts = machine()
    isa = environment.cpu_isa or str(facts["isa"])
    peaks = {kind: measure_peak(kind, threads, isa) for kind in kinds}
    works = tuple(_report(name, runs, peaks) for name, runs in timed.items())
    return BenchReport(
        model=str(folder),
        quantization=config.quantization,
        weight_bytes=plan.weight_bytes,
        machine=facts | {"isa": isa},
        threads=threads,
        bandwidth_gb_s=statistics.median(report.bandwidth_gb_s for report in works),
        peak_gop_s=peaks,
        works=works,
    )


def _config(keywords: dict[str, Any], work: Work) -> EngineConfig:
    config = engine_config({"device": "cpu", "max_num_seqs": work.sequences, "enable_prefix_caching": False} | keywords)
    if config.device != "cpu":
        raise ConfigError(
            "only the CPU can be measured op by op",
            got=config.device,
            expected="cpu",
            hint="bench/gpu_suite.py measures the kernels of a GPU",
            field="device",
        )
    return config


def _measure(bench: Workbench, work: Work, threads: int) -> dict[str, list[tuple[float, Timed]]]:
    """Read bandwidth and times of all kinds of work in turns, so that drifts of the machine meet all of them; the first
    turn warms up."""
    works: dict[str, Callable[[], Timed]] = {
        f"prefill of {work.prompt_tokens} tokens": lambda: bench.prefill(work.prompt_tokens)
    }
    for what, sequences, context in (
        ("empty context", 1, EMPTY_CONTEXT),
        (f"context of {work.context_tokens} tokens", 1, work.context_tokens),
        (f"{work.sequences} sequences", work.sequences, EMPTY_CONTEXT),
    ):
        works[f"decode, {what}"] = functools.partial(bench.decode, sequences, context, work.decode_tokens)
    timed: dict[str, list[tuple[float, Timed]]] = {name: [] for name in works}
    for turn in range(work.repeats + 1):
        for name, run in works.items():
            bandwidth = measure_bandwidth(threads)
            result = run()
            if turn:
                timed[name].append((bandwidth, result))
    return timed


def _report(name: str, measured: list[tuple[float, Timed]], peak_gop_s: dict[str, float]) -> WorkReport:
    """Medians over the measurements, which are all of the same steps."""
    bandwidth_gb_s, runs = statistics.median(bandwidth for bandwidth, _ in measured), [run for _, run in measured]
    steps = max(op["calls"] for op in runs[0].ops if op["op"] == "head")
    step_ms = 1e3 * statistics.median(run.seconds for run in runs) / steps
    ops = []
    for index, op in enumerate(runs[0].ops):
        taken_ms = 1e3 * statistics.median(run.ops[index]["seconds"] for run in runs) / steps
        moved, done = op["bytes"] / steps, op["operations"] / steps
        moving_ms, doing_ms = moved / bandwidth_gb_s / 1e6, done / peak_gop_s[op["arithmetic"]] / 1e6
        attainable_ms = max(moving_ms, doing_ms)
        bound = "" if moved == 0 else "bandwidth" if moving_ms >= doing_ms else op["arithmetic"]
        measurable_ms = max(taken_ms, 1e-6)
        ops.append(
            OpReport(
                op=op["op"],
                calls=op["calls"] / steps,
                milliseconds=taken_ms,
                share=taken_ms / step_ms,
                num_bytes=moved,
                operations=done,
                achieved_gb_s=moved / measurable_ms / 1e6,
                achieved_gop_s=done / measurable_ms / 1e6,
                attainable_ms=attainable_ms,
                reached=attainable_ms / measurable_ms,
                bound=bound,
            )
        )
    at_best_ms = sum(op.attainable_ms for op in ops)
    tokens_per_step = runs[0].tokens / steps
    return WorkReport(
        name=name,
        bandwidth_gb_s=bandwidth_gb_s,
        tok_per_s=tokens_per_step / step_ms * 1e3,
        attainable_tok_per_s=tokens_per_step / at_best_ms * 1e3 if at_best_ms else 0.0,
        step_ms=step_ms,
        engine_ms=1e3 * statistics.median(run.seconds - sum(op["seconds"] for op in run.ops) for run in runs) / steps,
        ops=tuple(sorted(ops, key=lambda op: -op.milliseconds)),
    )


def _line(op: OpReport) -> str:
    return (
        f"{op.op:<24}{op.calls:>6.0f}{op.milliseconds:>9.3f}{100 * op.share:>6.1f}%{op.num_bytes / 1e6:>10.2f}"
        f"{op.operations / 1e9:>9.3f}{op.achieved_gb_s:>8.1f}{op.achieved_gop_s:>9.1f}{op.attainable_ms:>9.3f}"
        f"{100 * op.reached:>7.0f} %  {op.bound or '-'}"
    )
