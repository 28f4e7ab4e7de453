"""Shapes and dtypes of ragged prefill, for tests, benchmarks and ahead-of-time compilation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from pyrite_kernels.aot import AotCase
from pyrite_kernels.attention_launch import FP8, SPLIT_KEYS, dot_precision, key_tile, padded_head_dim
from pyrite_kernels.ragged_prefill.kernel import ragged_prefill_kernel
from pyrite_kernels.ragged_prefill.launch import config
from pyrite_kernels.store_kv.reference import encode
from pyrite_kernels.testing import device, poisoned


@dataclass(frozen=True)
class AttentionCase:
    """One batch: `sequences` are (tokens in the cache after the step, new tokens of the step)."""

    name: str
    sequences: tuple[tuple[int, int], ...]
    num_heads: int = 4
    num_kv_heads: int = 4
    head_dim: int = 64
    block_size: int = 16
    dtype: torch.dtype = torch.float32
    cache_dtype: torch.dtype | None = None
    window: int | None = None
    soft_cap: float | None = None
    sinks: bool = False
    seed: int = 0

    def one_token(self) -> AttentionCase:
        """The same batch in decode: one new token per sequence."""
        return replace(self, sequences=tuple((length, 1) for length, _ in self.sequences))


@dataclass
class AttentionInputs:
    """Tensors of a case; `options` are the keyword arguments."""

    q: torch.Tensor
    k_cache: torch.Tensor
    v_cache: torch.Tensor
    block_table: torch.Tensor
    cu_seqlens_q: torch.Tensor
    seq_lens: torch.Tensor
    options: dict[str, Any] = field(default_factory=dict)

    def prefill(self) -> tuple[torch.Tensor, ...]:
        """Positional arguments of `ragged_prefill`."""
        return self.q, self.k_cache, self.v_cache, self.block_table, self.cu_seqlens_q, self.seq_lens

    def decode(self) -> tuple[torch.Tensor, ...]:
        """Positional arguments of `paged_decode`, for a case of one new token per sequence."""
        return self.q, self.k_cache, self.v_cache, self.block_table, self.seq_lens


def poisoned_cache(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """A cache in which every slot shows if it is used unwritten: NaN, or the code farthest from zero."""
    if dtype == FP8:
        return torch.full(tuple(shape), 0x7F, dtype=torch.uint8, device=device()).view(FP8)
    return poisoned(shape, dtype)


def make_inputs(case: AttentionCase) -> AttentionInputs:
    """Random tensors of a case: shuffled pages, pages behind the window given up, everything unused poisoned."""
    make = torch.Generator().manual_seed(case.seed)
    heads, size = case.num_kv_heads, case.block_size
    cache_dtype = case.cache_dtype or case.dtype
    counts = [-(-length // size) for length, _ in case.sequences]
    pages = torch.randperm(sum(counts) + 2, generator=make).to(torch.int32)
    block_table = torch.full((len(counts), max([*counts, 1]) + 1), -1, dtype=torch.int32)
    caches = [poisoned_cache((len(pages), size, heads, case.head_dim), cache_dtype) for _ in range(2)]
    options: dict[str, Any] = {"softmax_scale": case.head_dim**-0.5, "window": case.window, "soft_cap": case.soft_cap}
    scales: list[torch.Tensor | None] = [None, None]
    if cache_dtype != case.dtype:
        top = 127.0 if cache_dtype == torch.int8 else 448.0
        scales = [(torch.rand(heads, generator=make) + 4.0).to(device()) / top for _ in range(2)]
        options |= {"k_scale": scales[0], "v_scale": scales[1]}
    if case.sinks:
        options["sinks"] = torch.randn(case.num_heads, generator=make).to(device())
    used = 0
    for seq, (length, new) in enumerate(case.sequences):
        first = 0 if case.window is None else max(length - new - case.window + 1, 0)
        for block in range(first // size, counts[seq]):
            block_table[seq, block] = pages[used]
            rows = min(size, length - block * size)
            for cache, scale in zip(caches, scales, strict=True):
                values = torch.randn(rows, heads, case.head_dim, generator=make).to(device())
                cache[int(pages[used]), :rows] = encode(values.to(case.dtype), cache_dtype, scale)
            used += 1
    starts = torch.tensor([0, *[new for _, new in case.sequences]]).cumsum(0).to(torch.int32)
    q = 1.5 * torch.randn(int(starts[-1]), case.num_heads, case.head_dim, generator=make)
    lengths = torch.tensor([length for length, _ in case.sequences], dtype=torch.int32)
    return AttentionInputs(
        q=q.to(device(), case.dtype),
        k_cache=caches[0],
        v_cache=caches[1],
        block_table=block_table.to(device()),
        cu_seqlens_q=starts.to(device()),
        seq_lens=lengths.to(device()),
        options=options,
    )


F16, F32 = torch.float16, torch.float32
CASES = (
    AttentionCase("one_token", ((1, 1),)),
    AttentionCase("cached_prefix", ((100, 37), (63, 63), (7, 0), (33, 1))),
    AttentionCase("gqa_7_1", ((90, 13), (40, 40)), num_heads=14, num_kv_heads=2, dtype=F16),
    AttentionCase("gqa_3_1", ((150, 20),), num_heads=3, num_kv_heads=1, head_dim=80, block_size=32),
    AttentionCase("three_splits", ((600, 11), (257, 3)), num_heads=2, num_kv_heads=1, dtype=F16, block_size=128),
    AttentionCase("head_dim_24", ((70, 9),), num_heads=2, num_kv_heads=2, head_dim=24, block_size=48),
    AttentionCase("head_dim_96", ((70, 9),), num_heads=2, num_kv_heads=1, head_dim=96, block_size=64, dtype=F16),
    AttentionCase("head_dim_256", ((70, 9),), num_heads=2, num_kv_heads=1, head_dim=256),
    AttentionCase("window", ((300, 40), (20, 20)), num_heads=4, num_kv_heads=2, window=50),
    AttentionCase("window_1", ((70, 5),), num_heads=2, num_kv_heads=1, window=1, block_size=64),
    AttentionCase("window_long", ((700, 6),), num_heads=2, num_kv_heads=1, window=300, dtype=F16, block_size=64),
    AttentionCase("soft_cap", ((80, 12),), num_heads=4, num_kv_heads=2, soft_cap=3.0),
    AttentionCase("sinks", ((300, 5), (1, 1)), num_heads=4, num_kv_heads=2, sinks=True, window=128, dtype=F16),
    AttentionCase("fp8", ((90, 12),), num_heads=4, num_kv_heads=2, cache_dtype=FP8),
    AttentionCase("int8", ((90, 12),), num_heads=4, num_kv_heads=2, cache_dtype=torch.int8, dtype=F16, block_size=64),
    AttentionCase("all", ((300, 9),), 6, 2, 80, 32, F32, FP8, window=70, soft_cap=5.0, sinks=True),
)
"""Small batches that reach every option; all run in the interpreter."""

BENCH_CASES = (
    AttentionCase("s4096_d128_mha", ((4096, 4096),), 32, 32, 128, 128, torch.bfloat16),
    AttentionCase("s4096_d128_gqa4", ((4096, 4096),), 32, 8, 128, 32, torch.bfloat16),
    AttentionCase("s16384_d128_gqa4", ((16384, 16384),), 32, 8, 128, 32, torch.bfloat16),
    AttentionCase(
        "ragged_d128_gqa4", ((4096, 512), (1000, 1000), (100, 1), (8192, 2048)), 32, 8, 128, 32, torch.bfloat16
    ),
    AttentionCase("window_d128_gqa4", ((16384, 16384),), 32, 8, 128, 32, torch.bfloat16, window=1024),
    AttentionCase("fp8_d128_gqa4", ((4096, 4096),), 32, 8, 128, 32, torch.bfloat16, FP8),
)
"""Sizes of real models, for a GPU."""

TYPE_NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.int8: "i8", FP8: "u8"}
"""Triton's spelling of the dtypes that kernels see."""


