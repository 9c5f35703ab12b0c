"""The Responses API on the real engine: agents' loops on scripted models, OpenAI's SDK, raw and with its helper."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from models.scripted_model import write_model
from openai.types.responses import Response
from pydantic import BaseModel
from serving.response_events import ask, put_together, stream, without_ids
from serving.running import RunningServer
from serving.whole_program import WholeProgram

from mlxk.entrypoints.settings import ServerSettings

pytestmark = pytest.mark.mlx

SQUARE = Path(__file__).parents[2] / "adapters" / "builtin" / "models" / "demo-vision" / "blue-square.jpg"
RESULT, JSON_MARK = "@@RESULT@@", "@@JSON@@"
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
AGENTS: Any = {
    "type": "namespace",
    "name": "agents",
    "description": "Other agents.",
    "tools": [{"type": "function", "name": "close", "description": "Ends one.", "parameters": CITY, "strict": False}],
}
PATCH: Any = {"type": "custom", "name": "apply_patch", "description": "Edits files."}
THOUGHT, SAID = "I end it and patch.", "Now I do."
PATCHED = "*** Begin Patch\n+a\n*** End Patch"
CALLS = (
    '<tool_call>\n{"name": "agents__close", "arguments": {"city": "Köln"}}\n</tool_call>\n'
    f'<tool_call>\n{{"name": "apply_patch", "arguments": {{"input": {json.dumps(PATCHED)}}}}}\n</tool_call>'
)
ANSWER = "Both are done."
TEMPLATE = (
    "{% if tools %}<|im_start|>tools\n{{ tools | tojson }}\n<tool_call></tool_call><|im_end|>\n{% endif %}"
    "{% for m in messages %}{% if m.role == 'system' and not loop.first %}{{ raise_exception('late') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m.content or '' }}"
    '{% for c in m.tool_calls or [] %}\n<tool_call>\n{"name": "{{ c.function.name }}", "arguments": '
    "{{ c.function.arguments | tojson }}}\n</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Town(BaseModel):
    """A typed answer."""

    city: str


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Serve a model that thinks, speaks and calls twice, until it sees a result; and one with a small window."""
    folder = tmp_path_factory.mktemp("scripted")
    reply = f"<think>\n{THOUGHT}\n</think>\n\n{SAID}\n{CALLS}"
    replies = {RESULT: ANSWER, JSON_MARK: '{"city": "Köln"}'}
    marks = {"special": ("<|im_start|>",), "added": ("<think>", "</think>", "<tool_call>", "</tool_call>")}
    write_model(folder / "agent", TEMPLATE, reply, replies, **marks)
    write_model(folder / "small", TEMPLATE, "Hello there.", context=512, **marks)
    program: Any = WholeProgram(folder, ServerSettings(allow_paths=True))
    program.folder = folder
    with RunningServer(program) as running:
        yield running


def body(served: RunningServer, name: str = "agent", **fields: Any) -> dict[str, Any]:
    """Return a request."""
    program: Any = served.parts
    return {"model": str(program.folder / name), "input": "Go.", "temperature": 0, "tools": [AGENTS, PATCH], **fields}


def said(response: Any) -> list[tuple[Any, ...]]:
    """Return what the items of a response say."""
    found: list[tuple[Any, ...]] = []
    for item in response["output"]:
        if item["type"] in {"message", "reasoning"}:
            found.append((item["type"], item["content"][0]["text"].strip()))
        else:
            found.append((item["type"], item["name"], item.get("namespace"), item.get("arguments", item.get("input"))))
    return found


EXPECTED = [
    ("reasoning", THOUGHT),
    ("message", SAID),
    ("function_call", "close", "agents", '{"city": "Köln"}'),
    ("custom_tool_call", "apply_patch", None, PATCHED),
]


@pytest.mark.parametrize("kept", [True, False])
def test_an_agents_loop_with_tools_in_a_namespace_and_a_custom_tool(served: RunningServer, kept: bool) -> None:
    first = ask(served, body(served, instructions="Act.", store=kept))
    assert said(first) == EXPECTED
    called, patched = first["output"][2:]
    results: list[Any] = [
        {"type": "function_call_output", "call_id": called["call_id"], "output": f"{RESULT} closed"},
        {"type": "custom_tool_call_output", "call_id": patched["call_id"], "output": "Done."},
    ]
    asked: list[Any] = [{"type": "message", "role": "user", "content": "Go."}]
    history = (
        {"previous_response_id": first["id"], "input": results}
        if kept
        else {"input": [*asked, *first["output"], *results]}
    )
    second = ask(served, body(served, instructions="Act.", **history))
    assert said(second) == [("message", ANSWER)]
    usage = second["usage"]
    assert usage["input_tokens_details"]["cached_tokens"] > 0
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]


