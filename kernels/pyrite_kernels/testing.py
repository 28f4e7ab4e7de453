"""What the tests and benchmarks of all kernels share: where they run, poisoned outputs, and the comparison."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def device() -> str:
    """The torch device that kernels can run on here.

    Raises:
        RuntimeError: there is no GPU and the interpreter is off.
    """
    if interpreted():
        return "cpu"
    if not torch.cuda.is_available():
        raise RuntimeError("no GPU, and TRITON_INTERPRET is not 1")
    return "cuda"


def poisoned(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """A tensor on `device()` whose every element shows if nobody wrote it: NaN, or the largest integer."""
    value = float("nan") if dtype.is_floating_point else torch.iinfo(dtype).max
    return torch.full(tuple(shape), value, dtype=torch.float32 if dtype.is_floating_point else dtype).to(
        device=device(), dtype=dtype
    )


def assert_close(got: torch.Tensor, expected: torch.Tensor, *, max_error: float, rms_error: float) -> None:
    """Compare in float64, relative to the root mean square of `expected`; name the worst place.

    Raises:
        AssertionError: shapes differ, a NaN is on one side only, or an error is over its bound.
    """
    assert got.shape == expected.shape, f"got shape {tuple(got.shape)}, expected {tuple(expected.shape)}"
    a, b = got.detach().double().cpu(), expected.detach().double().cpu()
    wrong_nan = a.isnan() != b.isnan()
    assert not wrong_nan.any(), f"NaN on one side only, first at {wrong_nan.nonzero()[0].tolist()}"
    scale = b.nan_to_num().square().mean().sqrt().clamp_min(1e-12)
    error = ((a - b).nan_to_num() / scale).abs()
    if error.numel() == 0:
        return
    worst = error.max().item()
    rms = error.square().mean().sqrt().item()
    place = [int(i) for i in torch.unravel_index(error.argmax(), error.shape)]
    text = f"max error {worst:.3g} (bound {max_error:.3g}) at {place}: got {a[tuple(place)]:.6g}, expected "
    text += f"{b[tuple(place)]:.6g}; rms error {rms:.3g} (bound {rms_error:.3g}); both relative to rms {scale:.3g}"
    assert worst <= max_error and rms <= rms_error, text
