"""Agents' loops with the call syntaxes of many families: real engine, real server, the OpenAI SDK, streamed and not.

Every model is a scripted one, which writes what a model of its family writes, with a small chat template of ours.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from models.scripted_model import write_model
from serving.running import RunningServer
from serving.whole_program import WholeProgram

from mlxk.entrypoints.settings import ServerSettings

pytestmark = pytest.mark.mlx

RESULT = "@@RESULT@@"
JSON_MARK = "@@JSON@@"
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "get_weather", "description": "The weather.", "parameters": CITY}},
    {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}},
]
ARGUMENTS = '{"city": "Köln"}'
ANSWER = "It is sunny in Köln, 21 degrees."
NAMED = '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}'
CALL = '{"name": "get_weather", "arguments": {"city": "Köln"}}'

FAMILIES = {
    "qwen": (f"<tool_call>\n{NAMED}\n</tool_call>", f"<tool_call>\n{CALL}\n</tool_call>"),
    "qwen-coder": (
        "<tool_call>\n<function={{ c.function.name }}>\n{% for k, v in c.function.arguments.items() %}"
        "<parameter={{ k }}>\n{{ v }}\n</parameter>\n{% endfor %}</function>\n</tool_call>",
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nKöln\n</parameter>\n</function>\n</tool_call>",
    ),
    "llama": (
        '{"name": "{{ c.function.name }}", "parameters": {{ c.function.arguments | tojson }}}',
        '{"name": "get_weather", "parameters": {"city": "Köln"}}',
    ),
    "llama4": (
        "[{{ c.function.name }}({% for k, v in c.function.arguments.items() %}{{ k }}={{ v | tojson }}{% endfor %})]",
        "[get_weather(city='Köln')]",
    ),
    "mistral": (
        "[TOOL_CALLS]{{ c.function.name }}[ARGS]{{ c.function.arguments | tojson }}",
        f"[TOOL_CALLS]get_weather[ARGS]{ARGUMENTS}",
    ),
    "deepseek": (
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>{{ c.function.name }}<｜tool▁sep｜>"
        "{{ c.function.arguments | tojson }}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>"
        f"{ARGUMENTS}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ),
    "glm": (
        "<tool_call>{{ c.function.name }}\n{% for k, v in c.function.arguments.items() %}<arg_key>{{ k }}</arg_key>\n"
        "<arg_value>{{ v }}</arg_value>\n{% endfor %}</tool_call>",
        "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Köln</arg_value>\n</tool_call>",
    ),
    "kimi": (
        "<|tool_calls_section_begin|><|tool_call_begin|>{{ c.id }}<|tool_call_argument_begin|>"
        "{{ c.function.arguments | tojson }}<|tool_call_end|><|tool_calls_section_end|>",
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>"
        f"{ARGUMENTS}<|tool_call_end|><|tool_calls_section_end|>",
    ),
    "minimax": (
        '<minimax:tool_call>\n<invoke name="{{ c.function.name }}">\n{% for k, v in c.function.arguments.items() %}'
        '<parameter name="{{ k }}">{{ v }}</parameter>\n{% endfor %}</invoke>\n</minimax:tool_call>',
        '<minimax:tool_call>\n<invoke name="get_weather">\n<parameter name="city">Köln</parameter>\n</invoke>\n'
        "</minimax:tool_call>",
    ),
    "gemma": (
        '<|tool_call>call:{{ c.function.name }}{city:<|"|>{{ c.function.arguments.city }}<|"|>}<tool_call|>',
        '<|tool_call>call:get_weather{city:<|"|>Köln<|"|>}<tool_call|>',
    ),
    "granite": (f"<|tool_call|>[{NAMED}]", f"<|tool_call|>[{CALL}]"),
    "phi": (f"functools[{NAMED}]", f"functools[{CALL}]"),
    "command": (
        '<|START_ACTION|>[{"tool_call_id": "0", "tool_name": "{{ c.function.name }}", "parameters": {{'
        " c.function.arguments | tojson }}}]<|END_ACTION|>",
        '<|START_ACTION|>[\n {"tool_call_id": "0", "tool_name": "get_weather", "parameters": {"city": "Köln"}}\n]'
        "<|END_ACTION|>",
    ),
    "lfm": (
        "<|tool_call_start|>[{{ c.function.name }}({% for k, v in c.function.arguments.items() %}{{ k }}={{ v | tojson"
        " }}{% endfor %})]<|tool_call_end|>",
        '<|tool_call_start|>[get_weather(city="Köln")]<|tool_call_end|>',
    ),
    "seed": (
        "<seed:tool_call>\n<function={{ c.function.name }}>\n{% for k, v in c.function.arguments.items() %}"
        "<parameter={{ k }}>{{ v }}</parameter>\n{% endfor %}</function>\n</seed:tool_call>",
        "<seed:tool_call>\n<function=get_weather>\n<parameter=city>Köln</parameter>\n</function>\n</seed:tool_call>",
    ),
    "hunyuan": (f"<tool_calls>[{NAMED}]</tool_calls>", f"<tool_calls>[{CALL}]</tool_calls>"),
}


def template(call: str, thinking: bool = False) -> str:
    """A chat template of messages between markers, whose calls are written as a family writes them."""
    opening = "{% if enable_thinking is defined and not enable_thinking %}/no_think{% endif %}" if thinking else ""
    return (
        "{% if tools %}<|im_start|>tools\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}"
        f"{{% for c in m.tool_calls or [] %}}{call}{{% endfor %}}<|im_end|>\n{{% endfor %}}"
        f"{{% if add_generation_prompt %}}<|im_start|>assistant\n{opening}{{% endif %}}"
    )


PLAIN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""A chat template that knows no tools."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Serve the models of all families by their paths."""
    folder = tmp_path_factory.mktemp("families")
    for family, (call, reply) in FAMILIES.items():
        replies = {RESULT: ANSWER, JSON_MARK: ARGUMENTS}
        write_model(folder / family, template(call), reply, replies, special=("<|im_start|>",))
    write_model(folder / "told", PLAIN, FAMILIES["qwen"][1], {RESULT: ANSWER}, special=("<|im_start|>",))
    replies = {"/no_think": "Just sunny.", "</think>": "So it is sunny."}
    reply = "<think>\nI look outside, and I think about it.\n</think>\n\nIt is sunny."
    write_model(folder / "thinker", template("", True), reply, replies, special=("<|im_start|>",), added=("<think>",))
    write_model(folder / "endless", template(""), "Hello there.", special=("<|im_start|>",), ended=False)
    program: Any = WholeProgram(folder, ServerSettings(allow_paths=True))
    program.folder = folder
    with RunningServer(program) as running:
        yield running


