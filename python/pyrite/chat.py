"""Conversations of callers, told apart from prompts, and the chat options that are built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard

from pyrite.describe import describe
from pyrite.errors import RequestError
from pyrite.request import MAX_PROMPTS

Message = Mapping[str, Any]
Conversation = list[Message]

_OWN_OPTIONS = ("messages", "tools", "add_generation_prompt")
_NOT_BUILT = ("reasoning", "thinking_budget", "answer_reserve", "tools")


def is_conversation(value: object) -> TypeGuard[Conversation]:
    """Whether `value` is a list of messages rather than a prompt or a list of prompts."""
    return isinstance(value, list | tuple) and bool(value) and isinstance(value[0], Mapping) and "role" in value[0]


def parse_conversations(messages: object) -> list[tuple[str, Conversation]]:
    """(place, conversation) for one conversation or a list of them. The template checks the messages.

    Raises:
        RequestError: neither.
    """
    expected = "a list of messages such as {'role': 'user', 'content': '...'}, or a list of such lists"
    if not isinstance(messages, list | tuple):
        raise RequestError("not a conversation", got=describe(messages), expected=expected, field="messages")
    if not messages:
        raise RequestError("empty conversation", expected=expected, field="messages")
    if isinstance(messages[0], list | tuple):
        if len(messages) > MAX_PROMPTS:
            raise RequestError(
                "too many conversations", got=len(messages), expected=f"at most {MAX_PROMPTS}", field="messages"
            )
        found = [(f"messages[{index}]", conversation) for index, conversation in enumerate(messages)]
    else:
        found = [("messages", messages)]
    for place, conversation in found:
        if not isinstance(conversation, list | tuple) or not conversation:
            raise RequestError("not a conversation", got=describe(conversation), expected=expected, field=place)
    return [(place, list(conversation)) for place, conversation in found]


def template_variables(chat_template_kwargs: object) -> dict[str, Any]:
    """Further variables for the chat template.

    Raises:
        RequestError: no dict of names, or a name that has its own option.
    """
    if chat_template_kwargs is None:
        return {}
    if not isinstance(chat_template_kwargs, Mapping):
        raise RequestError(
            "not a dict", got=describe(chat_template_kwargs), expected="names to values", field="chat_template_kwargs"
        )
    for name in chat_template_kwargs:
        if not isinstance(name, str) or name in _OWN_OPTIONS:
            raise RequestError(
                "not a variable of the template's own",
                got=describe(name),
                expected=f"a name other than {', '.join(_OWN_OPTIONS)}",
                field="chat_template_kwargs",
            )
    return dict(chat_template_kwargs)


def refuse_unbuilt(**options: object) -> None:
    """Refuse chat options whose feature is not built yet.

    Raises:
        RequestError: one of them is not None, or is no chat option at all.
    """
    for name, value in options.items():
        if name not in _NOT_BUILT:
            raise RequestError("unknown chat option", got=name, field=name)
        if value is not None:
            raise RequestError(
                "this chat option is not built yet",
                got=describe(value),
                expected="None",
                hint="leave it out",
                code="not_built_yet",
                field=name,
            )
