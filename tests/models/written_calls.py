"""Tool calls as families of models write them, and what is read of them in pieces."""

import itertools
import json
from collections.abc import Sequence
from typing import Any

from mlxk.domain.formats.family_formats import detect_syntaxes
from mlxk.domain.formats.tool_arguments import Tools
from mlxk.domain.formats.tool_calls import ToolCallFormat, ToolCallSplitter
from mlxk.domain.generation.request import ToolCallDelta


def _function(name: str, **properties: Any) -> str:
    parameters = {"type": "object", "properties": properties}
    return json.dumps({"type": "function", "function": {"name": name, "parameters": parameters}})


TOOLS = Tools(
    [
        _function("get_weather", city={"type": "string"}, days={"type": "integer"}),
        _function("write_file", path={"type": "string"}, content={"type": "string"}),
        _function("now"),
        _function(
            "every_type",
            integer={"anyOf": [{"type": "integer"}, {"type": "null"}]},
            text={"type": ["string", "null"]},
            flag={"type": "boolean"},
            object={"type": "object"},
            list={"type": "array"},
            choice={"enum": ["p", "q"]},
            number={"type": "number"},
            untyped={},
        ),
    ]
)
WEATHER = ("get_weather", {"city": "Köln", "days": 2})
NOW: tuple[str, dict[str, Any]] = ("now", {})
JSON = '{"name": "get_weather", "arguments": {"city": "Köln", "days": 2}}'
LLAMA = '{"name": "get_weather", "parameters": {"city": "Köln", "days": 2}}'
NAMESPACE = "]<]minimax[>["
FUNCTION = (
    "<function=get_weather>\n<parameter=city>\nKöln\n</parameter>\n<parameter=days>\n2\n</parameter>\n</function>"
)
KEYS = "<arg_key>city</arg_key>\n<arg_value>Köln</arg_value>\n<arg_key>days</arg_key>\n<arg_value>2</arg_value>\n"


def parts(
    template: str, pieces: Sequence[str], complete: bool = True, vocabulary: frozenset[str] = frozenset()
) -> list[Any]:
    """Text and calls, in order."""
    ids = itertools.count()
    style = ToolCallFormat(detect_syntaxes(template, vocabulary), TOOLS, lambda: f"id{next(ids)}")
    splitter = ToolCallSplitter(style)
    found: list[Any] = []
    for delta in [each for piece in pieces for each in splitter.feed(piece)] + splitter.flush(complete):
        if isinstance(delta, ToolCallDelta):
            assert delta.index == sum(isinstance(each, tuple) for each in found)
            found.append((delta.call.name, json.loads(delta.call.arguments)))
        elif found and isinstance(found[-1], str):
            found[-1] += delta.text
        else:
            found.append(delta.text)
    return found


def read(template: str, text: str, complete: bool = True) -> list[Any]:
    """The parts of a text, which must not depend on its pieces."""
    whole = parts(template, [text], complete)
    for size in (1, 3, 7):
        assert parts(template, [text[i : i + size] for i in range(0, len(text), size)], complete) == whole
    return whole