def sdk(served: RunningServer) -> openai.OpenAI:
    """The SDK's client."""
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="any", max_retries=0)


def message_of(served: RunningServer, family: str, stream: bool, **fields: Any) -> tuple[dict[str, Any], str]:
    """Ask once; return the assistant's message as an agent sends it back, and the finish reason."""
    program: Any = served.parts
    with sdk(served) as client:
        request = {"model": str(program.folder / family), "temperature": 0, "max_tokens": 200, **fields}
        if not stream:
            (choice,) = client.chat.completions.create(**request).choices
            return choice.message.model_dump(exclude_none=True), choice.finish_reason
        message: dict[str, Any] = {"role": "assistant", "content": ""}
        calls: dict[int, dict[str, Any]] = {}
        reason = ""
        for chunk in client.chat.completions.create(**request, stream=True):
            for choice in chunk.choices:
                message["content"] += choice.delta.content or ""
                reason = choice.finish_reason or reason
                for part in choice.delta.tool_calls or []:
                    call = calls.setdefault(part.index, {"id": "", "type": "function", "function": {"arguments": ""}})
                    call["id"] += part.id or ""
                    call["function"]["arguments"] += part.function.arguments or ""
                    if part.function.name:
                        call["function"]["name"] = part.function.name
        return {**message, **({"tool_calls": list(calls.values())} if calls else {})}, reason


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_agents_loop_of_two_turns(served: RunningServer, family: str, stream: bool) -> None:
    messages: list[Any] = [{"role": "user", "content": "How is the weather in Köln?"}]
    message, reason = message_of(served, family, stream, messages=messages, tools=TOOLS)
    (call,) = message["tool_calls"]
    assert reason == "tool_calls"
    assert call["function"]["name"] == "get_weather"
    assert json.loads(call["function"]["arguments"]) == {"city": "Köln"}
    assert not message.get("content")
    result = {"role": "tool", "tool_call_id": call["id"], "content": f"{RESULT} sunny, 21 degrees"}
    message, reason = message_of(served, family, stream, messages=[*messages, message, result], tools=TOOLS)
    assert (message["content"], reason) == (ANSWER, "stop")
    assert "tool_calls" not in message


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_forced_call_and_a_schema(served: RunningServer, family: str, stream: bool) -> None:
    messages: list[Any] = [{"role": "user", "content": f"{JSON_MARK} Köln?"}]
    choice = {"type": "function", "function": {"name": "get_weather"}}
    message, _ = message_of(served, family, stream, messages=messages, tools=TOOLS, tool_choice=choice)
    (call,) = message["tool_calls"]
    assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == ("get_weather", {"city": "Köln"})
    form = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY, "strict": True}}
    message, reason = message_of(served, family, stream, messages=messages, response_format=form)
    assert (json.loads(message["content"]), reason) == ({"city": "Köln"}, "stop")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_call_that_is_cut_by_the_limit_is_text(served: RunningServer, family: str, stream: bool) -> None:
    messages: list[Any] = [{"role": "user", "content": "How is the weather in Köln?"}]
    message, reason = message_of(served, family, stream, messages=messages, tools=TOOLS, max_tokens=5)
    assert reason == "length"
    assert "tool_calls" not in message


