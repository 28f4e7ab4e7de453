"""`_core.quantize_tensors` gives the reference's bytes, whatever the dtype, the threads and how the tensors are cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyrite import _core
from pyrite.errors import CheckpointError, ConfigError
from pyrite.quant.reference import quantize
from pyrite.quant.scheme import QuantScheme
from safetensors.torch import save_file

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
SCHEMES = [
    QuantScheme(f"int{bits}_g{size}{'_sym' if symmetric else ''}", bits, size, symmetric)
    for bits in (4, 8)
    for size in (32, 64, 128)
    for symmetric in (False, True)
]
SCHEMES.append(QuantScheme("int4_g32x4", 4, 32, True, groups_per_scale=4))


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(4)
    rows = {"f32": 45, "f16": 3, "bf16": 100}
    made = {}
    for name, dtype in DTYPES.items():
        values = rng.standard_normal((rows[name], 256)) * 10.0 ** rng.integers(-6, 3, (rows[name], 1))
        values[rng.random(values.shape) < 0.05] *= 30
        made[name] = torch.from_numpy(values.astype(np.float32)).to(dtype)
    made["nan"] = torch.full((2, 256), torch.nan)
    made["integer"] = torch.zeros((2, 256), dtype=torch.int32)
    made["vector"] = torch.zeros(256)
    return made


@pytest.fixture(scope="module")
def checkpoint(tensors: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> _core.Checkpoint:
    folder: Path = tmp_path_factory.mktemp("quantize")
    save_file(tensors, folder / "model.safetensors")
    return _core.open_checkpoint(str(folder))


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
def test_the_bytes_are_the_references(
    checkpoint: _core.Checkpoint, tensors: dict[str, torch.Tensor], scheme: QuantScheme
) -> None:
    names = ["bf16", "f32", "f16"]
    expected = quantize(np.concatenate([tensors[name].float().numpy() for name in names]), scheme)
    for num_threads in (1, 3):
        codes, scales, zeros = _core.quantize_tensors(
            checkpoint,
            names,
            bits=scheme.bits,
            group_size=scheme.group_size,
            symmetric=scheme.symmetric,
            groups_per_scale=scheme.groups_per_scale,
            num_threads=num_threads,
        )
        assert (codes.dtype, scales.dtype) == (np.uint8, np.float16)
        assert np.array_equal(codes, expected.codes)
        assert np.array_equal(scales.view(np.uint16), expected.group_scales().view(np.uint16))
        assert (zeros is None) == (expected.zeros is None)
        assert zeros is None or (zeros.dtype == np.uint8 and np.array_equal(zeros, expected.zeros))


@pytest.mark.parametrize(
    ("name", "code"),
    [("nan", "not_finite"), ("absent", "missing_tensor"), ("integer", "wrong_dtype"), ("vector", "wrong_shape")],
)
def test_a_tensor_that_cannot_be_quantized_is_named(checkpoint: _core.Checkpoint, name: str, code: str) -> None:
    with pytest.raises(CheckpointError) as raised:
        scheme = {"bits": 4, "group_size": 64, "symmetric": False, "groups_per_scale": 1}
        _core.quantize_tensors(checkpoint, ["f32", name], num_threads=2, **scheme)
    assert (raised.value.code, raised.value.field) == (code, name)


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("bits", {"bits": 3}),
        ("group_size", {"group_size": 48}),
        ("group_size", {"group_size": 0}),
        ("groups_per_scale", {"groups_per_scale": 2}),
        ("groups_per_scale", {"groups_per_scale": 4}),
        ("names", {"names": []}),
        ("num_threads", {"num_threads": 0}),
    ],
)
def test_options_that_do_not_exist_are_refused(
    checkpoint: _core.Checkpoint, field: str, options: dict[str, Any]
) -> None:
    scheme = {"bits": 4, "group_size": 64, "symmetric": True, "groups_per_scale": 1}
    good: dict[str, Any] = {"names": ["f32"], "num_threads": 1, **scheme}
    chosen = {**good, **options}
    with pytest.raises(ConfigError) as raised:
        _core.quantize_tensors(checkpoint, chosen.pop("names"), **chosen)
    assert raised.value.field == field
