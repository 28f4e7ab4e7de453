"""Make the tables of README.md and bench/README.md, and the plots, from the JSON files in bench/results.

    python bench/report.py [--check] [--plots]

The tables stand between `<!-- bench:begin ... -->` and `<!-- bench:end -->`. `--check` writes nothing and fails when
one is stale. `--plots` draws docs/plots/*.png, too (`uv pip install --group plots`).
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from reports.floats import speed_table
from reports.gpu import gpu_tables
from reports.load import load_table
from reports.mixed import mixed_table
from reports.quality import quality_table
from reports.quantized import long_table, wide_table
from reports.taken_core import taken_core_table

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"(<!-- bench:begin[^>]*-->\n).*?(<!-- bench:end -->)", re.DOTALL)
RESULTS = ROOT / "bench" / "results"
PLOTS = ROOT / "docs" / "plots"


def results(kind: str, folder: Path = RESULTS) -> list[dict[str, Any]]:
    """The committed results of a kind ("cpu", "quantized", "curves", ...) and machine, by name."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob(f"{kind}-*.json"))]


def machines() -> list[Path]:
    """Where the results of each machine are: of the usual one at the top, of others in folders of their own."""
    return [RESULTS, *sorted(path for path in RESULTS.iterdir() if path.is_dir())]


def of_machine(folder: Path, *, everything: bool) -> list[str]:
    """The tables of one machine."""
    quantized = results("quantized", folder)
    usual = [result for result in quantized if result["quantization"] == "int4" and result["isa"] != "avx2"]
    tables = [
        speed_table(results("cpu", folder)),
        long_table(quantized) if everything else wide_table(usual),
        mixed_table(results("mixed", folder)),
        taken_core_table(results("taken-core", folder)),
        load_table(results("load", folder)),
    ]
    return [f"**{folder.name.replace('-', ' ')}**\n", *tables] if folder != RESULTS and any(tables) else tables


def text(*, everything: bool) -> str:
    """The block of README.md, of integer weights only int4 at the best level, or with `everything` that of
    bench/README.md."""
    parts = (
        *(part for folder in machines() for part in of_machine(folder, everything=everything)),
        quality_table(results("quality")),
        gpu_tables(results("gpu"), ops=everything),
        plots_shown("../docs/plots" if everything else "docs/plots"),
    )
    return "\n".join(part for part in parts if part)


def plots_shown(folder: str) -> str:
    """The plots that there are, as images."""
    return "".join(f"![{path.stem}]({folder}/{path.name})\n" for path in sorted(PLOTS.glob("*.png")))


def main() -> None:
    """Rewrite the blocks, or check them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--plots", action="store_true")
    arguments = parser.parse_args()
    if arguments.plots:
        from reports.plots import draw_all

        for path in draw_all(results("curves"), results("ops"), PLOTS):
            print(path)
    stale = []
    for path in (ROOT / "README.md", ROOT / "bench" / "README.md"):
        made = text(everything=path.parent.name == "bench")
        old = path.read_text()
        new = BLOCK.sub(lambda match, made=made: match[1] + made + match[2], old)
        if new != old:
            stale.append(path.name)
            if not arguments.check:
                path.write_text(new)
    if arguments.check and stale:
        sys.exit(f"stale tables, run python bench/report.py: {', '.join(stale)}")


if __name__ == "__main__":
    main()
