"""Chat templates: the same text as transformers, and nothing that a template or a message can do does harm."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pyrite
import pytest
from folders import BOS, EOS, TOKENIZER_CONFIG, byte_level_json, write
from pyrite.errors import CheckpointError, RequestError
from pyrite.text import ChatTemplate
from pyrite.text.folder import MAX_TEMPLATE_BYTES

TEMPLATES = {
    "markers": """{{ bos_token }}{% for m in messages %}
<|{{ m.role }}|>
{{ m['content'] | trim }}{{ eos_token }}
{% endfor %}
{% if add_generation_prompt %}<|assistant|>{% endif %}""",
    "channels": """{{- bos_token -}}
{%- set ns = namespace(system=false) -%}
{%- for message in messages -%}
    {%- if message.role == 'system' -%}{%- set ns.system = true -%}{%- endif -%}
    {%- if message.reasoning_content -%}
        <|start|>assistant to=self<|message|>{{ message.reasoning_content }}<|eom|>
    {%- endif -%}
    {%- if message.content is string -%}
        {%- set text = message.content -%}
    {%- else -%}
        {%- set text = message.content | selectattr('type', 'equalto', 'text') | map(attribute='text') | join('') -%}
    {%- endif -%}
    <|start|>{{ message.role }}{{ ' to=user' if message.role == 'assistant' }}<|message|>{{ text }}<|eot|>
{%- endfor -%}
{%- if not ns.system -%}
    <|start|>system<|message|>Effort: {{ reasoning_strength | default('high') }}.<|eot|>
{%- endif -%}
{%- if add_generation_prompt -%}<|start|>assistant{%- endif -%}""",
    "tools": """{% if tools %}# Tools
{% for tool in tools %}
{{ tool | tojson }}
{{ tool.function.parameters | tojson(indent=2) }}
{% endfor %}
{% endif %}
{% for m in messages %}
{% if loop.first and m.role != 'system' %}(no system){% endif %}
{% if m.tool_calls is defined and m.tool_calls %}
{% for call in m.tool_calls %}<call>{{ call.function.name }} {{ call.function.arguments | tojson }}</call>
{% endfor %}
{% continue %}
{% endif %}
{{ loop.index }}. {{ m.role | upper }}: {{ m.content if m.content is string else m.content | length }}
{% endfor %}""",
    "macros": """{% macro show(m, depth=0) %}
{{ '  ' * depth }}{{ '%s: %s' % (m.role, m.content | string | replace('<', '&lt;')) }}
{% endmacro %}
{% set ordered = messages | rejectattr('role', 'equalto', 'tool') | list %}
{% for m in ordered %}{{ show(m, loop.index0) }}{{ '\\n' if not loop.last }}{% endfor %}
{{ dict(a=1, **{'b': 2}) | dictsort }} {{ [1, 2] + [3] }} {{ 7 // 2 ** 2 }} {{ 'x' ~ 3 ~ none }} {{ "é<>&'" | tojson }}
{{ messages[0].content[:5] | reverse }}{{ '{} {:>5}'.format(1, 'a') }}
{{ messages | map(attribute='role') | unique | join(', ') }}
{% generation %}{% set inner = 3 %}<{{ inner }}>{% endgeneration %}{{ inner is defined }}
{% for i in range(5) if i is odd %}{{ i }}{% break %}{% endfor %}
{{ 'abc'.center(9).split() }}{{ namespace(self=1).self }}""",
}
CHATS: dict[str, list[dict[str, Any]]] = {
    "short": [{"role": "user", "content": "Hi <b>there</b> {{ 7 * 7 }} {% raise %}"}],
    "turns": [
        {"role": "system", "content": "  Be brief.\n"},
        {"role": "user", "content": "Größe? 🦀"},
        {"role": "assistant", "content": "", "reasoning": "think"},
        {"role": "assistant", "content": "So.", "thinking": "x"},
        {"role": "user", "content": "Ok", "name": "{{ evil }}"},
    ],
    "parts": [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}]},
    ],
}
CALLS = [
    {"role": "user", "content": "Weather?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"type": "function", "function": {"name": "get", "arguments": {"städte": ["Zürich"], "n": 1}}}],
    },
    {"role": "tool", "content": "sunny", "name": "get"},
]
TOOLS = [
    {
        "type": "function",
        "function": {"name": "get", "description": "Gets <it>", "parameters": {"type": "object", "properties": {}}},
    }
]
USER = [{"role": "user", "content": "hi"}]


def _oracle(folder: Path):
    transformers = pytest.importorskip("transformers")
    write(folder, byte_level_json(), tokenizer_config=TOKENIZER_CONFIG)
    return transformers.AutoTokenizer.from_pretrained(folder)


def _cases() -> list[tuple[str, list[dict[str, Any]], dict[str, Any]]]:
    cases: list[tuple[str, list[dict[str, Any]], dict[str, Any]]] = []
    for name in TEMPLATES:
        for chat in CHATS:
            if not (name in ("markers", "macros") and chat == "parts"):
                cases.append((name, CHATS[chat], {}))
    cases.append(("tools", CALLS, {"tools": TOOLS}))
    cases.append(("channels", CHATS["short"], {"reasoning_strength": "low", "add_generation_prompt": False}))
    return cases


@pytest.mark.parametrize(("name", "messages", "options"), _cases())
def test_agrees_with_transformers(tmp_path: Path, name: str, messages, options) -> None:
    oracle = _oracle(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(TEMPLATES[name], encoding="utf-8")
    options = {"add_generation_prompt": True, **options}
    expected = oracle.apply_chat_template(messages, chat_template=TEMPLATES[name], tokenize=False, **options)
    assert ChatTemplate.from_folder(tmp_path).render(messages, **options) == expected


def test_the_starter_models_template_agrees_with_transformers(tmp_path: Path) -> None:
    source = Path(pyrite.__path__[0]) / "starter" / "chat_template.jinja"
    oracle, text = _oracle(tmp_path), source.read_text(encoding="utf-8")
    template = ChatTemplate(text, special_tokens={"bos_token": BOS, "eos_token": EOS, "pad_token": "<|pad|>"})
    for messages in CHATS.values():
        for prompt in (True, False):
            expected = oracle.apply_chat_template(
                messages, chat_template=text, tokenize=False, add_generation_prompt=prompt
            )
            assert template.render(messages, add_generation_prompt=prompt) == expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"tokenizer_config": {"chat_template": "config {{ bos_token }}", "bos_token": "<s>"}}, "config <s>"),
        (
            {
                "tokenizer_config": {
                    "chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
                }
            },
            "d",
        ),
        (
            {
                "tokenizer_config": {"chat_template": "{{ bos_token }}"},
                "special_tokens_map": {"bos_token": {"content": "<x>"}},
            },
            "<x>",
        ),
    ],
    ids=["string", "list", "special_tokens_map"],
)
def test_where_the_template_is_found(tmp_path: Path, files, expected: str) -> None:
    write(tmp_path, **files)
    assert ChatTemplate.from_folder(tmp_path).render(USER) == expected
    (tmp_path / "chat_template.jinja").write_text("own file")
    assert ChatTemplate.from_folder(tmp_path).render(USER) == "own file"


@pytest.mark.parametrize(
    "config",
    [None, {}, {"chat_template": 3}, {"chat_template": []}, {"chat_template": [{"name": "rag", "template": "x"}]}],
    ids=str,
)
def test_no_template_is_an_error(tmp_path: Path, config) -> None:
    if config is not None:
        write(tmp_path, tokenizer_config=config)
    with pytest.raises(CheckpointError):
        ChatTemplate.from_folder(tmp_path)


@pytest.mark.parametrize("source", ["{% if %}", "{{ x", "{% nope %}", "{{ 1 | nope }}", "(" * 9 + "{{" + "(" * 100_000])
def test_a_malformed_template_is_refused_at_load(source: str) -> None:
    with pytest.raises(CheckpointError, match="the chat template is malformed"):
        ChatTemplate(source)


def test_a_huge_template_is_refused_at_load(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="too large"):
        ChatTemplate("x" * (MAX_TEMPLATE_BYTES + 1))
    (tmp_path / "chat_template.jinja").write_bytes(b"x" * (MAX_TEMPLATE_BYTES + 1))
    with pytest.raises(CheckpointError, match="too large"):
        ChatTemplate.from_folder(tmp_path)


def _grow(expression: str, then: str = "{{ ns.x }}", start: str = "'aaaaaaaa'", times: int = 100) -> str:
    loop = f"{{% for i in range({times}) %}}{{% set ns.x = {expression} %}}{{% endfor %}}"
    return f"{{% set ns = namespace(x={start}) %}}{loop}{then}"


NESTED = {"expression": "[ns.x, ns.x]", "start": "[1]", "times": 40}
BOMBS = {
    "range": "{% for i in range(10**9) %}x{% endfor %}",
    "empty_loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "output": "{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}",
    "times": "{{ 'a' * 10**9 }}",
    "times_list": "{{ 10**8 * [1] }}",
    "concat": _grow("ns.x ~ ns.x"),
    "plus": _grow("ns.x + ns.x"),
    "plus_list": _grow("ns.x + ns.x", start="[1]"),
    "nested_output": _grow(**NESTED),
    "nested_tojson": _grow(**NESTED, then="{{ ns.x | tojson }}"),
    "nested_string": _grow(**NESTED, then="{{ ns.x | string | length }}"),
    "nested_percent": _grow(**NESTED, then="{{ '%s' % ns.x }}"),
    "nested_format": _grow(**NESTED, then="{{ '{}'.format(ns.x) }}"),
    "nested_concat": _grow(**NESTED, then="{{ ns.x ~ 'a' }}"),
    "nested_join": _grow(**NESTED, then="{{ ns.x | join }}"),
    "deep": _grow("[ns.x]", start="[1]", times=5000),
    "center": "{{ 'a' | center(10**9) }}",
    "indent": "{{ ('a\\n' * 99999) | indent(99999) }}",
    "ljust": "{{ 'a'.ljust(10**9) }}",
    "zfill": "{{ 'a'.zfill(10**9) }}",
    "expandtabs": "{{ ('\\t' * 99999).expandtabs(99999) }}",
    "replace": "{% set x = 'a' * 99999 %}{{ x.replace('a', x) }}",
    "replace_filter": "{% set x = 'a' * 99999 %}{{ x | replace('a', x) }}",
    "join": "{% set x = 'a' * 99999 %}{{ x.join(x) }}",
    "join_filter": "{% set x = 'a' * 99999 %}{{ x | join(x) }}",
    "tojson_indent": "{{ ([1] * 1000) | tojson(indent=99999) }}",
    "percent_width": "{{ '%1000000000d' % 1 }}",
    "percent_star": "{{ '%*d' % (10**9, 1) }}",
    "percent_named": "{{ '%(a)1000000000d' % {'a': 1} }}",
    "format_width": "{{ '{:1000000000d}'.format(1) }}",
    "format_nested": "{{ '{:{}}'.format('a', '1000000000') }}",
    "format_filter": "{{ '%1000000000d' | format(1) }}",
    "power": "{{ 9 ** 99999999 }}",
    "square": _grow("ns.x * ns.x", start="3"),
    "slices": "{{ [1] | slice(10**8) | list }}",
    "batch": "{{ [1] | batch(10**8, 0) | list }}",
    "sum_of_lists": "{{ ([[1] * 1000] * 1000) | sum(start=[]) | length }}",
    "lipsum": "{{ lipsum(n=10**7) }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "tree": "{% macro f(n) %}{% if n < 60 %}{{ f(n + 1) }}{{ f(n + 1) }}{% endif %}{% endmacro %}{{ f(0) }}",
    "large_steps": "{% for i in range(99999) %}{{ range(99999) | list | length }}{% endfor %}",
    "large_upper": "{% set x = 'a' * 4000000 %}{% for i in range(99999) %}{% set y = x | upper %}{% endfor %}",
}
ESCAPES = {
    "class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "class_item": "{{ ''['__class__']['__mro__'] }}",
    "format": "{{ '{0.__class__.__mro__}'.format('') }}",
    "globals": "{{ cycler.__init__.__globals__ }}",
    "strftime": "{{ strftime_now.__globals__.os }}",
    "environment": "{{ self.environment.meter.start() }}{{ self._TemplateReference__context.x.y }}",
    "namespace": "{{ namespace(__class__=1) }}",
    "namespace_set": "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}",
    "append": "{{ messages.append(1) }}",
    "update": "{{ messages[0].update(a=1) }}",
}


@pytest.mark.parametrize("source", [*BOMBS.values(), *ESCAPES.values()], ids=[*BOMBS, *ESCAPES])
def test_bombs_and_escapes_fail_that_request_only(source: str) -> None:
    good = ChatTemplate("{{ messages[0].content }}")
    template = ChatTemplate(source)
    start = time.thread_time()
    with pytest.raises(RequestError):
        template.render(USER)
    assert time.thread_time() - start < 3
    assert good.render(USER) == "hi"


@pytest.mark.parametrize(
    "source",
    ["{{ '' | attr('__class__') }}", "{{ raise_exception.__globals__ }}", "{{ messages.__len__ }}", "{{ tojson }}"],
)
def test_private_attributes_print_nothing(source: str) -> None:
    assert ChatTemplate(source).render(USER) == ""


def test_the_bound_on_output_is_exact() -> None:
    template = ChatTemplate("{{ messages[0].content }}")
    text = "x" * (4 << 20)
    assert template.render([{"role": "user", "content": text}]) == text
    with pytest.raises(RequestError):
        template.render([{"role": "user", "content": text + "x"}])


def test_a_long_chat_is_within_the_bounds() -> None:
    messages = [{"role": "user" if i % 2 == 0 else "assistant", "content": "word " * 40} for i in range(2000)]
    assert len(ChatTemplate(TEMPLATES["channels"]).render(messages)) > 400_000


@pytest.mark.parametrize("number", [1_700_000_000, 2**62, -5])
def test_numbers_in_messages_are_no_widths(number: int) -> None:
    template = ChatTemplate("{{ messages[0].at }} {{ messages[0].at | tojson }} {{ '%d' % messages[0].at }}")
    rendered = template.render([{"role": "user", "content": "x", "at": number}])
    assert rendered == f"{number} {number} {number}"


def test_a_refusal_by_the_template_carries_its_message() -> None:
    template = ChatTemplate("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(RequestError, match="roles must alternate") as caught:
        template.render(USER)
    assert caught.value.code == "invalid_request"


@pytest.mark.parametrize(
    ("messages", "field"),
    [
        ([], "messages"),
        ("hi", "messages"),
        (None, "messages"),
        ({"role": "user"}, "messages"),
        ([*USER, "hi"], "messages[1]"),
        ([{"content": "x"}], "messages[0].role"),
        ([{"role": "", "content": "x"}], "messages[0].role"),
        ([{"role": 3, "content": "x"}], "messages[0].role"),
        ([*USER, {"role": "user"}], "messages[1].content"),
        ([{"role": "user", "content": None}], "messages[0].content"),
        ([{"role": "user", "content": 3}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": "text", "text": "a"}, "b"]}], "messages[0].content[1]"),
        ([{"role": "user", "content": [{"text": "a"}]}], "messages[0].content[0]"),
    ],
    ids=str,
)
def test_malformed_messages_are_named(messages, field: str) -> None:
    with pytest.raises(RequestError) as caught:
        ChatTemplate("x").render(messages)
    assert caught.value.field == field


def test_nested_and_cyclic_messages_are_refused() -> None:
    cyclic: list[Any] = []
    cyclic.append(cyclic)
    with pytest.raises(RequestError, match="nested too deep"):
        ChatTemplate("x").render([{"role": "user", "content": "x", "extra": cyclic}])


def test_objects_do_not_reach_the_template() -> None:
    class Canary:
        def danger(self) -> str:
            return "ran"

    messages = [{"role": "user", "content": [{"type": "image", "image": Canary()}]}]
    assert ChatTemplate("{{ messages[0].content[0].image }}").render(messages) == "<Canary>"
    with pytest.raises(RequestError):
        ChatTemplate("{{ messages[0].content[0].image.danger() }}").render(messages)


def test_the_callers_messages_stay_as_they_are() -> None:
    messages = [{"role": "assistant", "content": "x", "reasoning": "r"}]
    before = json.dumps(messages)
    assert ChatTemplate("{{ messages[0].reasoning_content }}").render(messages) == "r"
    assert json.dumps(messages) == before


def test_threads_share_a_template() -> None:
    template = ChatTemplate(TEMPLATES["channels"])
    expected = template.render(USER)
    results: list[str] = []

    def work() -> None:
        results.extend(template.render(USER) for _ in range(50))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 400
