"""Time and peak memory of loading a model folder, in a fresh process, beside a plain read of the same files.

    python bench/e2e/load.py FOLDER --name llama-3.2-1b --out bench/results [--quantization int4] [--repeats 5]

The files are in the page cache (one read goes first). Peak memory is VmHWM of the whole process, less what the same
process had after `import pyrite`; KV blocks are kept small so that it is the weights that are measured. "Process to
first token" starts with the process, so it has Python, the imports and the load in it.

With a quantization there are two rows: `quantize` finds no packed file and writes one, `packed` reads it (from the page
cache). FOLDER may be "starter", for the model inside the package.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from harness import header, parser, result_path, write

CHILD = """
import json, sys, time
from pyrite import LLM, SamplingParams
def status(key):
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith(key))
folder, threads, quantization = sys.argv[1], int(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else None
before = status("VmHWM")
started = time.perf_counter()
llm = LLM(None if folder == "starter" else folder, quantization=quantization, max_model_len=128, max_num_seqs=1,
          max_num_batched_tokens=64, num_threads=threads)
loaded = time.perf_counter()
llm.generate({"prompt_token_ids": [5, 6, 7]}, SamplingParams(max_tokens=1), use_tqdm=False)
done = time.perf_counter()
metrics = llm.metrics()
found = {"load_s": loaded - started, "first_token_s": done - started, "peak_bytes": status("VmHWM") - before,
         "weight_bytes": metrics["weight_bytes"], "from_packed_file": metrics["weights_from_packed_file"]}
print(json.dumps(found), flush=True)
"""


def plain_read(files: list[Path]) -> float:
    """Seconds to read all bytes once through one reused buffer."""
    buffer = bytearray(8 << 20)
    started = time.perf_counter()
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return time.perf_counter() - started


def start(folder: str, threads: int, quantization: str | None, cache: Path) -> dict[str, float]:
    """Load and generate one token in a fresh process, with `cache` for packed files."""
    command = [sys.executable, "-c", CHILD, folder, str(threads), *([quantization] if quantization else [])]
    started = time.perf_counter()
    environment = {**os.environ, "PYRITE_CACHE_DIR": str(cache)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        seconds = time.perf_counter() - started
        process.stdout.read()
    if process.returncode or not line:
        raise SystemExit(f"the load failed with {process.returncode}")
    return {**json.loads(line), "process_to_first_token_s": seconds}


def row(runs: list[dict[str, float]]) -> dict[str, Any]:
    """Medians, the peak over the bytes of the loaded weights, and the runs."""
    median = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    return {"median": median, "peak_share": median["peak_bytes"] / median["weight_bytes"], "runs": runs}


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run everything and return the result as plain data."""
    if arguments.folder == "starter":
        from pyrite.source import STARTER_FOLDER

        folder = STARTER_FOLDER
    else:
        folder = Path(arguments.folder)
    files = sorted(folder.glob("*.safetensors"))
    plain_read(files)
    kinds = ["quantize", "packed"] if arguments.quantization else ["float"]
    runs: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    with tempfile.TemporaryDirectory(prefix="pyrite-load-") as made:
        cache = Path(made)
        for _ in range(arguments.repeats):
            shutil.rmtree(cache / "packed", ignore_errors=True)
            for kind in kinds:
                read_s = plain_read(files if kind != "packed" else list((cache / "packed").glob("*.packed")))
                run = start(arguments.folder, arguments.threads, arguments.quantization, cache)
                assert run["from_packed_file"] == (kind == "packed"), run
                runs[kind].append({**run, "plain_read_s": read_s})
    result: dict[str, Any] = {
        "model": arguments.name,
        "header": header(arguments.threads),
        "file_bytes": sum(path.stat().st_size for path in files),
        "quantization": arguments.quantization,
    }
    rows = {kind: row(runs[kind]) for kind in kinds}
    return result | ({"rows": rows} if arguments.quantization else rows["float"])


def main() -> None:
    """Parse arguments, measure, write the JSON."""
    arguments = parser(__doc__, quantization=None, threads=2, repeats=5).parse_args()
    path = result_path(arguments, "load", arguments.quantization)
    result = measure(arguments)
    write(path, result)
    for kind, found in result.get("rows", {"float": result}).items():
        print(path, kind, json.dumps(found["median"]), f"peak {found['peak_share']:.3f} of the weight bytes")


if __name__ == "__main__":
    main()
