"""The same conversation through every API: the same text, reasoning, calls, end and usage, streamed or whole."""

import http.client
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from clients.agent_models import TEMPLATE
from models.scripted_model import write_model
from serving.four_apis import APIS, Api, Case, Said, Turn, made_case
from serving.program import ServedProgram

pytestmark = pytest.mark.mlx

CALLS = '<tool_call>\n{"name": "tool_0", "arguments": {"q": "x"}}\n</tool_call>'
REPLIES = {
    "@@PLAIN@@": "A heron stands in the river. It waits for a fish.",
    "@@WIDE@@": "Über 日本の川: 🐟 and {\"not\": 'a call'} <b>bold</b>",
    "@@THOUGHT@@": "<think>\nLet me think about it.\n</think>\n\nIt flew away.",
    "@@CALLED@@": f"<think>\nA tool knows.\n</think>\n\nI ask it:\n{CALLS}",
    "@@TWO@@": f"{CALLS}\n" + CALLS.replace("tool_0", "tool_1").replace('"x"', '"why \\"so\\"?"'),
    "@@WIDE CALL@@": "Ja!\n" + CALLS.replace('"x"', '"Köln 日本 🐟"') + "\n\n",
}
"""Replies by the mark that asks for them."""

STOPS = ("river", "think", "ask")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Take as many conversations as the option says."""
    if "seeds" in metafunc.fixturenames:
        count = metafunc.config.getoption("--conversations")
        metafunc.parametrize("seeds", [range(begin, min(begin + 20, count)) for begin in range(0, count, 20)])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedProgram]:
    """Serve a model that says one of the replies."""
    import os

    home = tmp_path_factory.mktemp("home")
    write_model(
        home / "models" / "scripted",
        TEMPLATE,
        "Nothing was asked.",
        REPLIES,
        special=("<|im_start|>",),
        added=("<think>", "</think>", "<tool_call>", "</tool_call>"),
    )
    environment = {
        "HOME": str(home),
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.environ["PYTHONPATH"],
        "MLX_DISABLE_COMPILE": "1",
    }
    environment |= {"MLXK_WORKSPACE_HOME": str(home / "models"), "HF_HOME": str(home / "hf")}
    with ServedProgram(Path(home), environment, "--model", "scripted") as started:
        yield started


def ask(connection: http.client.HTTPConnection, api: Api, body: dict[str, Any], stream: bool) -> Said:
    connection.request("POST", api.path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    response = connection.getresponse()
    data = response.read()
    assert response.status == 200, data
    return api.read(data, stream)


def answers(port: int, case: Case) -> dict[str, Said]:
    """Return what each API says to a conversation, whole and streamed."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    said = {}
    for name, api in APIS.items():
        if case.stop and name == "responses":  # it has no stop strings
            continue
        body = api.request(case)
        said[name] = ask(connection, api, body, stream=False)
        said[f"{name}, streamed"] = ask(connection, api, {**body, **api.streamed}, stream=True)
    connection.close()
    return said


def test_a_conversation_is_answered_alike_by_every_api(server: ServedProgram, seeds: range) -> None:
    ends, thoughts, calls = set(), 0, 0
    for seed in seeds:
        case = made_case(random.Random(seed), "scripted", list(REPLIES), STOPS)
        said = answers(server.port, case)
        first = said["chat"]
        assert said == dict.fromkeys(said, first), (seed, case)
        ends.add(first.finish)
        thoughts, calls = thoughts + bool(first.reasoning), calls + len(first.calls)
    assert ends == {"stop", "length", "tool_calls"}
    assert thoughts
    assert calls


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("name", APIS)
def test_text_in_any_script_is_itself_in_answers_calls_and_errors(
    server: ServedProgram, name: str, stream: bool
) -> None:
    api = APIS[name]
    tool = {"name": "tool_0", "description": "", "parameters": {"type": "object", "properties": {}}}
    expected = {"@@WIDE@@": "Über 日本の川: 🐟", "@@WIDE CALL@@": "Köln 日本 🐟", "@@PLAIN@@": "nicht-da-日本"}
    for mark, text in expected.items():
        model = text if mark == "@@PLAIN@@" else "scripted"
        body = api.request(Case(model, "", (Turn(user=mark),), (tool,)))
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        content = json.dumps({**body, **(api.streamed if stream else {})}).encode()
        connection.request("POST", api.path, content, {"Content-Type": "application/json"})
        response = connection.getresponse()
        received = response.read().decode()
        connection.close()
        assert response.status == (404 if mark == "@@PLAIN@@" else 200), received
        assert "\\u" not in received
        assert {each for each in text if not each.isascii()} <= set(received), received
