"""Outputs become plain data."""

from __future__ import annotations

import json

from pyrite.outputs import CompletionOutput, Logprob, RequestMetrics, RequestOutput


def test_to_dict_is_json():
    completion = CompletionOutput(0, "hi", [5, 6], -1.5, [{5: Logprob(-0.5, 1, "h")}, {6: Logprob(-1.0)}], "stop", "!")
    output = RequestOutput(
        "7", "say", [1, 2], [None, {2: Logprob(-2.0, 3, "y")}], [completion], True, RequestMetrics(1.0)
    )
    data = output.to_dict()
    assert data["outputs"][0] == completion.to_dict()
    assert data["outputs"][0]["logprobs"][0][5] == {"logprob": -0.5, "rank": 1, "decoded_token": "h"}
    assert data["prompt_logprobs"][0] is None and data["metrics"]["queue_ms"] == 1.0
    assert json.loads(json.dumps(data))["outputs"][0]["text"] == "hi"
    assert completion.finished() and output.delta == "" and output.num_cached_tokens == 0
