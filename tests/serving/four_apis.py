"""One conversation in the requests of four APIs, and what each of their responses says, in one form."""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs

Document = dict[str, Any]


@attrs.frozen
class Call:
    """A tool call."""

    name: str
    arguments: Document
    id: str = ""


@attrs.frozen
class Turn:
    """A turn of the assistant, with the results of its calls, or of the user."""

    user: str = ""
    text: str = ""
    reasoning: str = ""
    calls: tuple[Call, ...] = ()
    results: tuple[str, ...] = ()


@attrs.frozen
class Case:
    """A conversation and what steers its answer."""

    model: str
    system: str
    turns: tuple[Turn, ...]
    tools: tuple[Document, ...] = ()
    max_tokens: int = 400
    stop: tuple[str, ...] = ()


@attrs.frozen
class Said:
    """What a response says."""

    text: str
    reasoning: str
    calls: tuple[tuple[str, str], ...]
    """Names, and arguments as sorted JSON."""
    finish: str
    prompt_tokens: int
    completion_tokens: int


WORDS = (
    *("river", "heron", "stone", "märz", "日本", "code", "<b>", "{json}", "12.5"),
    *('"quoted"', "it's", "a & b", "new\nline"),
)


def words(chance: random.Random, most: int = 8) -> str:
    """Return some words."""
    return " ".join(chance.choices(WORDS, k=chance.randint(1, most)))