def test_a_history_that_is_sent_and_one_that_is_kept_are_the_same_prompt(served: RunningServer) -> None:
    first = ask(served, body(served))
    result = {"type": "function_call_output", "call_id": first["output"][2]["call_id"], "output": RESULT}
    sent = ask(served, body(served, input=[{"role": "user", "content": "Go."}, *first["output"], result]))
    kept = ask(served, body(served, input=[result], previous_response_id=first["id"]))
    assert sent["usage"]["input_tokens"] == kept["usage"]["input_tokens"]


def test_streamed_equals_whole_with_reasoning_text_and_two_calls(served: RunningServer) -> None:
    ask(served, body(served))
    whole, events = ask(served, body(served)), stream(served, body(served))
    assert put_together(events) == events[-1]["response"]["output"]
    assert without_ids(events[-1]["response"]) == without_ids(whole)
    assert whole["usage"]["output_tokens_details"]["reasoning_tokens"] > 0


def test_the_usage_is_that_of_the_chat_api(served: RunningServer) -> None:
    ask(served, body(served))
    chat = {"model": body(served)["model"], "messages": [{"role": "user", "content": "Go."}], "temperature": 0}
    usage = served.post("/v1/chat/completions", chat)[2]["usage"]
    ours = ask(served, body(served, tools=[]))["usage"]
    assert ours["input_tokens"] == usage["prompt_tokens"]
    assert ours["output_tokens"] == usage["completion_tokens"]
    reasoning = usage["completion_tokens_details"]["reasoning_tokens"]
    assert ours["output_tokens_details"]["reasoning_tokens"] == reasoning


def test_broken_arguments_and_late_developer_messages_are_no_error(served: RunningServer) -> None:
    items = [
        {"role": "developer", "content": "One."},
        {"role": "developer", "content": "Two."},
        {"role": "user", "content": "Go."},
        {"type": "function_call", "name": "close", "namespace": "agents", "arguments": "{bad", "call_id": "c"},
        {"type": "function_call_output", "call_id": "c", "output": f"{RESULT} failed to parse"},
        {"role": "developer", "content": "Go on."},
    ]
    status, headers, answer = served.post("/v1/responses", body(served, input=items))
    assert (status, said(answer)) == (200, [("message", ANSWER)])
    assert headers["x-mlxk-adaptations"] == "system-messages-joined, late-system-as-user"


def test_a_call_that_the_limit_cuts_is_incomplete_or_not_there(served: RunningServer) -> None:
    for limit in range(1, 40, 3):
        for response in (
            ask(served, body(served, max_output_tokens=limit)),
            stream(served, body(served, max_output_tokens=limit))[-1]["response"],
        ):
            if response["status"] == "incomplete":
                assert response["incomplete_details"] == {"reason": "max_output_tokens"}
                assert [item["status"] for item in response["output"]][-1:] in ([], ["incomplete"])


def test_a_schema_and_one_that_cannot_be_enforced(served: RunningServer) -> None:
    form = {"type": "json_schema", "name": "town", "schema": CITY, "strict": True}
    response = ask(served, body(served, tools=[], input=f"{JSON_MARK}?", text={"format": form}))
    assert said(response) == [("message", '{"city": "Köln"}')]
    wrong = {**form, "schema": {"type": "nothing"}}
    status, _, answer = served.post("/v1/responses", body(served, tools=[], text={"format": wrong}))
    assert (status, answer["error"]["param"]) == (400, "text.format.schema")


def test_a_forced_call_of_each_kind(served: RunningServer) -> None:
    for choice, kind in (
        ({"type": "function", "name": "close", "namespace": "agents"}, "function_call"),
        ({"type": "custom", "name": "apply_patch"}, "custom_tool_call"),
        ("required", None),
    ):
        response = ask(served, body(served, input=f"{JSON_MARK}?", tool_choice=choice, max_output_tokens=200))
        [item] = response["output"]
        assert item["type"] in {kind, *(() if kind else ("function_call", "custom_tool_call"))}