@dataclass(frozen=True)
class AotShape:
    """What an attention kernel is compiled for."""

    name: str
    dtype: torch.dtype = torch.bfloat16
    cache_dtype: torch.dtype = torch.bfloat16
    group: int = 4
    head_dim: int = 128
    block_size: int = 32
    window: bool = False
    soft_cap: bool = False
    sinks: bool = False


BF16 = torch.bfloat16
AOT_SHAPES = (
    AotShape("bf16_d128"),
    AotShape("bf16_d128_page128_mha", group=1, block_size=128),
    AotShape("bf16_d128_window_sinks", group=8, window=True, sinks=True),
    AotShape("f16_d64", torch.float16, torch.float16, head_dim=64, group=7, block_size=64),
    AotShape("bf16_d80_cap", head_dim=80, group=3, soft_cap=True),
    AotShape("bf16_d256", head_dim=256, window=True),
    AotShape("fp8_d128", cache_dtype=FP8),
    AotShape("int8_d128", cache_dtype=torch.int8),
    AotShape("f32_d64", F32, F32, head_dim=64),
)
"""Configurations that are compiled for every target."""


def aot_kind(shape: AotShape, arch: str) -> str:
    """The KV constexpr that the launch would choose."""
    if shape.cache_dtype == FP8:
        return "fp8" if arch in ("sm_89", "sm_90", "sm_100") else "fp8_bits"
    return "int8" if shape.cache_dtype == torch.int8 else "float"


