"""Tool calls in a stream, in the syntaxes of all families."""

import json
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models.written_calls import FAMILIES, FUNCTION, JSON, LLAMA, NOW, TOOLS, WEATHER, parts, read

from mlxk.domain.formats.family_formats import LAST_RESORT, CallSyntax, detect_syntaxes
from mlxk.domain.formats.tool_arguments import Reading, Tools
from mlxk.domain.formats.tool_calls import ToolCallFormat, ToolCallSplitter
from mlxk.domain.generation.request import TextDelta, ToolCallDelta


@pytest.mark.parametrize("family", FAMILIES)
def test_a_call_is_read(family: str) -> None:
    template, text = FAMILIES[family]
    assert read(template, text) == [WEATHER]


@pytest.mark.parametrize("family", FAMILIES)
def test_arguments_in_any_script_are_themselves_in_the_text_that_goes_back_to_the_model(family: str) -> None:
    template, text = FAMILIES[family]
    splitter = ToolCallSplitter(ToolCallFormat(detect_syntaxes(template, frozenset()), TOOLS))
    deltas = [*splitter.feed(text), *splitter.flush(True)]
    (call,) = [delta.call for delta in deltas if isinstance(delta, ToolCallDelta)]
    assert "Köln" in call.arguments


@pytest.mark.parametrize("family", FAMILIES)
def test_a_call_is_whole_or_it_is_text(family: str) -> None:
    template, text = FAMILIES[family]
    for length in range(1, len(text)):
        found = parts(template, list(text[:length]), complete=False)
        assert found == [WEATHER] or not any(isinstance(part, tuple) for part in found)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in {"Phi-4", "Llama 3", "Llama 4"}])
def test_two_calls_in_a_row_are_two(family: str) -> None:
    template, text = FAMILIES[family]
    assert read(template, f"{text}\n{text}") == [WEATHER, WEATHER]


@pytest.mark.parametrize("family", [name for name in FAMILIES if FAMILIES[name][0]])
def test_text_before_and_after_a_call_is_kept(family: str) -> None:
    template, text = FAMILIES[family]
    assert read(template, f"I will look.\n\n{text}\n\nDone.") == ["I will look.", WEATHER, "Done."]


@pytest.mark.parametrize(
    "text",
    [
        "Use the <tool_call> tag like so.",
        "stray </tool_call> end",
        "The syntax <function=NAME> is used.",
        'Here: {"a": 1} and [1, 2].',
        '{"name": "Bob", "age": 3}',
        '{"name": "unknown", "arguments": {}}',
        "[1, 2, 3]",
        "[a link](http://x) here",
        "[unknown(city='Köln')]",
        "<tool_call>nonsense</tool_call>",
        '<tool_call>{"name": "",}</tool_call>',
        "```json\n{}\n```",
        "<function=get_weather>" * 100,
        "<tool_call>{" * 100,
        "Use functools.partial here.",
        "a beginning <tool_ca",
        "\n no call at all \n",
    ],
)
def test_whatever_is_no_call_is_text_unchanged(text: str) -> None:
    for template in ("", "<tool_call>", "<tool_call><function=<parameter=", "<tool_call><arg_key>", "functools"):
        assert read(template, text) == [text]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('<tool_call>\n{"name": "now", "arguments": {}\n</tool_call>', [NOW]),
        ('<tool_call>\n{"name": "now", "arguments": {}}}\n</tool_call>', [NOW]),
        ("<tool_call>\n{'name': 'now', 'arguments': {}}\n</tool_call>", [NOW]),
        ('<tool_call>\n{"name": "now", "arguments": {},}\n</tool_call>', [NOW]),
        ('<tool_call>\n{"name": "now"}\n</tool_call>', [NOW]),
        ('<tool_call>\n{"name": "now", "arguments": "{}"}\n</tool_call>', [NOW]),
        ('<tool_call>\n{"type": "function", "function": {"name": "now", "arguments": {}}}', [NOW]),
        (f"<tool_call>\n{JSON}\n{JSON}\n</tool_call>", [WEATHER, WEATHER]),
        (f"<tool_call>\n[{JSON}, {JSON}]\n</tool_call>", [WEATHER, WEATHER]),
        (f'<tool_call>{{"no": 1}}</tool_call>\n<tool_call>{JSON}</tool_call>', ['<tool_call>{"no": 1}', WEATHER]),
        (f"<tool_call>\n{FUNCTION}\n</tool_call>", [WEATHER]),
        (FUNCTION, [WEATHER]),
        (f"Well.\n\n{FUNCTION}\n</tool_call>", ["Well.", WEATHER]),
    ],
)
def test_small_faults_of_models_are_forgiven(text: str, expected: list[Any]) -> None:
    assert read("<tool_call>", text) == expected


