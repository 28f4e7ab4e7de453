"""Triton bodies of the ops on logits: scale and soft-cap; candidates and log-sum-exp of a chunk, then of a row."""

# Bodies are in Triton's language, whose ranges and constexpr arguments have no Python types.
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false, reportReturnType=false, reportOperatorIssue=false
# pyright: reportAssignmentType=false

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tanh(x):
    """tanh of f32, within a few units in the last place: (1 - e) / (1 + e) with e = exp(-2|x|), a series near 0."""
    a = tl.abs(x)
    e = tl.exp(-2.0 * a)
    s = a * a
    series = a * (1.0 + s * (-1 / 3 + s * (2 / 15 + s * (-17 / 315 + s * (62 / 2835)))))
    y = tl.where(a < 0.25, series, (1.0 - e) / (1.0 + e))
    return tl.where(x < 0.0, -y, y)


@triton.jit(do_not_specialize=["num_rows"])
def scale_softcap_kernel(
    x_ptr,
    out_ptr,
    stride_x,
    stride_out,
    num_rows,
    multiplier,
    soft_cap,
    WIDTH: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_W: tl.constexpr,
    HAS_CAP: tl.constexpr,
):
    """soft_cap * tanh(multiplier * x / soft_cap), or multiplier * x."""
    rows = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)[:, None]
    offs_w = (tl.program_id(1) * BLOCK_W + tl.arange(0, BLOCK_W))[None, :]
    mask = (rows < num_rows) & (offs_w < WIDTH)
    y = tl.load(x_ptr + rows * stride_x + offs_w, mask=mask, other=0.0).to(tl.float32) * multiplier
    if HAS_CAP:
        y = soft_cap * tanh(y / soft_cap)
    tl.store(out_ptr + rows * stride_out + offs_w, y.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def order_of(x):
    """f32 to 0 .. 2**32 - 1 (int64) in the same order: -0 is 0, and any NaN is above infinity."""
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)
    bits = tl.where(x == x, bits, 0x7FC00000)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64) + 2147483648


@triton.jit
def value_of(order):
    """The f32 of `order_of`."""
    bits = (order - 2147483648).to(tl.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def finite_or_zero(x):
    """x, or 0 for an infinity: what may be subtracted from exponents."""
    return tl.where(tl.abs(x) == float("inf"), 0.0, x)


@triton.jit
def store_largest(keys, out_ptr, KEY_BITS: tl.constexpr, KEEP: tl.constexpr):
    """Store the KEEP largest of different keys, in the order they have, and -1 where there are fewer.

    Keys are below 2**KEY_BITS; negative ones do not count. Finds bit by bit the largest bound with at least KEEP keys
    from there on, and stops once it has just as many.
    """
    bound = tl.full([], 0, tl.int64)
    step = tl.full([], 1 << (KEY_BITS - 1), tl.int64)
    count = tl.sum((keys >= 0).to(tl.int32), axis=0)
    while count > KEEP:
        more = tl.sum((keys >= bound + step).to(tl.int32), axis=0)
        bound = tl.where(more >= KEEP, bound + step, bound)
        count = tl.where(more >= KEEP, more, count)
        step = step >> 1
    kept = keys >= bound
    tl.store(out_ptr + tl.cumsum(kept.to(tl.int32), axis=0) - 1, keys, mask=kept)
    offs = tl.arange(0, KEEP)
    tl.store(out_ptr + offs, tl.full([KEEP], -1, tl.int64), mask=offs >= count)


@triton.jit(do_not_specialize=["vocab_limit"])
def chunk_candidates_kernel(
    logits_ptr,
    key_ptr,
    max_ptr,
    sum_ptr,
    stride_row,
    vocab_limit,
    VOCAB_SIZE: tl.constexpr,
    ID_BITS: tl.constexpr,
    CHUNK: tl.constexpr,
    KEEP: tl.constexpr,
):
    """The KEEP best ids of chunk `program_id(1)` of a row as keys, its maximum and its sum of exps.

    A key holds the logit's order above the id's complement, so that keys differ and equal logits favour the lowest id.
    """
    row = tl.program_id(0).to(tl.int64)
    ids = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    # Two masks: only the one with a fixed bound lets loads be 16 bytes wide.
    x = tl.load(logits_ptr + row * stride_row + ids, mask=ids < VOCAB_SIZE, other=0.0).to(tl.float32)
    x = tl.where(ids < vocab_limit, x, float("-inf"))
    keys = (order_of(x) << ID_BITS) | ((1 << ID_BITS) - 1 - ids).to(tl.int64)
    at = row * tl.num_programs(1) + tl.program_id(1)
    store_largest(tl.where(ids < vocab_limit, keys, -1), key_ptr + at * KEEP, 32 + ID_BITS, KEEP)
    largest = tl.max(x, axis=0)
    tl.store(max_ptr + at, largest)
    tl.store(sum_ptr + at, tl.sum(tl.exp(x - finite_or_zero(largest)), axis=0))


@triton.jit
def row_candidates_kernel(
    key_ptr,
    max_ptr,
    sum_ptr,
    best_ptr,
    lse_ptr,
    ID_BITS: tl.constexpr,
    NUM_CHUNKS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    KEEP: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Merge the chunks of row `program_id(0)`: the KEEP largest of their keys, and the row's log-sum-exp."""
    row = tl.program_id(0).to(tl.int64)
    chunks = tl.arange(0, BLOCK_C)
    largest = tl.load(max_ptr + row * NUM_CHUNKS + chunks, mask=chunks < NUM_CHUNKS, other=float("-inf"))
    sums = tl.load(sum_ptr + row * NUM_CHUNKS + chunks, mask=chunks < NUM_CHUNKS, other=0.0)
    top = finite_or_zero(tl.max(largest, axis=0))
    tl.store(lse_ptr + row, top + tl.log(tl.sum(sums * tl.exp(largest - top), axis=0)))
    offs = tl.arange(0, BLOCK_K)
    keys = tl.load(key_ptr + row * NUM_CHUNKS * KEEP + offs, mask=offs < NUM_CHUNKS * KEEP, other=-1)
    store_largest(keys, best_ptr + row * KEEP, 32 + ID_BITS, KEEP)


@triton.jit
def sort_candidates_kernel(
    best_ptr,
    ids_ptr,
    values_ptr,
    ID_BITS: tl.constexpr,
    KEEP: tl.constexpr,
    BLOCK_S: tl.constexpr,
    NUM_CANDIDATES: tl.constexpr,
):
    """Put BLOCK_S of the keys of row `program_id(0)` in order, each at the number of larger ones; take them apart."""
    row = tl.program_id(0).to(tl.int64)
    every = tl.load(best_ptr + row * KEEP + tl.arange(0, KEEP))
    keys = tl.load(best_ptr + row * KEEP + tl.program_id(1) * BLOCK_S + tl.arange(0, BLOCK_S))
    rank = tl.sum((every[None, :] > keys[:, None]).to(tl.int32), axis=1)
    mask = rank < NUM_CANDIDATES
    last: tl.constexpr = (1 << ID_BITS) - 1
    tl.store(ids_ptr + row * NUM_CANDIDATES + rank, (last - (keys & last)).to(tl.int32), mask=mask)
    tl.store(values_ptr + row * NUM_CANDIDATES + rank, value_of(keys >> ID_BITS), mask=mask)
