"""Model folders that lie: each must give a typed error at once, and the engine that runs beside must not notice.

Every case breaks one thing in a good folder. Afterwards an engine that was started before all of them answers a request
with the same tokens as ever, and all its blocks are back.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pyrite import LLM, SamplingParams
from pyrite.errors import CheckpointError, ConfigError
from tiny_models import tiny

LIMIT_S = 5.0
NORM = "model.norm.weight"
HEAD = "lm_head.weight"


@dataclass
class Folder:
    """A copy of a good single-file folder, taken apart."""

    path: Path
    header: dict[str, Any]
    data: bytes

    @classmethod
    def copy(cls, source: Path, target: Path) -> Folder:
        shutil.copytree(source, target)
        raw = (target / "model.safetensors").read_bytes()
        size = struct.unpack("<Q", raw[:8])[0]
        header = json.loads(raw[8 : 8 + size])
        header.pop("__metadata__", None)
        return cls(target, header, raw[8 + size :])

    @property
    def weights(self) -> Path:
        return self.path / "model.safetensors"

    def write(self, header: dict[str, Any] | bytes | None = None, data: bytes | None = None) -> None:
        """Put the file together again; a header given as bytes is written as it is."""
        header = self.header if header is None else header
        raw = header if isinstance(header, bytes) else json.dumps(header).encode()
        self.weights.write_bytes(struct.pack("<Q", len(raw)) + raw + (self.data if data is None else data))

    def edit(self, name: str, **fields: Any) -> None:
        """Change the header entry of one tensor."""
        self.header[name] = {**self.header[name], **fields}
        self.write()

    def shard(self) -> dict[str, str]:
        """Split into two shards with an index; returns the weight map."""
        names = sorted(self.header)
        halves = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
        weight_map = {}
        for file, part in halves.items():
            header, data = {}, b""
            for name in part:
                begin, end = self.header[name]["data_offsets"]
                offsets = [len(data), len(data) + end - begin]
                header[name] = {**self.header[name], "data_offsets": offsets}
                data += self.data[begin:end]
                weight_map[name] = file
            raw = json.dumps(header).encode()
            (self.path / file).write_bytes(struct.pack("<Q", len(raw)) + raw + data)
        self.weights.unlink()
        self.index(weight_map)
        return weight_map

    def index(self, weight_map: Any) -> None:
        (self.path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def _empty(f: Folder) -> None:
    f.weights.write_bytes(b"")


def _seven_bytes(f: Folder) -> None:
    f.weights.write_bytes(b"\x01" * 7)


def _lying_length(length: int) -> Callable[[Folder], None]:
    return lambda f: f.weights.write_bytes(struct.pack("<Q", length) + b"{}" + f.data)


def _raw_header(raw: bytes) -> Callable[[Folder], None]:
    return lambda f: f.write(raw)


def _deep(f: Folder) -> None:
    f.write(b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}")


def _truncated(share: float) -> Callable[[Folder], None]:
    return lambda f: os.truncate(f.weights, int(f.weights.stat().st_size * share) & ~4095)


def _trailing(f: Folder) -> None:
    f.write(data=f.data + b"\0" * 16)


def _overlap(f: Folder) -> None:
    begin, end = f.header[HEAD]["data_offsets"]
    f.edit(HEAD, data_offsets=[begin + 4, end + 4])


def _hole(f: Folder) -> None:
    last = max(f.header, key=lambda name: f.header[name]["data_offsets"][0])
    begin, end = f.header[last]["data_offsets"]
    f.header[last]["data_offsets"] = [begin + 64, end + 64]
    f.write(data=f.data + b"\0" * 64)


def _backwards(f: Folder) -> None:
    begin, end = f.header[HEAD]["data_offsets"]
    f.edit(HEAD, data_offsets=[end, begin])


def _shape(*shape: Any) -> Callable[[Folder], None]:
    return lambda f: f.edit(HEAD, shape=list(shape))


def _dtype(name: str) -> Callable[[Folder], None]:
    return lambda f: f.edit(NORM, dtype=name)


def _same_name_twice(f: Folder) -> None:
    raw = json.dumps(f.header)
    f.write((raw[:-1] + f', "{NORM}": ' + json.dumps(f.header[NORM]) + "}").encode())


def _in_two_shards(f: Folder) -> None:
    f.shard()
    first, second = sorted(f.path.glob("model-*.safetensors"))
    shutil.copy(first, second)


def _missing_shard(f: Folder) -> None:
    f.shard()
    next(f.path.glob("model-00002*")).unlink()


def _absent_name(f: Folder) -> None:
    weight_map = f.shard()
    f.index({**weight_map, "model.layers.9.nothing": "model-00001-of-00002.safetensors"})


def _unlisted(f: Folder) -> None:
    weight_map = f.shard()
    weight_map.pop(NORM)
    f.index(weight_map)


def _rename(old: str, new: str) -> Callable[[Folder], None]:
    def change(f: Folder) -> None:
        f.header[new] = f.header.pop(old)
        f.write()

    return change


def _extra(f: Folder) -> None:
    f.header["model.layers.0.self_attn.surprise.weight"] = {
        "dtype": "F32",
        "shape": [4],
        "data_offsets": [len(f.data), len(f.data) + 16],
    }
    f.write(data=f.data + b"\0" * 16)


def _index_path(path: str) -> Callable[[Folder], None]:
    def change(f: Folder) -> None:
        weight_map = f.shard()
        f.index({**weight_map, NORM: path})

    return change


def _link_out(f: Folder) -> None:
    outside = f.path.parent / "outside.safetensors"
    f.weights.rename(outside)
    f.weights.symlink_to(outside)


def _fifo(f: Folder) -> None:
    f.weights.unlink()
    os.mkfifo(f.weights)


def _directory(f: Folder) -> None:
    f.weights.unlink()
    f.weights.mkdir()


def _device(f: Folder) -> None:
    f.weights.unlink()
    f.weights.symlink_to("/dev/zero")


def _huge_index(f: Folder) -> None:
    f.shard()
    index = f.path / "model.safetensors.index.json"
    with index.open("r+b") as file:
        file.truncate(1 << 33)


def _huge_tokenizer(f: Folder) -> None:
    with (f.path / "tokenizer.json").open("r+b") as file:
        file.truncate(1 << 33)


def _config(**fields: Any) -> Callable[[Folder], None]:
    def change(f: Folder) -> None:
        path = f.path / "config.json"
        config = json.loads(path.read_text())
        for key, value in fields.items():
            if value is _ABSENT:
                config.pop(key, None)
            else:
                config[key] = value
        path.write_text(json.dumps(config))

    return change


_ABSENT = object()


def _pickle_only(f: Folder) -> None:
    f.weights.unlink()
    (f.path / "pytorch_model.bin").write_bytes(b"\x80\x02}q\0.")


def _flip(shape_of: str) -> Callable[[Folder], None]:
    return lambda f: f.edit(shape_of, shape=f.header[shape_of]["shape"][::-1])


QKV = "model.layers.0.self_attn.q_proj.weight"
BAD_INTEGERS = [0, -1, 2**31, 2**63, 1e9, "12", None, True, float("nan")]
CHECKPOINT_CASES: list[tuple[str, Callable[[Folder], None], str]] = [
    ("1-zero-bytes", _empty, "header_too_small"),
    ("2-seven-bytes", _seven_bytes, "header_too_small"),
    ("3-header-over-100MB", _lying_length(100_000_001), "header_too_large"),
    ("4-header-past-end", _lying_length(50_000_000), "header_past_end"),
    ("5-header-near-2^64", _lying_length(2**64 - 9), "header_too_large"),
    ("6-not-utf8", _raw_header(b"\xff\xfe{}"), "not_utf8"),
    ("6-not-json", _raw_header(b"{]"), "not_json"),
    ("6-leading-space", _raw_header(b" {}"), "not_json"),
    ("7-nested-deep", _deep, "not_json"),
    ("8-truncated-third", _truncated(0.33), "truncated"),
    ("8-truncated-late", _truncated(0.97), "truncated"),
    ("9-trailing-bytes", _trailing, "trailing_bytes"),
    ("10-overlap", _overlap, "hole"),
    ("11-hole", _hole, "hole"),
    ("12-end-before-begin", _backwards, "invalid_offset"),
    ("14-product-overflow", _shape(2**33, 2**33), "bad_shape"),
    ("15-negative-dim", _shape(-1, 112), "bad_shape"),
    ("15-float-dim", _shape(1.5, 112), "bad_shape"),
    ("15-string-dim", _shape("333", 112), "bad_shape"),
    ("16-shape-against-bytes", _shape(332, 112), "size_mismatch"),
    ("17-unknown-dtype", _dtype("F33"), "unknown_dtype"),
    ("19-integer-dtype", _dtype("I32"), "malformed_checkpoint"),
    ("20-name-twice", _same_name_twice, "duplicate_key"),
    ("21-in-two-shards", _in_two_shards, "duplicate_tensor"),
    ("22-shard-missing", _missing_shard, "missing_shard"),
    ("23-index-names-absent", _absent_name, "index_mismatch"),
    ("24-not-in-index", _unlisted, "index_mismatch"),
    ("24-tensor-missing", _rename(NORM, "model.norm.wait"), "malformed_checkpoint"),
    ("25-unexpected-tensor", _extra, "malformed_checkpoint"),
    ("26-transposed", _flip("model.layers.0.mlp.down_proj.weight"), "malformed_checkpoint"),
    ("26-vocab-off-by-one", _config(vocab_size=334), "malformed_checkpoint"),
    ("27-tied-but-head-present", _config(tie_word_embeddings=True), "malformed_checkpoint"),
    ("28-parent-path", _index_path("../model.safetensors"), "unsafe_path"),
    ("28-absolute-path", _index_path("/etc/passwd"), "unsafe_path"),
    ("28-nul-in-path", _index_path("a\0b.safetensors"), "unsafe_path"),
    ("28-hidden-parent", _index_path("a/../../b.safetensors"), "unsafe_path"),
    ("29-link-out", _link_out, "unsafe_path"),
    ("30-fifo", _fifo, "not_a_regular_file"),
    ("30-directory", _directory, "not_a_regular_file"),
    ("30-device", _device, "unsafe_path"),
    ("32-index-too-large", _huge_index, "index_too_large"),
    ("32-tokenizer-too-large", _huge_tokenizer, "malformed_checkpoint"),
    ("42-pickle-only", _pickle_only, "unsafe_format"),
]
CONFIG_CASES = [
    (f"36-{key}-{value!r}", _config(**{key: value}))
    for key in (
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "hidden_size",
        "intermediate_size",
        "vocab_size",
        "head_dim",
        "max_position_embeddings",
    )
    for value in BAD_INTEGERS
    # null is how a config says "the default" for these three
    if not (value is None and key in ("num_key_value_heads", "head_dim", "max_position_embeddings"))
] + [
    ("37-heads-not-a-multiple", _config(num_key_value_heads=2)),
    ("38-rope-unknown", _config(rope_parameters={"rope_type": "spiral", "rope_theta": 1e4})),
    ("38-rope-negative", _config(rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": -2.0})),
    ("38-rope-nan", _config(rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": float("nan")})),
    ("39-no-architecture", _config(architectures=_ABSENT)),
    ("39-empty-architectures", _config(architectures=[])),
    ("40-unknown-architecture", _config(architectures=["GravyForCausalLM"])),
]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder.copy(tiny("llama"), tmp_path / "model")


def _load(folder: Folder, expected: type[Exception]) -> Exception:
    peak_before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    with pytest.raises(expected) as caught:
        LLM(str(folder.path), max_model_len=256, num_threads=1)
    assert time.perf_counter() - started < LIMIT_S
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak_before
    assert grown_kib < 200 << 10, f"{grown_kib} KiB were touched for a bad folder"
    assert str(folder.path.parent) not in str(caught.value), "the message shows a path of this machine"
    return caught.value


@pytest.mark.parametrize(("change", "code"), [pytest.param(c, k, id=i) for i, c, k in CHECKPOINT_CASES])
def test_bad_checkpoint(
    folder: Folder, canary: Callable[[], None], change: Callable[[Folder], None], code: str
) -> None:
    change(folder)
    error = _load(folder, CheckpointError)
    assert error.code == code, str(error)
    canary()


@pytest.mark.parametrize("change", [pytest.param(c, id=i) for i, c in CONFIG_CASES])
def test_bad_config(folder: Folder, canary: Callable[[], None], change: Callable[[Folder], None]) -> None:
    change(folder)
    error = _load(folder, (ConfigError, CheckpointError))
    assert "Traceback" not in str(error)
    canary()


def test_truncation_at_every_page_names_the_file(folder: Folder) -> None:
    """FAULTS 8, in full: no boundary gives SIGBUS, garbage or another kind of error."""
    whole = folder.weights.read_bytes()
    for size in range(0, len(whole), 4096):
        folder.weights.write_bytes(whole[:size])
        with pytest.raises(CheckpointError) as caught:
            LLM(str(folder.path), max_model_len=256, num_threads=1)
        assert "model.safetensors" in str(caught.value)


def test_unsorted_header_is_fine(folder: Folder) -> None:
    """FAULTS 13."""
    folder.write(dict(sorted(folder.header.items(), reverse=True)))
    with LLM(str(folder.path), max_model_len=256, num_threads=1) as llm:
        assert llm.generate({"prompt_token_ids": [5, 6]}, SamplingParams(max_tokens=2), use_tqdm=False)


def test_shards_load_like_one_file(folder: Folder) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
    outputs = []
    for _ in range(2):
        with LLM(str(folder.path), max_model_len=256, num_threads=1) as llm:
            out = llm.generate({"prompt_token_ids": [5, 9, 17]}, params, use_tqdm=False)
            outputs.append(out[0].outputs[0].token_ids)
        if len(outputs) == 1:
            folder.shard()
    assert outputs[0] == outputs[1]


def test_a_million_files_are_refused_quickly(folder: Folder, canary: Callable[[], None]) -> None:
    """FAULTS 31, with 20,000: the walk must stop at the cap, so the count beyond it costs nothing."""
    for number in range(20_000):
        (folder.path / f"x{number}").touch()
    folder.weights.unlink()
    _load(folder, CheckpointError)
    canary()


def test_remote_code_is_never_imported(folder: Folder, caplog: pytest.LogCaptureFixture) -> None:
    """FAULTS 41: `auto_map` is ignored with one warning."""
    _config(auto_map={"AutoModelForCausalLM": "evil.Model"})(folder)
    (folder.path / "evil.py").write_text("raise SystemExit('remote code ran')")
    with caplog.at_level("WARNING", logger="pyrite"), LLM(str(folder.path), max_model_len=256, num_threads=1):
        pass
    assert sum("auto_map" in record.message for record in caplog.records) == 1
