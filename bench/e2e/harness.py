"""What the scripts of `bench/e2e` share: the command line, the time they may take, the header and file of a result."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

LEFT = 3
"""Exit status of a run that its budget ended."""
PROBE_BYTES = 1 << 29
"""Memory that `read_bandwidth` reads, past any cache."""

OPTIONS: dict[str, dict[str, Any]] = {
    "quantization": {},
    "threads": {"type": int},
    "repeats": {"type": int},
    "peers": {"type": Path, "help": "the folder that peers.sh filled"},
    "budget_s": {"type": float, "help": "stop about then, after one measurement at least"},
}
"""Options that several scripts have; what each wants of them differs in the default alone."""


def parser(description: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """A parser of FOLDER, --name and --out, and of those of `OPTIONS` that are given a default."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("folder")
    made.add_argument("--name", required=True)
    made.add_argument("--out", type=Path, required=True)
    for name, default in defaults.items():
        made.add_argument(f"--{name.replace('_', '-')}", default=default, **OPTIONS[name])
    return made


class Budget:
    """The seconds that a run of many parts may take, from now on."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.started = seconds, time.monotonic()
        self.asked: float | None = None
        self.longest = 0.0

    def ends(self) -> bool:
        """Whether another part, as long as the longest so far, would pass the budget; never so before the first part.

        To be asked right before every part: what lies between two questions is the length of one.
        """
        now = time.monotonic()
        if self.asked is not None:
            self.longest = max(self.longest, now - self.asked)
        self.asked = now
        return self.longest > 0 and now - self.started + self.longest > self.seconds


def read_bandwidth(threads: int) -> float:
    """Median of three probes of the machine, in GB/s."""
    from pyrite import _core

    return statistics.median(_core.read_bandwidth(PROBE_BYTES, threads, 3))


def processor() -> str:
    """Name and the flags that matter, from /proc/cpuinfo."""
    info = Path("/proc/cpuinfo").read_text()
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in info.splitlines())}
    flags = [
        flag for flag in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16") if flag in fields.get("flags", "").split()
    ]
    family = f"family {fields.get('cpu family')} model {fields.get('model')}"
    return f"{fields.get('model name')} ({family}; {' '.join(flags)})"


def header(threads: int) -> dict[str, Any]:
    """Where and with what the numbers were taken."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    libraries = {name: version(name) for name in ("pyrite", "torch", "transformers", "numpy")}
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit,
        "cpu": processor(),
        "threads": threads,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "libraries": libraries,
    }


def result_path(arguments: argparse.Namespace, kind: str, *parts: str | None) -> Path:
    """KIND-NAME-PART...json in the folder of --out, which is made; an empty part or None is left out."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    return arguments.out / f"{'-'.join([kind, arguments.name, *filter(None, parts)])}.json"


def write(path: Path, result: dict[str, Any]) -> None:
    """Write a result as `bench/report.py` reads it."""
    path.write_text(json.dumps(result, indent=1) + "\n")


def resumed(path: Path, result: dict[str, Any], *same: str) -> dict[str, Any]:
    """The earlier result at `path` where it is of this commit, machine and day and equal in `same`, else `result`."""
    before = json.loads(path.read_text()) if path.exists() else {}
    return before if all(before.get(key) == result[key] for key in ("header", *same)) else result
