"""Which device an engine runs on, decided without importing torch unless an NVIDIA GPU is visible.

The CPU path must never import torch or triton: they take seconds and need not be installed.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pyrite.errors import BackendError, ConfigError, PyriteError
from pyrite.models.fuse import fuse

if TYPE_CHECKING:
    from pyrite.models.program import Program
    from pyrite.quant.scheme import QuantScheme

Device = Literal["cpu", "cuda"]

CUDA_FUSED_OPS = ("linear_glu", "linear_add", "qk_norm_rope_store", "add_rms_norm")
"""The fused ops that the CUDA backend has; see `models/fuse.py`."""

CUDA_FLOAT_ONLY = ("linear_glu",)
"""Those of them that it has for float matrices alone."""

CUDA_RESERVE_BYTES = 256 << 20
"""Device memory left for what no plan counts: CUDA graphs, partial results, candidates, the allocator's rounding."""

_DRIVER_FILES = ("/dev/nvidiactl", "/proc/driver/nvidia/version", "/dev/dxg")  # the last one is WSL's
_INSTALL = 'pip install "pyrite[cuda]"'

_logger = logging.getLogger("pyrite")


def resolve_device(device: str) -> Device:
    """Turn the `device` keyword into a device that works.

    Args:
        device: "cpu"; "cuda", which must work; or "auto", the GPU when one works and else the CPU.

    Raises:
        ConfigError: "cuda" without torch and triton, or where no NVIDIA GPU is visible.
        BackendError: "cuda" where a GPU is visible, but a first allocation or kernel fails.
    """
    if device == "cpu":
        return "cpu"
    try:
        _require_cuda(packages_first=device == "cuda")
    except PyriteError as error:
        if device == "cuda":
            raise
        if nvidia_visible():
            _logger.warning("an NVIDIA GPU is visible, but the CPU is used: %s", error)
        return "cpu"
    return "cuda"


def nvidia_visible() -> bool:
    """Whether this process can see the NVIDIA driver. Reads no more than a few paths and one variable."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1", "none", "NoDevFiles"):
        return False
    return any(Path(path).exists() for path in _DRIVER_FILES)


def free_device_bytes() -> int:
    """Memory of the GPU that is free now, less `CUDA_RESERVE_BYTES`. Call after `resolve_device` said "cuda".

    Raises:
        BackendError: the driver does not answer.
    """
    import torch

    try:
        free, _ = torch.cuda.mem_get_info()
    except RuntimeError as error:
        raise BackendError("the GPU does not tell its free memory", got=_first_line(error), field="device") from error
    return max(0, free - CUDA_RESERVE_BYTES)


def cuda_program(program: Program) -> Program:
    """The program with the fused ops of the CUDA backend."""
    return fuse(program, CUDA_FUSED_OPS, float_only=CUDA_FLOAT_ONLY)


def check_cuda_dtypes(dtype: str, kv_dtype: str) -> None:
    """Check that the kernels can read keys of that dtype.

    Raises:
        ConfigError: they have another dtype than the matrices.
    """
    if kv_dtype != dtype:
        raise ConfigError(
            "on a GPU keys and values have the dtype of the matrices",
            got=kv_dtype,
            expected=dtype,
            field="kv_cache_dtype",
        )


def cuda_quantized_bytes(scheme: QuantScheme, out_features: int, in_features: int) -> int:
    """Bytes of an integer matrix on the GPU: `pyrite_kernels.QuantizedWeight.nbytes`, its padding included.

    Tiles of 64 rows and 512 bits of a row's codes, and a word for each row and group of whole tiles.
    """
    rows, tile_inputs = -(-out_features // 64) * 64, 512 // scheme.bits
    inputs = -(-in_features // tile_inputs) * tile_inputs
    return rows * inputs * scheme.bits // 8 + 4 * rows * inputs // scheme.group_size


def _require_cuda(*, packages_first: bool) -> None:
    """Raise unless the GPU works; look at what is cheap first.

    Args:
        packages_first: whether missing packages are named before a missing GPU.
    """
    missing = [name for name in ("torch", "triton") if importlib.util.find_spec(name) is None]
    if not packages_first and not nvidia_visible():
        raise _no_gpu()
    if missing:
        raise ConfigError(
            f"device cuda needs {' and '.join(missing)}",
            got="not installed",
            hint=_INSTALL,
            code="missing_package",
            field="device",
        )
    if not nvidia_visible():
        raise _no_gpu()
    failure = _failure_of_trial()
    if failure is not None:
        raise BackendError(
            "a GPU is visible but does not work",
            got=failure,
            hint='check the driver with nvidia-smi, or use device="cpu"',
            code="device_unusable",
            field="device",
        )


def _no_gpu() -> ConfigError:
    return ConfigError(
        "no NVIDIA GPU is visible",
        got=f"none of {', '.join(_DRIVER_FILES)}, or hidden by CUDA_VISIBLE_DEVICES",
        hint='use device="cpu"',
        code="no_device",
        field="device",
    )


@functools.cache
def _failure_of_trial() -> str | None:
    """What went wrong when the GPU was tried, or None. Tried once per process."""
    try:
        from pyrite.backends.cuda_trial import try_gpu

        try_gpu()
    except Exception as error:  # broken installations raise OSError, ImportError, RuntimeError and others
        return f"{type(error).__name__}: {_first_line(error)}"
    return None


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:300]
