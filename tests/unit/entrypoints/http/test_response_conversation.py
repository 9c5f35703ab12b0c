"""How the items and tools of a response's request reach the engine: as turns of a conversation, and as functions."""

import json
from typing import Any

import pytest
from serving.asking import ask
from serving.responses import ADD, AGENTS, PATCH, PATH, SCHEMA, respond

from mlxk.domain.generation.conversation import Conversation, Message, Role
from mlxk.domain.generation.request import GenerationRequest
from mlxk.entrypoints.http.requests.body import FieldNames
from mlxk.entrypoints.http.responses.conversation import ConversationBuilder


def turns(reached: GenerationRequest) -> tuple[Message, ...]:
    """Return the messages that reached the engine."""
    assert isinstance(reached.prompt, Conversation)
    return reached.prompt.messages


def test_the_items_of_a_turn_are_one_message() -> None:
    _, reached, ignored = respond(
        instructions="Be brief.",
        input=[
            {"role": "developer", "content": "And kind."},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
            {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
            {
                "type": "message",
                "id": "msg_1",
                "role": "assistant",
                "status": "completed",
                "content": [{"type": "output_text", "text": "Wait.", "annotations": [], "logprobs": []}],
            },
            {"type": "function_call", "name": "close", "namespace": "agents", "arguments": "{bad", "call_id": "c1"},
            {"type": "custom_tool_call", "name": "apply_patch", "input": "+x", "call_id": "c2"},
            {"type": "function_call_output", "call_id": "c1", "output": "failed to parse"},
            {"type": "custom_tool_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "done"}]},
        ],
        tools=[AGENTS, PATCH],
    )
    assert ignored == ""
    system, *rest = turns(reached)
    assert (system.role, system.content) == (Role.SYSTEM, "Be brief.")
    assert [turn.role for turn in rest] == [Role.SYSTEM, Role.USER, Role.ASSISTANT, Role.TOOL, Role.TOOL]
    answered = rest[2]
    assert (answered.reasoning, answered.content) == ("hm", "Wait.")
    assert [(call.name, call.arguments, call.id) for call in answered.tool_calls] == [
        ("agents__close", "{bad", "c1"),
        ("apply_patch", '{"input": "+x"}', "c2"),
    ]
    assert [(turn.tool_call_id, turn.content) for turn in rest[3:]] == [("c1", "failed to parse"), ("c2", "done")]


def test_two_answers_in_a_row_stay_two_messages_and_reasoning_begins_the_next() -> None:
    thought = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]}
    answers = [{"role": "assistant", "content": each} for each in ("one", "two", "three")]
    _, reached, _ = respond(input=[*answers[:2], thought, answers[2], {"role": "user", "content": "go"}])
    assert [(turn.role, turn.reasoning, turn.content) for turn in turns(reached)] == [
        (Role.ASSISTANT, "", "one"),
        (Role.ASSISTANT, "", "two"),
        (Role.ASSISTANT, "hm", "three"),
        (Role.USER, "", "go"),
    ]


BUILT_IN_CALLS = [
    (
        {"type": "local_shell_call", "id": "l1", "call_id": "c", "action": {"type": "exec", "command": ["ls"]}},
        {"type": "local_shell_call_output", "id": "c", "output": "a.txt"},
        "local_shell",
        "a.txt",
    ),
    (
        {"type": "shell_call", "call_id": "c", "action": {"commands": ["ls"]}},
        {
            "type": "shell_call_output",
            "call_id": "c",
            "output": [{"stdout": "a", "stderr": "", "outcome": {"type": "exit", "exit_code": 0}}],
        },
        "shell",
        '[{"stdout": "a", "stderr": "", "outcome": {"type": "exit", "exit_code": 0}}]',
    ),
    (
        {"type": "apply_patch_call", "call_id": "c", "operation": {"type": "delete_file", "path": "a"}},
        {"type": "apply_patch_call_output", "call_id": "c", "status": "completed"},
        "apply_patch",
        "completed",
    ),
    (
        {"type": "tool_search_call", "call_id": "c", "execution": "client", "arguments": {"query": "mail"}},
        {"type": "tool_search_output", "call_id": "c", "execution": "client", "tools": [ADD, AGENTS]},
        "tool_search",
        "Found: add, agents__close, agents__note",
    ),
]


