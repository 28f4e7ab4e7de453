"""`bench/gpu_suite.py` from end to end on tiny sizes, and what it does when something is wrong or missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyrite_kernels
import pytest
import report
import torch
from pyrite_kernels.roofline import Cost, Roofs
from suite import parts
from suite.core import OURS, Bench, Missing, Ready, Trial, measure, same
from suite.determinism import equal
from suite.goals import GOALS, Goal, judge
from suite.registry import all_benches
from suite.result import SECTIONS, Result, slug

BENCH = Path(report.__file__).parent
ROOFS = Roofs(1.0, {"f32": 1.0})
FAKE_SANITIZER = """#!/bin/sh
while [ "${1#--}" != "$1" ]; do
    case "$1" in --tool|--error-exitcode) shift;; esac
    shift
done
exec "$@"
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a whole tiny run, with a sanitizer that finds nothing."""
    folder = tmp_path_factory.mktemp("suite")
    tool = folder / "bin" / parts.SANITIZER
    tool.parent.mkdir()
    tool.write_text(FAKE_SANITIZER)
    tool.chmod(0o755)
    assert run(folder, PATH=f"{tool.parent}{os.pathsep}{os.environ['PATH']}").returncode == 0
    return folder


def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCH / "gpu_suite.py"), "--tiny", "--out", str(folder)]
    command += ["--models", str(folder / "models"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})


@pytest.mark.slow
def test_everything_runs_on_tiny_sizes(tiny: Path) -> None:
    data = json.loads((tiny / "gpu-tiny.json").read_text())
    assert data["tiny"] and all(data[section] for section in SECTIONS)
    every = [part for section in SECTIONS for part in data[section].values()]
    assert not [part for part in every if "failed" in part or "missing" in part]
    assert [part["cases"] for part in data["sanitizer"].values()] == [2]
    assert {row["op"] for row in data["ops"].values()} == {bench.op for bench in all_benches(tiny=True)}
    for row in data["ops"].values():
        assert row["parity"] in ("passed", "not run") and row["median_us"] > 0 and row["percent_of_roof"] > 0
    assert data["ops"]["matmul/one_row"]["peers"]["cublas"]["ratio"] > 0
    assert data["ops"]["ragged_prefill/one_token"]["peers"]["torch sdpa"]["detail"].startswith("picked ")
    assert data["ops"]["qmatmul/one_row"]["peers"]["gemlite"] == {"missing": "needs a GPU"}
    assert data["end_to_end"]["decode/tiny/bf16/b1"]["percent_of_weight_bytes"] > 0
    assert len(data["runs"]) == 1 and data["runs"][0]["roofs"]["copy_gb_s"] > 0
    assert len(data["goals"]) >= len(GOALS)
    assert {"torch", "triton", "commit", "date", "gpu", "driver", "cuda"} <= set(data["header"])


@pytest.mark.slow
def test_a_second_run_has_nothing_to_do_and_no_budget_leaves_all(tiny: Path, tmp_path: Path) -> None:
    done = run(tiny)
    assert done.returncode == 0 and "ops/" not in done.stdout
    none = run(tmp_path, "--budget-s", "1", "--only", "^(ops|determinism)/rms_norm")
    assert none.returncode == 3 and "0 failed, 9 parts left" in none.stdout
    merged = run(tmp_path, "--only", "^ops/.*norm", "--merge", str(tiny / "gpu-tiny.json"))
    assert merged.returncode == 0 and "ops/" not in merged.stdout
    assert json.loads((tmp_path / "gpu-tiny.json").read_text())["ops"]["rms_norm/r1_w64_f32"]["median_us"] > 0


@pytest.mark.slow
def test_the_tables_show_every_row_and_refuse_tiny_sizes(tiny: Path) -> None:
    data = json.loads((tiny / "gpu-tiny.json").read_text())
    with pytest.raises(ValueError, match="tiny sizes"):
        report.gpu_tables([data], ops=True)
    data["tiny"] = False
    text = report.gpu_tables([data], ops=True)
    assert all(f"| {name} |" in text for name in (*data["ops"], *data["end_to_end"]))
    assert "parity: 1 right, 0 failed, 0 not possible" in text and "x cublas" in text
    assert "| matmul/one_row |" not in report.gpu_tables([data], ops=False)


def test_plots(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from suite.plots import draw

    row = measure(bench(), ROOFS, budget_s=0.1)
    runs = [{"roofs": {"copy_gb_s": 1.0, "tflop_s": {"f32": 1.0}, "missing": {}}}]
    data = {"runs": runs, "ops": {"a": row}, "header": {"gpu": "none", "commit": "unknown"}}
    assert [path.name for path in draw(data, tmp_path)] == ["roofline-f32.png"]
    assert (tmp_path / "roofline-f32.png").stat().st_size > 1000


def test_every_public_kernel_has_a_benchmark() -> None:
    for tiny_sizes in (True, False):
        benches = all_benches(tiny=tiny_sizes)
        assert len({one.name for one in benches}) == len(benches)
        assert {one.op for one in benches} == set(pyrite_kernels.__all__) - {"QuantizedWeight"}
        assert all(one.cost.bytes > 0 for one in benches)


def bench(**changes: Any) -> Bench:
    """A copy, with a right peer, a wrong one and a broken one."""
    x = torch.arange(1.0, 9.0)

    def wrong() -> Ready:
        same(x + 1, x)
        return Ready(x.clone)

    def broken() -> Ready:
        raise RuntimeError("no such thing\nand more")

    peers = {"right": lambda: Ready(x.clone, "a clone"), "wrong": wrong, "broken": broken}
    made = Bench(
        "copy", "x8", "f32", "f32", Cost(64, 8), lambda seed: Trial(x.clone, lambda: None, peers), tuple(peers)
    )
    return replace(made, **changes)


def test_a_peer_that_differs_or_breaks_is_not_timed() -> None:
    peers = measure(bench(), ROOFS, budget_s=0.1)["peers"]
    assert peers["right"]["ratio"] > 0 and peers["right"]["detail"] == "a clone"
    assert peers["wrong"]["missing"].startswith("its result is another: max error")
    assert peers["broken"] == {"missing": "RuntimeError: no such thing"}
    assert OURS not in peers


def failing(seed: int) -> Trial:
    def check() -> None:
        raise AssertionError("max error 3")

    def run() -> None:
        pytest.fail("a wrong kernel was timed")

    return Trial(run, check)


def test_what_is_wrong_is_not_timed(tmp_path: Path) -> None:
    result = Result(tmp_path / "a.json", tiny=True)
    wrong = bench(op="embed", prepare=failing)
    got = parts.timed(wrong, result, 10.0, ROOFS)
    assert got == {"op": "embed", "failed": "wrong, so not timed: max error 3"}
    result.begin_run(ROOFS)
    result.add("parity", "embed", {"failed": "one test"})
    assert parts.timed(wrong, result, 10.0, ROOFS) == {"op": "embed", "missing": "parity of embed failed"}
    assert result.failures() == ["parity/embed: one test"]


def test_a_failing_test_and_a_finding_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    test = tmp_path / "test_wrong.py"
    test.write_text("def test_it():\n    assert False\n")
    assert "test_it" in parts.parity(test, 60.0, None)["failed"]
    tool = tmp_path / parts.SANITIZER
    tool.write_text(f"#!/bin/sh\necho '========= Invalid __global__ read of size 4 bytes'\nexit {parts.FAULT}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "Invalid __global__ read" in parts.sanitize("memcheck", "embed", 60.0, None)["failed"]
    tool.write_text("#!/bin/sh\necho 'Device not supported'\nexit 1\n")
    assert "missing" in parts.sanitize("memcheck", "embed", 60.0, None)
    tool.unlink()
    assert parts.sanitize("memcheck", "embed", 60.0, None) == {"missing": "compute-sanitizer is not on the PATH"}


def test_bits_are_compared() -> None:
    x = torch.zeros(3)
    equal((x, x), (x.clone(), x.clone()), "x")
    with pytest.raises(AssertionError, match=r"x: 1 bytes of 12 differ, the first at \[11\]"):
        equal(x, torch.tensor([0.0, 0.0, -0.0]), "x")
    nan = torch.tensor([float("nan")])
    equal(nan, nan.clone(), "NaN has bits too")


def test_results_of_two_machines_are_kept_apart(tmp_path: Path) -> None:
    one = Result(tmp_path / "a.json", tiny=True)
    one.begin_run(None)
    one.add("ops", "a/b", {"median_us": 1.0})
    assert Result(tmp_path / "a.json", tiny=True).has("ops", "a/b")
    with pytest.raises(ValueError, match="tiny"):
        Result(tmp_path / "a.json", tiny=False)
    one.data["header"]["gpu"] = "another"
    one.save()
    with pytest.raises(ValueError, match=r"gpu of .* got another"):
        Result(tmp_path / "a.json", tiny=True)
    assert slug("NVIDIA H200 NVL") == "h200-nvl"


def test_goals_are_judged_worst_first() -> None:
    def goal(name: str, **changes: Any) -> Goal:
        made = Goal(name, "x", 2.0, 4.0, lambda row: name in row["op"], lambda row, rows: row["value"])
        return replace(made, **changes)

    rows = {op: {"op": op, "value": value} for op, value in (("a", 1.0), ("b", 3.0), ("ab", 4.0), ("c", None))}
    goals = (goal("a"), goal("b"), goal("c"), goal("d"), goal("a", at_least=4.0, goal=2.0, smaller_is_better=True))
    found = [(v.goal.name, v.row, v.state) for v in judge(rows, goals)]
    assert found[0] == ("a", "a", "missed")
    assert found[1:6] == [
        ("a", "ab", "met"),
        ("b", "b", "met"),
        ("a", "ab", "goal"),
        ("b", "ab", "goal"),
        ("a", "a", "goal"),
    ]
    assert found[6:] == [("c", "c", "not measured"), ("d", "", "not measured")]


def test_goals_are_about_benchmarks_that_exist() -> None:
    """Each goal of a kernel has a row, so that none is forgotten by a renamed case."""
    rows = {
        one.name: {"op": one.op, "shape": one.shape, "dtype": one.dtype, "sizes": one.sizes}
        for one in all_benches(tiny=False)
    }
    for one in GOALS:
        assert any(map(one.applies, rows.values())) or one.name.startswith("decode batch"), one.name


def test_numbers_of_tiny_sizes_stay_out_of_the_results() -> None:
    done = subprocess.run([sys.executable, str(BENCH / "gpu_suite.py"), "--tiny"], capture_output=True, text=True)
    assert done.returncode == 2 and "--tiny needs --out" in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_measured() -> None:
    done = subprocess.run([sys.executable, str(BENCH / "gpu_suite.py")], capture_output=True, text=True)
    assert done.returncode == 2 and "no GPU" in done.stderr


def test_missing_is_no_failure() -> None:
    with pytest.raises(Missing):
        same(torch.ones(3), torch.zeros(3))
