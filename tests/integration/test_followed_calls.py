"""Calls that are followed while they are written, against mlx-lm's parsers, which read them when they are whole."""

import importlib
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxk.adapters.mlx.prompting.tool_parsers import tool_call_format
from mlxk.domain.formats.output_parser import OutputParser
from mlxk.domain.formats.reasoning import CHANNELS, ReasoningFormat
from mlxk.domain.formats.tool_calls import ToolCallFormat
from mlxk.domain.generation.conversation import ToolCall
from mlxk.domain.generation.request import TextDelta, ToolCallDelta

TYPES = {"city": "string", "days": "integer", "warm": "boolean", "places": "array", "more": "object"}
TOOLS = (
    json.dumps(
        {
            "type": "function",
            "function": {
                "name": "get_weather",
                "parameters": {"type": "object", "properties": {key: {"type": kind} for key, kind in TYPES.items()}},
            },
        }
    ),
)
Arguments = Mapping[str, str]
Writer = Callable[[str, Arguments], str]


def tags(opening: str, argument: str, closing: str = "") -> Writer:
    """Return what writes a call whose arguments stand in tags."""

    def write(name: str, arguments: Arguments) -> str:
        written = "\n".join(argument.format(key, value) for key, value in arguments.items())
        return opening.format(name) + "\n" + written + "\n" + closing

    return write


TAGGED = {
    "glm47": tags("{}", "<arg_key>{}</arg_key>\n<arg_value>{}</arg_value>"),
    "laguna": tags("{}", "<arg_key>{}</arg_key><arg_value>{}</arg_value>"),
    "longcat": tags("{}", "<longcat_arg_key>{}</longcat_arg_key><longcat_arg_value>{}</longcat_arg_value>"),
    "minicpm5": tags('"{}">', '<param name="{}">{}</param>'),
    "minimax_m2": tags('\n<invoke name="{}">', '<parameter name="{}">{}</parameter>', "</invoke>\n"),
    "muse_spark": tags('<atem:invoke name="{}">', '<atem:parameter name="{}">{}</atem:parameter>', "</atem:invoke>"),
    "qwen3_coder": tags("\n<function={}>", "<parameter={}>\n{}\n</parameter>", "</function>\n"),
}


def with_json(form: str) -> Writer:
    """Return what writes a call whose arguments are JSON."""

    def write(name: str, arguments: Arguments) -> str:
        return form.replace("NAME", name).replace("{}", json.dumps(arguments, ensure_ascii=False))

    return write


JSON = {
    "json_tools": with_json('\n{"name": "NAME", "arguments": {}}\n'),
    "kimi_k2": with_json("<|tool_call_begin|>functions.NAME:0<|tool_call_argument_begin|>{}<|tool_call_end|>"),
    "mistral": with_json("NAME[ARGS]{}"),
    "channels": with_json("<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{}"),
}
WRITERS = TAGGED | JSON
SEVERAL_IN_A_SECTION = {"kimi_k2", "minimax_m2", "mistral", "muse_spark"}
FAMILIES = sorted(WRITERS)
Read = tuple[str, list[tuple[str, str]]]
"""Text, and name and arguments of each call."""


def style_of(family: str) -> ToolCallFormat:
    """Return how a family writes calls; ids are counted."""
    ids = itertools.count()
    tokenizer = None
    if family != "channels":
        module = importlib.import_module(f"mlx_lm.tool_parsers.{family}")
        tokenizer = SimpleNamespace(
            tool_parser=module.parse_tool_call,
            tool_call_start=module.tool_call_start,
            tool_call_end=module.tool_call_end,
        )
    style = tool_call_format(tokenizer, TOOLS, reasoning_of(family), lambda: f"id{next(ids)}")
    assert style is not None
    assert style.follow is not None
    return style


def reasoning_of(family: str) -> ReasoningFormat | None:
    """Return how a family marks its reasoning, as far as calls are concerned."""
    return CHANNELS if family == "channels" else None


def whole(style: ToolCallFormat) -> ToolCallFormat:
    """Return the format without following."""
    return attrs.evolve(style, follow=None)