def aot_signature(kernel: Any, shape: AotShape, constexprs: dict[str, Any]) -> dict[str, str]:
    """Types of all parameters of an attention kernel, by their names."""
    named = {
        "q_ptr": "*" + TYPE_NAMES[shape.dtype],
        "out_ptr": "*" + TYPE_NAMES[shape.dtype],
        "k_ptr": "*" + TYPE_NAMES[shape.cache_dtype],
        "v_ptr": "*" + TYPE_NAMES[shape.cache_dtype],
        "softmax_scale": "fp32",
        "soft_cap": "fp32",
    }

    def kind(name: str) -> str:
        if name in constexprs:
            return "constexpr"
        if name in ("block_table_ptr", "cu_seqlens_ptr", "seq_lens_ptr"):
            return "*i32"
        return named.get(name, "*fp32" if name.endswith("_ptr") else "i32")

    return {name: kind(name) for name in kernel.arg_names}


def aot_aligned(signature: dict[str, str]) -> tuple[str, ...]:
    """Parameters that are divisible by 16 in a model: pointers, and strides of tensors of whole heads."""
    skipped = ("stride_table",)
    return tuple(n for n, t in signature.items() if t.startswith("*") or (n.startswith("stride_") and n not in skipped))


def matmul_instruction(arch: str, dtype: torch.dtype) -> tuple[str, ...]:
    """What the PTX of a kernel with 16-bit dots must contain."""
    if dtype == torch.float32:
        return ()
    return {"sm_80": (r"mma\.sync",), "sm_89": (r"mma\.sync",), "sm_90": (r"wgmma\.mma_async",)}.get(arch, ())


def attention_cases(kernel: Any, arch: str, config: Any, sinks: bool) -> Iterator[AotCase]:
    """Every AOT_SHAPES entry of a kernel that folds key tiles."""
    for shape in AOT_SHAPES:
        block_d = padded_head_dim(shape.head_dim)
        query_bytes = shape.dtype.itemsize
        tile = key_tile(arch, block_d, query_bytes)
        chosen = config(arch, block_d, query_bytes)
        constexprs = {
            "GROUP": shape.group,
            "HEAD_DIM": shape.head_dim,
            "BLOCK_D": block_d,
            "BLOCK_SIZE": shape.block_size,
            "BLOCK_M": chosen.block_m,
            "KEY_TILE": tile,
            "TILES_PER_SPLIT": SPLIT_KEYS // tile,
            "KV": aot_kind(shape, arch),
            "HAS_CAP": shape.soft_cap,
            "HAS_WINDOW": shape.window,
            "PRECISION": dot_precision(arch),
        }
        if sinks:
            constexprs["HAS_SINKS"] = shape.sinks
        signature = aot_signature(kernel, shape, constexprs)
        yield AotCase(
            name=shape.name,
            kernel=kernel,
            signature=signature,
            constexprs=constexprs,
            num_warps=chosen.num_warps,
            num_stages=chosen.num_stages,
            max_registers=chosen.max_registers,
            aligned=aot_aligned(signature),
            expect=matmul_instruction(arch, shape.dtype),
        )


def aot_cases(arch: str) -> list[AotCase]:
    """What is compiled ahead of time for a target of `aot.ARCHS`."""
    return list(attention_cases(ragged_prefill_kernel, arch, config, sinks=True))
