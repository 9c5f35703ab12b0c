"""The events of a streamed response, read as a client reads them: in order, by name, and put together."""

import json
from typing import Any

from serving import contract
from serving.running import RunningServer, read_all, unchunked

Json = dict[str, Any]

DELTAS = {
    "response.function_call_arguments.delta": "arguments",
    "response.custom_tool_call_input.delta": "input",
}
LAST = ("response.completed", "response.incomplete", "response.failed")


def read_events(body: str) -> list[Json]:
    """Return the events of a stream; each frame has a name, which is its type, and they are numbered from 0."""
    events = []
    for frame in body.split("\n\n"):
        if not frame:
            continue
        name, data = frame.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        assert event["sequence_number"] == len(events)
        contract.check_event(event)
        events.append(event)
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    assert [event["type"] for event in events if event["type"] in LAST] == [events[-1]["type"]]
    return events


def put_together(events: list[Json]) -> list[Json]:
    """Return the items that the pieces of a stream make, which are those that it says are done."""
    items: list[Json] = []
    done: list[Json] = []
    for event in events:
        if event["type"] == "response.output_item.added":
            assert event["output_index"] == len(items) == len(done)
            items.append(event["item"])
        elif event["type"] == "response.output_item.done":
            done.append(event["item"])
        elif "item_id" in event:
            assert (event["item_id"], event["output_index"]) == (items[-1]["id"], len(items) - 1)
            grow(items[-1], event)
    for made, said in zip(items, done, strict=True):
        made["status"] = said["status"]
        if said["type"] in {"message", "reasoning", "function_call", "custom_tool_call"}:
            assert made == said
    return done


def grow(item: Json, event: Json) -> None:
    """Add a piece to an item."""
    kind = event["type"]
    if kind == "response.content_part.added":
        item["content"].append(event["part"])
    elif kind == "response.output_text.delta":
        item["content"][0]["text"] += event["delta"]
        item["content"][0]["logprobs"] += event["logprobs"]
    elif kind == "response.reasoning_text.delta":
        item["content"] = item["content"] or [{"type": "reasoning_text", "text": ""}]
        item["content"][0]["text"] += event["delta"]
    elif kind in DELTAS:
        item[DELTAS[kind]] += event["delta"]


def without_ids(response: Json) -> Json:
    """Return a response without what differs between two answers to the same request."""
    kept = {name: value for name, value in response.items() if name not in {"id", "created_at", "completed_at"}}
    hidden = {"id": "", "call_id": ""}
    return {**kept, "output": [{**item, **{name: "" for name in hidden if name in item}} for item in kept["output"]]}


def ask(server: RunningServer, body: Json, path: str = "/v1/responses", **headers: str) -> Json:
    """Return a whole response that succeeded."""
    status, _, response = server.post(path, body, **headers)
    assert status == 200, response
    found: Json = response
    return found


def stream(server: RunningServer, body: Json, path: str = "/v1/responses") -> list[Json]:
    """Return the events of a streamed response."""
    head, _, data = read_all(server.raw(path, {**body, "stream": True}, extra="Connection: close\r\n")).partition(
        b"\r\n\r\n"
    )
    assert b"200 OK" in head, data
    assert b"text/event-stream" in head
    return read_events((unchunked(data) if b"chunked" in head.lower() else data).decode())