def read(style: ToolCallFormat, pieces: Sequence[str], complete: bool = True) -> Read:
    """Return what an answer is read as."""
    stream = OutputParser((), None if style.start else CHANNELS, style, "<|start|>assistant")
    deltas = [delta for piece in pieces for delta in stream.feed(piece)] + stream.flush(complete)
    calls: list[list[str]] = []
    ids = set()
    for delta in deltas:
        if isinstance(delta, ToolCallDelta):
            if delta.call.name:
                assert delta.index == len(calls)
                ids.add(delta.call.id)
                calls.append([delta.call.name, ""])
            assert bool(delta.call.name) == bool(delta.call.id)
            assert delta.index == len(calls) - 1
            calls[-1][1] += delta.call.arguments
    text = "".join(delta.text for delta in deltas if isinstance(delta, TextDelta))
    return text, [(name, arguments) for name, arguments in calls]


def cut(text: str, places: Sequence[int]) -> list[str]:
    """Return a text in pieces."""
    ends = sorted({place % (len(text) + 1) for place in places} | {0, len(text)})
    return [text[begin:end] for begin, end in itertools.pairwise(ends)]


def shown(family: str, inside: str) -> list[ToolCall]:
    """Return the pieces of calls that come out of a section which has not ended, fed a character at a time."""
    style = style_of(family)
    stream = OutputParser((), reasoning_of(family), style, "<|start|>assistant")
    deltas = [delta for character in style.start + inside for delta in stream.feed(character)]
    return [delta.call for delta in deltas if isinstance(delta, ToolCallDelta)]


def section(style: ToolCallFormat, inside: str) -> str:
    """Return a section."""
    return style.start + inside + style.end


MARKUP = st.sampled_from(
    ["<", ">", "</", "<parameter=", "<function=f>", "<arg_key>", "[ARGS]{", '"', "\\", "\n", "=", "{"]
)
VALUES = st.one_of(
    st.sampled_from(
        ["", "null", "2", "-7", "2.5", "abc", "true", "[1, 2]", '{"a": "b"}', "NaN", "1e999", "b'x'", "\\d"]
    ),
    st.integers().map(str),
    st.lists(st.one_of(MARKUP, st.text(max_size=5)), max_size=6).map("".join),
)
ARGUMENTS = st.dictionaries(st.sampled_from([*TYPES, "unknown"]), VALUES, max_size=5)
CALLS = st.lists(st.tuples(st.sampled_from(["get_weather", "f", "a-b.c"]), ARGUMENTS), min_size=1, max_size=3)
PLACES = st.lists(st.integers(min_value=0), max_size=12)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=60, deadline=None)
@given(calls=CALLS, places=PLACES)
def test_a_followed_call_is_what_its_parser_reads(
    family: str, calls: list[tuple[str, dict[str, str]]], places: list[int]
) -> None:
    style = style_of(family)
    write = WRITERS[family]
    if family == "mistral":
        calls = [(name.replace(".", "_"), arguments) for name, arguments in calls]
    insides = [write(name, arguments) for name, arguments in calls]
    sections = ["".join(insides)] if family in SEVERAL_IN_A_SECTION else insides
    answer = "Let me see.\n" + "\n".join(section(style, each) for each in sections)
    if family == "channels":
        answer = "<|call|><|start|>assistant".join(insides)
    expected = read(whole(style), [answer])
    found = read(style, cut(answer, places))
    assert found == read(style, answer) == read(style, [answer])
    if len(expected[1]) < len(calls):
        return
    assert found[0] == expected[0]
    assert [name for name, _ in found[1]] == [name for name, _ in expected[1]]
    for (_, written), (_, parsed) in zip(found[1], expected[1], strict=True):
        assert json.loads(written) == json.loads(parsed)
        assert family in JSON or written == parsed


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=60, deadline=None)
@given(data=st.data(), complete=st.booleans(), places=PLACES)
def test_whatever_is_written_is_read_alike_in_any_pieces(
    family: str, data: st.DataObject, complete: bool, places: list[int]
) -> None:
    style = style_of(family)
    written = section(style, WRITERS[family]("get_weather", {"city": "Köln", "days": "x"}))
    fragments = st.one_of(
        st.tuples(PLACES, st.integers(min_value=0)).map(
            lambda drawn: "".join(cut(written, drawn[0])[drawn[1] % 5 :: 2])
        ),
        st.sampled_from([style.start, style.end, written, "{}", "f", ">", " "]),
    )
    answer = "".join(data.draw(st.lists(fragments, max_size=6)))
    text, calls = read(style, cut(answer, places), complete)
    assert (text, calls) == read(style, answer, complete)
    if not calls:
        assert (text, calls) == read(whole(style), [answer], complete)
    for _, arguments in calls:
        assert not arguments or arguments.startswith("{")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_name_comes_before_the_first_argument_is_complete(family: str) -> None:
    inside = WRITERS[family]("get_weather", {"city": "Köln"})
    calls = shown(family, inside[: inside.index("Köln")])
    given_id = "functions.get_weather:0" if family == "kimi_k2" else "id0"
    assert calls[0] == ToolCall("get_weather", "", given_id)
    assert "".join(call.arguments for call in calls[1:]) == ('{"city": "' if family in JSON else "")


