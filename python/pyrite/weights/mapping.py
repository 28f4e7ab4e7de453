"""Compares what a program needs with what a checkpoint holds.

Every tensor is used, skipped by a declared list, or an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from pyrite.errors import CheckpointError

if TYPE_CHECKING:
    from pyrite.models.program import Program
    from pyrite.weights.reader import TensorSource

FLOAT_DTYPES = ("F32", "F16", "BF16")
"""Dtypes a parameter may have on disk. Matrices stay in theirs, vectors are widened to f32; nothing else is cast."""

_SHOWN = 10


@dataclass(frozen=True, slots=True)
class TensorReport:
    """What became of a checkpoint's tensors: names, each list sorted."""

    used: tuple[str, ...]
    skipped: tuple[str, ...]


def check_tensors(
    program: Program,
    checkpoint: TensorSource,
    *,
    skippable: Iterable[str] = (),
    tied: tuple[str, str] | None = None,
) -> TensorReport:
    """Check a checkpoint against a program before anything is loaded. Reads headers, and data only for `tied`.

    Args:
        skippable: patterns (fnmatch) of tensors that this family may carry unused.
        tied: (head, embedding) when the config ties them. transformers then saves no head, but published folders exist
            that hold a copy; a head that is there must equal the embedding byte for byte, else the flags contradict the
            weights.

    Raises:
        CheckpointError: tensors missing or unexpected (up to 10 names and the count), of the wrong shape or dtype, of
            several dtypes within one parameter, or a tied head that is not the embedding.
    """
    found = checkpoint.tensors()
    needed: dict[str, tuple[int, ...]] = {}
    for parameter in program.parameters:
        needed.update(parameter.source_shapes())
    _missing(sorted(needed.keys() - found.keys()))
    for name, shape in needed.items():
        _fits(name, shape, *found[name])
    for parameter in program.parameters:
        if parameter.kind == "matrix":
            _one_dtype(parameter.sources, found)
    extra = sorted(found.keys() - needed.keys())
    if tied is not None and tied[0] in extra:
        _same_bytes(checkpoint, found, *tied)
        skippable = (*skippable, tied[0])
    patterns = tuple(skippable)
    skipped = [name for name in extra if any(fnmatchcase(name, pattern) for pattern in patterns)]
    unexpected = sorted(set(extra) - set(skipped))
    if unexpected:
        raise CheckpointError(
            f"{len(unexpected)} unexpected tensors" if len(unexpected) > 1 else "unexpected tensor",
            got=_listed(unexpected),
            hint="the checkpoint has parts that its config does not describe",
            field=_clean(unexpected[0]),
        )
    return TensorReport(tuple(sorted(needed)), tuple(skipped))


def _missing(names: list[str]) -> None:
    if names:
        raise CheckpointError(
            f"{len(names)} tensors are missing" if len(names) > 1 else "tensor is missing",
            expected=_listed(names),
            hint="is a shard missing, or does config.json belong to another model?",
            field=names[0],
        )


def _fits(name: str, shape: tuple[int, ...], dtype: str, found: tuple[int, ...]) -> None:
    if tuple(found) != shape:
        raise CheckpointError("tensor has the wrong shape", got=list(found), expected=list(shape), field=name)
    if dtype not in FLOAT_DTYPES:
        raise CheckpointError("tensor has the wrong dtype", got=dtype, expected=" or ".join(FLOAT_DTYPES), field=name)


def _one_dtype(sources: tuple[str, ...], found: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
    for source in sources[1:]:
        if found[source][0] != found[sources[0]][0]:
            expected = f"{found[sources[0]][0]}, as {sources[0]}"
            raise CheckpointError("tensor has another dtype", got=found[source][0], expected=expected, field=source)


def _same_bytes(
    checkpoint: TensorSource, found: Mapping[str, tuple[str, tuple[int, ...]]], head: str, embedding: str
) -> None:
    same_form = found[head][0] == found[embedding][0] and tuple(found[head][1]) == tuple(found[embedding][1])
    if not same_form or checkpoint.read(head) != checkpoint.read(embedding):
        raise CheckpointError(
            "the config ties the head to the embedding, but the checkpoint holds a different head",
            expected=f"no such tensor, or a copy of {embedding}",
            hint="set tie_word_embeddings to false if the head is meant",
            field=head,
        )


def _listed(names: list[str]) -> str:
    shown = ", ".join(map(_clean, names[:_SHOWN]))
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown


def _clean(name: str) -> str:
    """A tensor name from outside, on one line and not too long."""
    return ascii(name[:120])[1:-1]
