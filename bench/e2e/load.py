"""Time and peak memory of loading a model folder, in a fresh process, beside a plain read of the same files.

    python bench/e2e/load.py FOLDER --name llama-3.2-1b --out bench/results [--repeats 5]

The files are in the page cache (one read goes first). Peak memory is VmHWM of the whole process, less what the same
process had after `import pyrite`; KV blocks are kept small so that it is the weights that are measured.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from decode_prefill import header

CHILD = """
import json, resource, sys, time
from pyrite import LLM, SamplingParams
def status(key):
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith(key))
before = status("VmHWM")
started = time.perf_counter()
llm = LLM(sys.argv[1], max_model_len=128, max_num_seqs=1, max_num_batched_tokens=64, num_threads=int(sys.argv[2]))
loaded = time.perf_counter()
llm.generate({"prompt_token_ids": [5, 6, 7]}, SamplingParams(max_tokens=1), use_tqdm=False)
print(json.dumps({"load_s": loaded - started, "first_token_s": time.perf_counter() - started,
                  "peak_bytes": status("VmHWM") - before}))
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


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    files = sorted(arguments.folder.glob("*.safetensors"))
    num_bytes = sum(path.stat().st_size for path in files)
    plain_read(files)
    runs: list[dict[str, Any]] = []
    for _ in range(arguments.repeats):
        read_s = plain_read(files)
        command = [sys.executable, "-c", CHILD, str(arguments.folder), str(arguments.threads)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        runs.append({**json.loads(done.stdout.splitlines()[-1]), "plain_read_s": read_s})
    result = {
        "model": arguments.name,
        "header": header(arguments.threads),
        "file_bytes": num_bytes,
        "median": {key: statistics.median(run[key] for run in runs) for key in runs[0]},
        "runs": runs,
    }
    result["peak_share"] = result["median"]["peak_bytes"] / num_bytes
    path = arguments.out / f"load-{arguments.name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(path, json.dumps(result["median"]), f"peak {result['peak_share']:.3f} of the file bytes")


if __name__ == "__main__":
    main()