@pytest.mark.parametrize("family", sorted(TAGGED))
def test_an_argument_comes_as_soon_as_it_is_complete(family: str) -> None:
    inside = WRITERS[family]("get_weather", {"city": "Köln", "days": "2", "warm": "true"})
    pieces = [call.arguments for call in shown(family, inside[: inside.index("true")])]
    assert pieces == ["", '{"city": "Köln"', ', "days": 2']


@pytest.mark.parametrize("family", sorted({"qwen3_coder", "minimax_m2", "minicpm5", "muse_spark", "glm47", "longcat"}))
@pytest.mark.parametrize("value", ["abc", "NaN", "1e999", "b'x'", "[" * 500])
def test_an_argument_that_is_refused_is_given_as_the_text_it_is(family: str, value: str) -> None:
    style = style_of(family)
    inside = WRITERS[family]("get_weather", {"days": value, "warm": "true"})
    [(name, arguments)] = read(style, section(style, inside))[1]
    assert (name, json.loads(arguments)) == ("get_weather", {"days": value, "warm": True})


@pytest.mark.parametrize("family", sorted(TAGGED))
def test_the_last_of_two_values_of_one_argument_counts(family: str) -> None:
    style = style_of(family)
    twice = WRITERS[family]("get_weather", {"city": "Köln", "days": "2", "CITY": "Paris"}).replace("CITY", "city")
    answer = section(style, twice)
    [(_, arguments)] = read(style, answer)[1]
    assert json.loads(arguments) == json.loads(read(whole(style), [answer])[1][0][1]) == {"city": "Paris", "days": 2}


def test_a_value_that_looks_like_the_end_of_its_call_does_not_vanish() -> None:
    style = style_of("minimax_m2")
    inside = TAGGED["minimax_m2"]("get_weather", {"city": "a </invoke> b", "days": "2"})
    [(_, arguments)] = read(style, section(style, inside))[1]
    assert json.loads(arguments) == {"city": "a </invoke> b", "days": 2}


def test_mistral_may_write_its_calls_as_a_list_whatever_stands_in_it() -> None:
    style = style_of("mistral")
    calls = [{"name": "f", "arguments": {"text": "g[ARGS]{}"}, "id": "abcdefghi"}]
    assert read(style, style.start + json.dumps(calls)) == ("", [("f", '{"text": "g[ARGS]{}"}')])


def test_arguments_in_python_are_translated_when_they_are_whole() -> None:
    style = style_of("kimi_k2")
    written = "<|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{'a': True}<|tool_call_end|>"
    assert read(style, section(style, written)) == ("", [("f", '{"a": true}')])


@pytest.mark.parametrize("family", ["glm47", "json_tools"])
def test_half_a_surrogate_pair_can_be_sent(family: str) -> None:
    style = style_of(family)
    written = {
        "glm47": 'f<arg_key>a</arg_key><arg_value>"\\ud83d"</arg_value>',
        "json_tools": '{"arguments": {"a": "\\ud83d"}, "name": "f"}',
    }
    for each in (style, whole(style)):
        [(_, arguments)] = read(each, section(style, written[family]))[1]
        assert arguments.encode() == b'{"a": "\\ud83d"}'
