"""Architecture string to family. Families are imported when first asked for."""

from __future__ import annotations

import importlib

from pyrite.errors import ConfigError
from pyrite.models.spec import FamilySpec

_MODULES = {
    "LlamaForCausalLM": "pyrite.models.families.llama",
    "MuseGlimmerForConditionalGeneration": "pyrite.models.families.muse_glimmer",
    "Qwen3ForCausalLM": "pyrite.models.families.qwen3",
}
_REGISTERED: dict[str, FamilySpec] = {}


def supported_architectures() -> tuple[str, ...]:
    """Every architecture string that `family_of` knows, sorted."""
    return tuple(sorted({*_MODULES, *_REGISTERED}))


def family_of(architecture: str) -> FamilySpec:
    """The family of an entry of a config's `architectures`.

    Raises:
        ConfigError: unknown; the message names the supported set.
    """
    if architecture in _REGISTERED:
        return _REGISTERED[architecture]
    if architecture not in _MODULES:
        raise ConfigError(
            "unknown model architecture",
            got=repr(architecture[:80]),
            expected="one of " + ", ".join(supported_architectures()),
            hint="a family that pyrite lacks can be added with pyrite.register_family",
            field="architectures",
        )
    return importlib.import_module(_MODULES[architecture]).SPEC


def register_family(architecture: str, spec: FamilySpec) -> None:
    """Make a family from outside pyrite known in this process.

    Raises:
        ConfigError: not a `FamilySpec`, or the architecture already means something else.
    """
    if not isinstance(spec, FamilySpec):
        raise ConfigError("not a FamilySpec", got=type(spec).__name__, field="spec")
    if not isinstance(architecture, str) or not architecture.isidentifier():
        raise ConfigError(
            "not an architecture name", got=repr(architecture)[:80], expected="an identifier", field="architecture"
        )
    if architecture in _MODULES or _REGISTERED.get(architecture, spec) != spec:
        raise ConfigError("architecture is already registered", got=architecture, field="architecture")
    _REGISTERED[architecture] = spec
