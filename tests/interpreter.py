"""Triton's interpreter for tests: chosen where there is no GPU, and rid of work that it does over and over."""

from __future__ import annotations

import os


def use() -> None:
    """Run kernels on a GPU where there is one, else in the interpreter. Call before kernels are imported."""
    import torch

    if torch.cuda.is_available():
        return
    os.environ["TRITON_INTERPRET"] = "1"
    import triton

    if triton.__version__.startswith("3.9."):
        _patch_once()


def _patch_once() -> None:
    """Spare the interpreter of Triton 3.9 two fifths of its time.

    Each call of a device function patches triton.language again. The first one of each function does what the launch
    of the kernel has not done, and that stays; all later ones change nothing.
    """
    from triton.runtime.interpreter import InterpretedFunction

    original, seen = InterpretedFunction.__call__, set()

    def call(self, *args, **keywords):
        if self.fn in seen:
            return self.rewrite()(*args, **keywords)
        seen.add(self.fn)
        return original(self, *args, **keywords)

    InterpretedFunction.__call__ = call
