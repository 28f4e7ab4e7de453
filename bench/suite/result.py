"""The JSON of a suite: where it was taken, and what every part gave. Parts of several runs go into one file."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch
from pyrite_kernels.roofline import Roofs

SECTIONS = ("parity", "sanitizer", "determinism", "ops", "end_to_end")
SAME = ("gpu", "driver", "cuda", "torch", "triton", "commit")
"""What parts must agree on to stand in one file."""

LIBRARIES = ("pyrite", "triton", "numpy", "gemlite")


def header() -> dict[str, Any]:
    """Hardware, driver, versions, commit and date."""
    versions: dict[str, str] = {"torch": torch.__version__}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    made = {
        "gpu": "none",
        "driver": "none",
        "cuda": torch.version.cuda or torch.version.hip or "none",
        "torch": versions.pop("torch"),
        "triton": versions.pop("triton", "unknown"),
        "libraries": versions,
        "python": platform.python_version(),
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
    }
    if torch.cuda.is_available():
        found = torch.cuda.get_device_properties(torch.cuda.current_device())
        made |= {
            "gpu": found.name,
            "driver": driver(),
            "processors": found.multi_processor_count,
            "cache_bytes": found.L2_cache_size,
            "memory_bytes": found.total_memory,
            "capability": f"{found.major}.{found.minor}",
        }
    return made


def commit() -> str:
    """The commit of the code, "+" where files differ from it; `PYRITE_COMMIT` where there is no repository."""
    here = Path(__file__).parent
    try:
        found = subprocess.run(["git", "describe", "--always", "--dirty=+"], cwd=here, capture_output=True, text=True)
        if found.returncode == 0:
            return found.stdout.strip()
    except OSError:
        pass
    return os.environ.get("PYRITE_COMMIT", "unknown")


def driver() -> str:
    """The driver's version, as nvidia-smi tells it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return found.stdout.partition("\n")[0].strip() or "unknown"


def slug(name: str) -> str:
    """A GPU's name as part of a file's."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower().removeprefix("nvidia")).strip("-") or "none"


class Result:
    """The parts so far; written after each.

    Args:
        path: of the JSON; what it holds is gone on with.
        tiny: whether sizes show only that everything runs.
    """

    def __init__(self, path: Path, *, tiny: bool) -> None:
        self.path = path
        self.data: dict[str, Any] = {"kind": "gpu", "tiny": tiny, "header": header(), "runs": []}
        self.data |= {section: {} for section in SECTIONS}
        if path.exists():
            self.merge(path)

    def merge(self, path: Path) -> None:
        """Take over the parts of another file that are not here yet.

        Raises:
            ValueError: it was taken on another machine, with other versions, or with another size.
        """
        other = json.loads(path.read_text())
        for key in SAME:
            got, expected = other["header"].get(key), self.data["header"][key]
            if got != expected:
                raise ValueError(f"{key} of {path}: got {got}, expected {expected}; use another --out or delete it")
        if other["tiny"] != self.data["tiny"]:
            raise ValueError(f"tiny of {path}: got {other['tiny']}, expected {self.data['tiny']}")
        first = len(self.data["runs"])
        self.data["runs"] += other["runs"]
        for section in SECTIONS:
            for name, part in other[section].items():
                if name not in self.data[section]:
                    moved = {"run": part["run"] + first} if "run" in part else {}
                    self.data[section][name] = {**part, **moved}

    def begin_run(self, roofs: Roofs | None) -> None:
        """Note a new run and its roofs; parts that are added belong to it."""
        run: dict[str, Any] = {"date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}
        if roofs is not None:
            run["roofs"] = {"copy_gb_s": roofs.copy_gb_s, "tflop_s": roofs.tflop_s, "missing": roofs.missing}
        self.data["runs"].append(run)

    def has(self, section: str, name: str) -> bool:
        """Whether a part is there."""
        return name in self.data[section]

    def add(self, section: str, name: str, part: dict[str, Any]) -> None:
        """Keep a part and write the file."""
        self.data[section][name] = {**part, "run": len(self.data["runs"]) - 1}
        self.save()

    def save(self) -> None:
        """Write the file in one step."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_suffix(".part")
        beside.write_text(json.dumps(self.data, indent=1) + "\n")
        beside.replace(self.path)

    def failures(self) -> list[str]:
        """ "section/name: why" of all parts that failed."""
        return [
            f"{section}/{name}: {part['failed']}"
            for section in SECTIONS
            for name, part in self.data[section].items()
            if part.get("failed")
        ]

    def rows(self) -> dict[str, dict[str, Any]]:
        """Measured rows by name, of ops and end to end."""
        both = {**self.data["ops"], **self.data["end_to_end"]}
        return {name: row for name, row in both.items() if "median_us" in row}
