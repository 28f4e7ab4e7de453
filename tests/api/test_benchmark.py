"""`pyrite bench` on the starter model, small: what it counts, and what it refuses. No speed is asserted."""

from __future__ import annotations

import dataclasses
import json

import pytest
from pyrite.benchmark import Work, benchmark
from pyrite.cli import app
from pyrite.engine.build import machine
from pyrite.errors import ConfigError
from typer.testing import CliRunner

SMALL = Work(prompt_tokens=40, context_tokens=70, sequences=3, decode_tokens=4, repeats=2)


@pytest.mark.parametrize("quantization", [None, "int4"])
def test_every_kind_of_work_is_counted(quantization: str | None):
    report = benchmark(None, SMALL, quantization=quantization, num_threads=2)
    names = [work.name for work in report.works]
    assert names == [
        "prefill of 40 tokens", "decode, empty context", "decode, context of 70 tokens", "decode, 3 sequences",
    ]  # fmt: skip
    assert report.threads == 2 and report.bandwidth_gb_s > 0.1
    prefill, decode, longer, three = ({op.op: op for op in work.ops} for work in report.works)
    assert prefill["gate+up"].operations == 7 * 2 * 40 * 192 * 2 * 512
    assert decode["head"].operations == 2 * 192 * 2048 and decode["head"].calls == 1
    assert three["down"].operations == 3 * decode["down"].operations
    assert longer["attention"].num_bytes > decode["attention"].num_bytes
    kinds = {op.bound for work in report.works for op in work.ops} - {""}
    assert kinds <= {"bandwidth", *report.peak_gop_s} and "bandwidth" in kinds
    assert ("int8" in report.peak_gop_s) == (quantization is not None)
    assert decode["norms and other row ops"].num_bytes > 0
    for work in report.works:
        assert work.tok_per_s > 0 and 0 < sum(op.milliseconds for op in work.ops) <= work.step_ms * 1.001
        for op in work.ops:
            assert op.reached == pytest.approx(op.attainable_ms / op.milliseconds)
            assert op.achieved_gb_s == pytest.approx(op.num_bytes / op.milliseconds / 1e6)
    text = str(report)
    assert "gate+up" in text and "bound by" in text
    assert json.loads(json.dumps(report.to_dict()))["works"][0]["ops"]


@pytest.mark.parametrize("level", ["scalar", "avx2"])
def test_roofs_are_those_of_the_level(level: str, monkeypatch: pytest.MonkeyPatch):
    if level not in machine()["isa_levels"]:  # type: ignore[operator]
        pytest.skip(f"this processor has no {level}")
    monkeypatch.setenv("PYRITE_CPU_ISA", level)
    report = benchmark(None, dataclasses.replace(SMALL, repeats=1), quantization="int4", num_threads=1)
    assert report.machine["isa"] == level
    assert set(report.peak_gop_s) == {"fp32", "int4", "int8", "int16"}, "4-bit layers, an 8-bit head, 16-bit attention"
    assert "int4" in str(report)


def test_contexts_shrink_to_the_model():
    report = benchmark(None, dataclasses.replace(SMALL, context_tokens=10**6, repeats=1), num_threads=1)
    (name,) = (work.name for work in report.works if "context of" in work.name)
    assert 900 < int(name.split()[3]) < 1024


def test_the_command_prints_json():
    options = "--prompt-tokens 20 --context-tokens 20 --sequences 2 --decode-tokens 2 --repeats 1 --num-threads 1"
    result = CliRunner().invoke(app, ["bench", "--json", *options.split()])
    assert result.exit_code == 0, result.output
    assert len(json.loads(result.stdout)["works"]) == 4


@pytest.mark.parametrize("value", [0, -1, True, 2.0])
def test_counts_are_checked(value: object):
    with pytest.raises(ConfigError, match="sequences"):
        Work(sequences=value)  # type: ignore[arg-type]


def test_only_the_cpu():
    with pytest.raises(ConfigError, match="gpu_suite"):
        benchmark(None, SMALL, device="cuda")
