"""How much memory a model takes, and how it is dealt out: `plan` tells before loading, `LLM` obeys the same numbers."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from pyrite.backends.base import kv_block_bytes
from pyrite.backends.devices import (
    Device,
    check_cuda_dtypes,
    cuda_program,
    cuda_quantized_bytes,
    free_device_bytes,
    resolve_device,
)
from pyrite.errors import CapacityError, ConfigError
from pyrite.settings import EngineConfig, FloatDtype, KvDtype
from pyrite.source import open_model, resolve_folder
from pyrite.system import free_memory_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from pyrite.models.program import KvGroup, Parameter, Program
    from pyrite.source import OpenModel
    from pyrite.weights.reader import Weights

_ITEMSIZE: dict[str, int] = {"float32": 4, "float16": 2, "bfloat16": 2}
_SAFETENSORS_DTYPE: dict[str, FloatDtype] = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}

_logger = logging.getLogger("pyrite")


@dataclass(frozen=True, slots=True)
class KvGroupPlan:
    """KV blocks of the layers that keep the same keys: all of them (`window` None) or the last `window`."""

    window: int | None
    num_layers: int
    block_bytes: int
    num_blocks: int


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes of a loaded model, and the sizes they follow from.

    Args:
        num_parameters: of the text model.
        weight_bytes: packed weights.
        kv_bytes: key and value blocks of all groups.
        scratch_bytes: activations of the largest step.
        logits_bytes: logits rows of the largest step; taken only as far as rows are asked for.
        capacity_tokens: tokens of sequences, together, that the KV blocks hold for sure.
        device: what it runs on; all bytes are on that device.
        dtype: of float matrices on a GPU; "auto" on the CPU, where each keeps its own.
        quantization: by name, or None.
        kept_float: what of the matrices of linears does not divide into the quantization's groups, in words.
    """

    architecture: str
    num_parameters: int
    weight_bytes: int
    kv_bytes: int
    scratch_bytes: int
    logits_bytes: int
    kv_groups: tuple[KvGroupPlan, ...]
    kv_cache_dtype: KvDtype
    block_size: int
    max_num_seqs: int
    max_model_len: int
    capacity_tokens: int
    device: Device
    dtype: str
    quantization: str | None = None
    kept_float: tuple[str, ...] = ()

    @property
    def total_bytes(self) -> int:
        """Everything together."""
        return self.weight_bytes + self.kv_bytes + self.scratch_bytes + self.logits_bytes

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists and numbers, `total_bytes` included."""
        return {**dataclasses.asdict(self), "total_bytes": self.total_bytes}


def plan(model: str | os.PathLike[str] | None = None, **keywords: Any) -> MemoryPlan:
    """Tell what `LLM(model, **keywords)` would take. Reads headers only, loads nothing.

    Raises:
        ConfigError, CheckpointError: a keyword or the folder is wrong.
        CapacityError: it would not fit.
    """
    config = engine_config(keywords)
    return plan_memory(open_for(resolve_folder(model, config.revision), config), config)


def open_for(folder: Path, config: EngineConfig) -> OpenModel:
    """`open_model` with what of a config it depends on.

    Raises:
        ConfigError, CheckpointError: as `open_model`.
    """
    return open_model(folder, strict=config.strict, quantization=config.quantization)


def engine_config(keywords: dict[str, Any]) -> EngineConfig:
    """`EngineConfig(**keywords)`, with an error that names an unknown keyword.

    Raises:
        ConfigError: unknown keyword or bad value.
    """
    known = [f.name for f in dataclasses.fields(EngineConfig)]
    for name in keywords:
        if name not in known:
            raise ConfigError("unknown keyword", got=name, expected=", ".join(known), field=name)
    return EngineConfig(**keywords)


def plan_memory(model: OpenModel, config: EngineConfig) -> MemoryPlan:
    """Size everything for an opened model.

    KV blocks are dealt so that every group holds the same number of tokens, up to what `max_num_seqs` sequences of
    `max_model_len` need. Without `kv_cache_memory` they get at most half of the memory that weights leave free; a
    default `max_model_len` that does not fit shrinks with a warning. On a GPU it is the device's memory that counts.

    Raises:
        ConfigError: `max_model_len` beyond the model's; device "cuda" where it cannot be, or with keys of another dtype
            than the matrices.
        BackendError: device "cuda" with a GPU that does not work.
        CapacityError: the weights, or one sequence of an explicit `max_model_len`, or one block, do not fit.
    """
    device = resolve_device(config.device)
    rows = config.max_logit_rows
    program, dtype, itemsize = model.program, config.dtype, 4
    if device == "cuda":
        program, dtype = cuda_program(program), matrix_dtype(model.weights, program, config)
        itemsize = _ITEMSIZE[dtype]
    weight_bytes, num_parameters = _weights(program, model.weights, dtype, device)
    scratch = program.scratch_bytes(max_tokens=config.max_num_batched_tokens, max_rows=rows, itemsize=itemsize)
    logits = 4 * rows * program.vocab_size
    kv_dtype = kv_cache_dtype(model.weights, program, config, device)
    if device != "cpu" and kv_dtype in ("int8", "int16"):
        raise ConfigError(
            "integer keys and values are built for the CPU only", got=kv_dtype, expected=dtype, field="kv_cache_dtype"
        )
    if device == "cuda":
        check_cuda_dtypes(dtype, kv_dtype)
    on_device = free_memory_bytes() if device == "cpu" else free_device_bytes()
    free = on_device - weight_bytes - scratch - logits
    if free <= 0:
        raise CapacityError(
            "the model does not fit in memory",
            got=f"{on_device} bytes free on {device}",
            expected=weight_bytes + scratch + logits,
            hint=None if config.quantization else 'quantization="int4" takes about a quarter of 16-bit weights',
        )
    budget = config.kv_cache_memory if config.kv_cache_memory is not None else free // 2
    if budget > free:
        raise CapacityError(
            "not that much memory is free", got=budget, expected=f"at most {free}", field="kv_cache_memory"
        )
    sizes = _KvSizes(program.kv_groups, config, kv_dtype)
    max_model_len, capacity = _fit(sizes, config, model.config.max_position_embeddings, budget)
    groups = tuple(
        KvGroupPlan(g.window, g.num_layers, size, blocks)
        for g, size, blocks in zip(program.kv_groups, sizes.block_bytes, sizes.num_blocks(capacity), strict=True)
    )
    return MemoryPlan(
        architecture=model.config.architecture,
        num_parameters=num_parameters,
        weight_bytes=weight_bytes,
        kv_bytes=sizes.total_bytes(capacity),
        scratch_bytes=scratch,
        logits_bytes=logits,
        kv_groups=groups,
        kv_cache_dtype=kv_dtype,
        block_size=config.block_size,
        max_num_seqs=config.max_num_seqs,
        max_model_len=max_model_len,
        capacity_tokens=capacity,
        device=device,
        dtype=dtype,
        quantization=config.quantization,
        kept_float=model.kept_float,
    )


def kv_cache_dtype(weights: Weights, program: Program, config: EngineConfig, device: Device) -> KvDtype:
    """The dtype of keys and values: as asked for, or that of the (converted) matrices; on the CPU integers of 16 bits
    in place of floats of 16, since they are more exact and faster."""
    if config.kv_cache_dtype in get_args(KvDtype):
        return config.kv_cache_dtype  # type: ignore[return-value]
    dtype = matrix_dtype(weights, program, config)
    return "int16" if device == "cpu" and dtype != "float32" else dtype


def matrix_dtype(weights: Weights, program: Program, config: EngineConfig) -> FloatDtype:
    """The dtype of matrices: as asked for, or that of most of them on disk."""
    if config.dtype in get_args(FloatDtype):
        return config.dtype  # type: ignore[return-value]
    found = weights.tensors()
    matrices = [found[p.sources[0]][0] for p in program.parameters if p.kind == "matrix"]
    most = max(set(matrices), key=matrices.count, default="F32")
    return _SAFETENSORS_DTYPE.get(most, "float32")


def _weights(program: Program, weights: Weights, dtype: str, device: Device) -> tuple[int, int]:
    """(bytes, number) of all parameters once loaded: float matrices in `dtype`, or as stored under "auto"; vectors in
    f32."""
    found = weights.tensors()
    num_bytes = number = 0
    for parameter in program.parameters:
        size = math.prod(parameter.shape)
        number += size
        if parameter.kind == "vector":
            num_bytes += 4 * size
        else:
            stored = _SAFETENSORS_DTYPE.get(found[parameter.sources[0]][0], "float32")
            num_bytes += _matrix_bytes(parameter, stored if dtype == "auto" else dtype, device)
    return num_bytes, number


def _matrix_bytes(parameter: Parameter, dtype: str, device: Device) -> int:
    """Bytes of a loaded matrix: `dtype` where it has no scheme."""
    if device == "cpu":
        from pyrite.backends.cpu import matrix_bytes

        return matrix_bytes(parameter, dtype)
    if parameter.quant is not None:
        return cuda_quantized_bytes(parameter.quant, *parameter.shape)
    return math.prod(parameter.shape) * _ITEMSIZE[dtype]


class _KvSizes:
    """Blocks and bytes per KV group for a capacity in tokens.

    A full group needs a block per `block_size` tokens. A window group needs no more than its running sequences keep: a
    window each, any alignment, and the tokens of one step.
    """

    def __init__(self, groups: tuple[KvGroup, ...], config: EngineConfig, kv_dtype: KvDtype) -> None:
        self.block_size = config.block_size
        self.block_bytes = [kv_block_bytes(group, config.block_size, kv_dtype) for group in groups]
        step_blocks = -(-config.max_num_batched_tokens // config.block_size)
        self._most = [
            None
            if group.window is None
            else config.max_num_seqs * (-(-(group.window - 1) // config.block_size) + 2) + step_blocks
            for group in groups
        ]

    def num_blocks(self, tokens: int) -> list[int]:
        """Blocks per group."""
        blocks = -(-tokens // self.block_size)
        return [blocks if most is None else min(blocks, most) for most in self._most]

    def total_bytes(self, tokens: int) -> int:
        """Bytes of all groups."""
        return sum(n * size for n, size in zip(self.num_blocks(tokens), self.block_bytes, strict=True))

    def most_tokens(self, budget: int, at_most: int) -> int:
        """The largest capacity, a multiple of the block size up to `at_most`, whose bytes are within `budget`."""
        low, high = 0, -(-at_most // self.block_size)
        while low < high:
            middle = (low + high + 1) // 2
            if self.total_bytes(middle * self.block_size) <= budget:
                low = middle
            else:
                high = middle - 1
        return low * self.block_size


def _fit(sizes: _KvSizes, config: EngineConfig, longest: int, budget: int) -> tuple[int, int]:
    """(max_model_len, capacity in tokens) within `budget` bytes, for a model of at most `longest` positions."""
    wanted = config.max_model_len if config.max_model_len is not None else longest
    if wanted > longest:
        raise ConfigError(
            "longer than the model's context", got=wanted, expected=f"at most {longest}", field="max_model_len"
        )
    per_sequence = -(-wanted // sizes.block_size) * sizes.block_size
    capacity = sizes.most_tokens(budget, config.max_num_seqs * per_sequence)
    if capacity >= wanted:
        return wanted, capacity
    if capacity == 0 or config.max_model_len is not None:
        raise CapacityError(
            "the KV blocks cannot hold one sequence",
            got=f"{budget} bytes",
            expected=f"{sizes.total_bytes(per_sequence if config.max_model_len else sizes.block_size)} bytes",
            hint="raise kv_cache_memory, or lower max_model_len",
            field="kv_cache_memory",
        )
    _logger.warning("max_model_len shrinks from %d to %d tokens: that is what the memory holds", wanted, capacity)
    return capacity, capacity