# What the grammar forces is written in the tokenizer's own tokens, which the pieces of the scripted Llama are not.
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "llama"])
def test_tools_beside_a_schema_are_called_or_answered_by_the_schema(
    served: RunningServer, family: str, stream: bool
) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY, "strict": True}}
    for text, calls in (("How is the weather in Köln?", True), (f"{JSON_MARK} Köln?", False)):
        messages: list[Any] = [{"role": "user", "content": text}]
        message, reason = message_of(served, family, stream, messages=messages, tools=TOOLS, response_format=form)
        if calls:
            (call,) = message["tool_calls"]
            assert (call["function"]["name"], reason) == ("get_weather", "tool_calls")
        else:
            assert (json.loads(message["content"]), reason) == ({"city": "Köln"}, "stop")


@pytest.mark.parametrize("stream", [False, True])
def test_the_end_of_a_turn_by_the_template_ends_an_answer_whatever_the_config_names(
    served: RunningServer, stream: bool
) -> None:
    messages: list[Any] = [{"role": "user", "content": "Hello?"}]
    message, reason = message_of(served, "endless", stream, messages=messages)
    assert (message["content"], reason) == ("Hello there.", "stop")


@pytest.mark.parametrize("stream", [False, True])
def test_tools_are_described_to_a_model_whose_template_does_not_read_them(served: RunningServer, stream: bool) -> None:
    messages: list[Any] = [{"role": "user", "content": "How is the weather in Köln?"}]
    message, reason = message_of(served, "told", stream, messages=messages, tools=TOOLS)
    (call,) = message["tool_calls"]
    assert (call["function"]["name"], reason) == ("get_weather", "tool_calls")
    result = {"role": "tool", "tool_call_id": call["id"], "content": f"{RESULT} sunny, 21 degrees"}
    message, _ = message_of(served, "told", stream, messages=[*messages, message, result], tools=TOOLS)
    assert message["content"] == ANSWER


