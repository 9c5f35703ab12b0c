"""Arguments of tool calls in unusual spellings, and text that only resembles a call."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models.written_calls import NAMESPACE, NOW, TOOLS, WEATHER, parts, read

from mlxk.domain.formats.family_formats import detect_syntaxes
from mlxk.domain.formats.tool_arguments import allowed_types, coerced, typed
from mlxk.domain.formats.tool_calls import ToolCallFormat, ToolCallSplitter
from mlxk.domain.generation.request import ToolCallDelta


@pytest.mark.parametrize(
    ("schema", "types"),
    [
        ({"properties": {}}, {"object"}),
        ({"items": {}}, {"array"}),
        (
            {"enum": [True, 1, 1.5, "a", None, [], {}]},
            {"boolean", "integer", "number", "string", "null", "array", "object"},
        ),
        ({"const": False}, {"boolean"}),
        ({"type": "integer", "nullable": True}, {"integer", "null"}),
        ({"enum": ["a"], "items": {}, "properties": {}}, {"string"}),
        ({"anyOf": [{"properties": {}}, {"items": {}}]}, {"object", "array"}),
        ({}, set()),
    ],
)
def test_the_types_of_a_schema_are_also_known_from_its_values_and_parts(schema: Any, types: set[str]) -> None:
    assert allowed_types(schema) == types


@pytest.mark.parametrize(
    ("text", "types", "value"),
    [
        (" TRUE ", ["boolean"], True),
        ("no", ["boolean"], False),
        ("1", ["boolean"], True),
        ("yes", ["boolean", "string"], "yes"),
        ("maybe", ["boolean"], "maybe"),
        ("3.0", ["integer"], 3.0),
        ("+3", ["integer"], 3),
        ("0012345678901234567", ["integer"], 12345678901234567),
        ("-012345678901234567", ["number", "integer"], -12345678901234567),
        ("0" * 5000, ["integer"], 0),
        ("+3.5", ["number"], 3.5),
        ("+3.5", ["integer"], "+3.5"),
        ("+4", ["number"], 4.0),
        ("inf", ["number"], "inf"),
        ("nan", ["integer", "number"], "nan"),
        ("three", ["integer"], "three"),
        ("+3", ["integer", "string"], "+3"),
        ("true", ["integer"], "true"),
        ('"5"', ["integer"], 5),
        ('"5"', ["integer", "string"], '"5"'),
        ('"five"', ["integer"], "five"),
        ("(1, 2)", ["array"], [1, 2]),
        ("{'a': 1", ["object"], "{'a': 1"),
        ("{'a' 1}", ["object"], "{'a' 1}"),
        ("{'a': 1} b", [], "{'a': 1} b"),
        ("null", ["integer"], "null"),
        ("12", ["string"], "12"),
    ],
)
def test_a_text_becomes_a_value_of_an_allowed_type_or_stays_as_it_is(text: str, types: list[str], value: Any) -> None:
    found = typed(text, types)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("given", "types", "value"),
    [
        (3.0, ["integer"], 3),
        (3.0, ["integer", "number"], 3.0),
        (3.5, ["integer"], 3.5),
        (True, ["integer"], True),
        (True, ["boolean"], True),
        (True, ["string"], "true"),
        ("3", ["integer"], 3),
        ("three", ["integer"], "three"),
        ([1], ["string"], [1]),
        ([1], ["array"], [1]),
    ],
)
def test_a_value_of_json_is_converted_only_where_nothing_is_lost(given: Any, types: list[str], value: Any) -> None:
    found = coerced(given, frozenset(types))
    assert (found, type(found)) == (value, type(value))


def invoked(marker: str, name: str, *arguments: str) -> str:
    """A call of MiniMax M3; ``~`` stands for the marker."""
    body = "".join(arguments).replace("~", marker)
    return f'{marker}<invoke name="{name}">{body}{marker}</invoke>'


@pytest.mark.parametrize("marker", [NAMESPACE, ""])
@pytest.mark.parametrize(
    ("name", "argument", "expected"),
    [
        ("every_type", "~<object>~<a>1~</a>\n~<b>x~</b>~</object>", {"object": {"a": 1, "b": "x"}}),
        ("every_type", "~<list>~<item>1~</item>~<item>true~</item>~</list>", {"list": [1, True]}),
        ("every_type", "~<list>~<item>~<a>~<b>0.5~</b>~</a>~</item>~</list>", {"list": [{"a": {"b": 0.5}}]}),
        ("every_type", "~<text>12~</text>~<integer>12~</integer>", {"text": "12", "integer": 12}),
        ("buy", "~<item>milk~</item>", {"item": "milk"}),
        ("now", "", {}),
    ],
)
def test_nested_tags_are_objects_and_lists(marker: str, name: str, argument: str, expected: dict[str, Any]) -> None:
    assert read(NAMESPACE, invoked(marker, name, argument)) == [(name, expected)]


@pytest.mark.parametrize("content", ["<p>hi</p>", "<item>a</item>", '<invoke name="b">c</invoke>', " a\n"])
def test_tags_without_a_marker_are_text_where_others_have_one(content: str) -> None:
    text = invoked(NAMESPACE, "write_file", "~<path>a~</path>", f"~<content>{content}~</content>")
    assert read(NAMESPACE, text) == [("write_file", {"path": "a", "content": content})]


@pytest.mark.parametrize(
    "text",
    [
        '<invoke name="">x</invoke>',
        '<invoke name="now"><a><b></a></b></invoke>',
        '<invoke name="now">' + "<a>" * 130 + "</a>" * 130 + "</invoke>",
    ],
)
def test_tags_that_do_not_match_or_are_too_deep_are_text(text: str) -> None:
    assert read(NAMESPACE, text) == [text]


PYTHON, PYTHON_END = "<|tool_call_start|>", "<|tool_call_end|>"


@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        ("[get_weather(city=Köln, days=2)]", [WEATHER]),
        ("[get_weather(days=2, city=Köln)]", [WEATHER]),
        ("get_weather(days=2, city=Köln)", [WEATHER]),
        ("get_weather(days=2, city=Köln); now()", [WEATHER, NOW]),
        ("[get_weather(city=2024-05-01, days=2)]", [("get_weather", {"city": "2024-05-01", "days": 2})]),
        ("get_weather(days=2, city=1.5.2)", [("get_weather", {"city": "1.5.2", "days": 2})]),
        ("[get_weather(city=10:30 (UTC), days=2)]", [("get_weather", {"city": "10:30 (UTC)", "days": 2})]),
        ("[get_weather(city=None of them, days=2)]", [("get_weather", {"city": "None of them", "days": 2})]),
        ("[get_weather(days=2 city='Köln')]", [WEATHER]),
        ("[get_weather(days=2, city=94103)]", [("get_weather", {"city": "94103", "days": 2})]),
        ("[write_file(path=a b, content=f(x) y)]", [("write_file", {"path": "a b", "content": "f(x) y"})]),
        ('[{"name": "now", "arguments": {}}]', [NOW]),
        ('{"name": "now", "arguments": {}}', [NOW]),
    ],
)
def test_calls_in_python_may_lack_quotes_or_be_json(calls: str, expected: list[Any]) -> None:
    assert read(PYTHON, f"{PYTHON}{calls}{PYTHON_END}") == expected
    assert read(PYTHON, f"{PYTHON}{calls}") == expected


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("<tool_call>", "<tool_call>[]</tool_call>"),
        ("<|tool_call_begin|>", "<|tool_call_begin|>later<|tool_call_argument_begin|>{}"),
        ("<|tool_call_begin|>", "<|tool_call_begin|>a b<|tool_call_argument_begin|>{}"),
        ("<tool_call>", '<tool_call>{"name": "now", "arguments": {"at": 1e999}}</tool_call>'),
        ("<tool_call>", "<tool_call>{'name': 'now', 'arguments': {'at': 1e999}}</tool_call>"),
        ("", '<function=later>{"a": 1}</function>'),
    ],
)
def test_what_only_resembles_a_call_is_text(template: str, text: str) -> None:
    assert read(template, text) == [text]


@pytest.mark.parametrize("escape", ["\\ud83d", "\\udc00 "])
def test_half_a_character_in_an_argument_leaves_a_call_that_is_valid_unicode(escape: str) -> None:
    text = f'<tool_call>{{"name": "write_file", "arguments": {{"path": "{escape}"}}}}</tool_call>'
    splitter = ToolCallSplitter(ToolCallFormat(detect_syntaxes("<tool_call>", frozenset()), TOOLS))
    (delta,) = [*splitter.feed(text), *splitter.flush()]
    assert isinstance(delta, ToolCallDelta)
    assert delta.call.arguments.encode() == f'{{"path": "{escape}"}}'.encode()
    assert parts("<tool_call>", [text]) == [("write_file", {"path": json.loads(f'"{escape}"')})]


BARE = [
    "[",
    "get_weather(",
    "now(",
    "city=",
    "days=",
    "Köln",
    "2",
    "-05",
    "None",
    " of",
    "f(x)",
    ",",
    ")",
    "),",
    ")]",
    ";",
]
TAGS = ["<city>", "</city>", "<item>", "</item>", "<days>", "</days>", "x", "2", "</invoke>", f"{NAMESPACE}</invoke>"]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sampled_from([*BARE, " ", "'", "\n", PYTHON_END]), max_size=12), st.sampled_from([f"{PYTHON}[", PYTHON])
)
def test_what_lacks_quotes_is_read_alike_in_any_pieces(pieces: list[str], opening: str) -> None:
    whole = opening + "".join(pieces)
    assert parts(PYTHON, [opening, *pieces]) == parts(PYTHON, list(whole)) == parts(PYTHON, [whole])


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from([*TAGS, NAMESPACE, " ", "\n"]), max_size=14))
def test_nested_tags_are_read_alike_in_any_pieces(pieces: list[str]) -> None:
    opening = f'{NAMESPACE}<invoke name="get_weather">'
    whole = opening + "".join(pieces)
    assert parts(NAMESPACE, [opening, *pieces]) == parts(NAMESPACE, list(whole)) == parts(NAMESPACE, [whole])
