"""mlx-lm's tool parsers behind the splitter, on text as the models write it."""

import importlib
import itertools
import json
import pkgutil
from types import SimpleNamespace
from typing import Any

import mlx_lm.tool_parsers
import pytest

from mlxk.adapters.mlx.prompting.tool_parsers import tool_call_format
from mlxk.domain.formats.output_parser import OutputParser
from mlxk.domain.formats.reasoning import CHANNELS, ReasoningFormat
from mlxk.domain.generation.request import TextDelta, ToolCallDelta

_TOOLS = (
    json.dumps(
        {
            "type": "function",
            "function": {
                "name": "get_weather",
                "parameters": {
                    "type": "object",
                    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
                },
            },
        }
    ),
)
_XML_ARGUMENTS = "<arg_key>city</arg_key><arg_value>Köln</arg_value><arg_key>days</arg_key><arg_value>2</arg_value>"
_JSON = '{"name": "get_weather", "arguments": {"city": "Köln", "days": 2}}'
_OPEN, _CLOSE, _SEP = "<|open|>", "<|close|>", "<|sep|>"
_ANSWERS = {
    "function_gemma": "<start_function_call>call:get_weather{city:<escape>Köln<escape>,days:2}<end_function_call>",
    "gemma4": '<|tool_call>call:get_weather{city:<|"|>Köln<|"|>,days:2}<tool_call|>',
    "glm47": f"<tool_call>get_weather{_XML_ARGUMENTS}</tool_call>",
    "json_tools": f"<tool_call>\n{_JSON}\n</tool_call>",
    "kimi_k2": (
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>"
        '{"city": "Köln", "days": 2}<|tool_call_end|><|tool_calls_section_end|>'
    ),
    "kimi_k3": (
        f'{_OPEN}tools{_SEP}{_OPEN}call tool="get_weather" index="1"{_SEP}'
        f'{_OPEN}argument key="city" type="string"{_SEP}Köln{_CLOSE}argument{_SEP}'
        f'{_OPEN}argument key="days" type="integer"{_SEP}2{_CLOSE}argument{_SEP}'
        f"{_CLOSE}call{_SEP}{_CLOSE}tools{_SEP}"
    ),
    "laguna": f"<tool_call>get_weather{_XML_ARGUMENTS}</tool_call>",
    "longcat": f"<longcat_tool_call>get_weather{_XML_ARGUMENTS.replace('arg_', 'longcat_arg_')}</longcat_tool_call>",
    "minicpm5": '<function name="get_weather"><param name="city">Köln</param><param name="days">2</param></function>',
    "minimax_m2": (
        '<minimax:tool_call>\n<invoke name="get_weather">\n<parameter name="city">Köln</parameter>\n'
        '<parameter name="days">2</parameter>\n</invoke>\n</minimax:tool_call>'
    ),
    "mistral": '[TOOL_CALLS]get_weather[ARGS]{"city": "Köln", "days": 2}',
    "muse_spark": (
        '<atem:function_calls>\n<atem:invoke name="get_weather">\n<atem:parameter name="city">Köln</atem:parameter>\n'
        '<atem:parameter name="days">2</atem:parameter>\n</atem:invoke>\n</atem:function_calls>'
    ),
    "pythonic": '<|tool_call_start|>[get_weather(city="Köln", days=2)]<|tool_call_end|>',
    "qwen3_coder": (
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nKöln\n</parameter>\n<parameter=days>\n2\n</parameter>\n"
        "</function>\n</tool_call>"
    ),
}


def _tokenizer(family: str) -> SimpleNamespace:
    """The part of mlx-lm's wrapper that knows a family's calls."""
    module = importlib.import_module(f"mlx_lm.tool_parsers.{family}")
    return SimpleNamespace(
        tool_parser=module.parse_tool_call, tool_call_start=module.tool_call_start, tool_call_end=module.tool_call_end
    )


def _run(
    tokenizer: object, pieces: str | list[str], reasoning: ReasoningFormat | None = None, complete: bool = True
) -> tuple[str, list[Any]]:
    """Text, and (id, name, arguments) of each call."""
    ids = itertools.count()
    style = tool_call_format(tokenizer, _TOOLS, reasoning, lambda: f"id{next(ids)}")
    assert style is not None
    stream = OutputParser((), reasoning, style, "<|start|>assistant")
    deltas = [delta for piece in pieces for delta in stream.feed(piece)] + stream.flush(complete)
    text = "".join(delta.text for delta in deltas if isinstance(delta, TextDelta))
    parts = [delta for delta in deltas if isinstance(delta, ToolCallDelta)]
    calls = [[part.call for part in parts if part.index == index] for index in sorted({part.index for part in parts})]
    return text, [(call[0].id, call[0].name, json.loads("".join(part.arguments for part in call))) for call in calls]


