"""Parameters on their way to the GPU: read tensor by tensor, converted on the host, copied into their place."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

from pyrite.errors import CheckpointError, InternalError

if TYPE_CHECKING:
    from pyrite.models.program import Parameter, Program
    from pyrite.weights.reader import Weights

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def load_parameters(
    program: Program,
    weights: Weights,
    *,
    dtype: torch.dtype,
    device: torch.device,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, torch.Tensor]:
    """Load every parameter of a program; the host holds one tensor of the checkpoint at a time.

    Args:
        dtype: of matrices; vectors become f32.
        progress: called with (bytes done, bytes in all), counted on the device.

    Raises:
        CheckpointError: a tensor is missing or of the wrong shape or dtype.
    """
    total = sum(_num_bytes(parameter, dtype) for parameter in program.parameters)
    done = 0
    loaded: dict[str, torch.Tensor] = {}
    for parameter in program.parameters:
        kept = dtype if parameter.kind == "matrix" else torch.float32
        target = torch.empty(parameter.shape, dtype=kept, device=device)
        start = 0
        for name, shape in parameter.source_shapes().items():
            part = read_tensor(weights, name)
            if tuple(part.shape) != shape:
                raise CheckpointError(
                    "tensor has the wrong shape", got=list(part.shape), expected=list(shape), field=name
                )
            target[start : start + shape[0]].copy_(part.to(kept))
            start += shape[0]
            done += part.numel() * kept.itemsize
            if progress is not None:
                progress(done, total)
        if start != parameter.shape[0]:
            raise InternalError("sources do not fill their parameter", got=start, field=parameter.name)
        loaded[parameter.name] = target
    return loaded


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
    itemsize = dtype.itemsize if parameter.kind == "matrix" else 4
    return int(np.prod(parameter.shape, dtype=np.int64)) * itemsize
