"""Small pieces of Markdown tables."""

from __future__ import annotations

import statistics


def spread(values: list[float], digits: int) -> str:
    """Median [min max]."""
    return f"{statistics.median(values):.{digits}f} [{min(values):.{digits}f} {max(values):.{digits}f}]"


def ratio(ours: list[float], theirs: list[float]) -> str:
    """Median of the ratios taken repeat by repeat, of those that both have."""
    return f"{statistics.median(a / b for a, b in zip(ours, theirs, strict=False)):.2f}x"


def table(cells: list[list[str]]) -> str:
    """Markdown; the first row is the head."""
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "---|" * len(cells[0]), *lines[1:]]) + "\n"
