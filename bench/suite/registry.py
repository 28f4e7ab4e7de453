"""All kernel benchmarks, op by op."""

from __future__ import annotations

from suite import attention, eight_bit, grouped, linear, small
from suite.core import Bench

MAKERS = (
    attention.prefill_benches,
    attention.decode_benches,
    attention.store_benches,
    linear.matmul_benches,
    linear.glu_benches,
    linear.qmatmul_benches,
    grouped.grouped_benches,
    grouped.sort_benches,
    eight_bit.int8_benches,
    eight_bit.fp8_benches,
    eight_bit.quantize_rows_benches,
    small.norm_benches,
    small.qk_benches,
    small.glu_and_gate_benches,
    small.embed_benches,
    small.logits_benches,
)


def all_benches(*, tiny: bool) -> list[Bench]:
    """Every kernel on every shape; `tiny`: a few small shapes that the interpreter can compute."""
    return [bench for make in MAKERS for bench in make(tiny=tiny)]
