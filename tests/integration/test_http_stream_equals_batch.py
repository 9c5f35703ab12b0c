"""Six hundred generated requests, each asked for as a stream and in one piece: the answers are the same."""

import http.client
import json
import random
from collections import Counter
from typing import Any

import pytest
from serving import contract
from serving.parts import CHAT_MODEL, Parts
from serving.running import RunningServer
from serving.written_answers import STOPS, WritingGenerator

from mlxk.entrypoints.settings import ServerSettings

REQUESTS = 600
CHECKED_BY_SCHEMA = 20
"""Every so manieth answer is held against the contract as well, which takes longer than asking."""

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": PARAMETERS}} for name in ("get_weather", "get_time")
]
Json = dict[str, Any]


def asked(seed: int) -> tuple[str, Json]:
    """Return the address and body of a request drawn from a seed."""
    chance = random.Random(seed)
    body: Json = {"model": CHAT_MODEL, "seed": seed, "max_tokens": chance.choice([1, 3, 10, 200])}
    if chance.random() < 0.4:
        body["stop"] = chance.choice([STOPS[0], list(STOPS), list(STOPS[1:2])])
    if chance.random() < 0.3:
        body["n"] = chance.randint(2, 4)
    if chance.random() < 0.25:
        prompt: Any = chance.choice(["Once", ["Once", "upon"], ["a", "b", "c"]])
        return "/v1/completions", {**body, "prompt": prompt, "echo": chance.random() < 0.5}
    body["messages"] = [{"role": "user", "content": "Hello"}]
    if chance.random() < 0.6:
        body["tools"] = TOOLS[: chance.randint(1, 2)]
        body["tool_choice"] = chance.choice(["auto", "none", "required", named("get_weather")])
        body["parallel_tool_calls"] = chance.choice([True, False])
    elif chance.random() < 0.3:
        body["response_format"] = {"type": "json_object"}
    return "/v1/chat/completions", body


def named(name: str) -> Json:
    """Return the choice of one tool."""
    return {"type": "function", "function": {"name": name}}


class Client:
    """Asks over one connection."""

    def __init__(self, server: RunningServer) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)

    def ask(self, path: str, body: Json) -> bytes:
        """Return the body of an answer."""
        self._connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = self._connection.getresponse()
        data = response.read()
        assert response.status == 200, data
        return data

    def close(self) -> None:
        """End the connection."""
        self._connection.close()


def joined(choices: list[Json]) -> Json:
    """Return what the pieces of one choice make, put together as clients do."""
    whole: Json = {"content": "", "reasoning": "", "calls": [], "finish_reason": None}
    for choice in choices:
        assert whole["finish_reason"] is None, "nothing comes after the reason for the end"
        delta = choice.get("delta", {})
        whole["content"] += choice.get("text", "") + (delta.get("content") or "")
        whole["reasoning"] += delta.get("reasoning_content", "")
        whole["finish_reason"] = choice["finish_reason"]
        for piece in delta.get("tool_calls", ()):
            if piece["index"] == len(whole["calls"]):
                assert piece["id"]
                whole["calls"].append([piece["function"]["name"], ""])
            whole["calls"][piece["index"]][1] += piece["function"].get("arguments", "")
    return whole


def said(choice: Json) -> Json:
    """Return what a choice of an answer in one piece says, in the same form."""
    message = choice.get("message", {})
    return {
        "content": choice.get("text", "") + (message.get("content") or ""),
        "reasoning": message.get("reasoning_content", ""),
        "calls": [[call["function"]["name"], call["function"]["arguments"]] for call in message.get("tool_calls", ())],
        "finish_reason": choice["finish_reason"],
    }


def compare(client: Client, seed: int, seen: Counter[str]) -> None:
    """Ask in both ways, and count what kinds of answer there were."""
    path, body = asked(seed)
    data = client.ask(path, body)
    batch = json.loads(data)
    streamed = client.ask(path, {**body, "stream": True, "stream_options": {"include_usage": True}}).decode()
    *lines, done = [line[6:] for line in streamed.split("\n") if line.startswith("data: ")]
    assert done == "[DONE]"
    *chunks, trailer = map(json.loads, lines)
    assert (trailer["choices"], trailer["usage"]) == ([], batch["usage"])
    for choice in batch["choices"]:
        mine = [each for chunk in chunks for each in chunk["choices"] if each["index"] == choice["index"]]
        answer = said(choice)
        assert joined(mine) == answer, body
        seen.update(key for key, value in answer.items() if value)
        seen[answer["finish_reason"]] += 1
    if seed % CHECKED_BY_SCHEMA == 0:
        contract.check("POST", path, 200, "application/json", batch)
        for event in (*chunks, trailer):
            contract.check_event(event)


@pytest.mark.timeout(120)
def test_a_streamed_answer_and_one_in_one_piece_say_the_same_six_hundred_times() -> None:
    seen: Counter[str] = Counter()
    with RunningServer(Parts(WritingGenerator(), ServerSettings())) as server:
        client = Client(server)
        for seed in range(REQUESTS):
            compare(client, seed, seen)
        client.close()
    kinds = ("content", "reasoning", "calls", "stop", "length", "tool_calls")
    assert all(seen[kind] > 30 for kind in kinds), seen