def test_it_is_said_that_tools_were_described_and_shown_how(served: RunningServer) -> None:
    program: Any = served.parts
    body = {
        "model": str(program.folder / "told"),
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello?"}],
        "tools": TOOLS,
    }
    _, headers, answer = served.post("/apply-template", body)
    assert headers["x-mlxk-adaptations"] == "tools-in-system-prompt"
    assert answer["prompt"].startswith("<|im_start|>system\nBe brief.\n\nYou can call functions.")
    assert '"name": "get_weather"' in answer["prompt"]
    assert served.post("/v1/chat/completions", {**body, "max_tokens": 1})[1]["x-mlxk-adaptations"]


def test_strict_capabilities_refuse_tools_for_a_model_that_lacks_them(tmp_path: Path) -> None:
    write_model(tmp_path / "plain", PLAIN, "Hello.", special=("<|im_start|>",))
    program: Any = WholeProgram(tmp_path, ServerSettings(allow_paths=True, strict_capabilities=True))
    body = {"model": str(tmp_path / "plain"), "messages": [{"role": "user", "content": "Hello?"}], "tools": TOOLS}
    with RunningServer(program) as strict:
        status, _, answer = strict.post("/v1/chat/completions", body)
    assert (status, answer["error"]["param"]) == (422, "tools")
    assert "does not read tools" in answer["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fields", "reasoning", "content"),
    [
        ({}, "I look outside, and I think about it.", "It is sunny."),
        ({"enable_thinking": True}, "I look outside, and I think about it.", "It is sunny."),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "", "Just sunny."),
        ({"reasoning_effort": "none"}, "", "Just sunny."),
        ({"thinking_budget": 4}, "I look outside, and I", "So it is sunny."),
        ({"reasoning": {"max_tokens": 4}}, "I look outside, and I", "So it is sunny."),
    ],
)
def test_reasoning_is_on_off_or_limited(
    served: RunningServer, stream: bool, fields: dict[str, Any], reasoning: str, content: str
) -> None:
    program: Any = served.parts
    request = {"model": str(program.folder / "thinker"), "messages": [{"role": "user", "content": "Sunny?"}]}
    with sdk(served) as client:
        made = client.chat.completions.create(**request, temperature=0, max_tokens=60, stream=stream, extra_body=fields)
        deltas: list[Any] = (
            [each.choices[0].delta for each in made if each.choices] if stream else [made.choices[0].message]
        )
    found = "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas)
    assert ("".join(delta.content or "" for delta in deltas), found.strip()) == (content, reasoning)


@pytest.mark.parametrize("family", ["qwen", "glm", "llama4", "deepseek"])
def test_allowed_tools_are_the_only_ones_on_offer(served: RunningServer, family: str) -> None:
    messages: list[Any] = [{"role": "user", "content": f"{JSON_MARK} Köln?"}]
    for name, mode, calls in (("get_weather", "required", True), ("now", "auto", False)):
        allowed = {"mode": mode, "tools": [{"type": "function", "function": {"name": name}}]}
        choice = {"type": "allowed_tools", "allowed_tools": allowed}
        message, _ = message_of(served, family, False, messages=messages, tools=TOOLS, tool_choice=choice)
        assert [call["function"]["name"] for call in message.get("tool_calls", [])] == ([name] if calls else [])
    program: Any = served.parts
    body = {"model": str(program.folder / family), "messages": messages, "tools": TOOLS}
    prompt = served.post("/apply-template", {**body, "tool_choice": choice})[2]["prompt"]
    assert '"now"' in prompt
    assert "get_weather" not in prompt
    bad = {"type": "allowed_tools", "allowed_tools": {"tools": [{"function": {"name": "nowhere"}}]}}
    status, _, answer = served.post("/v1/chat/completions", {**body, "tool_choice": bad})
    assert (status, answer["error"]["param"]) == (400, "tool_choice.allowed_tools.tools")
