"""The OpenVINO half of `engines.OpenVino`: run by a Python that has `openvino-genai`, and nothing else of this project.

    python openvino_child.py MODEL.gguf THREADS

Reads one JSON object a line, answers with one: `{}` asks for the version, `{"prompts": [[ids]], "count": N}` generates
N greedy tokens for each prompt (all of one length) and tells the tokens, the seconds to the first of them and the mean
seconds per step after it, in which every prompt gets one token. The first answer comes after a few untimed requests of
other lengths, since kernels are made for shapes when they are first met.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import openvino as ov
import openvino_genai as genai


def main() -> None:
    """Answer until the input ends."""
    pipeline = genai.LLMPipeline(sys.argv[1], "CPU", INFERENCE_NUM_THREADS=int(sys.argv[2]))
    for many, length in ((1, 512), (16, 8), (1, 8)):
        ids = np.random.default_rng(length).integers(5, 4000, (many, length)).tolist()
        generate(pipeline, {"prompts": ids, "count": 4})
    for line in sys.stdin:
        request = json.loads(line)
        answer = generate(pipeline, request) if request else {"version": genai.__version__}
        print(json.dumps(answer), flush=True)


def generate(pipeline: genai.LLMPipeline, request: dict) -> dict:
    """Run one request; times are the pipeline's own."""
    ids = np.array(request["prompts"], dtype=np.int64)
    count = request["count"]
    options = {"max_new_tokens": count, "min_new_tokens": count, "ignore_eos": True, "do_sample": False}
    inputs = genai.TokenizedInputs(ov.Tensor(ids), ov.Tensor(np.ones_like(ids)))
    done = pipeline.generate(inputs, **options)
    first = done.perf_metrics.get_ttft().mean / 1e3
    whole = done.perf_metrics.get_generate_duration().mean / 1e3
    return {
        "tokens": [list(map(int, tokens)) for tokens in done.tokens],
        "ttft_s": first,
        "tpot_s": (whole - first) / (count - 1) if count > 1 else None,
    }


if __name__ == "__main__":
    main()
