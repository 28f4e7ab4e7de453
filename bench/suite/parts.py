"""The parts of the suite, in their order: each gives the dictionary that the JSON keeps."""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyrite_kernels
from pyrite_kernels.roofline import Roofs, Timing

from suite.core import Bench, first_line, measure
from suite.determinism import all_checks
from suite.registry import all_benches
from suite.result import Result

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests" / "kernels"
NOT_KERNELS = ("test_aot.py", "test_roofline.py")
SANITIZER = "compute-sanitizer"
TOOLS = ("memcheck", "racecheck")
FAULT = 86
"""Exit status that the sanitizer is told to end with where it finds something."""

LONGEST_S = 3600.0
"""Of one process."""

MODELS = (("llama-3.1-8b", None), ("llama-3.1-8b", "int4"), ("llama-3.2-1b", None), ("llama-3.2-1b", "int4"))
BATCHES = (1, 16)


@dataclass(frozen=True)
class Part:
    """One thing to do.

    Args:
        section: of `result.SECTIONS`.
        name: unique within it.
        about_s: about how long it takes at most; it is not begun with less of the budget left.
        run: (seconds left, roofs of this run) -> what the JSON keeps: "failed" says why, "missing" why not.
    """

    section: str
    name: str
    about_s: float
    run: Callable[[float, Roofs | None], dict[str, Any]]

    @property
    def full_name(self) -> str:
        """section/name, which --only is matched with."""
        return f"{self.section}/{self.name}"

    @property
    def needs_roofs(self) -> bool:
        """Whether it is judged by the machine's roofs."""
        return self.section in ("ops", "end_to_end")


def all_parts(result: Result, models: Path, *, tiny: bool) -> Iterator[Part]:
    """Parity first, then the sanitizer, determinism, every op, and whole models; races, the slowest, last.

    Args:
        result: says whether parity of an op failed, which then is not timed.
        models: folder for models with random weights.
        tiny: sizes for the interpreter.
    """
    for path in sorted(TESTS.glob("test_*.py")):
        if path.name not in NOT_KERNELS and not (tiny and path.stem != "test_embed"):
            yield Part("parity", path.stem.removeprefix("test_"), 60, partial(parity, path))
    ops = list(dict.fromkeys(bench.op for bench in all_benches(tiny=True)))
    for op in ops[-1:] if tiny else ops:
        yield Part("sanitizer", f"memcheck {op}", 60, partial(sanitize, "memcheck", op))
    for name, check in all_checks(tiny=tiny).items():
        yield Part("determinism", name, 20, partial(determined, check))
    for bench in all_benches(tiny=tiny):
        yield Part("ops", bench.name, 15, partial(timed, bench, result))
    for model, quantization in (("tiny", None), ("tiny", "int4")) if tiny else MODELS:
        for batch in BATCHES[:1] if tiny else BATCHES:
            weights = quantization or "bf16"
            yield Part(
                "end_to_end",
                f"decode/{model}/{weights}/b{batch}",
                150,
                partial(decode, models, model, quantization, batch),
            )
    for op in () if tiny else ops:
        yield Part("sanitizer", f"racecheck {op}", 120, partial(sanitize, "racecheck", op))


class OutOfTime(Exception):
    """A part that its budget did not suffice for; another run may begin it again."""


def environment(**more: str) -> dict[str, str]:
    """That of this process, with everything importable that is importable here."""
    path = os.pathsep.join(part for part in (str(ROOT / "bench"), *sys.path) if part)
    return {**os.environ, "PYTHONPATH": path, **more}


def run_child(command: list[str], left_s: float, **more: str) -> tuple[int, str, str]:
    """(exit status, stdout, stderr) of a process.

    Raises:
        OutOfTime: it did not end in time.
    """
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=environment(**more),
            timeout=min(max(1.0, left_s), LONGEST_S),
        )
    except subprocess.TimeoutExpired as error:
        raise OutOfTime(f"not done in {error.timeout:.0f} s") from error
    return done.returncode, done.stdout, done.stderr


