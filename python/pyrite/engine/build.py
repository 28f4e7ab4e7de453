"""Puts an engine together: the backend with its weights, the scheduler with its blocks."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from typing import TYPE_CHECKING

from pyrite import _core
from pyrite.engine.engine import Engine
from pyrite.system import free_memory_bytes

if TYPE_CHECKING:
    from pyrite.backends.base import Backend
    from pyrite.backends.cpu import CpuBackend
    from pyrite.engine.sequence import Vocabulary
    from pyrite.engine.workbench import Workbench
    from pyrite.memory import MemoryPlan
    from pyrite.settings import EngineConfig, Environment
    from pyrite.source import OpenModel


PROBE_BYTES = 1 << 30
"""What the bandwidth probe reads."""

CPU_MIXED_PREFILL_TOKENS = 128
"""Prompt tokens of a step with decodes, by default: a step of 128 is about a fifth slower per token than one of 512,
and far shorter."""


def machine() -> dict[str, object]:
    """Version of pyrite and what it sees of the processor: `isa`, `isa_levels`, `physical_cores`."""
    return {"pyrite": _core.__version__, **_core.cpu_info()}


def default_num_threads() -> int:
    """Physical cores within this process's affinity and cgroup quota."""
    cores = _core.cpu_info()["physical_cores"]
    return cores if isinstance(cores, int) else 1


def num_threads(config: EngineConfig, environment: Environment) -> int:
    """Worker threads: as asked for, or the physical cores."""
    return config.num_threads or environment.num_threads or default_num_threads()


def measure_bandwidth(threads: int) -> float:
    """GB/s of sequential reads, median of 5; of a buffer that no cache holds, or as much of one as memory allows."""
    size = min(PROBE_BYTES, free_memory_bytes() // 4)
    return statistics.median(_core.read_bandwidth(size, threads, 5))


def measure_peak(kind: str, threads: int, isa: str | None = None) -> float:
    """10^9 operations per second of "fp32", "bf16", "int4", "int8" or "int16" multiply-adds at a level, median of 3."""
    return statistics.median(_core.peak_flops(kind, threads, 3, isa)) / 1e9


def build_engine(
    model: OpenModel,
    config: EngineConfig,
    environment: Environment,
    plan: MemoryPlan,
    *,
    vocabulary: Vocabulary | None,
    vocab_limit: int,
    progress: Callable[[int, int], None] | None,
) -> Engine:
    """Load the weights and return an idle engine.

    Args:
        plan: the device, and the sizes of everything.
        progress: called with (bytes done, bytes in all).

    Raises:
        CheckpointError, CapacityError, ConfigError, BackendError: the weights cannot be loaded.
    """
    scheduler = _scheduler(config, plan)
    backend: Backend
    facts: dict[str, float] = {}
    if plan.device == "cuda":
        backend = _cuda_backend(model, config, environment, plan, progress)
    else:
        backend = _cpu_backend(model, config, environment, plan, progress)
        facts["weights_from_packed_file"] = float(backend.info()["from_packed_file"] is True)
    return Engine(scheduler, backend, vocabulary=vocabulary, vocab_limit=vocab_limit, facts=facts)


def build_workbench(
    model: OpenModel, config: EngineConfig, environment: Environment, plan: MemoryPlan, *, vocab_limit: int
) -> Workbench:
    """Load the weights on the CPU, to be measured.

    Raises:
        CheckpointError, CapacityError, ConfigError: the weights cannot be loaded.
    """
    from pyrite.engine.workbench import Workbench

    scheduler = _scheduler(config, plan)
    backend = _cpu_backend(model, config, environment, plan, None)
    return Workbench(scheduler, backend, step_tokens=config.max_num_batched_tokens, vocab_limit=vocab_limit)


def _scheduler(config: EngineConfig, plan: MemoryPlan) -> _core.Scheduler:
    mixed = config.max_num_mixed_prefill_tokens
    if mixed is None and plan.device == "cpu":
        mixed = CPU_MIXED_PREFILL_TOKENS
    return _core.Scheduler(
        groups=[(group.window, group.num_blocks) for group in plan.kv_groups],
        block_size=config.block_size,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_logit_rows=config.max_logit_rows,
        max_model_len=plan.max_model_len,
        enable_prefix_caching=config.enable_prefix_caching,
        hash_key=int.from_bytes(os.urandom(8), "little"),
        max_num_mixed_prefill_tokens=mixed,
    )


def _cpu_backend(
    model: OpenModel,
    config: EngineConfig,
    environment: Environment,
    plan: MemoryPlan,
    progress: Callable[[int, int], None] | None,
) -> CpuBackend:
    from pyrite.backends.cpu import CpuBackend

    return CpuBackend(
        model.program,
        model.weights.source,  # type: ignore[arg-type]
        block_size=config.block_size,
        num_blocks=[group.num_blocks for group in plan.kv_groups],
        max_tokens=config.max_num_batched_tokens,
        max_rows=config.max_logit_rows,
        max_seqs=config.max_num_seqs,
        kv_dtype=plan.kv_cache_dtype,
        weight_dtype=None if config.dtype == "auto" else config.dtype,
        num_threads=num_threads(config, environment),
        isa=environment.cpu_isa,
        progress=progress,
        packed_folder=None if environment.cache_dir is None else os.path.join(environment.cache_dir, "packed"),
    )


def _cuda_backend(
    model: OpenModel,
    config: EngineConfig,
    environment: Environment,
    plan: MemoryPlan,
    progress: Callable[[int, int], None] | None,
) -> Backend:
    from pyrite.backends.cuda import CudaBackend

    return CudaBackend(
        model.program,
        model.weights,
        block_size=config.block_size,
        num_blocks=[group.num_blocks for group in plan.kv_groups],
        max_tokens=config.max_num_batched_tokens,
        max_rows=config.max_logit_rows,
        max_seqs=config.max_num_seqs,
        max_model_len=plan.max_model_len,
        dtype=plan.dtype,
        kv_dtype=plan.kv_cache_dtype,
        graphs=environment.cuda_graphs,
        num_threads=num_threads(config, environment),
        progress=progress,
    )
