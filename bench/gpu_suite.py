"""The one command for a GPU: is every kernel right, and where does it stand against the hardware and its peers?

    python bench/gpu_suite.py [--only REGEX] [--budget-s N] [--out DIR] [--merge FILE ...] [--again] [--tiny]

Parity first, then compute-sanitizer on small cases, determinism, every op beside its peers, and models end to end, by
roofs that the same run measured. The JSON, `gpu-<name>.json`, is written after each part, and a run goes on where the
last one stopped: with a budget it can be done in pieces. Afterwards the goals are judged, worst first.

Exit status: 0 all done and right, 1 something failed, 3 the budget was used up before all was done.
`--tiny` runs everything on tiny sizes in Triton's interpreter, without a GPU; its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from suite.parts import Part
    from suite.result import Result

HERE = Path(__file__).parent
SPARE_S = 5.0
"""Kept of the budget for writing and judging."""


def main() -> int:
    """Parse arguments and run; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="REGEX", help="parts whose section/name matches")
    parser.add_argument(
        "--budget-s", type=float, default=float("inf"), help="seconds to run for; go on by running again"
    )
    parser.add_argument("--out", type=Path, help="folder of the JSON; bench/results when left out")
    parser.add_argument("--merge", type=Path, nargs="*", default=[], metavar="FILE", help="JSON of earlier pieces")
    parser.add_argument("--models", type=Path, default=Path("/tmp/pyrite-models"), help="folder for random weights")
    parser.add_argument("--again", action="store_true", help="do parts again that the JSON has")
    parser.add_argument("--list", action="store_true", help="name the parts and stop")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes in the interpreter")
    arguments = parser.parse_args()
    deadline = time.monotonic() + arguments.budget_s - SPARE_S
    if arguments.tiny:
        os.environ |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
        if arguments.out is None:
            parser.error("--tiny needs --out: its numbers do not belong in bench/results")
    sys.path[:0] = [str(HERE), str(HERE.parent / "kernels")]

    import torch

    if not arguments.tiny and not torch.cuda.is_available():
        parser.error("no GPU; --tiny shows without one that everything runs")
    from suite.parts import all_parts
    from suite.result import Result, header, slug

    name = "tiny" if arguments.tiny else slug(header()["gpu"])
    result = Result((arguments.out or HERE / "results") / f"gpu-{name}.json", tiny=arguments.tiny)
    for path in arguments.merge:
        result.merge(path)
    parts = all_parts(result, arguments.models, tiny=arguments.tiny)
    parts = [part for part in parts if re.search(arguments.only, part.full_name)]
    if arguments.list:
        print(*(part.full_name for part in parts), sep="\n")
        return 0
    left = run(result, parts, deadline, tiny=arguments.tiny, again=arguments.again)
    return report(result, left, arguments.out or HERE / "results")


def run(result: Result, parts: list[Part], deadline: float, *, tiny: bool, again: bool) -> int:
    """Do what is not in the JSON yet, or all of it again, as far as the time lasts; how many parts are left."""
    from pyrite_kernels.roofline import measure_roofs
    from suite.parts import LONGEST_S, OutOfTime

    todo = [part for part in parts if again or not result.has(part.section, part.name)]
    needs = any(part.needs_roofs for part in todo)
    roofs = measure_roofs(tiny=tiny) if needs else None
    result.begin_run(roofs)
    if roofs is not None:
        peaks = ", ".join(f"{kind} {peak:.3g}" for kind, peak in roofs.tflop_s.items())
        print(f"roofs: copy {roofs.copy_gb_s:.4g} GB/s; TFLOP/s {peaks}; missing {roofs.missing or 'none'}", flush=True)
    left = 0
    for part in todo:
        remaining = deadline - time.monotonic()
        if remaining < part.about_s:
            left += 1
            continue
        started = time.monotonic()
        try:
            got = part.run(remaining, roofs)
        except OutOfTime as error:
            if remaining < LONGEST_S:
                left += 1
                print(f"{part.full_name}: {error}, left for another run", flush=True)
                continue
            got = {"failed": str(error)}
        result.add(part.section, part.name, got)
        print(f"{part.full_name}: {summary(got)} ({time.monotonic() - started:.1f} s)", flush=True)
    result.save()
    return left


def summary(part: dict[str, Any]) -> str:
    """A part in a few words."""
    for key in ("failed", "missing"):
        if part.get(key):
            return f"{key.upper()}: {part[key]}"
    if "median_us" not in part:
        return "ok"
    share = part.get("percent_of_roof", part.get("percent_of_weight_bytes"))
    texts = [f"{part['median_us']:.1f} us", "no roof" if share is None else f"{share:.0f} % of the roof"]
    for name, peer in part["peers"].items():
        texts.append(f"{peer['ratio']:.2f}x {name}" if "ratio" in peer else f"no {name} ({peer['missing'][:60]})")
    return ", ".join(texts)


def report(result: Result, left: int, folder: Path) -> int:
    """Judge the goals, draw the plots, say what failed; the exit status."""
    from suite.goals import describe, judge

    verdicts = judge(result.rows())
    result.data["goals"] = [describe(verdict) for verdict in verdicts]
    result.save()
    print("\ngoals (on an H200), worst first: name; row; value; at least; goal; state")
    for cells in result.data["goals"]:
        print("  " + "; ".join(cells))
    try:
        from suite.plots import draw

        print("plots:", *draw(result.data, folder), sep=" ")
    except ImportError as error:
        print(f"plots: none ({error})")
    failures = result.failures()
    print(f"{result.path}: {len(failures)} failed, {left} parts left")
    for failure in failures:
        print(f"  {failure}")
    return 1 if failures else 3 if left else 0


if __name__ == "__main__":
    sys.exit(main())
