"""`EngineConfig` and the environment variables."""

from __future__ import annotations

import math

import pytest
from pyrite.errors import ConfigError
from pyrite.quant.schemes import QUANTIZATIONS
from pyrite.settings import EngineConfig, Environment

BAD = [
    *(("device", v) for v in ("gpu", "", None, 0, "cuda:0")),
    *(("dtype", v) for v in ("int8", "bf16", None, 32)),
    *(("quantization", v) for v in ("int3", "INT4", "", 4, ["int4"], "awq", True)),
    *(("kv_cache_dtype", v) for v in ("int4", None, 16)),
    *(("kv_cache_memory", v) for v in (0, -1, 1.5, "1GB", True, 2**64, math.inf)),
    *(("max_model_len", v) for v in (0, -1, 2**31, 1.0, "8k", True)),
    *(("max_num_seqs", v) for v in (0, -1, 1025, 2.0, None, True)),
    *(("max_num_batched_tokens", v) for v in (0, 65537, None, "512")),
    *(("max_num_mixed_prefill_tokens", v) for v in (0, 65537, True, "128")),
    *(("block_size", v) for v in (0, 1, 8, 15, 24, 48, 512, None, 16.0)),
    *(("enable_prefix_caching", v) for v in (1, None, "yes")),
    *(("num_threads", v) for v in (0, -1, 1025, 1.0, True)),
    *(("seed", v) for v in (-1, 2**64, 1.0, True)),
    *(("revision", v) for v in ("", 5)),
    *(("strict", v) for v in (1, None)),
]

NOT_BUILT = [
    ("kv_cache_dtype", "fp8"),
    ("kv_cache_dtype", "float8_e4m3"),
    ("speculative", {"method": "ngram"}),
]


@pytest.mark.parametrize(("field", "value"), BAD, ids=str)
def test_bad_setting(field, value):
    with pytest.raises(ConfigError) as caught:
        EngineConfig(**{field: value})
    assert caught.value.field == field


@pytest.mark.parametrize(("field", "value"), NOT_BUILT, ids=str)
def test_what_is_not_built_says_so(field, value):
    with pytest.raises(ConfigError, match="not built yet") as caught:
        EngineConfig(**{field: value})
    assert caught.value.field == field and caught.value.code == "not_built_yet"


@pytest.mark.parametrize("name", QUANTIZATIONS)
def test_every_quantization_has_its_name(name):
    assert EngineConfig(quantization=name).quantization == name


def test_unknown_quantizations_list_the_known_ones():
    with pytest.raises(ConfigError) as caught:
        EngineConfig(quantization="q4_k_m")
    assert all(name in str(caught.value) for name in QUANTIZATIONS)


@pytest.mark.parametrize("block_size", [16, 32, 64, 128, 256])
def test_block_sizes(block_size):
    assert EngineConfig(block_size=block_size).block_size == block_size


def test_environment(monkeypatch):
    for name in ("CPU_ISA", "NUM_THREADS", "LOG", "CUDA_GRAPHS"):
        monkeypatch.delenv(f"PYRITE_{name}", raising=False)
    assert Environment.read() == Environment(None, None, "warning")
    assert Environment.read().cache_dir is None, "off, while tests run"
    monkeypatch.setenv("PYRITE_CPU_ISA", "scalar")
    monkeypatch.setenv("PYRITE_NUM_THREADS", "3")
    monkeypatch.setenv("PYRITE_LOG", "DEBUG")
    monkeypatch.setenv("PYRITE_CUDA_GRAPHS", "0")
    assert Environment.read() == Environment("scalar", 3, "debug", False)
    monkeypatch.setenv("PYRITE_NUM_THREADS", "")
    assert Environment.read().num_threads is None


def test_the_folder_for_caches(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.chdir(tmp_path)
    for given, expected in [("off", None), ("/a/b", "/a/b"), ("a", f"{tmp_path}/a"), ("~/a", f"{tmp_path}/a")]:
        monkeypatch.setenv("PYRITE_CACHE_DIR", given)
        assert Environment.read().cache_dir == expected
    monkeypatch.setenv("PYRITE_CACHE_DIR", "")
    assert Environment.read().cache_dir == "/xdg/pyrite"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert Environment.read().cache_dir == f"{tmp_path}/.cache/pyrite"
    monkeypatch.setattr("sys.platform", "darwin")
    assert Environment.read().cache_dir == f"{tmp_path}/Library/Caches/pyrite"
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    assert Environment.read().cache_dir is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CPU_ISA", "sse9"),
        ("NUM_THREADS", "0"),
        ("NUM_THREADS", "two"),
        ("NUM_THREADS", "٣"),
        ("LOG", "loud"),
        ("CUDA_GRAPHS", "yes"),
    ],
)
def test_bad_environment(monkeypatch, name, value):
    monkeypatch.setenv(f"PYRITE_{name}", value)
    with pytest.raises(ConfigError) as caught:
        Environment.read()
    assert caught.value.field == f"PYRITE_{name}"
