"""Check one op on its small cases, once: `python -m suite.check_op OP`. What a sanitizer runs."""

from __future__ import annotations

import sys


def main() -> None:
    """Exits with 1 where the op is unknown or wrong."""
    from suite.registry import all_benches

    op = sys.argv[1]
    benches = [bench for bench in all_benches(tiny=True) if bench.op == op]
    if not benches:
        sys.exit(f"op: got {op}, expected one of the suite's")
    for bench in benches:
        bench.prepare(0).check()
        print(bench.name, "is right")


if __name__ == "__main__":
    main()