@pytest.mark.parametrize(("called", "result", "name", "content"), BUILT_IN_CALLS)
def test_calls_of_known_tools_are_calls(called: Any, result: Any, name: str, content: str) -> None:
    _, reached, _ = respond(input=[{"role": "user", "content": "go"}, called, result])
    _, assistant, tool = turns(reached)
    assert [call.name for call in assistant.tool_calls] == [name]
    assert (tool.role, tool.content, tool.tool_call_id) == (Role.TOOL, content, assistant.tool_calls[0].id)


@pytest.mark.parametrize(
    ("fields", "result"),
    [
        ({"output": "it"}, "it"),
        ({"output": ""}, ""),
        ({"error": "gone"}, "gone"),
        ({"error": {"code": 404, "message": "größer"}}, '{"code": 404, "message": "größer"}'),
        ({"output": None, "error": None, "status": "incomplete"}, "incomplete"),
        ({}, ""),
    ],
)
def test_a_call_that_a_server_made_is_a_call_and_its_result(fields: Any, result: str) -> None:
    item = {"type": "mcp_call", "id": "m1", "server_label": "s", "name": "find", "arguments": "{}", **fields}
    _, reached, _ = respond(input=[{"role": "user", "content": "go"}, item])
    _, assistant, tool = turns(reached)
    assert (assistant.tool_calls[0].name, tool.content) == ("s__find", result)


def shown(reached: GenerationRequest) -> dict[str, Any]:
    """Return the functions that the model is shown, by name."""
    assert isinstance(reached.prompt, Conversation)
    functions = [json.loads(tool)["function"] for tool in reached.prompt.tools]
    return {function["name"]: function for function in functions}


def test_tools_are_shown_as_functions() -> None:
    search = {"type": "tool_search", "execution": "client", "description": "Finds."}
    grammar = {**PATCH, "name": "edit", "format": {"type": "grammar", "syntax": "lark", "definition": "start: X"}}
    nested = {"type": "function", "function": {"name": "old", "parameters": SCHEMA}}
    _, reached, _ = respond(tools=[ADD, AGENTS, PATCH, grammar, search, nested, {"type": "shell"}, {**ADD}])
    functions = shown(reached)
    assert list(functions) == [
        "add",
        "agents__close",
        "agents__note",
        "apply_patch",
        "edit",
        "tool_search",
        "old",
        "shell",
    ]
    assert functions["agents__close"]["description"] == "agents: Other agents."
    assert functions["apply_patch"]["parameters"]["required"] == ["input"]
    assert functions["edit"]["description"] == "Edits files.\n\nThe input must match this lark grammar:\nstart: X"
    assert functions["tool_search"]["parameters"]["required"] == ["query"]


def test_names_that_would_be_the_same_differ() -> None:
    plain = {**ADD, "name": "agents__close"}
    dotted = {**AGENTS, "name": "mcp.git hub"}
    assert list(shown(respond(tools=[plain, AGENTS, dotted])[1])) == [
        "agents__close",
        "agents__close_",
        "agents__note",
        "mcp_git_hub__close",
        "mcp_git_hub__note",
    ]


def test_further_tools_are_shown_with_the_others() -> None:
    item = {"type": "additional_tools", "role": "developer", "tools": [ADD, {"type": "web_search"}]}
    _, reached, ignored = respond(input=[item, {"role": "user", "content": "hi"}], tools=[PATCH])
    assert list(shown(reached)) == ["apply_patch", "add"]
    assert ignored == "input[0].tools[1]"


