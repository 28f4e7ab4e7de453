"""Bits of a row that must not depend on what else is computed: other rows, M, splits by load, chunks, repetition."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from pyrite_kernels import (
    QuantizedWeight,
    fp8_matmul,
    grouped_matmul,
    int8_matmul,
    matmul,
    matmul_glu,
    paged_decode,
    qk_norm_rope_store,
    qmatmul,
    quantize_rows_fp8,
    quantize_rows_int8,
    ragged_prefill,
    rms_norm,
    rms_norm_fp8,
    rms_norm_int8,
    select_candidates,
)
from pyrite_kernels.fp8_matmul.cases import Fp8Case
from pyrite_kernels.fp8_matmul.cases import Inputs as Fp8Inputs
from pyrite_kernels.fp8_matmul.cases import make_inputs as fp8_inputs
from pyrite_kernels.grouped_matmul.cases import GroupedCase
from pyrite_kernels.grouped_matmul.cases import make_inputs as grouped_inputs
from pyrite_kernels.int8_matmul.cases import Inputs as Int8Inputs
from pyrite_kernels.int8_matmul.cases import make_inputs as int8_inputs
from pyrite_kernels.matmul.cases import ROWS, MatmulCase
from pyrite_kernels.matmul.cases import make_inputs as float_inputs
from pyrite_kernels.qmatmul.cases import QuantizedCase
from pyrite_kernels.qmatmul.cases import make_inputs as integer_inputs
from pyrite_kernels.ragged_prefill.cases import AttentionCase, AttentionInputs
from pyrite_kernels.ragged_prefill.cases import make_inputs as attention_inputs
from pyrite_kernels.testing import device

F16, BF16 = torch.float16, torch.bfloat16
REPEATS = 10


def all_checks(*, tiny: bool) -> dict[str, Callable[[], None]]:
    """Name -> a check that raises AssertionError; "op/what".

    Args:
        tiny: small f16 sizes for the interpreter; else bf16 sizes of real models.
    """
    dtype = F16 if tiny else BF16
    rows = ROWS[:5] if tiny else (*ROWS, 64, 512, 2048)
    checks: dict[str, Callable[[], None]] = {}
    for outputs, inputs in ((34, 1056),) if tiny else ((1024, 8192), (28672, 4096)):
        size = f"{outputs}x{inputs}"
        case = MatmulCase("", max(rows), outputs, inputs, dtype, bias=True)
        for op in (matmul, matmul_glu):
            checks[f"{op.__name__}/rows_{size}"] = partial(_float_rows, op, case, rows)
        for bits in (4, 8):
            packed = QuantizedCase("", max(rows), outputs, inputs, dtype, bits=bits, group_size=32)
            checks[f"qmatmul/rows_int{bits}_{size}"] = partial(_integer_rows, packed, rows)
        checks[f"int8_matmul/rows_{size}"] = partial(_eight_bit_rows, int8_matmul, partial(int8_inputs, case), rows)
        for blockwise in (False, True):
            scaled = Fp8Case("", max(rows), outputs, 1152 if tiny else inputs, dtype, blockwise=blockwise)
            name = f"fp8_matmul/rows_{'blocks' if blockwise else 'channels'}_{size}"
            checks[name] = partial(_eight_bit_rows, fp8_matmul, partial(fp8_inputs, scaled), rows)
    for bits in (0, 4):
        sizes = (1, 0, 17, 2) if tiny else (1, 0, 70, 3, 700, 16)
        case = GroupedCase("", sizes, *((34, 1056) if tiny else (1536, 2048)), dtype, bits=bits, group_size=32)
        checks[f"grouped_matmul/alone_{f'int{bits}' if bits else 'float'}"] = partial(_grouped_alone, case)
    for window in (70,) if tiny else (None, 1024):
        length = 270 if tiny else 5000
        heads = (4, 2, 32, 16) if tiny else (32, 8, 128, 32)  # query, KV, their size, tokens per page
        case = AttentionCase("", ((length, length),), *heads, dtype, window=window)
        name = "full" if window is None else "window"
        checks[f"ragged_prefill/chunks_{name}"] = partial(_chunks, case)
        checks[f"paged_decode/as_prefill_{name}"] = partial(_decode_as_prefill, case)
        checks[f"paged_decode/batch_{name}"] = partial(_decode_batch, case)
    width = 60 if tiny else 4096
    for norm in (rms_norm, rms_norm_int8, rms_norm_fp8):
        checks[f"{norm.__name__}/rows"] = partial(_norm_rows, norm, width, rows, dtype)
    for quantize in (quantize_rows_int8, quantize_rows_fp8):
        checks[f"{quantize.__name__}/rows"] = partial(_quantize_rows, quantize, width, rows, dtype)
    checks["qk_norm_rope_store/tokens"] = partial(_qk_tokens, 7 if tiny else 64, dtype)
    checks["select_candidates/rows"] = partial(_candidate_rows, 900 if tiny else 128256)
    return checks


def equal(got: Any, expected: Any, what: str) -> None:
    """Compare bits; tuples part by part.

    Raises:
        AssertionError: with how many elements differ, and the first of them.
    """
    if isinstance(got, tuple):
        for one, other in zip(got, expected, strict=True):
            equal(one, other, what)
        return
    a, b = (x.contiguous().view(torch.uint8) for x in (got, expected))
    if not torch.equal(a, b):
        places = (a != b).nonzero()
        raise AssertionError(f"{what}: {len(places)} bytes of {a.numel()} differ, the first at {places[0].tolist()}")


def repeated(call: Callable[[], Any], times: int = REPEATS) -> Any:
    """The result of a call, the same each time."""
    first = call()
    for _ in range(1 if device() == "cpu" else times):
        equal(call(), first, "a second run")
    return first


def _cut(result: Any, start: int, end: int) -> Any:
    return tuple(x[start:end] for x in result) if isinstance(result, tuple) else result[start:end]


def _rows(op: Callable[..., Any], x: torch.Tensor, rows: tuple[int, ...]) -> None:
    """First and last rows alone, and a row among NaN."""
    whole = repeated(lambda: op(x))
    total = len(x)
    for count in rows:
        equal(op(x[:count]), _cut(whole, 0, count), f"the first {count} rows")
        equal(op(x[-count:]), _cut(whole, total - count, total), f"the last {count} rows")
    among = torch.full((4, x.shape[1]), float("nan"), dtype=x.dtype, device=x.device)
    among[2] = x[0]
    equal(_cut(op(among), 2, 3), _cut(whole, 0, 1), "a row among NaN")


def _float_rows(op: Any, case: MatmulCase, rows: tuple[int, ...]) -> None:
    x = float_inputs(case)
    _rows(lambda part: op(part, x.weight, **x.options), x.x, rows)


def _integer_rows(case: QuantizedCase, rows: tuple[int, ...]) -> None:
    x, qweight = integer_inputs(case)
    _rows(lambda part: qmatmul(part, qweight, **x.options), x.x, rows)


def _eight_bit_rows(
    op: Callable[..., torch.Tensor], make: Callable[[], Int8Inputs | Fp8Inputs], rows: tuple[int, ...]
) -> None:
    """First and last rows alone, each with its scales."""
    x = make()
    codes, scales, *weight = x.operands
    total = len(codes)
    whole = repeated(lambda: op(*x.operands, **x.options))
    for count in rows:
        for start, end in ((0, count), (total - count, total)):
            got = op(codes[start:end], scales[start:end], *weight, **x.options)
            equal(got, whole[start:end], f"rows {start} to {end}")


def _quantize_rows(quantize: Any, width: int, rows: tuple[int, ...], dtype: torch.dtype) -> None:
    make = torch.Generator(device=device()).manual_seed(0)
    _rows(quantize, torch.randn((max(rows), width), generator=make, device=device()).to(dtype), rows)


def _grouped_alone(case: GroupedCase) -> None:
    """Every expert's rows as the ungrouped op gives them, and its first row by itself."""
    x = grouped_inputs(case)
    whole = repeated(lambda: grouped_matmul(x.x, x.weight, x.group_sizes))
    start = 0
    for expert, size in enumerate(case.sizes):
        for end in {start + min(size, 1), start + size} if size else ():
            rows = x.x[start:end]
            if isinstance(x.weight, QuantizedWeight):
                got = qmatmul(rows, _expert(x.weight, expert))
            else:
                got = matmul(rows, x.weight[expert])
            equal(got, whole[start:end], f"rows {start} to {end} of expert {expert}")
        start += size


