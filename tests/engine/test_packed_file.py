"""Quantized weights are kept on disk between loads: the same results, and never a reason for a load to fail."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pyrite import LLM, SamplingParams
from quantizable import quantizable

PARAMS = SamplingParams(temperature=0.8, seed=3, max_tokens=12, logprobs=2, ignore_eos=True)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A tiny model of our own, written a minute ago by its times."""
    folder = tmp_path / "model"
    shutil.copytree(quantizable("qwen3_tied"), folder)
    for path in folder.glob("*.safetensors"):
        os.utime(path, (time.time() - 60,) * 2)
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the packed files; its parents do not exist yet."""
    monkeypatch.setenv("PYRITE_CACHE_DIR", str(tmp_path / "a" / "b"))
    return tmp_path / "a" / "b" / "packed"


def run(model: Path, quantization: str | None = "int4") -> tuple[bool, object]:
    """Whether the weights came from a packed file, and what was generated."""
    with LLM(model, quantization=quantization, max_model_len=64, num_threads=2) as llm:
        output = llm.generate({"prompt_token_ids": [5, 6, 7]}, PARAMS, use_tqdm=False)[0].outputs[0]
        return bool(llm.metrics()["weights_from_packed_file"]), (output.token_ids, output.logprobs)


def the_file(cache: Path) -> Path:
    (path,) = cache.iterdir()
    return path


def test_the_second_load_gives_the_same_from_the_file(model: Path, cache: Path) -> None:
    first = run(model)
    assert not first[0]
    assert the_file(cache).suffix == ".packed"
    assert run(model) == (True, first[1])
    other = run(model, "int8")
    assert not other[0] and other[1] != first[1]
    assert len(list(cache.iterdir())) == 2
    assert run(model, "int8") == (True, other[1])
    assert run(model) == (True, first[1])


def test_float_models_are_not_kept(model: Path, cache: Path) -> None:
    assert not run(model, None)[0] and not run(model, None)[0]
    assert not cache.exists()


def test_off(model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYRITE_CACHE_DIR", "off")
    monkeypatch.chdir(tmp_path)
    assert not run(model)[0] and not run(model)[0]
    assert not cache.exists() and not (tmp_path / "off").exists()


def _flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "the first byte": lambda path: _flip(path, 0),
    "the key": lambda path: _flip(path, 100),
    "a weight": lambda path: _flip(path, path.stat().st_size // 2),
    "the last byte": lambda path: _flip(path, path.stat().st_size - 1),
    "empty": lambda path: os.truncate(path, 0),
    "half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "no permission": lambda path: path.chmod(0),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_file_is_noted_and_replaced(
    model: Path, cache: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    if name == "no permission" and os.geteuid() == 0:
        pytest.skip("root may read everything")
    expected = run(model)[1]
    DAMAGES[name](the_file(cache))
    with caplog.at_level(logging.INFO, "pyrite"):
        assert run(model) == (False, expected)
    notes = [record for record in caplog.records if "packed file" in record.message]
    assert len(notes) == 1 and "not used" in notes[0].message
    assert notes[0].levelno == (logging.INFO if name == "the key" else logging.WARNING)
    assert run(model) == (True, expected)


def test_a_changed_model_is_quantized_again(model: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = run(model)[1]
    shard = next(model.glob("*.safetensors"))
    _flip(shard, shard.stat().st_size - 1)
    os.utime(shard, (time.time() - 30,) * 2)
    with caplog.at_level(logging.INFO, "pyrite"):
        used, changed = run(model)
    assert not used and changed != expected
    assert [record.levelno for record in caplog.records if "another state" in record.message] == [logging.INFO]
    assert run(model) == (True, changed)
    the_file(cache)


@pytest.mark.parametrize("name", ["a file", "read only"])
def test_a_folder_that_cannot_be_written(model: Path, cache: Path, caplog: pytest.LogCaptureFixture, name: str) -> None:
    if name == "a file":
        cache.parent.parent.mkdir()
        cache.parent.write_text("not a folder")
    else:
        if os.geteuid() == 0:
            pytest.skip("root may write everywhere")
        cache.parent.mkdir(parents=True)
        cache.parent.chmod(0o500)
    first = run(model)
    notes = [record.message for record in caplog.records if "packed file" in record.message]
    assert not first[0] and len(notes) == 1 and "not written" in notes[0]
    assert run(model) == first


SCRIPT = """
import logging, sys
sys.path[:0] = {path!r}
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
import test_packed_file
from pathlib import Path
{before}
print(test_packed_file.run(Path({model!r})))
{after}
"""


def start(model: Path, before: str = "", after: str = "") -> subprocess.Popen[str]:
    path = [str(Path(__file__).parent), str(Path(__file__).parents[1]), *(p for p in sys.path if p)]
    script = SCRIPT.format(path=path, model=str(model), before=before, after=after)
    environment = {**os.environ, "PYRITE_LOG": "info"}
    return subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    return output


def test_no_room_on_the_disk(model: Path, cache: Path) -> None:
    # A limit on the length of files stands in for a full disk: it refuses in the same place.
    before = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))"
    output = finish(start(model, before))
    assert output.count("packed file of the weights not written: no room for it") == 1, output
    assert list(cache.iterdir()) == []
    assert str(run(model)) == output.splitlines()[-1]
    the_file(cache)


def test_processes_at_once(model: Path, cache: Path) -> None:
    processes = [start(model) for _ in range(3)]
    outputs = [finish(process) for process in processes]
    results = {output.splitlines()[-1].partition(",")[2] for output in outputs}
    assert len(results) == 1 and not any("not written" in output for output in outputs), outputs
    the_file(cache)
    assert run(model)[0]


def test_what_a_killed_process_left_is_removed(model: Path, cache: Path) -> None:
    kill = "import os; from pyrite.backends import cpu; cpu._publish = lambda executor: os._exit(0)"
    finish(start(model, before=kill))
    assert the_file(cache).suffix == ".tmp"
    run(model)
    assert the_file(cache).suffix == ".packed"
