"""Parameters on their way to the GPU: converted or quantized on the host, one at a time, copied into their place."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pyrite_kernels.quantized import TILE_ROWS, QuantizedWeight

from pyrite import _core
from pyrite.backends.devices import cuda_quantized_bytes
from pyrite.errors import CheckpointError, InternalError

if TYPE_CHECKING:
    from pyrite.models.program import Parameter, Program
    from pyrite.quant.scheme import QuantScheme
    from pyrite.weights.reader import Weights

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


Parameters = dict[str, Any]
"""By name: `torch.Tensor`, or `QuantizedWeight` for a matrix with a scheme."""

_CODES_AT_ONCE = 4 << 20  # re-shuffled at a time, which takes about ten bytes of the device for each


def load_parameters(
    program: Program,
    weights: Weights,
    *,
    dtype: torch.dtype,
    device: torch.device,
    num_threads: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Parameters:
    """Load every parameter of a program; the host holds one of them at a time, as integers, or one float tensor.

    Args:
        dtype: of float matrices; vectors become f32.
        num_threads: that find the integers of matrices with a scheme.
        progress: called with (bytes done, bytes in all), counted on the device.

    Raises:
        CheckpointError: a tensor is missing or of the wrong shape or dtype, or a weight to quantize is not finite.
    """
    total = sum(_num_bytes(parameter, dtype) for parameter in program.parameters)
    done = 0

    def count(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        if progress is not None:
            progress(done, total)

    loaded: Parameters = {}
    for parameter in program.parameters:
        _check_sources(parameter, weights)
        if parameter.quant is None:
            kept = dtype if parameter.kind == "matrix" else torch.float32
            loaded[parameter.name] = _load_float(parameter, weights, kept, device, count)
        else:
            loaded[parameter.name] = _load_integers(parameter, parameter.quant, weights, device, num_threads)
            count(_num_bytes(parameter, dtype))
    return loaded


def _check_sources(parameter: Parameter, weights: Weights) -> None:
    """Look at the headers: every tensor is there, and together they fill the parameter."""
    found, shapes = weights.tensors(), parameter.source_shapes()
    for name, shape in shapes.items():
        if name not in found:
            raise CheckpointError("tensor is missing", field=name)
        if tuple(found[name][1]) != shape:
            got = list(found[name][1])
            raise CheckpointError("tensor has the wrong shape", got=got, expected=list(shape), field=name)
    rows = sum(shape[0] for shape in shapes.values())
    if rows != parameter.shape[0]:
        raise InternalError("sources do not fill their parameter", got=rows, field=parameter.name)


def _load_float(
    parameter: Parameter, weights: Weights, dtype: torch.dtype, device: torch.device, count: Callable[[int], None]
) -> torch.Tensor:
    target = torch.empty(parameter.shape, dtype=dtype, device=device)
    start = 0
    for name in parameter.sources:
        part = read_tensor(weights, name)
        target[start : start + len(part)].copy_(part.to(dtype))
        start += len(part)
        count(part.numel() * dtype.itemsize)
    return target


def _load_integers(
    parameter: Parameter, scheme: QuantScheme, weights: Weights, device: torch.device, num_threads: int
) -> QuantizedWeight:
    """Quantize on the host; re-shuffle on the device, some rows at a time."""
    numbers = {"bits": scheme.bits, "group_size": scheme.group_size}
    arrays = _core.quantize_tensors(
        weights.source,  # type: ignore[arg-type]
        parameter.sources,
        symmetric=scheme.symmetric,
        groups_per_scale=scheme.groups_per_scale,
        num_threads=num_threads,
        **numbers,
    )
    host = [None if array is None else torch.from_numpy(array) for array in arrays]
    rows, inputs = parameter.shape
    step = max(TILE_ROWS, _CODES_AT_ONCE // inputs // TILE_ROWS * TILE_ROWS)
    whole: QuantizedWeight | None = None
    for start in range(0, rows, step):
        codes, scales, zeros = (None if x is None else x[start : start + step].to(device) for x in host)
        part = QuantizedWeight.from_canonical(codes, scales, zeros, **numbers)  # type: ignore[arg-type]
        if part.out_features == rows:
            return part
        whole = _room_for(part, parameter.shape) if whole is None else whole
        tile = start // TILE_ROWS
        whole.words[tile : tile + len(part.words)].copy_(part.words)
        whole.params[:, start : start + part.params.shape[1]].copy_(part.params)
    if whole is None:
        raise InternalError("a matrix without rows", field=parameter.name)
    return whole


def _room_for(part: QuantizedWeight, shape: tuple[int, ...]) -> QuantizedWeight:
    """An integer weight like `part`, with more rows, that is still to be filled."""
    tiles = -(-shape[0] // TILE_ROWS)
    words = part.words.new_empty((tiles, *part.words.shape[1:]))
    params = part.params.new_empty((part.params.shape[0], tiles * TILE_ROWS))
    return QuantizedWeight(words, params, shape, part.bits, part.group_size, part.symmetric)


def read_tensor(weights: Weights, name: str) -> torch.Tensor:
    """One tensor of the checkpoint in its own dtype, on the host.

    Raises:
        CheckpointError: it is missing, or its dtype is not F32, F16 or BF16.
    """
    found = weights.tensors().get(name)
    if found is None:
        raise CheckpointError("tensor is missing", field=name)
    stored, shape = found
    if stored not in _DTYPES:
        raise CheckpointError("tensor has the wrong dtype", got=stored, expected=", ".join(_DTYPES), field=name)
    tensor = torch.empty(shape, dtype=_DTYPES[stored])
    tensor.view(-1).view(torch.uint8).numpy()[:] = np.frombuffer(weights.read(name), np.uint8)
    return tensor


def _num_bytes(parameter: Parameter, dtype: torch.dtype) -> int:
    if parameter.quant is not None:
        return cuda_quantized_bytes(parameter.quant, *parameter.shape)
    itemsize = dtype.itemsize if parameter.kind == "matrix" else 4
    return int(np.prod(parameter.shape, dtype=np.int64)) * itemsize
