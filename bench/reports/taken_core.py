"""The table of `e2e/taken_core.py`."""

from __future__ import annotations

from typing import Any

from reports.markdown import ratio, spread, table


def taken_core_table(found: list[dict[str, Any]]) -> str:
    """Decode while another process takes a core, beside one thread that has a core to itself."""
    cells = [["a core taken by another process", "threads", "decode tok/s", "of one thread beside it"]]
    for result in found:
        alone = result["samples"]["1 threads, one core taken"]
        for row, samples in result["samples"].items():
            threads, _, taken = row.partition(" threads")
            share = ratio(samples, alone) if taken else ""
            label = f"{result['model']} {result['quantization']}, {'yes' if taken else 'no'}"
            cells.append([label, threads, spread(samples, 1), share])
    return table(cells) if found else ""
