"""What the end-to-end benchmarks share."""

from __future__ import annotations

import json
from pathlib import Path

import harness
import pytest


def test_options_are_those_with_a_default() -> None:
    options = harness.parser("what it is", quantization="int4", peers=None, budget_s=float("inf"))
    made = options.parse_args(["folder", "--name", "tiny", "--out", "there", "--budget-s", "3"])
    assert vars(made) == {
        "folder": "folder",
        "name": "tiny",
        "out": Path("there"),
        "quantization": "int4",
        "peers": None,
        "budget_s": 3.0,
    }
    with pytest.raises(SystemExit):
        options.parse_args(["folder", "--name", "tiny", "--out", "there", "--repeats", "2"])


@pytest.mark.parametrize(
    ("times", "told"),
    [
        pytest.param([50.0, 53.0], [False, True], id="the first part passes"),
        pytest.param([1.0, 4.0, 5.0, 7.5], [False, False, False, True], id="the longest part counts"),
    ],
)
def test_a_budget_ends_before_what_may_not_fit(
    monkeypatch: pytest.MonkeyPatch, times: list[float], told: list[bool]
) -> None:
    clock = iter([0.0, *times])
    monkeypatch.setattr(harness.time, "monotonic", lambda: next(clock))
    budget = harness.Budget(10.0)
    assert [budget.ends() for _ in times] == told


def test_a_result_is_found_again_by_its_header_and_what_is_named(tmp_path: Path) -> None:
    arguments = harness.parser(None).parse_args(["x", "--name", "tiny", "--out", str(tmp_path / "new")])
    path = harness.result_path(arguments, "load", None, "int4")
    assert path == tmp_path / "new" / "load-tiny-int4.json"
    fresh = {"header": {"commit": "1"}, "isa": "avx2", "rows": {}}
    assert harness.resumed(path, fresh, "isa") is fresh
    earlier = {**fresh, "rows": {"a": [1.5]}}
    harness.write(path, earlier)
    assert path.read_text() == json.dumps(earlier, indent=1) + "\n"
    assert harness.resumed(path, fresh, "isa") == earlier
    assert harness.resumed(path, {**fresh, "isa": "avx512"}, "isa")["rows"] == {}
    assert harness.resumed(path, {**fresh, "isa": "avx512"}) == earlier
    assert harness.resumed(path, {**fresh, "header": {"commit": "2"}})["rows"] == {}
