"""The exception tree of pyrite. Imports nothing; Rust raises these same classes.

Every error says what failed, what was got, what was expected, and what to try next. `code` is stable and safe to
match on.
"""

from __future__ import annotations

from typing import ClassVar


class PyriteError(Exception):
    """Base of every error that pyrite raises on purpose.

    Args:
        what: one sentence without a full stop, naming the thing that failed.
        got: the offending value, shortened by the caller when large. None leaves it out.
        expected: what would have been right. None leaves it out.
        hint: the next thing to try. None leaves it out.
        code: stable identifier of the failure; defaults to the class's own.
        field: the setting, parameter, tensor or file at fault, such as ``sampling_params[3].top_p``.
    """

    default_code: ClassVar[str] = "error"

    def __init__(
        self,
        what: str,
        *,
        got: object = None,
        expected: object = None,
        hint: str | None = None,
        code: str | None = None,
        field: str | None = None,
    ) -> None:
        self.what = what
        self.got = got
        self.expected = expected
        self.hint = hint
        self.code = code or self.default_code
        self.field = field
        super().__init__(what)

    def __str__(self) -> str:
        """`field: what: got X, expected Y`, then the hint on a line of its own."""
        text = f"{self.field}: {self.what}" if self.field else self.what
        parts = []
        if self.got is not None:
            parts.append(f"got {self.got}")
        if self.expected is not None:
            parts.append(f"expected {self.expected}")
        if parts:
            text = f"{text}: {', '.join(parts)}"
        return f"{text}\nhint: {self.hint}" if self.hint else text

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle with every field, so that errors cross process borders whole."""
        return _rebuild, (type(self), self.what, self.got, self.expected, self.hint, self.code, self.field)


def _rebuild(
    cls: type[PyriteError], what: str, got: object, expected: object, hint: str | None, code: str, field: str | None
) -> PyriteError:
    return cls(what, got=got, expected=expected, hint=hint, code=code, field=field)


class ConfigError(PyriteError, ValueError):
    """A bad setting, an unknown config key, an unsupported architecture, or a feature that is not built yet."""

    default_code = "invalid_config"


class CheckpointError(PyriteError, ValueError):
    """A model folder that cannot be trusted: a tensor is missing, unexpected, or of the wrong shape, dtype or place."""

    default_code = "malformed_checkpoint"


class RequestError(PyriteError, ValueError):
    """A request that can never run: prompt too long, bad sampling parameter, unknown role."""

    default_code = "invalid_request"


class ShapeError(PyriteError, ValueError):
    """A tensor that breaks an op's contract."""

    default_code = "invalid_shape"


class CapacityError(PyriteError, RuntimeError):
    """The pool cannot hold even one sequence, or memory ran out."""

    default_code = "out_of_capacity"


class SessionBusyError(PyriteError, RuntimeError):
    """A session was used while it generates."""

    default_code = "session_busy"


class BackendError(PyriteError, RuntimeError):
    """The device, its driver or a kernel failed, or the engine was closed."""

    default_code = "backend_failed"


class InternalError(PyriteError, RuntimeError):
    """A broken invariant inside pyrite. Please report it."""

    default_code = "internal"
