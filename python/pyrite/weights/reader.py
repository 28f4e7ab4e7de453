"""Tensors of a model folder as bytes or f32 arrays, on the validated headers of `_core.open_checkpoint`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

from pyrite.errors import CheckpointError

if TYPE_CHECKING:
    import numpy as np


class TensorSource(Protocol):
    """What a `_core.Checkpoint` offers: headers first, bytes on request."""

    def tensors(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Name to (dtype, shape), dtype in safetensors spelling."""
        ...

    def read(self, name: str) -> bytes:
        """The raw little-endian bytes of one tensor."""
        ...


class Weights:
    """A checkpoint's tensors by name.

    Attributes:
        source: the checkpoint underneath; the CPU executor reads it directly.
    """

    def __init__(self, source: TensorSource) -> None:
        self.source = source
        self._tensors = source.tensors()

    def tensors(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Name to (dtype, shape)."""
        return self._tensors

    def read(self, name: str) -> bytes:
        """The raw little-endian bytes of one tensor."""
        return self.source.read(name)

    def float32(self, name: str) -> np.ndarray:
        """One tensor as a new f32 array; f16 and bf16 are widened exactly.

        Raises:
            CheckpointError: unknown name, or a dtype that is not F32, F16 or BF16.
        """
        import numpy as np

        if name not in self._tensors:
            raise CheckpointError("tensor is missing", field=name)
        dtype, shape = self._tensors[name]
        data = self.source.read(name)
        if dtype == "F32":
            values = np.frombuffer(data, np.dtype("<f4")).astype(np.float32)
        elif dtype == "F16":
            values = np.frombuffer(data, np.dtype("<f2")).astype(np.float32)
        elif dtype == "BF16":
            values = (np.frombuffer(data, np.dtype("<u2")).astype(np.uint32) << 16).view(np.float32)
        else:
            raise CheckpointError("tensor has the wrong dtype", got=dtype, expected="F32, F16 or BF16", field=name)
        return values.reshape(shape)


def open_weights(folder: str | os.PathLike[str]) -> Weights:
    """Validate the safetensors headers of a model folder; no data is read yet.

    Raises:
        CheckpointError: a header, index or file that cannot be trusted.
    """
    from pyrite._core import open_checkpoint

    return Weights(open_checkpoint(os.fspath(folder)))