def test_llama_may_separate_its_calls_or_write_text_before_them() -> None:
    assert read("", f'{LLAMA}; {{"name": "now", "parameters": {{}}}}') == [WEATHER, NOW]
    assert read("", f"{LLAMA}\n{LLAMA}") == [WEATHER, WEATHER]
    assert read("", f"I will look.\n\n{LLAMA}") == ["I will look.", WEATHER]
    assert read("", f"Inline {LLAMA} is shown.") == [f"Inline {LLAMA} is shown."]
    assert read("", "[get_weather(city='Köln', days=2), now()]") == [WEATHER, NOW]


@pytest.mark.parametrize(
    "content",
    [
        "</tool_call> and <tool_call>",
        "    return x\n",
        "a\n\tb",
        'say "hi"',
        "\\d+ {}]",
        "</parameter> or </function>",
        "ä🎉",
    ],
)
def test_strings_keep_their_white_space_and_markers(content: str) -> None:
    expected = [("write_file", {"path": "a", "content": content})]
    encoded = json.dumps({"name": "write_file", "arguments": {"path": "a", "content": content}}, ensure_ascii=False)
    assert read("<tool_call>", f"<tool_call>\n{encoded}\n</tool_call>") == expected
    raw = encoded.replace("\\n", "\n").replace("\\t", "\t")
    assert read("<tool_call>", f"<tool_call>\n{raw}\n</tool_call>") == expected
    keys = "<tool_call>write_file<arg_key>path</arg_key><arg_value>a</arg_value><arg_key>content</arg_key><arg_value>"
    assert read("<tool_call><arg_key>", f"{keys}{content}</arg_value></tool_call>") == expected
    tags = "<tool_call>\n<function=write_file>\n<parameter=path>\na\n</parameter>\n<parameter=content>\n"
    written = f"{tags}{content}\n</parameter>\n</function>\n</tool_call>"
    assert read("<tool_call><function=<parameter=", written) == expected


def test_a_missing_end_of_an_argument_is_forgiven_at_the_end() -> None:
    text = "<tool_call>\n<function=get_weather>\n<parameter=city>\nKöln\n<parameter=days>\n2\n</function>\n</tool_call>"
    assert read("<tool_call><function=<parameter=", text) == [WEATHER]


VALUES = {
    "integer": ("null", None),
    "text": ("null", None),
    "flag": ("True", True),
    "object": ("{'k': 1}", {"k": 1}),
    "list": ('[1, "2"]', [1, "2"]),
    "choice": ("p", "p"),
    "number": ("1.50", 1.5),
    "untyped": ('{"a": 1}', {"a": 1}),
}


def test_arguments_have_the_types_of_the_schema() -> None:
    tags = "".join(f"<parameter={name}>\n{value}\n</parameter>\n" for name, (value, _) in VALUES.items())
    expected = [("every_type", {name: value for name, (_, value) in VALUES.items()})]
    assert read("<tool_call><function=<parameter=", f"<function=every_type>\n{tags}</function>") == expected
    invoked = "".join(f'<parameter name="{name}">{value}</parameter>' for name, (value, _) in VALUES.items())
    assert read("<minimax:tool_call>", f'<invoke name="every_type">{invoked}</invoke>') == expected


def test_json_arguments_have_the_types_of_the_schema_where_text_states_them() -> None:
    text = '<tool_call>{"name": "get_weather", "arguments": {"city": 94103, "days": "2"}}</tool_call>'
    assert read("<tool_call>", text) == [("get_weather", {"city": "94103", "days": 2})]


def test_python_strings_may_hold_quotes_and_brackets() -> None:
    start, end = "<|tool_call_start|>", "<|tool_call_end|>"
    for written, content in (
        ("'it\\'s'", "it's"),
        ("'sed -n '1,2p' /a'", "sed -n '1,2p' /a"),
        ("'grep \"]\" x'", 'grep "]" x'),
        ("'''a\nb'''", "a\nb"),
    ):
        text = f"{start}[write_file(path='a', content={written})]{end}"
        assert read(start, text) == [("write_file", {"path": "a", "content": content})]


def test_ids_are_those_of_the_model_or_new_ones() -> None:
    style = ToolCallFormat(detect_syntaxes("<|tool_call_begin|>", ()), TOOLS, lambda: "new")
    given_id = "<|tool_call_begin|>functions.now:0<|tool_call_argument_begin|>{}<|tool_call_end|>"
    for text, call_id in ((given_id, "functions.now:0"), ('{"name": "now", "arguments": {}}', "new")):
        splitter = ToolCallSplitter(style)
        (delta,) = [*splitter.feed(text), *splitter.flush()]
        assert isinstance(delta, ToolCallDelta)
        assert delta.call.id == call_id