def made_case(chance: random.Random, model: str, marks: Sequence[str], stops: Sequence[str]) -> Case:
    """Return a generated conversation that ends with the mark of a reply."""
    tools = tuple(
        {
            "name": f"tool_{index}",
            "description": words(chance),
            "parameters": {"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]},
        }
        for index in range(chance.randint(0, 3))
    )
    turns: list[Turn] = []
    for _ in range(chance.randint(0, 3)):
        turns.append(Turn(user=words(chance)))
        calls = tuple(
            Call(chance.choice(tools)["name"], {"q": words(chance, 3)}, f"call_{chance.getrandbits(40):010x}")
            for _ in range(chance.randint(0, 2) if tools else 0)
        )
        reasoning = words(chance) if chance.random() < 0.4 else ""
        text = words(chance) if chance.random() < 0.7 or not calls else ""
        turns.append(Turn(text=text, reasoning=reasoning, calls=calls, results=tuple(words(chance) for _ in calls)))
        if calls:
            turns.append(Turn(text=words(chance)))
    turns.append(Turn(user=f"{words(chance)} {chance.choice(marks)}"))
    system = words(chance) if chance.random() < 0.6 else ""
    stop = (chance.choice(stops),) if chance.random() < 0.2 else ()
    return Case(model, system, tuple(turns), tools, chance.choice((400, 400, 400, 5)), stop)


def _messages(
    case: Case,
    reasoning: str,
    call_of: Callable[[Call], Document],
    result_of: Callable[[Call], Document],
) -> list[Document]:
    """Return the messages of APIs that have one for each result.

    Args:
        case: The conversation.
        reasoning: The field of the reasoning.
        call_of: Returns a call of the assistant.
        result_of: Returns the fields with which a result names its call.
    """
    messages: list[Document] = [{"role": "system", "content": case.system}] if case.system else []
    for turn in case.turns:
        if turn.user:
            messages.append({"role": "user", "content": turn.user})
            continue
        message: Document = {"role": "assistant", "content": turn.text}
        if turn.reasoning:
            message[reasoning] = turn.reasoning
        if turn.calls:
            message["tool_calls"] = [call_of(call) for call in turn.calls]
        messages.append(message)
        messages += [
            {"role": "tool", **result_of(call), "content": result}
            for call, result in zip(turn.calls, turn.results, strict=True)
        ]
    return messages


def chat_request(case: Case) -> Document:
    """Return the body for ``/v1/chat/completions``."""

    def call_of(call: Call) -> Document:
        function = {"name": call.name, "arguments": json.dumps(call.arguments)}
        return {"id": call.id, "type": "function", "function": function}

    tools = [{"type": "function", "function": tool} for tool in case.tools]
    return {
        "model": case.model,
        "messages": _messages(case, "reasoning_content", call_of, lambda call: {"tool_call_id": call.id}),
        "max_tokens": case.max_tokens,
        "temperature": 0,
        **({"tools": tools} if tools else {}),
        **({"stop": list(case.stop)} if case.stop else {}),
    }


def responses_request(case: Case) -> Document:
    """Return the body for ``/v1/responses``."""
    items: list[Document] = []
    for turn in case.turns:
        if turn.user:
            items.append({"role": "user", "content": turn.user})
            continue
        if turn.reasoning:
            content = [{"type": "reasoning_text", "text": turn.reasoning}]
            items.append({"type": "reasoning", "id": "rs_1", "summary": [], "content": content})
        if turn.text:
            part = {"type": "output_text", "text": turn.text, "annotations": []}
            items.append({"type": "message", "role": "assistant", "content": [part]})
        for call in turn.calls:
            arguments = json.dumps(call.arguments)
            items.append({"type": "function_call", "call_id": call.id, "name": call.name, "arguments": arguments})
        for call, result in zip(turn.calls, turn.results, strict=True):
            items.append({"type": "function_call_output", "call_id": call.id, "output": result})
    tools = [{"type": "function", **tool} for tool in case.tools]
    return {
        "model": case.model,
        "input": items,
        "store": False,
        "max_output_tokens": case.max_tokens,
        "temperature": 0,
        **({"instructions": case.system} if case.system else {}),
        **({"tools": tools} if tools else {}),
    }


def messages_request(case: Case) -> Document:
    """Return the body for ``/v1/messages``."""
    messages: list[Document] = []
    for turn in case.turns:
        if turn.user:
            messages.append({"role": "user", "content": turn.user})
            continue
        blocks: list[Document] = []
        if turn.reasoning:
            blocks.append({"type": "thinking", "thinking": turn.reasoning, "signature": ""})
        if turn.text:
            blocks.append({"type": "text", "text": turn.text})
        blocks += [
            {"type": "tool_use", "id": call.id, "name": call.name, "input": call.arguments} for call in turn.calls
        ]
        messages.append({"role": "assistant", "content": blocks})
        if turn.calls:
            results = [
                {"type": "tool_result", "tool_use_id": call.id, "content": result}
                for call, result in zip(turn.calls, turn.results, strict=True)
            ]
            messages.append({"role": "user", "content": results})
    tools = [
        {"name": tool["name"], "description": tool["description"], "input_schema": tool["parameters"]}
        for tool in case.tools
    ]
    return {
        "model": case.model,
        "messages": messages,
        "max_tokens": case.max_tokens,
        "temperature": 0,
        **({"system": case.system} if case.system else {}),
        **({"tools": tools} if tools else {}),
        **({"stop_sequences": list(case.stop)} if case.stop else {}),
    }


def ollama_request(case: Case) -> Document:
    """Return the body for ``/api/chat``."""
    messages = _messages(
        case,
        "thinking",
        lambda call: {"id": call.id, "function": {"name": call.name, "arguments": call.arguments}},
        lambda call: {"tool_name": call.name, "tool_call_id": call.id},
    )
    options = {"temperature": 0, "num_predict": case.max_tokens, **({"stop": list(case.stop)} if case.stop else {})}
    tools = [{"type": "function", "function": tool} for tool in case.tools]
    return {"model": case.model, "messages": messages, "options": options, "tools": tools, "stream": False}


def _calls(pairs: Sequence[tuple[str, Any]]) -> tuple[tuple[str, str], ...]:
    return tuple((name, json.dumps(arguments, sort_keys=True)) for name, arguments in pairs)


def _events(body: bytes) -> list[Document]:
    lines = (line[6:] for line in body.decode().split("\n") if line.startswith("data: "))
    return [json.loads(line) for line in lines if line != "[DONE]"]


def read_chat(body: bytes, stream: bool) -> Said:
    """Return what a chat completion says."""
    if not stream:
        document = json.loads(body)
        message, usage = document["choices"][0]["message"], document["usage"]
        calls = [(each["function"]["name"], each["function"]["arguments"]) for each in message.get("tool_calls", [])]
        text, reasoning = message["content"] or "", message.get("reasoning_content", "")
        finish = document["choices"][0]["finish_reason"]
    else:
        chunks = _events(body)
        usage = chunks[-1]["usage"]
        choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
        deltas = [choice["delta"] for choice in choices]
        text = "".join(delta.get("content") or "" for delta in deltas)
        reasoning = "".join(delta.get("reasoning_content", "") for delta in deltas)
        begun: dict[int, list[str]] = {}
        for part in (part for delta in deltas for part in delta.get("tool_calls", [])):
            call = begun.setdefault(part["index"], ["", ""])
            call[0] += part["function"].get("name", "")
            call[1] += part["function"]["arguments"]
        calls = [(name, arguments) for name, arguments in begun.values()]
        finish = next(choice["finish_reason"] for choice in choices if choice["finish_reason"])
    pairs = [(name, json.loads(arguments)) for name, arguments in calls]
    return Said(text, reasoning, _calls(pairs), finish, usage["prompt_tokens"], usage["completion_tokens"])


def read_responses(body: bytes, stream: bool) -> Said:
    """Return what a response says; of a stream, its last event, held against its pieces."""
    document = json.loads(body) if not stream else None
    if document is None:
        events = _events(body)
        document = events[-1]["response"]
        pieces = {
            kind: "".join(e["delta"] for e in events if e["type"] == f"response.{kind}.delta") for kind in _PIECES
        }
        done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
        assert done == document["output"]
        assert pieces["output_text"] == _joined(document["output"], "message")
        assert pieces["reasoning_text"] == _joined(document["output"], "reasoning")
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
    output, usage = document["output"], document["usage"]
    calls = [(item["name"], json.loads(item["arguments"])) for item in output if item["type"] == "function_call"]
    finish = "tool_calls" if calls else "stop"
    if document["status"] == "incomplete":
        assert document["incomplete_details"] == {"reason": "max_output_tokens"}
        finish = "length"
    return Said(
        _joined(output, "message"),
        _joined(output, "reasoning"),
        _calls(calls),
        finish,
        usage["input_tokens"],
        usage["output_tokens"],
    )


_PIECES = ("output_text", "reasoning_text")


def _joined(output: Sequence[Document], kind: str) -> str:
    return "".join(part["text"] for item in output if item["type"] == kind for part in item["content"])


def read_messages(body: bytes, stream: bool) -> Said:
    """Return what a message says."""
    if not stream:
        message = json.loads(body)
        blocks, usage, reason = message["content"], message["usage"], message["stop_reason"]
    else:
        events = [event for event in _events(body) if event["type"] != "ping"]
        assert (events[0]["type"], events[-1]["type"]) == ("message_start", "message_stop")
        usage, reason = dict(events[0]["message"]["usage"]), None
        blocks = []
        for event in events[1:-1]:
            if event["type"] == "content_block_start":
                assert event["index"] == len(blocks)
                blocks.append({**event["content_block"], "json": ""})
            elif event["type"] == "content_block_delta":
                delta, block = event["delta"], blocks[event["index"]]
                for name in ("text", "thinking"):
                    block[name] = block.get(name, "") + delta.get(name, "")
                block["json"] += delta.get("partial_json", "")
            elif event["type"] == "message_delta":
                reason = event["delta"]["stop_reason"]
                usage |= {name: value for name, value in event["usage"].items() if value is not None}
        for block in blocks:
            if block["type"] == "tool_use":
                block["input"] = json.loads(block["json"] or "{}")
    prompt = usage["input_tokens"] + usage["cache_read_input_tokens"] + usage["cache_creation_input_tokens"]
    finish = {"end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length", "tool_use": "tool_calls"}[
        str(reason)
    ]
    return Said(
        "".join(block["text"] for block in blocks if block["type"] == "text"),
        "".join(block["thinking"] for block in blocks if block["type"] == "thinking"),
        _calls([(block["name"], block["input"]) for block in blocks if block["type"] == "tool_use"]),
        finish,
        prompt,
        usage["output_tokens"],
    )


def read_ollama(body: bytes, stream: bool) -> Said:
    """Return what a chat of Ollama's API says."""
    lines = [json.loads(line) for line in body.decode().splitlines()]
    assert [line["done"] for line in lines] == [*[False] * (len(lines) - 1), True]
    messages = [line["message"] for line in lines]
    calls = [call["function"] for message in messages for call in message.get("tool_calls") or []]
    last = lines[-1]
    return Said(
        "".join(message.get("content") or "" for message in messages),
        "".join(message.get("thinking") or "" for message in messages),
        _calls([(call["name"], call["arguments"]) for call in calls]),
        "tool_calls" if calls and last["done_reason"] == "stop" else last["done_reason"],
        last["prompt_eval_count"],
        last["eval_count"],
    )


@attrs.frozen
class Api:
    """How an API is asked and read."""

    path: str
    request: Callable[[Case], Document]
    read: Callable[[bytes, bool], Said]
    streamed: Mapping[str, Any] = {"stream": True}
    """Fields of a request for a stream."""


APIS = {
    "chat": Api(
        "/v1/chat/completions", chat_request, read_chat, {"stream": True, "stream_options": {"include_usage": True}}
    ),
    "responses": Api("/v1/responses", responses_request, read_responses),
    "messages": Api("/v1/messages", messages_request, read_messages),
    "ollama": Api("/api/chat", ollama_request, read_ollama),
}
