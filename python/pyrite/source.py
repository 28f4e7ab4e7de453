"""Where a model comes from: a folder, a Hugging Face Hub id, or the starter model inside the package."""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pyrite.describe import describe
from pyrite.errors import ConfigError
from pyrite.models import load_config, record
from pyrite.models.quantize import assign_schemes, describe_float_matrices
from pyrite.quant.schemes import quantization as quantization_of
from pyrite.weights.mapping import check_tensors
from pyrite.weights.reader import open_weights

if TYPE_CHECKING:
    from pyrite.models import ModelConfig, Program
    from pyrite.weights.reader import Weights

STARTER_FOLDER = Path(__file__).parent / "starter"
HUB_FILES = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "LICENSE*", "README.md")
"""What is fetched of a Hub repository: never pickles, never code."""

_logger = logging.getLogger("pyrite")

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")


def resolve_folder(model: str | os.PathLike[str] | None, revision: str | None = None) -> Path:
    """The folder of a model; a Hub id is fetched first, with its progress bars.

    Args:
        model: a folder, a Hub id such as "Qwen/Qwen3-0.6B", or None for the starter model.
        revision: branch, tag or commit on the Hub.

    Raises:
        ConfigError: nothing is there, the Hub cannot be reached, or a revision was given with a folder.
    """
    if model is None:
        if not (STARTER_FOLDER / "config.json").is_file():
            raise ConfigError("this build of pyrite has no starter model", hint="pass a model folder", field="model")
        return _folder(STARTER_FOLDER, revision)
    if not isinstance(model, str | os.PathLike):
        raise ConfigError("not a model", got=describe(model), expected="a folder or a Hub id", field="model")
    name, path = os.fspath(model), Path(model).expanduser()
    if name and _is_dir(path):
        return _folder(path, revision)
    if not isinstance(model, str) or not _HUB_ID.fullmatch(name) or ".." in name or path.exists():
        raise ConfigError(
            "no such model folder", got=describe(name), expected="a folder or a Hub id like org/name", field="model"
        )
    return _fetch(name, revision)


def _is_dir(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # a name too long, or with a NUL in it
        return False


def _folder(path: Path, revision: str | None) -> Path:
    if revision is not None:
        raise ConfigError("a local folder has no revisions", got=describe(revision), expected="None", field="revision")
    return path


def _fetch(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(HUB_FILES)))
    except Exception as error:  # the Hub client has a dozen kinds, and its HTTP library more
        raise ConfigError(
            f"{name} is no folder here, and fetching it from the Hugging Face Hub failed",
            got=f"{type(error).__name__}: {describe(str(error).strip().partition(chr(10))[0])}",
            hint="check the name and the network, or pass a local model folder",
            code="model_not_found",
            field="model",
        ) from error


@dataclass(frozen=True, slots=True)
class OpenModel:
    """A model whose headers are checked and whose program is recorded; no weight has been read.

    `skipped` are tensors of the folder that its text model does not need. `kept_float` says, where a quantization was
    asked for, which matrices do not divide into its groups.
    """

    folder: Path
    config: ModelConfig
    program: Program
    weights: Weights
    skipped: tuple[str, ...]
    kept_float: tuple[str, ...] = ()


def open_model(folder: Path, *, strict: bool = False, quantization: str | None = None) -> OpenModel:
    """Read the config, record the program, and check that the tensors of the folder are those of the program.

    Args:
        strict: unknown keys of the config are errors.
        quantization: by name; the program's matrices get its schemes.

    Raises:
        ConfigError, CheckpointError: the folder cannot be understood or trusted.
    """
    config = load_config(folder, strict=strict)
    program = record(config)
    weights = open_weights(folder)
    family = config.family
    report = check_tensors(
        program,
        weights,
        skippable=family.skippable_tensors,
        tied=(family.head, family.embedding) if config.tie_word_embeddings else None,
    )
    kept_float: tuple[str, ...] = ()
    if quantization is not None:
        chosen = quantization_of(quantization)
        program = assign_schemes(program, chosen)
        kept_float = describe_float_matrices(program, chosen)
        if kept_float:
            listed = "; ".join(kept_float)
            _logger.warning("%s: inputs do not divide into groups, these stay float: %s", quantization, listed)
    return OpenModel(folder, config, program, weights, report.skipped, kept_float)