FAMILIES = {
    "Qwen, Hermes, SmolLM3, Falcon-H1, Granite 4": ("<tool_call>", f"<tool_call>\n{JSON}\n</tool_call>"),
    "Qwen3-Coder, Nemotron 3, Step": ("<tool_call><function=<parameter=", f"<tool_call>\n{FUNCTION}\n</tool_call>"),
    "Seed": ("<seed:tool_call><function=<parameter=", f"<seed:tool_call>\n{FUNCTION}\n</seed:tool_call>"),
    "Llama 3": ("", LLAMA),
    "Llama 3 with its tag": ("<|python_tag|>", f"<|python_tag|>{LLAMA}"),
    "Llama 4": ("", "[get_weather(city='Köln', days=2)]"),
    "Llama 4 with its tags": ("", "<|python_start|>[get_weather(city='Köln', days=2)]<|python_end|>"),
    "Mistral lists": ("[TOOL_CALLS]", f"[TOOL_CALLS] [{JSON}]"),
    "Mistral names": ("[TOOL_CALLS]", '[TOOL_CALLS]get_weather[ARGS]{"city": "Köln", "days": 2}'),
    "Mistral ids": ("[TOOL_CALLS]", '[TOOL_CALLS]get_weather[CALL_ID]abcdefghi[ARGS]{"city": "Köln", "days": 2}'),
    "DeepSeek V3": (
        "<｜tool▁call▁begin｜>",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n"
        '{"city": "Köln", "days": 2}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
    ),
    "DeepSeek V3.1": (
        "<｜tool▁call▁begin｜>",
        '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{"city": "Köln", "days": 2}'
        "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ),
    "DeepSeek V3.2": (
        "｜DSML｜",
        '<｜DSML｜function_calls>\n<｜DSML｜invoke name="get_weather">\n'
        '<｜DSML｜parameter name="city" string="true">Köln</｜DSML｜parameter>\n'
        '<｜DSML｜parameter name="days" string="false">2</｜DSML｜parameter>\n'
        "</｜DSML｜invoke>\n</｜DSML｜function_calls>",
    ),
    "GLM": ("<tool_call><arg_key>", f"<tool_call>get_weather\n{KEYS}</tool_call>"),
    "LongCat": (
        "<longcat_tool_call>",
        f"<longcat_tool_call>get_weather\n{KEYS.replace('arg_', 'longcat_arg_')}</longcat_tool_call>",
    ),
    "Kimi K2": (
        "<|tool_call_begin|>",
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>"
        '{"city": "Köln", "days": 2}<|tool_call_end|><|tool_calls_section_end|>',
    ),
    "Kimi K3": (
        "<|open|><|close|><|sep|>",
        '<|open|>tools<|sep|><|open|>call tool="get_weather" index="1"<|sep|>'
        '<|open|>argument key="city" type="string"<|sep|>Köln<|close|>argument<|sep|>'
        '<|open|>argument key="days" type="integer"<|sep|>2<|close|>argument<|sep|>'
        "<|close|>call<|sep|><|close|>tools<|sep|>",
    ),
    "MiniMax M2": (
        "<minimax:tool_call>",
        '<minimax:tool_call>\n<invoke name="get_weather">\n<parameter name="city">Köln</parameter>\n'
        '<parameter name="days">2</parameter>\n</invoke>\n</minimax:tool_call>',
    ),
    "MiniMax M3": (
        NAMESPACE,
        f'{NAMESPACE}<tool_call>\n{NAMESPACE}<invoke name="get_weather">{NAMESPACE}<city>Köln{NAMESPACE}</city>'
        f"{NAMESPACE}<days>2{NAMESPACE}</days>{NAMESPACE}</invoke>\n{NAMESPACE}</tool_call>",
    ),
    "Muse": (
        "<atem:function_calls>",
        '<atem:function_calls>\n<atem:invoke name="get_weather">\n<atem:parameter name="city">Köln</atem:parameter>\n'
        '<atem:parameter name="days">2</atem:parameter>\n</atem:invoke>\n</atem:function_calls>',
    ),
    "Gemma 4": ("<|tool_call>", '<|tool_call>call:get_weather{city:<|"|>Köln<|"|>,days:2}<tool_call|>'),
    "FunctionGemma": (
        "<start_function_call>",
        "<start_function_call>call:get_weather{city:<escape>Köln<escape>,days:2}<end_function_call>",
    ),
    "LFM2": ("<|tool_call_start|>", '<|tool_call_start|>[get_weather(city="Köln", days=2)]<|tool_call_end|>'),
    "MiniCPM5": (
        "<function name=<param name=",
        '<function name="get_weather"><param name="city">Köln</param><param name="days">2</param></function>',
    ),
    "Granite 3": ("<|tool_call|>", f"<|tool_call|> [{JSON}]"),
    "Phi-4": ("functools", f"functools[{JSON}]"),
    "Command": (
        "<|START_ACTION|>",
        '<|START_ACTION|>[\n {"tool_call_id": "0", "tool_name": "get_weather",'
        ' "parameters": {"city": "Köln", "days": 2}}\n]<|END_ACTION|>',
    ),
    "Nemotron Nano 2": ("<TOOLCALL>", f"<TOOLCALL>[{JSON}]</TOOLCALL>"),
    "Hunyuan, Jamba, Apriel": ("<tool_calls>", f"<tool_calls>[{JSON}]</tool_calls>"),
    "Apertus": (
        "<|tools_prefix|>",
        '<|tools_prefix|>[{"get_weather": {"city": "Köln", "days": 2}}]<|tools_suffix|>',
    ),
    "InternLM": ("<|action_start|><|plugin|>", f"<|action_start|><|plugin|>{LLAMA}<|action_end|>"),
    "GigaChat": ("<|function_call|>", f"<|function_call|>{JSON}"),
    "Solar Open": (
        "<|tool_call:begin|>",
        "<|tool_calls|><|tool_call:begin|>abc<|tool_call:name|>get_weather<|tool_call:args|>"
        '{"city": "Köln", "days": 2}<|tool_call:end|><|calls|>',
    ),
    "xLAM, Hammer": ("", f"[{JSON}]"),
    "a code fence": ("", f"```json\n{JSON}\n```"),
    "a function tag with JSON": ("", '<function=get_weather>{"city": "Köln", "days": 2}</function>'),
}