def _expert(weight: QuantizedWeight, index: int) -> QuantizedWeight:
    """One expert's weight."""
    parts = (weight.words[index], weight.params[index])
    return QuantizedWeight(*parts, weight.shape[1:], weight.bits, weight.group_size, weight.symmetric)


def _norm_rows(norm: Any, width: int, rows: tuple[int, ...], dtype: torch.dtype) -> None:
    make = torch.Generator(device=device()).manual_seed(0)
    x = torch.randn((max(rows), width), generator=make, device=device()).to(dtype)
    weight = torch.randn(width, generator=make, device=device())
    _rows(lambda part: norm(part, weight, eps=1e-6), x, rows)


def _candidate_rows(vocab_size: int) -> None:
    make = torch.Generator(device=device()).manual_seed(0)
    x = torch.randn((9, vocab_size), generator=make, device=device())

    def select(part: torch.Tensor) -> Any:
        return select_candidates(part, num_candidates=20, vocab_limit=vocab_size - 5)

    whole = repeated(lambda: select(x))
    for row in (0, 8):
        equal(select(x[row : row + 1]), _cut(whole, row, row + 1), f"row {row} alone")


def _qk_tokens(tokens: int, dtype: torch.dtype) -> None:
    make = torch.Generator(device=device()).manual_seed(0)
    q, k, v = torch.randn((tokens, 8, 64), generator=make, device=device()).to(dtype).split((4, 2, 2), dim=1)
    inv_freq = 1e-4 ** (torch.arange(32, device=device()) / 32)
    steps = torch.arange(tokens, dtype=torch.int32, device=device())

    def run(start: int, end: int) -> tuple[torch.Tensor, ...]:
        caches = [torch.zeros((-(-tokens // 16), 16, 2, 64), dtype=dtype, device=device()) for _ in range(2)]
        part = [x[start:end] for x in (q, k, v)]
        out = torch.empty(part[0].shape, dtype=dtype, device=device())
        options = {"q_eps": 1e-6, "k_eps": 1e-6, "inv_freq": inv_freq, "out": out}
        qk_norm_rope_store(*part, *caches, steps[start:end] + 100, steps[start:end], **options)
        return out, *(cache.view(-1, 2, 64)[start:end] for cache in caches)

    whole = repeated(lambda: run(0, tokens))
    for token in (0, tokens // 2, tokens - 1):
        equal(run(token, token + 1), _cut(whole, token, token + 1), f"token {token} alone")


# Attention.


def _step(x: AttentionInputs, start: int, end: int) -> AttentionInputs:
    """The step of new tokens [start, end) of the only sequence."""
    bounds = torch.tensor([0, end - start], dtype=torch.int32, device=x.q.device)
    length = torch.tensor([end], dtype=torch.int32, device=x.q.device)
    return AttentionInputs(x.q[start:end], x.k_cache, x.v_cache, x.block_table, bounds, length, x.options)


def _whole(x: AttentionInputs) -> torch.Tensor:
    return repeated(lambda: ragged_prefill(*x.prefill(), **x.options))


def _chunks(case: AttentionCase) -> None:
    x = attention_inputs(case)
    whole, total = _whole(x), case.sequences[0][0]
    for size in (1 + total // 2, 1 + total // 5, 64):
        for start in range(0, total, size)[:4]:
            part = _step(x, start, min(total, start + size))
            got = ragged_prefill(*part.prefill(), **part.options)
            equal(got, whole[start : start + size], f"tokens from {start} in chunks of {size}")


def _places(total: int) -> tuple[int, ...]:
    """Positions on both sides of a split of keys, and the ends."""
    return tuple(p for p in (0, 15, 255, 256, 257, total // 2, total - 1) if p < total)


def _decode_as_prefill(case: AttentionCase) -> None:
    x = attention_inputs(case)
    whole = _whole(x)
    for place in _places(case.sequences[0][0]):
        part = _step(x, place, place + 1)
        got = repeated(lambda part=part: paged_decode(*part.decode(), **part.options))
        equal(got, whole[place : place + 1], f"position {place}")


def _decode_batch(case: AttentionCase) -> None:
    """Sequences that share their pages, decoded together and alone, with a wider block table too."""
    x = attention_inputs(case)
    places = _places(case.sequences[0][0])
    at = torch.tensor(places, device=x.q.device)
    table = x.block_table.expand(len(places), -1).contiguous()
    lengths = (at + 1).to(torch.int32)
    together = repeated(lambda: paged_decode(x.q[at].contiguous(), x.k_cache, x.v_cache, table, lengths, **x.options))
    wide = torch.nn.functional.pad(x.block_table, (0, 7), value=-1)
    for index, place in enumerate(places):
        one = x.q[place : place + 1].contiguous()
        got = paged_decode(one, x.k_cache, x.v_cache, wide, lengths[index : index + 1], **x.options)
        equal(got, together[index : index + 1], f"position {place} alone")
