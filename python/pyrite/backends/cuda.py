"""The CUDA backend: Triton kernels on torch tensors, decode steps captured in CUDA graphs.

`CudaBackend(..., device="cpu")` runs the same code on CPU tensors, where kernels need `TRITON_INTERPRET=1`: it is how
the whole backend is tested without a GPU, decode padding included, and serves nothing else (graphs are off there).
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import numpy as np
import torch

from pyrite.backends.cuda_executor import Executor
from pyrite.backends.cuda_graphs import StepGraphs
from pyrite.backends.cuda_inputs import DeviceStep, StepInputs
from pyrite.backends.cuda_weights import load_parameters
from pyrite.backends.devices import cuda_program
from pyrite.errors import BackendError, CapacityError, ConfigError, PyriteError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pyrite.backends.torch_ref import Plan
    from pyrite.models.program import Program
    from pyrite.weights.reader import Weights

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class CudaBackend:
    """Implements `Backend` on one CUDA device.

    Args:
        program: the recorded model; the fused ops of this backend are put in here.
        weights: the tensors of the model folder, on a `_core.Checkpoint` where the program has matrices to quantize.
        num_blocks: KV blocks per group of the program.
        max_tokens, max_rows, max_seqs: the largest T, R and S of a step.
        max_model_len: the longest sequence, in tokens.
        dtype: "float32", "float16" or "bfloat16": of matrices and activations.
        kv_dtype: of keys and values: `dtype`.
        graphs: whether decode steps are captured in CUDA graphs.
        num_threads: of the host, that quantize weights.
        progress: called with (bytes done, bytes in all) while weights load.
        device: a torch device. "cpu" is for tests (see above).

    Raises:
        CheckpointError: a tensor is missing or of the wrong shape or dtype, or a weight to quantize is not finite.
        CapacityError: weights, KV blocks or scratch do not fit on the device.
        ConfigError: a dtype of another name, or a `kv_dtype` that is not `dtype`.
        BackendError: the device fails.
    """

    def __init__(
        self,
        program: Program,
        weights: Weights,
        *,
        block_size: int,
        num_blocks: Sequence[int],
        max_tokens: int,
        max_rows: int,
        max_seqs: int,
        max_model_len: int,
        dtype: str,
        kv_dtype: str,
        graphs: bool = True,
        num_threads: int = 1,
        progress: Callable[[int, int], None] | None = None,
        device: str = "cuda",
    ) -> None:
        self.device = _torch_device(device)
        self.program = cuda_program(program)
        self._lost: BackendError | None = None
        self._executor: Executor | None = None
        self._graphs: StepGraphs | None = None
        matrix_dtype, cache_dtype = _torch_dtype("dtype", dtype), _torch_dtype("kv_cache_dtype", kv_dtype)
        if cache_dtype != matrix_dtype:
            raise ConfigError(
                "on a GPU keys and values have the dtype of the matrices",
                got=kv_dtype,
                expected=dtype,
                field="kv_cache_dtype",
            )
        try:
            with self._on_device():
                parameters = load_parameters(
                    self.program,
                    weights,
                    dtype=matrix_dtype,
                    device=self.device,
                    num_threads=num_threads,
                    progress=progress,
                )
                self._weight_bytes = sum(value.nbytes for value in parameters.values())
                self._executor = Executor(
                    self.program,
                    parameters,
                    dtype=matrix_dtype,
                    kv_dtype=cache_dtype,
                    block_size=block_size,
                    num_blocks=num_blocks,
                    max_tokens=max_tokens,
                    max_rows=max_rows,
                    device=self.device,
                )
                self._inputs = StepInputs(
                    max_tokens=max_tokens,
                    max_rows=max_rows,
                    max_seqs=max_seqs,
                    max_blocks=-(-max_model_len // block_size),
                    num_blocks=num_blocks,
                    block_size=block_size,
                    vocab_size=program.vocab_size,
                    device=self.device,
                )
                on_gpu = self.device.type == "cuda"
                self._logits = torch.empty((max_rows, program.vocab_size), dtype=torch.float32, pin_memory=on_gpu)
                if on_gpu and graphs:
                    self._graphs = StepGraphs()
        except torch.OutOfMemoryError as error:
            self.close()
            raise CapacityError(
                "the model does not fit on the GPU",
                got=_first_line(error),
                hint="lower kv_cache_memory or max_num_batched_tokens, or free the GPU",
            ) from error
        except PyriteError:
            self.close()
            raise
        except RuntimeError as error:  # of torch and of the driver
            fault = self._fault(error)
            self.close()
            raise fault from error

    def run(self, plan: Plan) -> np.ndarray:
        """See `Backend.run`.

        Raises:
            BackendError: the backend is closed; a kernel or the driver failed; or the device is lost, which makes every
                later call fail too.
            InternalError: the plan names a block, slot, row or id that does not exist; nothing has run.
        """
        if self._executor is None:
            raise BackendError("the backend is closed")
        if self._lost is not None:
            raise BackendError(self._lost.what, got=self._lost.got, hint=self._lost.hint, code=self._lost.code)
        try:
            with self._on_device(), torch.no_grad():
                return self._run(self._executor, plan)
        except PyriteError:
            raise
        except Exception as error:
            raise self._fault(error) from error

    def _run(self, executor: Executor, plan: Plan) -> np.ndarray:
        step = self._inputs.load(plan)
        for group in range(len(self.program.kv_groups)):
            executor.copy_blocks(group, plan.block_copies(group))
        logits = self._forward(executor, step)
        rows = len(plan.logit_rows)
        self._logits[:rows].copy_(logits[:rows], non_blocking=True)
        self._wait()
        return self._logits[:rows].numpy()

    def _forward(self, executor: Executor, step: DeviceStep) -> torch.Tensor:
        if self._graphs is None or not step.decode:
            return executor.run(step)
        return self._graphs.run(step.key, lambda: executor.run(step))

    def info(self) -> dict[str, object]:
        """`device`, and bytes of weights, KV blocks and scratch; `num_graphs` is how many step shapes are captured."""
        if self._executor is None:
            raise BackendError("the backend is closed")
        on_gpu = self.device.type == "cuda"
        return {
            "device": torch.cuda.get_device_name(self.device) if on_gpu else "cpu tensors",
            "weight_bytes": self._weight_bytes,
            "kv_bytes": self._executor.kv_bytes,
            "scratch_bytes": self._executor.scratch_bytes,
            "num_graphs": 0 if self._graphs is None else len(self._graphs),
        }

    def close(self) -> None:
        """Free the device memory. Idempotent."""
        if self._graphs is not None:
            self._graphs.close()
        if self._executor is not None:
            self._executor.close()
        self._executor, self._graphs = None, None
        self._logits = torch.empty((0, 0), dtype=torch.float32)
        self.__dict__.pop("_inputs", None)
        if self.device.type == "cuda":
            with contextlib.suppress(RuntimeError):  # a lost device has nothing left to give back
                torch.cuda.empty_cache()

    def _on_device(self) -> contextlib.AbstractContextManager[object]:
        """Torch's current device is a matter of the thread, and the engine runs in one of its own."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else contextlib.nullcontext()

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()

    def _fault(self, error: Exception) -> BackendError:
        """The typed error for what torch, Triton or the driver raised, once the device is known to live or not.

        A driver fault such as an illegal address sticks to the process: every later call to the device fails.
        """
        got = f"{type(error).__name__}: {_first_line(error)}"
        if isinstance(error, torch.OutOfMemoryError):
            return BackendError(
                "the GPU ran out of memory in a step",
                got=got,
                hint="lower kv_cache_memory or max_num_batched_tokens",
                code="out_of_device_memory",
            )
        try:
            with self._on_device():
                self._wait()
        except Exception as lost:
            self._lost = BackendError(
                "the GPU is lost to this process",
                got=f"{type(lost).__name__}: {_first_line(lost)}",
                hint='start a new process, or make an LLM with device="cpu"',
                code="device_lost",
            )
            return self._lost
        return BackendError("a kernel failed", got=got, code="kernel_failed")


def _torch_device(name: str) -> torch.device:
    """The device of a name; plain "cuda" is the one that is current now."""
    if name == "cuda":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device(name)


def _torch_dtype(field: str, name: str) -> torch.dtype:
    if name not in _DTYPES:
        raise ConfigError("unknown dtype", got=name, expected=", ".join(_DTYPES), field=field)
    return _DTYPES[name]


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:300]
