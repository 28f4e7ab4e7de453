"""The Rust reader against a plain one."""

from __future__ import annotations

import numpy as np
import pytest
from pyrite.errors import CheckpointError
from pyrite.weights.reader import Weights, open_weights
from tiny_models import FAMILIES, SafetensorsSource, tiny


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_both_readers_see_the_same_tensors(family, dtype):
    folder = tiny(family, dtype=dtype)
    plain, weights = Weights(SafetensorsSource(folder)), open_weights(folder)
    assert weights.tensors() == plain.tensors()
    for name in plain.tensors():
        assert weights.read(name) == plain.read(name)
        assert np.array_equal(weights.float32(name), plain.float32(name))


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(CheckpointError):
        open_weights(tmp_path)
