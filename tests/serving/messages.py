"""The Messages API in tests: requests, events held against the contract, and messages put together as clients do."""

import json
from typing import Any

from serving import contract
from serving.running import unchunked

from mlxk.entrypoints.http.anthropic.renderer import arguments_of


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
