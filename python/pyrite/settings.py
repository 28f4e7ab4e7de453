"""Every setting of an engine and every environment variable, typed, validated and documented in one place."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import Any, Literal

from pyrite.describe import describe
from pyrite.errors import ConfigError
from pyrite.quant.schemes import quantization

FloatDtype = Literal["float32", "float16", "bfloat16"]
FLOAT_DTYPES: tuple[FloatDtype, ...] = ("float32", "float16", "bfloat16")
KvDtype = Literal["float32", "float16", "bfloat16", "int16", "int8"]
KV_DTYPES: tuple[KvDtype, ...] = (*FLOAT_DTYPES, "int16", "int8")
CPU_ISAS = ("scalar", "avx2", "avx512", "avx512vnni", "avx512bf16")
LOG_LEVELS = ("debug", "info", "warning", "error")

MAX_NUM_SEQS = 1024
MAX_NUM_BATCHED_TOKENS = 65536
MAX_THREADS = 1024
_INT31 = 2**31 - 1
_INT63 = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Environment:
    """The environment variables that pyrite reads.

    Args:
        cpu_isa: `PYRITE_CPU_ISA`, force an instruction level: scalar, avx2, avx512, avx512vnni or avx512bf16.
        num_threads: `PYRITE_NUM_THREADS`, worker threads where `LLM(num_threads=None)`.
        log: `PYRITE_LOG`, the level at which the command line logs: debug, info, warning or error.
        cuda_graphs: `PYRITE_CUDA_GRAPHS`, 0 launches every kernel of a decode step by itself, as tools that watch
            kernels need it; 1 is the default.
        cache_dir: `PYRITE_CACHE_DIR`, a folder for what pyrite can make again, or "off" (None here) for none. The
            default is `pyrite` in the user's folder for caches: `$XDG_CACHE_HOME` or `~/.cache`, on macOS
            `~/Library/Caches`. In it, `packed/` keeps the weights of quantized models as the CPU holds them, so that
            the next start only reads them: one file per model folder and quantization, replaced when the model's files
            change. It may be deleted at any time.
    """

    cpu_isa: str | None = None
    num_threads: int | None = None
    log: str = "warning"
    cuda_graphs: bool = True
    cache_dir: str | None = None

    @classmethod
    def read(cls) -> Environment:
        """Read the process's environment now. An empty variable counts as unset.

        Raises:
            ConfigError: a variable has a value that it cannot have.
        """
        isa = os.environ.get("PYRITE_CPU_ISA") or None
        if isa is not None and isa not in CPU_ISAS:
            raise ConfigError(
                "unknown instruction level", got=isa, expected=", ".join(CPU_ISAS), field="PYRITE_CPU_ISA"
            )
        threads = os.environ.get("PYRITE_NUM_THREADS") or None
        if threads is not None and not (threads.isascii() and threads.isdigit() and 1 <= int(threads) <= MAX_THREADS):
            raise ConfigError(
                "not a number of threads", got=threads[:40], expected=f"1 to {MAX_THREADS}", field="PYRITE_NUM_THREADS"
            )
        log = (os.environ.get("PYRITE_LOG") or "warning").lower()
        if log not in LOG_LEVELS:
            raise ConfigError("unknown log level", got=log[:40], expected=", ".join(LOG_LEVELS), field="PYRITE_LOG")
        graphs = os.environ.get("PYRITE_CUDA_GRAPHS") or "1"
        if graphs not in ("0", "1"):
            raise ConfigError("not a switch", got=graphs[:40], expected="0 or 1", field="PYRITE_CUDA_GRAPHS")
        return cls(
            cpu_isa=isa,
            num_threads=int(threads) if threads else None,
            log=log,
            cuda_graphs=graphs == "1",
            cache_dir=_cache_dir(),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """The keywords of `LLM`, validated. Those that say so are not built yet beyond the named value.

    Args:
        device: "cpu"; "cuda", which needs `pip install "pyrite[cuda]"` and an NVIDIA GPU; or "auto", the GPU when one
            is visible, torch is installed and a first kernel works, and else the CPU.
        dtype: of weight matrices: "auto" keeps the checkpoint's; "float32", "float16", "bfloat16" convert on load. On a
            GPU all matrices and the activations have one dtype, that of most matrices under "auto".
        quantization: None keeps float weights. "int4", "int8" or another name of `pyrite.quant.schemes`: matrices of
            linears become integers on load. Those whose inputs do not divide into groups stay float, with a warning.
        kv_cache_dtype: of keys and values: "float32", "float16" or "bfloat16"; on the CPU also "int16" or "int8",
            integers with one float32 scale per token and head, of the key and of the value, and queries rounded
            likewise. Those of 16 bits err less than float16, and attention over a long prompt takes half of the time;
            those of 8 bits take half of the memory. "auto" is the dtype of the matrices, but int16 on the CPU where
            that is float16 or bfloat16.
        kv_cache_memory: bytes for keys and values. None: half of the free memory, or less when that is enough.
        max_model_len: most tokens of one sequence, prompt included. None: the model's, or what fits.
        max_num_seqs: sequences that run together, 1 to 1024.
        max_num_batched_tokens: token budget of one step, 1 to 65536.
        max_num_mixed_prefill_tokens: most prompt tokens of a step in which other sequences decode, 1 to 65536: a long
            prompt then holds them up for less time per token, and takes a little longer itself. None: 128 on the CPU,
            no such limit on a GPU.
        block_size: tokens per KV block: 16, 32, 64, 128 or 256. Prompts share whole blocks, so smaller ones share
            shorter beginnings; the CPU reads keys and values of long contexts faster from larger ones, up to 128.
        enable_prefix_caching: reuse KV blocks of prompts that start alike.
        num_threads: worker threads. None: `PYRITE_NUM_THREADS`, or the physical cores this process may use.
        speculative: None. Others are not built yet.
        seed: of the draws of requests that bring none, 0 to 2^64 - 1. None: random.
        revision: branch, tag or commit of a Hub model; refused with a local folder.
        strict: unknown keys in the model's config are errors instead of warnings.

    Raises:
        ConfigError: a value is of the wrong type, out of range, or not built yet.
    """

    device: str = "auto"
    dtype: str = "auto"
    quantization: str | None = None
    kv_cache_dtype: str = "auto"
    kv_cache_memory: int | None = None
    max_model_len: int | None = None
    max_num_seqs: int = 16
    max_num_batched_tokens: int = 512
    max_num_mixed_prefill_tokens: int | None = None
    block_size: int = 128
    enable_prefix_caching: bool = True
    num_threads: int | None = None
    speculative: object = None
    seed: int | None = None
    revision: str | None = None
    strict: bool = False

    def __post_init__(self) -> None:
        _check_choice("device", self.device, ("auto", "cpu", "cuda"))
        _check_choice("dtype", self.dtype, ("auto", *FLOAT_DTYPES))
        if isinstance(self.kv_cache_dtype, str) and self.kv_cache_dtype.startswith(("fp8", "float8")):
            raise _not_built("kv_cache_dtype", self.kv_cache_dtype, '"auto"')
        _check_choice("kv_cache_dtype", self.kv_cache_dtype, ("auto", *KV_DTYPES))
        if self.quantization is not None:
            quantization(self.quantization)
        if self.speculative is not None:
            raise _not_built("speculative", self.speculative, "None")
        _check_int("kv_cache_memory", self.kv_cache_memory, 1, _INT63, optional=True)
        _check_int("max_model_len", self.max_model_len, 1, _INT31, optional=True)
        _check_int("max_num_seqs", self.max_num_seqs, 1, MAX_NUM_SEQS)
        _check_int("max_num_batched_tokens", self.max_num_batched_tokens, 1, MAX_NUM_BATCHED_TOKENS)
        _check_int(
            "max_num_mixed_prefill_tokens",
            self.max_num_mixed_prefill_tokens,
            1,
            MAX_NUM_BATCHED_TOKENS,
            optional=True,
        )
        _check_int("block_size", self.block_size, 16, 256)
        if self.block_size % 16 or 256 % self.block_size:
            raise ConfigError(
                "not a block size", got=self.block_size, expected="16, 32, 64, 128 or 256", field="block_size"
            )
        _check_int("num_threads", self.num_threads, 1, MAX_THREADS, optional=True)
        _check_int("seed", self.seed, 0, 2**64 - 1, optional=True)
        for name in ("enable_prefix_caching", "strict"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError("not a bool", got=describe(getattr(self, name)), expected="True or False", field=name)
        if self.revision is not None and not (isinstance(self.revision, str) and self.revision):
            raise ConfigError(
                "not a revision", got=describe(self.revision), expected="a non-empty string", field="revision"
            )

    @property
    def max_logit_rows(self) -> int:
        """Most rows of logits in one step: one per running sequence, and at least 64 for `prompt_logprobs`."""
        return max(self.max_num_seqs, min(self.max_num_batched_tokens, 64))


def _cache_dir() -> str | None:
    """The folder that `PYRITE_CACHE_DIR` names, or the default one; None for "off", and where there is no home."""
    given = os.environ.get("PYRITE_CACHE_DIR")
    if given:
        return None if given == "off" else os.path.abspath(os.path.expanduser(given))
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(xdg):
        return os.path.join(xdg, "pyrite")
    home = os.path.expanduser("~")
    if not os.path.isabs(home):
        return None
    return os.path.join(home, *(("Library", "Caches") if sys.platform == "darwin" else (".cache",)), "pyrite")


def _not_built(field: str, got: object, expected: str) -> ConfigError:
    return ConfigError(
        "this setting is not built yet at that value",
        got=describe(got),
        expected=expected,
        hint=f"leave {field} out",
        code="not_built_yet",
        field=field,
    )


def _check_choice(field: str, value: object, choices: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise ConfigError("unknown value", got=describe(value), expected=", ".join(choices), field=field)


def _check_int(field: str, value: Any, low: int, high: int, *, optional: bool = False) -> None:
    if value is None and optional:
        return
    expected = f"an integer from {low} to {high}" + (", or None" if optional else "")
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError("not an integer", got=describe(value), expected=expected, field=field)
    if not low <= value <= high:
        raise ConfigError("out of range", got=value, expected=expected, field=field)
