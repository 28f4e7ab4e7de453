"""The CUDA backend: Triton kernels on torch tensors, decode steps captured in CUDA graphs.

`CudaBackend(..., device="cpu")` runs the same code on CPU tensors, where kernels need `TRITON_INTERPRET=1`: it is how
the whole backend is tested without a GPU, decode padding included, and serves nothing else (graphs are off there).
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch

from pyrite.backends import cuda_kernels as kernels
from pyrite.backends.base import Candidates
from pyrite.backends.cuda_executor import Executor
from pyrite.backends.cuda_graphs import StepGraphs
from pyrite.backends.cuda_inputs import StepInputs
from pyrite.backends.cuda_weights import load_parameters
from pyrite.backends.devices import check_cuda_dtypes, cuda_program
from pyrite.errors import BackendError, CapacityError, ConfigError, InternalError, PyriteError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pyrite.backends.torch_ref import Plan
    from pyrite.models.program import Program
    from pyrite.weights.reader import Weights

Result = TypeVar("Result")

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class CudaBackend:
    """Implements `Backend` and `CandidateBackend` on one CUDA device.

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
        num_candidates: see `CandidateBackend`, 1 to 256.
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
        num_candidates: int = 256,
        progress: Callable[[int, int], None] | None = None,
        device: str = "cuda",
    ) -> None:
        self.device = _torch_device(device)
        self.program = cuda_program(program)
        self.num_candidates = num_candidates
        self._num_rows = 0
        self._lost: BackendError | None = None
        self._executor: Executor | None = None
        self._graphs: StepGraphs | None = None
        matrix_dtype, cache_dtype = _torch_dtype("dtype", dtype), _torch_dtype("kv_cache_dtype", kv_dtype)
        check_cuda_dtypes(dtype, kv_dtype)
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
                self._device_logits = torch.empty((0, program.vocab_size), dtype=torch.float32, device=self.device)
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

        def run(executor: Executor) -> np.ndarray:
            self._start(executor, plan, None)
            return self._fetch(range(self._num_rows))

        return self._guarded(run)

    def run_candidates(self, plan: Plan, vocab_limit: int) -> Candidates:
        """See `CandidateBackend.run_candidates`. Raises as `run` does."""
        num_tokens = min(vocab_limit, self.program.vocab_size)

        def run(executor: Executor) -> Candidates:
            picked = self._start(executor, plan, num_tokens)
            arrays = []
            for tensor in picked:
                array = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=self.device.type == "cuda")
                arrays.append(array.copy_(tensor, non_blocking=True)[: self._num_rows])
            self._wait()
            return Candidates(*(array.numpy() for array in arrays), num_tokens=num_tokens)

        return self._guarded(run)

    def logits(self, rows: Sequence[int]) -> np.ndarray:
        """See `CandidateBackend.logits`. Raises as `run` does, and where no step has such rows."""

        def fetch(executor: Executor) -> np.ndarray:
            if any(not 0 <= row < self._num_rows for row in rows):
                raise InternalError("the last step has no such row", got=list(rows), expected=f"0 to {self._num_rows}")
            return self._fetch(rows)

        return self._guarded(fetch)

    def _guarded(self, call: Callable[[Executor], Result]) -> Result:
        """The result of a call that uses the device; whatever goes wrong becomes a typed error."""
        if self._executor is None:
            raise BackendError("the backend is closed")
        if self._lost is not None:
            raise BackendError(self._lost.what, got=self._lost.got, hint=self._lost.hint, code=self._lost.code)
        try:
            with self._on_device(), torch.no_grad():
                return call(self._executor)
        except PyriteError:
            raise
        except Exception as error:
            raise self._fault(error) from error

    def _start(self, executor: Executor, plan: Plan, num_tokens: int | None) -> tuple[torch.Tensor, ...]:
        """Launch a step, which leaves its logits on the device; (ids, logits, lse) of candidates below `num_tokens`."""
        self._num_rows = 0
        step = self._inputs.load(plan)
        for group in range(len(self.program.kv_groups)):
            executor.copy_blocks(group, plan.block_copies(group))

        def launch() -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
            logits = executor.run(step)
            if num_tokens is None:
                return logits, ()
            count = min(self.num_candidates, num_tokens)
            return logits, kernels.select_candidates(logits, num_candidates=count, vocab_limit=num_tokens)

        if self._graphs is None or not step.decode:
            self._device_logits, candidates = launch()
        else:
            self._device_logits, candidates = self._graphs.run((*step.key, num_tokens), launch)
        self._num_rows = len(plan.logit_rows)
        return candidates

    def _fetch(self, rows: Sequence[int]) -> np.ndarray:
        """Rows of the last step, on the host."""
        if isinstance(rows, range) and rows == range(self._num_rows):
            self._logits[: len(rows)].copy_(self._device_logits[: len(rows)], non_blocking=True)
        else:
            for place, row in enumerate(rows):
                self._logits[place].copy_(self._device_logits[row], non_blocking=True)
        self._wait()
        return self._logits[: len(rows)].numpy()

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
        self._logits = self._device_logits = torch.empty((0, 0), dtype=torch.float32)
        self._num_rows = 0
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