def test_a_vocabulary_tells_of_a_syntax_that_the_template_does_not_name() -> None:
    text = '<|tool_call_start|>[get_weather(city="Köln", days=2)]<|tool_call_end|>'
    vocabulary = frozenset({"<|tool_call_start|>", "<|tool_call_end|>"})
    assert parts("plain", [text], vocabulary=vocabulary) == [WEATHER]


def test_text_before_a_call_is_not_held_back() -> None:
    splitter = ToolCallSplitter(ToolCallFormat((), TOOLS, lambda: "id"))
    assert splitter.feed("Let me") == [TextDelta("Let me")]
    assert splitter.feed(" see \n") == [TextDelta(" see")]
    assert splitter.feed("then") == [TextDelta(" \nthen")]


def streamed(template: str, text: str) -> list[TextDelta | ToolCallDelta]:
    """What comes of a text, one character at a time, before it ends."""
    splitter = ToolCallSplitter(ToolCallFormat(detect_syntaxes(template, ()), TOOLS, lambda: "id"))
    return [delta for char in text for delta in splitter.feed(char)]


@pytest.mark.parametrize(
    ("template", "opening"),
    [
        ("<tool_call><arg_key>", "<tool_call>"),
        ("<|tool_call>", "<|tool_call>"),
        ("<tool_call>", "<function=foo"),
        ("<|tool_call_begin|>", "<|tool_call_begin|>"),
    ],
)
def test_text_after_an_opening_comes_before_it_ends(template: str, opening: str) -> None:
    text = f"{opening} is how a call begins. " + "It has a name and arguments, then an end. " * 100
    said = "".join(delta.text for delta in streamed(template, text) if isinstance(delta, TextDelta))
    assert text.startswith(said)
    assert len(said) > len(text) - 100
    assert read(template, text) == [text]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_short_call_comes_with_its_last_character(family: str) -> None:
    template, text = FAMILIES[family]
    calls = [delta for delta in streamed(template, f"{text}\n") if isinstance(delta, ToolCallDelta)]
    assert [delta.call.name for delta in calls] == ["get_weather"]


@pytest.mark.parametrize("separator", [", ", "; ", " ", "\n"])
def test_calls_in_python_need_no_brackets_after_a_marker(separator: str) -> None:
    calls = f"get_weather(city='Köln', days=2){separator}now()"
    assert read("", f"<|python_start|>{calls}<|python_end|>") == [WEATHER, NOW]
    assert read("", f"<|python_start|>{calls}") == [WEATHER, NOW]
    assert read("<|tool_call_start|>", f"<|tool_call_start|>{calls}<|tool_call_end|> Done.") == [WEATHER, NOW, "Done."]


def test_the_end_of_a_call_is_no_text_after_arguments_in_json() -> None:
    marks = "<|open|><|close|><|sep|>"
    call = (
        '<|open|>call tool="now"<|sep|><|open|>json<|sep|>{}<|close|>json<|sep|><|close|>call<|sep|>'
        "<|close|>tools<|sep|>"
    )
    assert read(marks, f"<|open|>tools<|sep|>{call}") == [NOW]


def test_a_schema_whose_parts_refer_to_each_other_is_read_once() -> None:
    parts = {f"p{index}": {"anyOf": [{"$ref": f"#/$defs/p{other}"} for other in range(40)]} for index in range(40)}
    parts["p39"] = {"type": "integer"}
    parameters = {"type": "object", "properties": {"x": {"$ref": "#/$defs/p0"}}, "$defs": parts}
    tools = Tools([json.dumps({"type": "function", "function": {"name": "f", "parameters": parameters}})])
    assert tools.types("f", "x") == {"integer"}
    assert tools.types("f", "absent") == frozenset()


@pytest.mark.parametrize("stated", [[["string"]], {"of": "string"}, [{"of": 1}], 3, None, [None]])
def test_what_is_no_type_in_a_schema_allows_nothing_in_particular(stated: object) -> None:
    parameters = {"type": "object", "properties": {"x": {"type": stated}}}
    tools = Tools([json.dumps({"type": "function", "function": {"name": "f", "parameters": parameters}})])
    assert tools.types("f", "x") == frozenset()


MARKUP = "<tool_call> </tool_call> <tool _call> <function=now> </function> <parameter=a> </parameter> [TOOL_CALLS]"
KEYED = "<|python_tag|> <arg_key> </arg_key> <arg_value> </arg_value> ``` ```json"
PLAIN = '{"name" :"now" ,"arguments":{} } { [ ] now( ) x < now , "'
PIECES = [*MARKUP.split(), *KEYED.split(), *PLAIN.split(), "\n", " ", "'"]


