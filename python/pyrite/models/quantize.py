"""Says which matrices of a program become integers, and by which scheme. Backends only read what it assigns."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter

from pyrite.models.program import Linear, LinearAdd, LinearGlu, Parameter, Program
from pyrite.quant.schemes import Quantization


def assign_schemes(program: Program, quantization: Quantization) -> Program:
    """The program with a scheme on every matrix of a linear whose inputs divide into that scheme's groups.

    The matrix that gives the logits gets the scheme of the head, also where the embedding is tied to it: `embed` then
    reads rows of that form. All others get that of the layers. An embedding that no linear uses stays float: a step
    reads a few rows of it, so integers would cost accuracy and save no time. Vectors stay float.
    """
    heads = _heads(program)
    linear = _of_linears(program)

    def assign(parameter: Parameter) -> Parameter:
        scheme = quantization.head if parameter.name in heads else quantization.layers
        if parameter.name not in linear or not scheme.fits(parameter.shape[1]):
            return parameter
        return dataclasses.replace(parameter, quant=scheme)

    return dataclasses.replace(program, parameters=tuple(map(assign, program.parameters)))


def float_matrices(program: Program) -> tuple[Parameter, ...]:
    """The matrices of linears that have no scheme. After `assign_schemes`: those that do not divide into groups."""
    linear = _of_linears(program)
    return tuple(p for p in program.parameters if p.quant is None and p.name in linear)


def describe_float_matrices(program: Program, quantization: Quantization) -> tuple[str, ...]:
    """`float_matrices` in words, those of all layers together: `28 layers.*.down: 80 inputs, groups of 32`."""
    heads = _heads(program)

    def words(parameter: Parameter) -> str:
        scheme = quantization.head if parameter.name in heads else quantization.layers
        name = re.sub(r"\.\d+\.", ".*.", parameter.name)
        return f"{name}: {parameter.shape[1]} inputs, groups of {scheme.group_size}"

    kinds = Counter(map(words, float_matrices(program)))
    return tuple(f"{count} {kind}" for kind, count in kinds.items())


def _of_linears(program: Program) -> set[str]:
    return {op.weight for op in program.ops if isinstance(op, Linear | LinearAdd | LinearGlu)}


def _heads(program: Program) -> set[str]:
    """The weights whose products are the logits."""
    logits = program.logits.buffer
    return {op.weight for op in program.ops if isinstance(op, Linear) and op.out.buffer == logits}
