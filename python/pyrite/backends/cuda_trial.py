"""A first allocation and a first kernel: what must work before a GPU is chosen. Imported only when it is tried."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

OLDEST_CAPABILITY = (8, 0)
"""Compute capability of the oldest GPU that the kernels are compiled for: Ampere."""


@triton.jit
def _double_kernel(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    mask = offs < n
    tl.store(out_ptr + offs, 2 * tl.load(x_ptr + offs, mask=mask), mask=mask)


def try_gpu() -> None:
    """Allocate on the current CUDA device and run a kernel there, which also needs Triton's compiler to work.

    Raises:
        RuntimeError: no device, one that is too old, or a wrong result; and whatever torch and triton raise.
    """
    if not torch.cuda.is_available():
        raise RuntimeError("torch finds no CUDA device; is it a CPU build of torch, or an old driver?")
    capability = torch.cuda.get_device_capability()
    if capability < OLDEST_CAPABILITY:
        raise RuntimeError(f"compute capability {capability[0]}.{capability[1]}, expected 8.0 or newer")
    run_double(torch.device("cuda", torch.cuda.current_device()))


def run_double(device: torch.device) -> None:
    """Run the trial kernel on tensors of `device` and check what it wrote.

    Raises:
        RuntimeError: a wrong result.
    """
    x = torch.arange(100, dtype=torch.float32, device=device)
    out = torch.full_like(x, torch.nan)
    _double_kernel[(1,)](x, out, 100, BLOCK=128)  # type: ignore[arg-type]
    if out.tolist() != [2.0 * i for i in range(100)]:
        raise RuntimeError("the trial kernel wrote a wrong result")