@settings(max_examples=2000, deadline=None)
@given(
    st.lists(st.sampled_from(PIECES), max_size=14),
    st.booleans(),
    st.sampled_from(["", "<tool_call>", "<tool_call><function=<parameter=", "<tool_call><arg_key>", "[TOOL_CALLS]"]),
)
def test_the_split_does_not_depend_on_the_pieces(pieces: list[str], complete: bool, template: str) -> None:
    whole = "".join(pieces)
    assert parts(template, pieces, complete) == parts(template, list(whole), complete)
    assert parts(template, pieces, complete) == parts(template, [whole], complete)


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from([piece for piece in PIECES if "now" not in piece]), max_size=14))
def test_without_a_function_on_offer_nothing_changes(pieces: list[str]) -> None:
    whole = "".join(pieces)
    assert "".join(str(part) for part in parts("", pieces)) == whole


def test_a_long_call_is_read_few_times_however_small_its_pieces_are() -> None:
    count = 0

    def counted(syntax: CallSyntax) -> CallSyntax:
        def read(*arguments: Any) -> Reading:
            nonlocal count
            count += 1
            return syntax.read(*arguments)

        return attrs.evolve(syntax, read=read)

    style = ToolCallFormat(tuple(map(counted, detect_syntaxes("<tool_call>", frozenset()))), TOOLS)
    splitter = ToolCallSplitter(style)
    content = "def f(x):\n    return [x]\n" * 400
    call = json.dumps({"name": "write_file", "arguments": {"path": "a", "content": content}})
    text = f"<tool_call>\n{call}\n</tool_call>"
    deltas = [each for place in range(0, len(text), 4) for each in splitter.feed(text[place : place + 4])]
    deltas += splitter.flush(True)
    (found,) = [delta.call for delta in deltas if isinstance(delta, ToolCallDelta)]
    assert json.loads(found.arguments)["content"] == content
    assert count < 200


def renamed(syntax: CallSyntax, name: str) -> CallSyntax:
    """Return a syntax that reads the same text as a call of another name."""

    def read(*arguments: Any) -> Reading:
        found = syntax.read(*arguments)
        return attrs.evolve(found, calls=tuple(attrs.evolve(each, name=name) for each in found.calls))

    return attrs.evolve(syntax, name=name, read=read)


def names_read(*syntaxes: CallSyntax) -> list[str]:
    """Return the names of the calls in a text that each of these syntaxes can read."""
    splitter = ToolCallSplitter(ToolCallFormat(syntaxes, TOOLS))
    deltas = [*splitter.feed(f"<tool_call>\n{JSON}\n</tool_call>"), *splitter.flush(True)]
    return [delta.call.name for delta in deltas if isinstance(delta, ToolCallDelta)]


def test_of_two_syntaxes_that_can_read_a_call_the_first_one_does() -> None:
    (known,) = detect_syntaxes("<tool_call>", frozenset())
    first, second = renamed(known, "first"), renamed(known, "second")
    assert names_read(first, second) == ["first"]
    assert names_read(second, first) == ["second"]


def test_a_models_own_syntax_goes_before_those_of_the_last_resort() -> None:
    (known,) = detect_syntaxes("<tool_call>", frozenset())
    own = renamed(known, "own")
    assert known in LAST_RESORT
    assert names_read(own) == ["own"]
    assert names_read() == ["get_weather"]
    assert ToolCallFormat((own,), TOOLS).candidates == (own, *LAST_RESORT)
    assert ToolCallFormat((known,), TOOLS).candidates == (known, *(each for each in LAST_RESORT if each is not known))


def test_a_syntax_that_cannot_read_a_call_leaves_it_to_the_next_one() -> None:
    json_tags = renamed(detect_syntaxes("<tool_call>", frozenset())[0], "json")
    other = detect_syntaxes("<arg_key>", frozenset())[0]
    assert names_read(other, json_tags) == names_read(json_tags, other) == ["json"]


@pytest.mark.parametrize(
    ("template", "names"),
    [
        ("<tool_call> <arg_key>", ["GLM", "tool_call tags with JSON"]),
        ("<tool_call> <function= <parameter=", ["function and parameter tags", "tool_call tags with JSON"]),
        ("<|python_tag|> <|python_start|>", ["Llama JSON", "Llama 4 Python"]),
        ("<tool_call> <tool_calls>", ["tool_calls tags with JSON", "tool_call tags with JSON"]),
        ("]<]minimax[>[ <minimax:tool_call>", ["invoke tags after markers", "invoke tags"]),
    ],
)
def test_the_most_telling_marks_of_a_template_come_first(template: str, names: list[str]) -> None:
    assert [each.name for each in detect_syntaxes(template, frozenset())] == names
    assert [each.name for each in detect_syntaxes(" ".join(reversed(template.split(" "))), frozenset())] == names


def test_the_last_resort_is_tried_in_this_order() -> None:
    assert [each.name for each in LAST_RESORT] == [
        "tool_call tags with JSON",
        "function and parameter tags",
        "Llama JSON",
        "Llama 4 Python",
        "plain JSON",
        "plain Python",
    ]