def test_a_known_tool_is_chosen_by_its_type() -> None:
    tools = [ADD, {"type": "shell"}, {"type": "apply_patch"}]
    for choice, name in (({"type": "apply_patch"}, "apply_patch"), ({"type": "shell"}, "shell")):
        _, reached, _ = respond(tools=tools, tool_choice=choice)
        assert reached.settings.forced_call is not None
        assert reached.settings.forced_call.name == name


CHOICES = [
    ("none", None, []),
    ({"type": "function", "name": "add"}, "add", ["add", "agents__close", "agents__note", "apply_patch"]),
    ({"type": "function", "name": "close"}, "agents__close", None),
    ({"type": "function", "name": "close", "namespace": "agents"}, "agents__close", None),
    ({"type": "custom", "name": "apply_patch"}, "apply_patch", None),
    ({"type": "function", "function": {"name": "add"}}, "add", None),
    ({"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "add"}]}, None, ["add"]),
    (
        {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "namespace", "name": "agents"}]},
        None,
        ["agents__close", "agents__note"],
    ),
    (
        {"type": "allowed_tools", "mode": "required", "tools": [{"type": "custom", "name": "note"}]},
        "agents__note",
        None,
    ),
]


@pytest.mark.parametrize(("choice", "forced", "offered"), CHOICES)
def test_the_choice_of_tools_is_kept(choice: Any, forced: str | None, offered: list[str] | None) -> None:
    answer, reached, _ = respond(tools=[ADD, AGENTS, PATCH], tool_choice=choice)
    found = reached.settings.forced_call
    assert (found.name if found else None) == forced
    assert answer["tool_choice"] == choice
    if offered is not None:
        assert list(shown(reached)) == offered


def test_allowed_tools_of_a_server_are_left_out() -> None:
    choice = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "web_search_preview"}]}
    _, reached, ignored = respond(tools=[ADD], tool_choice=choice)
    assert (shown(reached), ignored) == ({}, "tool_choice.tools[0]")


def test_what_is_wrong_with_a_later_call_of_a_turn_is_found_in_its_item() -> None:
    builder = ConversationBuilder(lambda name, namespace: name)
    builder.message("user", "one", "input[0]")
    builder.reasoning("Hm.", "input[1]")
    builder.call("add", "{}", "c", "input[2]")
    builder.call("add", "{}", "d", "input[3]")
    builder.end()
    names = FieldNames(builder.names)
    assert names.of("messages[1].tool_calls[0].function.arguments") == "input[2].arguments"
    assert names.of("messages[1].tool_calls[1].function.arguments") == "input[3].arguments"


def result_of(output: list[Any]) -> list[Any]:
    """Return the items of a conversation that ends with this result."""
    return [{"role": "user", "content": "x"}, {"type": "function_call_output", "call_id": "c", "output": output}]


def test_sound_in_the_result_of_a_call_is_refused_by_name() -> None:
    sound = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
    status, answer, reached, _ = ask(PATH, input=result_of([sound]))
    assert (status, answer["error"]["param"], reached) == (400, "input[1].output[0]", None)


def test_a_refusal_in_the_result_of_a_call_is_text() -> None:
    output = [{"type": "input_text", "text": "a"}, {"type": "refusal", "refusal": "b"}]
    _, reached, _ = respond(input=result_of(output))
    assert turns(reached)[-1].content == "a\nb"


def test_more_tools_than_a_model_can_be_shown_are_refused_at_once() -> None:
    own = [{"type": "function", "name": "ü" * length} for length in range(1, 41)]
    spaces = [{"type": "namespace", "name": "é" * length, "description": "x", "tools": own} for length in range(1, 61)]
    status, answer, reached, _ = ask(PATH, input="x", tools=spaces)
    assert (status, answer["error"]["param"], reached) == (400, "tools", None)
