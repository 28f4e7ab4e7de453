"""The table of `e2e/load.py`."""

from __future__ import annotations

from typing import Any

from reports.markdown import table


def load_table(found: list[dict[str, Any]]) -> str:
    """Loading in a new process, files in the page cache."""
    cells = [
        [
            "load, 2 threads",
            "weights",
            "LLM(...)",
            "to the first token",
            "from the start of the process",
            "a plain read",
            "peak memory",
        ]
    ]
    for result in found:
        one = {"": {key: result[key] for key in ("median", "peak_share") if key in result}}
        for kind, row in result.get("rows", one).items():
            kinds = {"quantize": ", the first start", "packed": ", from the packed file"}
            median, quantization = row["median"], result["quantization"]
            cells.append(
                [
                    f"{result['model']}{f' {quantization}' if quantization else ''}{kinds.get(kind, '')}",
                    f"{median['weight_bytes'] / 1e9:.3f} GB",
                    f"{median['load_s']:.2f} s",
                    f"{median['first_token_s']:.2f} s",
                    f"{median['process_to_first_token_s']:.2f} s",
                    f"{median['plain_read_s']:.2f} s",
                    f"{row['peak_share']:.2f}x the weights",
                ]
            )
    return table(cells) if found else ""
