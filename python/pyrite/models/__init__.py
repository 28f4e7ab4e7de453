"""Model families as data, and the recorded program they become. Imports neither torch nor numpy."""

from pyrite.models.config import ModelConfig
from pyrite.models.decoder import record_unfused
from pyrite.models.folder import load_config
from pyrite.models.fuse import merge_linears
from pyrite.models.program import Program, assign_slots
from pyrite.models.registry import register_family, supported_architectures
from pyrite.models.spec import FamilySpec, Key, Norm

__all__ = [
    "FamilySpec",
    "Key",
    "ModelConfig",
    "Norm",
    "Program",
    "load_config",
    "record",
    "register_family",
    "supported_architectures",
]


def record(config: ModelConfig) -> Program:
    """The program of a model: recorded, fused, and with scratch slots assigned."""
    return assign_slots(merge_linears(record_unfused(config)))