@pytest.mark.parametrize("of_tool", [False, True])
def test_an_image_is_seen(served: RunningServer, of_tool: bool) -> None:
    url = f"data:image/jpeg;base64,{base64.b64encode(SQUARE.read_bytes()).decode()}"
    image = {"type": "input_image", "image_url": url, "detail": "auto"}
    question = {"type": "input_text", "text": "What color is it?"}
    items: list[Any] = [{"role": "user", "content": [question, image]}]
    if of_tool:
        call = {"type": "function_call", "name": "view_image", "arguments": "{}", "call_id": "c"}
        result = {"type": "function_call_output", "call_id": "c", "output": [image]}
        items = [{"role": "user", "content": "Look."}, call, result, {"role": "user", "content": "What color is it?"}]
    response = ask(served, {"model": "demo-vision", "input": items, "temperature": 0, "max_output_tokens": 40})
    if not of_tool:
        assert "blue" in response["output"][-1]["content"][0]["text"]
    assert response["usage"]["input_tokens"] > 20


def test_a_conversation_beyond_the_window(served: RunningServer) -> None:
    small = body(served, "small", tools=[])
    long = "word " * 40
    turns = [{"role": role, "content": long} for role in ("user", "assistant", "user", "assistant")]
    items = [*turns, {"role": "user", "content": "Hello?"}]
    status, _, answer = served.post("/v1/responses", {**small, "input": items})
    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
    assert answer["error"]["message"].startswith(
        "This model's maximum context length is 512 tokens. However, your input"
    )
    status, headers, answer = served.post("/v1/responses", {**small, "input": items, "truncation": "auto"})
    assert (status, said(answer)) == (200, [("message", "Hello there.")])
    assert "oldest-turns-dropped" in headers["x-mlxk-adaptations"]
    assert answer["usage"]["input_tokens"] < 512


def test_the_probe_of_clients_that_load_a_model(served: RunningServer) -> None:
    probe = {"model": body(served)["model"], "input": "", "max_output_tokens": 1}
    assert ask(served, probe)["usage"]["output_tokens"] == 1


def sdk(served: RunningServer) -> openai.OpenAI:
    """Return the SDK's client."""
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="any", max_retries=0)


def test_the_sdk_raw_and_its_helper_read_the_same(served: RunningServer) -> None:
    request = body(served)
    with sdk(served) as client:
        raw = list(client.responses.create(**request, stream=True))
        with client.responses.stream(**request) as helper:
            kinds = [event.type for event in helper]
            final = helper.get_final_response()
    assert raw[-1].type == kinds[-1] == "response.completed"
    assert {"response.reasoning_text.delta", "response.custom_tool_call_input.done"} <= set(kinds)
    assert [item.type for item in final.output] == [kind for kind, *_ in EXPECTED]
    assert final.output_text.strip() == SAID
    validated = Response.model_validate(raw[-1].response.model_dump(exclude_none=True), strict=False)
    assert validated.usage is not None


def test_the_sdk_parses_typed_answers(served: RunningServer) -> None:
    request = body(served, tools=[], input=f"{JSON_MARK}?")
    with sdk(served) as client:
        parsed = client.responses.parse(**request, text_format=Town)
        with client.responses.stream(**request, text_format=Town) as helper:
            streamed = helper.get_final_response()
    assert parsed.output_parsed == streamed.output_parsed == Town(city="Köln")


def test_the_sdk_retrieves_lists_and_deletes(served: RunningServer) -> None:
    with sdk(served) as client:
        first = client.responses.create(**body(served, tools=[]))
        assert client.responses.retrieve(first.id).output_text == first.output_text
        assert [item.type for item in client.responses.input_items.list(first.id)] == ["message"]
        second = client.responses.create(**body(served, input=RESULT), previous_response_id=first.id)
        assert second.output_text == ANSWER
        client.responses.delete(first.id)
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(first.id)
        with pytest.raises(openai.NotFoundError) as gone:
            client.responses.create(**body(served), previous_response_id=first.id)
    assert (gone.value.code, gone.value.param) == ("previous_response_not_found", "previous_response_id")
