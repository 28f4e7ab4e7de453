"""Renders chats with the template that comes with a model, as transformers does, inside a sandbox with bounds."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyrite.errors import CheckpointError, PyriteError, RequestError
from pyrite.text.folder import MAX_TEMPLATE_BYTES, named_tokens, read_object, read_text

if TYPE_CHECKING:
    import jinja2

    from pyrite.text.sandbox import TemplateEnvironment

_FILE = "chat_template.jinja"
_CONFIG = "tokenizer_config.json"
_MAX_DEPTH = 64
# Names under which callers pass a message's reasoning; templates read the first, or the second.
_REASONING = ("reasoning_content", "thinking", "reasoning")


class ChatTemplate:
    """A compiled chat template. Safe to use from many threads.

    Args:
        source: jinja2 text.
        special_tokens: `bos_token` and so on, which templates read as variables.
        field: where the text comes from, for errors.

    Raises:
        CheckpointError: the text is no template, or too large.
    """

    def __init__(self, source: str, *, special_tokens: Mapping[str, str] | None = None, field: str = _FILE) -> None:
        self.source = source
        self._special_tokens = dict(special_tokens or {})
        self._environment, self._template = _compile(source, field)

    @classmethod
    def from_folder(cls, path: str | os.PathLike[str]) -> ChatTemplate:
        """Read `chat_template.jinja`, else `chat_template` of `tokenizer_config.json` (of a list, "default").

        Raises:
            CheckpointError: there is no template, or it is malformed.
        """
        folder = Path(path)
        tokens = {name: token for name, token in named_tokens(folder).items() if token is not None}
        text = read_text(folder, _FILE, MAX_TEMPLATE_BYTES)
        if text is not None:
            return cls(text, special_tokens=tokens, field=_FILE)
        field = f"{_CONFIG}: chat_template"
        value = (read_object(folder, _CONFIG) or {}).get("chat_template")
        if isinstance(value, list):
            named = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)}
            value = named.get("default")
        if value is None:
            raise CheckpointError(
                "the model has no chat template",
                hint="use generate with a prompt in the model's own format",
                field=_FILE,
            )
        if not isinstance(value, str):
            raise CheckpointError("wrong type", got=type(value).__name__, expected="a string", field=field)
        return cls(value, special_tokens=tokens, field=field)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **kwargs: Any,
    ) -> str:
        """The prompt of a chat. Encode it with `add_special_tokens=False`.

        Args:
            messages: each with a `role` and a `content` that is a string or a list of parts. Everything in them is
                data, never template text. Values that are no JSON become their type's name in angle brackets.
            add_generation_prompt: end with the header of the assistant's turn.
            tools: JSON schemas of functions.
            kwargs: further variables of the template; they go before the special tokens' names.

        Raises:
            RequestError: a malformed message, a refusal by the template itself, or a rendering out of bounds.
        """
        variables = {
            **self._special_tokens,
            "documents": None,
            **_plain(kwargs, "chat_template_kwargs"),
            "messages": [_alias_reasoning(message) for message in check_messages(messages)],
            "tools": None if tools is None else _plain(list(tools), "tools"),
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return self._environment.run(self._template, variables)
        except PyriteError:
            raise
        except Exception as error:
            raise _refusal(error) from error


def check_messages(messages: object) -> list[dict[str, Any]]:
    """A copy of the messages in plain JSON types.

    Raises:
        RequestError: names the message, such as `messages[2].content`.
    """
    if isinstance(messages, (str, bytes)) or not isinstance(messages, Sequence) or not messages:
        got = "an empty list" if isinstance(messages, Sequence) and not messages else type(messages).__name__
        raise RequestError("a chat is a list of messages", got=got, expected="at least one dict", field="messages")
    checked = []
    for index, message in enumerate(messages):
        field = f"messages[{index}]"
        if not isinstance(message, Mapping):
            raise RequestError("wrong type", got=type(message).__name__, expected="a dict", field=field)
        role = message.get("role")
        if not isinstance(role, str) or not role:
            got = repr(role) if role is None or isinstance(role, str) else type(role).__name__
            raise RequestError("bad role", got=got, expected="a non-empty string", field=f"{field}.role")
        _check_content(message, f"{field}.content")
        checked.append(_plain(message, field))
    return checked


def _check_content(message: Mapping[str, Any], field: str) -> None:
    content = message.get("content")
    if isinstance(content, str):
        return
    if content is None:
        # A message that only calls tools or only thinks has no content.
        if message.get("tool_calls") or any(message.get(name) for name in _REASONING):
            return
        raise RequestError("the message has no content", expected="a string or a list of parts", field=field)
    if not isinstance(content, (list, tuple)):
        raise RequestError(
            "wrong type", got=type(content).__name__, expected="a string or a list of parts", field=field
        )
    for index, part in enumerate(content):
        if not isinstance(part, Mapping) or not isinstance(part.get("type"), str):
            raise RequestError(
                "bad part", got=type(part).__name__, expected='a dict with a string "type"', field=f"{field}[{index}]"
            )


def _alias_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """Offer reasoning under the names that templates read, whichever the caller used."""
    reasoning = next((message[name] for name in _REASONING if message.get(name) is not None), None)
    if reasoning is None:
        return message
    return {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _plain(value: Any, field: str, depth: int = 0) -> Any:
    """The value in plain JSON types, so that a template gets no object with methods of its own."""
    if depth > _MAX_DEPTH:
        raise RequestError("nested too deep", expected=f"at most {_MAX_DEPTH} levels", field=field)
    if value is None or type(value) in (str, bool, int, float):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, Mapping):
        return {_plain(k, field, depth + 1): _plain(v, field, depth + 1) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(item, field, depth + 1) for item in value]
    if isinstance(value, tuple):
        return tuple(_plain(item, field, depth + 1) for item in value)
    return f"<{type(value).__name__}>"


def _compile(source: str, field: str) -> tuple[TemplateEnvironment, jinja2.Template]:
    if len(source) > MAX_TEMPLATE_BYTES:
        raise CheckpointError(
            "the chat template is too large", got=len(source), expected=f"at most {MAX_TEMPLATE_BYTES}", field=field
        )
    import jinja2

    from pyrite.text.sandbox import TemplateEnvironment

    environment = TemplateEnvironment()
    try:
        return environment, environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        got = f"{error.message} in line {error.lineno}"
        raise CheckpointError("the chat template is malformed", got=got, field=field) from error
    except (Exception, RecursionError) as error:
        raise CheckpointError("the chat template is malformed", got=type(error).__name__, field=field) from error


def _refusal(error: Exception) -> RequestError:
    """What a failed rendering means to the caller."""
    import jinja2

    from pyrite.text.sandbox import TemplateLimitError

    if isinstance(error, TemplateLimitError):
        return RequestError("the chat template is out of bounds", got=str(error), field="messages")
    if isinstance(error, jinja2.TemplateError):
        message = (error.message or type(error).__name__)[:500]
        return RequestError("the chat template refuses the messages", got=message, field="messages")
    got = f"{type(error).__name__}: {error}"[:500]
    return RequestError("the chat template cannot render the messages", got=got, field="messages")
