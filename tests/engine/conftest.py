from __future__ import annotations

import pytest
from rig import Rig


@pytest.fixture
def rig():
    """A maker of engines on the hash model; checks at the end that every block is back."""
    rigs: list[Rig] = []

    def make(**settings) -> Rig:
        rigs.append(Rig(**settings))
        return rigs[-1]

    yield make
    for made in rigs:
        made.check_idle()
        made.engine.close()
        assert made.backend.closed
