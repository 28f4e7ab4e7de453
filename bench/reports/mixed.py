"""The table of `e2e/mixed.py`: decodes beside a long prompt."""

from __future__ import annotations

import statistics
from typing import Any

from reports.markdown import table


def mixed_table(found: list[dict[str, Any]]) -> str:
    """Time between two tokens of a reader before, during and after the prompt's prefill."""
    if not found:
        return ""
    first = found[0]
    head = first["header"]
    commits = ", ".join(sorted({result["header"]["commit"] for result in found}))
    cells = [["model", "prompt tokens beside decodes", "before", "during", "after", "the prompt", "the prompt alone"]]
    for result in found:
        for row in result["rows"]:
            gaps = [row["gap_ms"][phase] for phase in ("before", "during", "after")]
            cells.append(
                [
                    f"{result['model']} {result['quantization']}",
                    str(row["max_num_mixed_prefill_tokens"]),
                    *(f"{gap['median']:.0f} / {gap['p95']:.0f} / {gap['max']:.0f} ms" for gap in gaps),
                    f"{statistics.median(row['prompt_ms']) / 1e3:.2f} s",
                    f"{statistics.median(row['prompt_alone_ms']) / 1e3:.2f} s",
                ]
            )
    return (
        f"A prompt of {first['prompt_tokens']} tokens comes while {first['readers']} sequences decode: time between "
        f"two tokens of a sequence, median / 95th percentile / maximum ({head['threads']} threads, {head['date']}, "
        f"commit {commits}; `bench/e2e/mixed.py`).\n\n{table(cells)}"
    )
