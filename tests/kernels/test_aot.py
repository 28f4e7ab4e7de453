"""Every kernel compiles ahead of time for every part, as the committed table says. Needs no GPU.

`make aot` compiles all cases for all parts; `make aot-write` also renews the table. A line with spills needs a reason.
`make aot36` and its table do the same with Triton 3.6.0.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pyrite_kernels.aot import ARCHS, SHARED_LIMIT_BYTES, AotResult, judge

TABLE = Path(__file__).parent / "aot_table.json"
TABLES = (TABLE, TABLE.with_name("aot_table_36.json"))


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS)
def test_kernels_compile(arch: str, tmp_path: Path) -> None:
    """All cases for sm_90, one of each kernel for the others."""
    command = [sys.executable, "-m", "pyrite_kernels.aot", "--arch", arch, "--table", str(TABLE)]
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        command + ([] if arch == "sm_90" else ["--first"]), capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]


GOOD = AotResult(registers=128, spill_bytes=0, shared_bytes=1024)
LINE = {"registers": 128, "spill_bytes": 0, "shared_bytes": 1024}


@pytest.mark.parametrize(
    ("result", "line", "fault"),
    [
        (GOOD, LINE, None),
        (GOOD, None, "not in the table"),
        (AotResult(255, 8, 1024), LINE, "spills: got 8, expected at most 0"),
        (AotResult(255, 8, 1024), {**LINE, "spill_bytes": 8}, "without a reason"),
        (AotResult(255, 8, 1024), {**LINE, "spill_bytes": 8, "reason": "cold"}, None),
        (AotResult(128, 0, 100 << 10), LINE, "shared memory"),
        (AotResult(128, 0, 1024, ("wgmma",)), LINE, "lacks wgmma"),
        (AotResult(128, 0, 1024, ("wgmma",)), {**LINE, "lacks": ["wgmma"]}, "allows lacks without a reason"),
        (AotResult(128, 0, 1024, ("wgmma",)), {**LINE, "lacks": ["wgmma"], "reason": "an older compiler"}, None),
        (AotResult(128, 0, 1024, ("wgmma",)), {**LINE, "lacks": ["mma"], "reason": "an older compiler"}, "lacks wgmma"),
    ],
)
def test_what_is_wrong_is_named(result: AotResult, line: dict[str, object] | None, fault: str | None) -> None:
    faults = judge("sm_89", result, line)
    assert (fault in faults[0] and len(faults) == 1) if fault else not faults


@pytest.mark.parametrize("table", TABLES, ids=lambda path: path.stem)
def test_the_committed_lines_are_sound(table: Path) -> None:
    lines = json.loads(table.read_text())
    assert lines.pop("triton")
    assert set(lines) == set(ARCHS)
    for arch, cases in lines.items():
        for name, line in cases.items():
            assert line["shared_bytes"] <= SHARED_LIMIT_BYTES[arch], (arch, name)
            assert line.get("reason") or not (line["spill_bytes"] or "lacks" in line), (arch, name)


def test_a_line_keeps_what_matters() -> None:
    assert GOOD.line() == LINE
    spilled = AotResult(255, 8, 1024, matched=("wgmma",), reload_bytes=12).line()
    assert spilled == {**LINE, "registers": 255, "spill_bytes": 8, "reload_bytes": 12, "has": ["wgmma"]}
