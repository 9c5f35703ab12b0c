"""The Messages API in tests: requests, events held against the contract, and messages put together as clients do."""

import json
from typing import Any

from falcon.testing import TestClient
from serving import contract
from serving.asking import parts
from serving.parts import CHAT_MODEL
from serving.running import unchunked

from mlxk.domain.generation.conversation import Conversation
from mlxk.domain.generation.request import GenerationRequest
from mlxk.entrypoints.http.anthropic.renderer import arguments_of

TEMPLATE = """
{%- if tools %}<|im_start|>tools
{{ tools | tojson }}<|im_end|>
{% endif %}
{%- set ns = namespace(last=0) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}
{%- if m.role == 'system' and not loop.first %}{{ raise_exception('A system message comes first.') }}{% endif %}
{%- if m.role == 'tool' %}<|im_start|>user
<tool_response>{{ m.content }}</tool_response><|im_end|>
{% else %}<|im_start|>{{ m.role }}
{% if m.reasoning_content and loop.index0 > ns.last %}<think>
{{ m.reasoning_content }}
</think>

{% endif %}{{ m.content or '' }}
{%- for c in m.tool_calls or [] %}
<tool_call>
{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% endif %}{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and not enable_thinking %}/no_think{% endif %}{% endif %}"""
"""A chat template as strict as those of the Qwen family: a system message comes first or is refused, and the reasoning
of the assistant is shown only after the last question."""


def tool(name: str, **properties: str) -> dict[str, Any]:
    """Return the definition of a tool; properties by their types."""
    described = {key: {"type": kind} for key, kind in properties.items()}
    schema = {"type": "object", "properties": described, "required": list(properties)}
    return {"name": name, "description": f"{name} something.", "input_schema": schema}


def call(identity: str, name: str, **arguments: Any) -> dict[str, Any]:
    """Return a call of the assistant."""
    return {"type": "tool_use", "id": identity, "name": name, "input": arguments}


def events(response: bytes) -> list[Any]:
    """Return the events of a stream on the wire."""
    head, _, body = response.partition(b"\r\n\r\n")
    assert b"200" in head.partition(b"\r\n")[0], response
    return frames(unchunked(body) if b"chunked" in head.lower() else body)


def frames(body: bytes) -> list[Any]:
    """Return the events of the body of a stream, each held against the contract; its name is that of its type."""
    found = []
    for each in body.decode().split("\n\n")[:-1]:
        name, data = each.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        assert contract.faults("/components/schemas/MessagesEvent", event) == []
        found.append(event)
    return found


def put_together(stream: list[Any]) -> dict[str, Any]:
    """Return the message of a stream, as a client puts it together; its blocks must not overlap."""
    message: dict[str, Any] = {}
    current: dict[str, Any] = {}
    arguments, is_open = "", False
    for event in stream:
        match event["type"]:
            case "message_start":
                message = dict(event["message"])
            case "content_block_start":
                assert not is_open
                assert event["index"] == len(message["content"])
                current, arguments, is_open = dict(event["content_block"]), "", True
                message["content"].append(current)
            case "content_block_delta":
                assert is_open
                assert event["index"] == len(message["content"]) - 1
                delta = {key: value for key, value in event["delta"].items() if key != "type"}
                arguments += delta.pop("partial_json", "")
                current |= {key: current[key] + value for key, value in delta.items()}
            case "content_block_stop":
                assert is_open
                is_open = False
                if current["type"] == "tool_use":
                    current["input"] = arguments_of(arguments)
            case "message_delta":
                assert not is_open
                message |= event["delta"]
                message["usage"] = message["usage"] | event["usage"]
    assert stream[-1]["type"] == "message_stop"
    return message


def send(path: str = "/v1/messages", **fields: Any) -> tuple[int, Any, GenerationRequest | None, dict[str, str]]:
    """Send a request; return status, answer, what reached the engine, and the headers."""
    generator = parts().generator
    generator.requests.clear()
    client = TestClient(parts().application.wsgi, headers={"Host": "localhost"})
    required = {"model": CHAT_MODEL, "max_tokens": 20, "messages": [{"role": "user", "content": "one two three"}]}
    response = client.simulate_post(path, json={**required, **fields})
    headers = {name.lower(): value for name, value in response.headers.items()}
    contract.check("POST", path, response.status_code, headers["content-type"], response.json)
    return response.status_code, response.json, next(iter(generator.requests), None), headers


def reached(**fields: Any) -> GenerationRequest:
    """Send a request that is to be answered; return what reached the engine."""
    status, answer, request, _ = send(**fields)
    assert status == 200, answer
    assert request is not None
    return request


def conversation(**fields: Any) -> Conversation:
    """Send a request that is to be answered; return its conversation."""
    prompt = reached(**fields).prompt
    assert isinstance(prompt, Conversation)
    return prompt


ADD = tool("add", a="integer")
CONTROL = {"type": "ephemeral"}
USER = [{"role": "user", "content": "one"}]


def turn(*content: Any) -> list[Any]:
    """Return a conversation that ends with these blocks."""
    called = {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "add", "input": {}}]}
    return [*USER, called, {"role": "user", "content": [*content]}]


def result(*content: Any, **fields: Any) -> dict[str, Any]:
    """Return a result of a call."""
    return {"type": "tool_result", "tool_use_id": "t", "content": [*content], **fields}


def text(**fields: Any) -> dict[str, Any]:
    """Return a block of text."""
    return {"type": "text", "text": "hi", **fields}


def document(**fields: Any) -> dict[str, Any]:
    """Return a document of blocks."""
    return {"type": "document", "source": {"type": "content", "content": [text(**fields)]}}


IMAGE = {"type": "image", "source": {"type": "url", "url": "data:image/png;base64,AA"}, "transformations": {}}
CALLED = {"type": "tool_use", "id": "t", "name": "add", "input": {}}