def test_every_parser_of_mlx_lm_is_tried_here() -> None:
    assert {module.name for module in pkgutil.iter_modules(mlx_lm.tool_parsers.__path__)} == _ANSWERS.keys()


@pytest.mark.parametrize("family", _ANSWERS)
def test_a_call_is_read(family: str) -> None:
    expected_id = "functions.get_weather:0" if family == "kimi_k2" else "id0"
    expected = ("Let me see.", [(expected_id, "get_weather", {"city": "Köln", "days": 2})])
    answer = f"Let me see.\n{_ANSWERS[family]}"
    assert _run(_tokenizer(family), answer) == expected
    assert _run(_tokenizer(family), [answer]) == expected


@pytest.mark.parametrize("family", _ANSWERS)
def test_two_calls_in_a_row_are_two(family: str) -> None:
    text, calls = _run(_tokenizer(family), f"{_ANSWERS[family]}\n{_ANSWERS[family]}")
    assert text == ""
    assert [name for _, name, _ in calls] == ["get_weather", "get_weather"]


@pytest.mark.parametrize("family", sorted(_ANSWERS))
def test_a_call_that_was_cut_before_it_began_is_text(family: str) -> None:
    style = tool_call_format(_tokenizer(family), _TOOLS)
    assert style is not None
    answer = _ANSWERS[family]
    name_ends = answer.index("get_weather") + len("get_weather")
    for length in range(1, len(answer) if style.follow is None else name_ends):
        text, calls = _run(_tokenizer(family), [answer[:length]], complete=False)
        assert (text, calls) == (answer[:length], [])


@pytest.mark.parametrize("family", sorted(_ANSWERS.keys() - {"glm47", "laguna"}))
@pytest.mark.parametrize("inside", ["", "nonsense", "{", "[[[[", "[1, 2]", '{"name": 3}', "\\d", "(" * 300, "-" * 9999])
def test_whatever_is_no_call_is_text_again(family: str, inside: str) -> None:
    tokenizer = _tokenizer(family)
    answer = f"a {tokenizer.tool_call_start}{inside}{tokenizer.tool_call_end} b"
    assert _run(tokenizer, [answer]) == (answer, [])


@pytest.mark.parametrize(
    "inside",
    ['{"arguments": {}}', '{"name": ""}', '{"name": "f", "arguments": 3}', '{"name": "f", "arguments": "x"}', "[]"],
)
def test_json_that_is_no_call_is_text_again(inside: str) -> None:
    answer = f"<tool_call>{inside}</tool_call>"
    assert _run(_tokenizer("json_tools"), [answer]) == (answer, [])


@pytest.mark.parametrize(
    ("inside", "arguments"),
    [
        ('{"name": "f"}', {}),
        ('{"name": "f", "parameters": {"a": 1}}', {"a": 1}),
        ('{"name": "f", "arguments": "{\\"a\\": 1}"}', {"a": 1}),
        ('{"name": "f", "arguments": ""}', {}),
    ],
)
def test_arguments_are_an_object_however_they_are_written(inside: str, arguments: dict[str, int]) -> None:
    assert _run(_tokenizer("json_tools"), [f"<tool_call>{inside}</tool_call>"]) == ("", [("id0", "f", arguments)])


def test_what_the_glm_parser_cannot_read_is_text_again() -> None:
    answer = "<tool_call></tool_call>"
    assert _run(_tokenizer("glm47"), [answer]) == (answer, [])


def test_a_channelled_call_is_read() -> None:
    call = '<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city": "Köln"}'
    assert _run(None, call, CHANNELS) == ("", [("id0", "get_weather", {"city": "Köln"})])
    for content in ("[]", "x", "3"):
        broken = f"<|channel|>commentary to=functions.f<|message|>{content}"
        assert _run(None, [broken], CHANNELS) == (broken, [])


def test_without_tools_or_a_parser_there_is_no_format() -> None:
    assert tool_call_format(_tokenizer("json_tools"), ()) is None
    assert tool_call_format(SimpleNamespace(tool_parser=None, tool_call_start=None), _TOOLS) is None


def test_each_call_has_an_id_of_its_own() -> None:
    style = tool_call_format(_tokenizer("json_tools"), _TOOLS)
    assert style is not None
    ids = {call.id for _ in range(100) for call in style.parse(_JSON)}
    assert len(ids) == 100
    assert all(each.startswith("call_") for each in ids)
