"""A jinja2 environment for templates that nobody vouches for.

On top of jinja's immutable sandbox (no private attributes, no changes to what is passed in) every rendering has
- fuel: entering a block (a loop's body, a branch, a macro) and every call use one unit;
- a deadline in processor time of the thread, looked at now and then;
- a bound on every string or list that an operator, a filter, a call or an output makes, checked before the work where
  a short template could ask for a large one.

It renders what transformers renders, for every template within the bounds.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from functools import wraps
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension
from jinja2.ext import loopcontrols as LoopControls
from jinja2.parser import Parser
from jinja2.runtime import Context, str_join
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

FUEL = 1_000_000
MAX_SECONDS = 1.0
MAX_OUTPUT_CHARS = 4 << 20
# Characters that one value may have, items likewise, and characters that one step may touch.
_MAX_SIZE = 4 << 20
_MAX_ITEMS = 400_000
_MAX_WORK = 64 << 20
_MAX_NUMBER = 100_000
_MAX_BITS = 4096
_MAX_NESTING = 200
_TOO_LARGE = f"the template makes a value of more than {_MAX_SIZE} characters or {_MAX_ITEMS} items"
# Filters that neither flatten a value into text nor multiply it.
# fmt: off
_PLAIN_FILTERS = frozenset((
    "abs", "attr", "count", "d", "default", "dictsort", "first", "float", "groupby", "int", "items", "last", "length",
    "list", "map", "max", "min", "random", "reject", "rejectattr", "reverse", "select", "selectattr", "sort", "unique",
))
# fmt: on
# Filters and methods of strings whose result may be as long as the operands multiplied, a number counting its value.
_MULTIPLYING = frozenset(("expandtabs", "indent", "join", "replace", "tojson", "wordwrap", "zfill"))
_WIDE_PERCENT = re.compile(r"%(\([^)]*\))?[-+ #0-9.]*([0-9]{5}|\*)")
_WIDE_BRACES = re.compile(r"\{[^{}]*:[^{}]*([0-9]{5}|\{)")
_PADDING = frozenset(("center", "expandtabs", "ljust", "rjust", "zfill"))


class TemplateLimitError(Exception):
    """A rendering went over one of the bounds."""


class _Meter(threading.local):
    """What is left of the current rendering; one per thread, so that threads may share a template."""

    fuel = 0
    until = 0.0

    def start(self) -> None:
        self.fuel = FUEL
        self.until = time.thread_time() + MAX_SECONDS

    def tick(self) -> None:
        self.fuel -= 1
        if self.fuel < 0:
            raise TemplateLimitError(f"the template takes more than {FUEL} steps")
        if self.fuel % 64 == 0:
            self.check_time()

    def check_time(self) -> None:
        if time.thread_time() > self.until:
            raise TemplateLimitError(f"the template takes more than {MAX_SECONDS:g} s")


class _Generator(CodeGenerator):
    """Puts a tick into every block and the bound into `~`."""

    def blockvisit(self, nodes: Iterable[nodes.Node], frame: Frame) -> None:
        self.writeline("environment.meter.tick()")
        super().blockvisit(nodes, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.concat((")
        for arg in node.nodes:
            self.visit(arg, frame)
            self.write(", ")
        self.write("))")


class _Generation(Extension):
    """`{% generation %}`, with which training code marks the assistant's text: here a block like any other."""

    tags: set[str] = {"generation"}  # noqa: RUF012 (declared so by jinja)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


