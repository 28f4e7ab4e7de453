"""What `pyrite bench FOLDER` finds, as a result that `bench/report.py --plots` draws a roofline of.

python bench/e2e/ops.py FOLDER --name NAME --out bench/results [--quantization int4]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from decode_prefill import header


def main() -> None:
    """Measure and write the JSON."""
    from pyrite.benchmark import benchmark

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--name", required=True)
    parser.add_argument("--quantization", default="int4")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    report = benchmark(arguments.folder, quantization=arguments.quantization, num_threads=arguments.threads)
    print(report)
    result = {"model": arguments.name, "header": header(arguments.threads), "report": report.to_dict()}
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"ops-{arguments.name}-{arguments.quantization}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
