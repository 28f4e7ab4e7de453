"""The table of `quality/weights.py`."""

from __future__ import annotations

from typing import Any


def quality_table(found: list[dict[str, Any]]) -> str:
    """What quantized weights cost in quality, by divergence from the float model."""
    lines = []
    for result in found:
        lines += [
            f"Quality of quantized weights on the {result['model']} model: {result['tokens']} tokens of "
            f"{result['documents']} held-out documents, mean over {result['cuts']} cuts into groups, weights alone "
            "(`bench/quality/weights.py`).",
            "",
            "| weights of the layers | bits per weight | weight error | KL to float, 1e-4 nats | 99th percentile | "
            "same top token | perplexity |",
            "|" + "---|" * 7,
        ]
        for name, row in sorted(result["table"].items(), key=lambda item: -item[1]["bits"]):
            error = f" ± {1e4 * row['kl_mean_error']:.2f}" if "kl_mean_error" in row else ""
            cells = [
                name,
                f"{row['bits']:g}",
                f"{100 * row.get('weight_error', 0):.2f} %",
                f"{1e4 * row['kl_mean']:.2f}{error}",
                f"{1e4 * row['kl_p99']:.1f}",
                f"{100 * row['same_top']:.2f} %",
                f"{row['perplexity']:.4f}",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n" if lines else ""
