"""What `pyrite bench FOLDER` finds, as a result that `bench/report.py --plots` draws a roofline of.

python bench/e2e/ops.py FOLDER --name NAME --out bench/results [--quantization int4]
"""

from __future__ import annotations

from harness import header, parser, result_path, write


def main() -> None:
    """Measure and write the JSON."""
    from pyrite.benchmark import benchmark

    arguments = parser(__doc__, quantization="int4", threads=2).parse_args()
    report = benchmark(arguments.folder, quantization=arguments.quantization, num_threads=arguments.threads)
    print(report)
    result = {"model": arguments.name, "header": header(arguments.threads), "report": report.to_dict()}
    path = result_path(arguments, "ops", arguments.quantization)
    write(path, result)
    print(path)


if __name__ == "__main__":
    main()