class _Namespace(Namespace):
    """A namespace without private names."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, rest = args[0], args[1:]
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            _refuse_private(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        Namespace.__setitem__(self, name, value)


class _DictMaker:
    """What templates call `dict`."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """Compiles templates whose rendering stays within the bounds. See the module."""

    code_generator_class = _Generator
    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        # Without the optimizer: it would run filters and operators on constants while compiling, unmetered.
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,
            extensions=[_Generation, LoopControls],
            finalize=self._output,
        )
        self.meter = _Meter()
        self.filters["tojson"] = _tojson
        self.filters = {name: self._bounded(name, run) for name, run in self.filters.items()}
        del self.globals["lipsum"]
        self.globals.update(
            raise_exception=_raise_exception, strftime_now=_strftime_now, dict=_DictMaker(), namespace=_Namespace
        )

    def run(self, template: jinja2.Template, variables: Mapping[str, Any]) -> str:
        """Render.

        Raises:
            TemplateLimitError: over a bound.
            Exception: whatever the template runs into.
        """
        self.meter.start()
        pieces, size = [], 0
        for piece in template.generate(variables):
            size += len(piece)
            if size > MAX_OUTPUT_CHARS:
                raise TemplateLimitError(f"the template writes more than {MAX_OUTPUT_CHARS} characters")
            self.meter.check_time()
            pieces.append(piece)
        return "".join(pieces)

    def concat(self, parts: tuple[Any, ...]) -> str:
        """The operator `~`."""
        _measure(parts)
        return str_join(parts)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """`+ * ** %`, refused where the result would be out of bounds."""
        _check_operands(operator, left, right)
        result = super().call_binop(context, operator, left, right)
        _measure(result)
        return result

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Any call in a template."""
        __self.meter.tick()
        method = getattr(__obj, "__wrapped__", __obj)
        owner = getattr(method, "__self__", None)
        if isinstance(owner, str):
            name = getattr(method, "__name__", "")
            if name in ("format", "format_map"):
                _check_format(owner, (*args, *kwargs.values()), _WIDE_BRACES)
            if name in _PADDING:
                _check_numbers(name, (*args, *kwargs.values()))
            _check_work(name, owner, (*args, *kwargs.values()))
        result = super().call(__context, __obj, *args, **kwargs)
        if isinstance(owner, str):
            _measure(result)
        return result

    def _output(self, value: Any) -> Any:
        if not isinstance(value, str):
            _measure(value)
        return value

    def _bounded(self, name: str, run: Callable[..., Any]) -> Callable[..., Any]:
        """A filter that counts as a call and has bounded work; `wraps` keeps jinja's marks on the function."""
        subject = 1 if hasattr(run, "jinja_pass_arg") else 0

        @wraps(run)
        def bounded(*args: Any, **kwargs: Any) -> Any:
            self.meter.tick()
            if name in _PLAIN_FILTERS:
                return run(*args, **kwargs)
            others = (*args[subject + 1 :], *kwargs.values())
            _check_numbers(name, others)
            _check_work(name, args[subject], others)
            if name == "format":
                _check_format(args[subject], others, _WIDE_PERCENT)
            result = run(*args, **kwargs)
            _measure(result)
            return result

        return bounded


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _tojson(
    x: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as Python writes it; jinja's own filter escapes HTML characters."""
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse_private(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace cannot store the private name {name!r}")


def _measure(value: Any) -> int:
    """Characters and items in a value, nested ones included; over the bound is an error."""
    if isinstance(value, str):
        size = len(value)
        if size > _MAX_SIZE:
            raise TemplateLimitError(_TOO_LARGE)
        return size
    size = items = 0
    stack: list[Iterator[Any]] = [iter((value,))]
    while stack:
        for item in stack[-1]:
            items += 1
            if isinstance(item, str):
                size += len(item)
            elif isinstance(item, int) and item.bit_length() > _MAX_BITS:
                raise TemplateLimitError(f"the template makes a number of more than {_MAX_BITS} bits")
            elif isinstance(item, (list, tuple, set, frozenset)):
                stack.append(iter(item))
                break
            elif isinstance(item, Mapping):
                stack.append(iter([part for pair in item.items() for part in pair]))
                break
        else:
            stack.pop()
        if size > _MAX_SIZE or items > _MAX_ITEMS or len(stack) > _MAX_NESTING:
            raise TemplateLimitError(_TOO_LARGE)
    return size + items


def _check_operands(operator: str, left: Any, right: Any) -> None:
    if operator == "**":
        if isinstance(left, int) and isinstance(right, int) and left.bit_length() * right > _MAX_BITS:
            raise TemplateLimitError(f"the template makes a number of more than {_MAX_BITS} bits")
    elif operator == "*":
        for value, count in ((left, right), (right, left)):
            limit = _MAX_SIZE if isinstance(value, str) else _MAX_ITEMS
            if isinstance(count, int) and isinstance(value, (str, list, tuple)) and len(value) * count > limit:
                raise TemplateLimitError(_TOO_LARGE)
    elif operator == "%" and isinstance(left, str):
        _check_format(left, right if isinstance(right, tuple) else (right,), _WIDE_PERCENT)


def _check_format(template: Any, values: Iterable[Any], wide: re.Pattern[str]) -> None:
    """Refuse a format string with a width or precision of five digits or one that is passed in, and large results."""
    if not isinstance(template, str):
        return
    if wide.search(template):
        raise TemplateLimitError("a width in a format string is passed in or has more than four digits")
    if len(template) * max([1, *map(_measure, values)]) > _MAX_WORK:
        raise TemplateLimitError("a format string and its values are too large")


def _check_numbers(name: str, values: Iterable[Any]) -> None:
    """Refuse widths, counts and precisions that make a short text long."""
    for value in values:
        if isinstance(value, int) and abs(value) > _MAX_NUMBER:
            raise TemplateLimitError(f"a number passed to {name!r} is more than {_MAX_NUMBER}")


def _check_work(name: str, subject: Any, others: tuple[Any, ...]) -> None:
    """Refuse values out of bounds, and operands that multiply to too much, such as a long text and a replacement."""
    work = max(_measure(subject), 1)
    sizes = [abs(v) if isinstance(v, int) else _measure(v) for v in others]
    if name == "replace" and len(sizes) >= 2:
        work = (work // max(sizes[0], 1) + 1) * max(sizes[1], 1)
    elif name in _MULTIPLYING:
        for size in sizes:
            work *= max(size, 1)
    if work > _MAX_WORK:
        raise TemplateLimitError(f"the operands of {name!r} are too large")
