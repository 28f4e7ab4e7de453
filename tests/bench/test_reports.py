"""The CPU benchmarks: a tiny run from end to end, and tables and plots of committed and made-up results."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import quantized
import report
from curves import Engines, lacking
from engines import parse, prompt
from quantizable import quantizable
from reports.mixed import mixed_table
from reports.quantized import long_table, ordered, wide_table

E2E = Path(quantized.__file__).parent
HEADER = {"cpu": "a processor (family 1)", "threads": 2, "date": "2026-01-01", "commit": "0000000"}


def result(**changes: Any) -> dict[str, Any]:
    """What quantized.py writes, of two engines; the peer has one repeat less and no batch."""
    made = {
        "model": "tiny",
        "quantization": "int4",
        "isa": "avx512vnni",
        "header": HEADER,
        "flags": "-x",
        "facts": {"parameters": 100, "layer_parameters": 80, "layers": 1, "attention_width": 8, "kv_width": 4}
        | {"vocab": 10, "hidden": 2},
        "absent": {"other": "no llama-bench"},
        "checked": {"pyrite int4": "right", "peer": "equal, BUT wrong"},
        "versions": {"pyrite int4": "pyrite 1", "peer": "peer 2"},
        "weight_bytes": {"pyrite int4": 2_000_000_000, "peer": 1_000_000_000},
        "kv_bytes_per_token": {"pyrite int4": 1e6, "peer": 1e6},
        "samples": {
            "pyrite int4": {
                "decode_0": [10.0, 20.0, 30.0],
                "decode_976": [8.0],
                "prefill_16": [64.0],
                "batch_2": [5.0],
            },
            "peer": {"decode_0": [10.0, 10.0], "decode_976": [4.0], "prefill_16": [16.0]},
        },
        "bandwidth_gb_s": {
            "pyrite int4": {"decode_0": [100.0] * 3, "decode_976": [100.0], "prefill_16": [1.0], "batch_2": [1.0]},
            "peer": {"decode_0": [100.0] * 2, "decode_976": [100.0], "prefill_16": [1.0]},
        },
        "peak_samples": {"int4": [1e6, 3e6], "int8": [1.0]},
    }
    return quantized.finish({**made, **changes})


def test_ratios_are_those_of_the_same_repeats_and_shares_those_of_the_nearer_roof() -> None:
    made = result()
    wide, long = wide_table([made]), long_table([made])
    assert ordered([made]) == ["decode_0", "decode_976", "prefill_16", "batch_2"]
    assert "| tiny int4 | pyrite int4 | 20.0, 40 % of 2000 MB | 8.0, 24 % of 3000 MB |" in wide
    assert "| tiny int4 | peer | 10.0, 10 % of 1000 MB, **1.50x** | 4.0, 8 % of 2000 MB, **2.00x** | 16.0," in wide
    assert f"| {64.0:.1f}, {100 * 64.0 * made['operations_per_token']['prefill_16'] / 2e6:.0f} % |" in wide
    assert "| tiny int4 | decode | pyrite int4 | 20.0 [10.0 30.0] | 1.00x | 2000 | 40 % |" in long
    assert "other (no llama-bench)" in wide and "other (no llama-bench)" in long
    assert "Outputs in doubt: tiny int4: peer, equal, BUT wrong." in wide
    assert "pyrite int4 is 1.50x" in quantized.summary(made)


def test_a_level_that_was_forced_is_told_and_no_result_is_no_table() -> None:
    assert "tiny int4 (AVX2)" in wide_table([result(isa="avx2")])
    assert wide_table([]) == long_table([]) == mixed_table([]) == ""


@pytest.mark.parametrize("everything", [True, False])
def test_committed_results_make_tables(everything: bool) -> None:
    text = report.text(everything=everything)
    for kind in ("cpu", "quantized", "mixed", "load", "quality"):
        for one in (one for folder in report.machines() for one in report.results(kind, folder)):
            assert f"| {one['model']}" in text or f"on the {one['model']} model" in text


def test_each_machine_has_tables_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setattr(report, "PLOTS", tmp_path)
    (tmp_path / "Other-Maker").mkdir()
    (tmp_path / "Empty").mkdir()
    (tmp_path / "quantized-a.json").write_text(json.dumps(result()))
    (tmp_path / "Other-Maker" / "quantized-a.json").write_text(json.dumps(result(model="small")))
    first, other = report.text(everything=False).split("**Other Maker**")
    assert "| tiny int4 |" in first and "| small int4 |" not in first
    assert "| small int4 |" in other and "| tiny int4 |" not in other and "Empty" not in other


def test_decodes_beside_a_prompt() -> None:
    gap = {"median": 1.0, "p95": 2.0, "max": 3.0, "count": 4}
    row = {"max_num_mixed_prefill_tokens": 512, "gap_ms": dict.fromkeys(("before", "during", "after"), gap)}
    row |= {"prompt_ms": [2000.0], "prompt_alone_ms": [1000.0]}
    made = {
        "model": "tiny",
        "quantization": "int4",
        "header": HEADER,
        "readers": 4,
        "prompt_tokens": 4000,
        "rows": [row],
    }
    assert "| tiny int4 | 512 | 1 / 2 / 3 ms | 1 / 2 / 3 ms | 1 / 2 / 3 ms | 2.00 s | 1.00 s |" in mixed_table([made])


def test_plots(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from reports.plots import draw_all

    cell = {"tok_per_s": [1.0, 3.0], "bandwidth_gb_s": [1.0, 1.0]}
    works = ("decode_0 1", "decode_0 2", "decode_64 2", "prefill_32 2", "batch_1 2", "batch_16 1", "batch_16 2")
    rows = {key: {"pyrite int4": cell, "llama.cpp Q4_0": {**cell, "tok_per_s": []}} for key in works}
    op = {"op": "attention", "operations": 1e9, "num_bytes": 1e6, "milliseconds": 1.0, "share": 1.0}
    works = [{"name": "prefill", "ops": [op]}]
    ops = {"quantization": "int4", "bandwidth_gb_s": 10.0, "peak_gop_s": {"int8": 1e3}, "works": works}
    named = {"model": "tiny", "header": HEADER}
    written = draw_all([{**named, "rows": rows}], [{**named, "report": ops}], tmp_path)
    assert {path.name for path in written} == {
        f"{kind}-tiny.png" for kind in ("decode", "prefill", "batch", "roofline")
    }
    assert all(1000 < path.stat().st_size < 60_000 for path in written)


def test_workloads_and_prompts() -> None:
    assert parse("decode_2048") == ("decode", 2048)
    with pytest.raises(ValueError, match="no workload 'other_1'"):
        parse("other_1")
    assert prompt(32, 100, 1)[:8] not in (prompt(64, 100, 1)[:8], prompt(32, 100, 2)[:8])


def test_what_took_too_long_is_left_out_of_larger_points() -> None:
    class Arguments:
        quantization, peers, name = "int4", None, "tiny"

    rows: dict[str, Any] = {"prefill_32 2": {"pyrite int4": {"tok_per_s": [1.0]}}}
    engines = Engines(Arguments())  # type: ignore[arg-type]
    assert lacking(engines, rows, "prefill_32", 2, 0) == []
    assert lacking(engines, rows, "prefill_32", 2, 1) == ["pyrite int4"]
    assert lacking(engines, rows, "prefill_64", 2, 0) == ["pyrite int4"]
    rows["prefill_32 2"]["pyrite int4"]["left_out"] = "longer than 1 s"
    assert lacking(engines, rows, "prefill_64", 2, 0) == []


def test_a_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    command = [sys.executable, str(E2E / "quantized.py"), str(quantizable("qwen3_tied")), "--name", "tiny"]
    command += ["--out", str(tmp_path), "--workloads", "decode_0", "prefill_16", "--peers", str(tmp_path)]
    environment = {**os.environ, "PYRITE_CACHE_DIR": "off", "TQDM_DISABLE": "1"}

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *more], capture_output=True, text=True, env=environment)

    first = run("--repeats", "2", "--budget-s", "0")
    assert first.returncode == quantized.LEFT, first.stderr
    before = json.loads((tmp_path / "quantized-tiny-int4.json").read_text())
    assert list(before["samples"]["pyrite int4"]) == ["decode_0"]
    second = run("--repeats", "1")
    assert second.returncode == 0, second.stderr
    after = json.loads((tmp_path / "quantized-tiny-int4.json").read_text())
    assert after["samples"]["pyrite int4"]["decode_0"] == before["samples"]["pyrite int4"]["decode_0"]
    assert len(after["samples"]["pyrite int4"]["prefill_16"]) == 1
    assert after["absent"]["llama.cpp Q4_0"] == "no llama-bench and no tiny-q4_0.gguf"
    assert "decode_0" in second.stdout and "% of the bandwidth" in second.stdout