def parity(path: Path, left_s: float, roofs: Roofs | None) -> dict[str, Any]:
    """The tests of one op, on the device where there is one."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(path)]
    status, out, err = run_child(command, left_s)
    counts = {kind: int(count) for count, kind in re.findall(r"(\d+) (passed|failed|skipped|errors?)\b", out)}
    if status == 0:
        return {"tests": counts}
    named = re.findall(r"^(?:FAILED|ERROR) .*", out, re.MULTILINE)
    return {"tests": counts, "failed": "; ".join(named[:3]) or _last_line(err) or _last_line(out)}


def sanitize(tool: str, op: str, left_s: float, roofs: Roofs | None) -> dict[str, Any]:
    """The op's small cases under compute-sanitizer, every allocation by itself."""
    binary = shutil.which(SANITIZER)
    if binary is None:
        return {"missing": f"{SANITIZER} is not on the PATH"}
    command = [binary, "--tool", tool, "--error-exitcode", str(FAULT), sys.executable, "-m", "suite.check_op", op]
    status, out, err = run_child(command, left_s, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    if status == 0:
        return {"cases": out.count(" is right")}
    if "Device not supported" in out + err:
        return {"missing": "the sanitizer does not support this device"}
    found = re.findall(r"=+ (?:Invalid|Error|Warning|ERROR SUMMARY|Race).*", out + err)
    return {"failed": "; ".join(found[:3]) or _last_line(err) or _last_line(out) or f"exit status {status}"}


def determined(check: Callable[[], None], left_s: float, roofs: Roofs | None) -> dict[str, Any]:
    """A check of bits."""
    started = time.perf_counter()
    try:
        check()
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {first_line(error)}"}
    return {"seconds": round(time.perf_counter() - started, 2)}


def timed(bench: Bench, result: Result, left_s: float, roofs: Roofs | None) -> dict[str, Any]:
    """An op on a shape, checked and timed beside its peers; not where parity of the op failed."""
    folder = getattr(pyrite_kernels, bench.op).__module__.split(".")[1]
    tests = result.data["parity"].get(folder, {})
    if tests.get("failed"):
        return {"op": bench.op, "missing": f"parity of {folder} failed"}
    assert roofs is not None
    try:
        row = measure(bench, roofs, budget_s=min(4.0, left_s / 2))
    except AssertionError as error:
        return {"op": bench.op, "failed": f"wrong, so not timed: {first_line(error)}"}
    except Exception as error:
        return {"op": bench.op, "failed": f"{type(error).__name__}: {first_line(error)}"}
    return row | {"parity": "passed" if tests else "not run"}


def decode(
    models: Path, model: str, quantization: str | None, batch: int, left_s: float, roofs: Roofs | None
) -> dict[str, Any]:
    """Decode of a model with random weights; percent of the time that reading its weights once per step takes."""
    import torch
    from e2e.random_model import write

    assert roofs is not None
    if importlib.util.find_spec("pyrite") is None or importlib.util.find_spec("pyrite._core") is None:
        return {"missing": "pyrite is not installed"}
    tiny, on_gpu = model == "tiny", torch.cuda.is_available()
    folder = models / model
    write(model, folder, device="cuda" if on_gpu else "cpu")
    gc.collect()
    torch.cuda.empty_cache()
    command = [sys.executable, "-m", "suite.decode", str(folder), "--device", "cuda" if on_gpu else "cpu"]
    command += ["--batch", str(batch), *(["--quantization", quantization] if quantization else [])]
    command += ["--tokens", "8", "--repeats", "2"] if tiny else []
    status, out, err = run_child(command, left_s)
    if status != 0:
        return {"failed": _last_line(err) or f"exit status {status}"}
    found = json.loads(out.splitlines()[-1])
    if "missing" in found:
        return found
    timing = Timing(tuple(found.pop("steps_us")), "wall")
    floor_us = found["weight_bytes"] / roofs.copy_gb_s / 1e3
    return {
        "op": "decode",
        "shape": model,
        "dtype": quantization or "bf16",
        "sizes": {"batch": batch, "tokens": found["tokens"]},
        "bytes": found["weight_bytes"],
        "median_us": timing.median_us,
        "p10_us": timing.percentile_us(10),
        "p90_us": timing.percentile_us(90),
        "rounds": len(timing.samples_us),
        "ttft_ms": sorted(found["ttft_ms"])[len(found["ttft_ms"]) // 2],
        "tok_per_s": 1e6 * batch / timing.median_us,
        "percent_of_weight_bytes": 100 * floor_us / timing.median_us,
        "peers": {},
    }


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1][:300] if lines else ""
