"""Prompts beyond the context window in the words that clients look for, and what a model may be called."""

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ollama
import pytest
from anthropic import Anthropic
from models.tiny_embedding import build_bert
from openai import OpenAI
from serving.program import CHAT, ServedProgram

pytestmark = [pytest.mark.e2e, pytest.mark.mlx]

Program = Callable[..., "subprocess.CompletedProcess[str]"]
MESSAGES = [{"role": "user", "content": "What is mlxk?"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedProgram]:
    """Serve the built-in model, and an embedding model beside it."""
    import os

    home = tmp_path_factory.mktemp("home")
    build_bert(home / "workspaces" / "bert")
    environment = {
        "HOME": str(home),
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.environ["PYTHONPATH"],
        "MLX_DISABLE_COMPILE": "1",
    }
    environment |= {"MLXK_WORKSPACE_HOME": str(home / "workspaces"), "HF_HOME": str(home / "hf")}
    with ServedProgram(Path(home), environment, "--model", "demo") as started:
        yield started


LONG = "hello " * 4000
FAR = "hello " * 100_000


@pytest.mark.parametrize(
    ("path", "fields", "what", "param"),
    [
        (CHAT, {"messages": [{"role": "user", "content": LONG}]}, "your messages resulted in", "messages"),
        (CHAT, {"messages": [{"role": "user", "content": LONG}], "stream": True}, "your messages resulted", "messages"),
        (CHAT, {"messages": [{"role": "user", "content": FAR}]}, "of your messages alone have", "messages"),
        ("/v1/completions", {"prompt": LONG}, "your prompt resulted in", "prompt"),
        ("/v1/completions", {"prompt": ["a", LONG]}, "prompt[1] resulted in", "prompt[1]"),
        ("/v1/completions", {"prompt": [5] * 3000}, "your prompt resulted in 3000 tokens", "prompt"),
        ("/v1/embeddings", {"model": "bert", "input": ["a", LONG]}, "input[1] resulted in", "input"),
    ],
)
def test_an_overflow_is_said_in_the_words_that_clients_look_for(
    path: str, fields: dict[str, Any], what: str, param: str, server: ServedProgram
) -> None:
    status, answer = server.ask("POST", path, {"model": "demo", **fields})
    error = answer["error"]
    assert (status, error["code"], error["param"]) == (400, "context_length_exceeded", param)
    assert re.match(r"This model's maximum context length is \d+ tokens\. However, ", error["message"])
    assert what in error["message"]
    assert re.search(r"Please reduce the length of the (messages|prompt|input)", error["message"])


def test_a_prompt_that_is_too_long_by_one_token_is_counted_right(server: ServedProgram) -> None:
    window = 2048
    assert server.ask("POST", "/v1/completions", {"prompt": [5] * (window - 1), "max_tokens": 1})[0] == 200
    status, answer = server.ask("POST", "/v1/completions", {"prompt": [5] * (window + 1), "max_tokens": 1})
    assert status == 400
    assert f"{window} tokens. However, your prompt resulted in {window + 1} tokens." in answer["error"]["message"]


@pytest.mark.parametrize("model", [None, "", "demo", "demo:latest"])
@pytest.mark.parametrize(("path", "fields"), [(CHAT, {"messages": MESSAGES}), ("/v1/completions", {"prompt": "a"})])
def test_a_request_without_a_model_is_answered_by_the_one_of_the_operator(
    path: str, fields: dict[str, Any], model: str | None, server: ServedProgram
) -> None:
    status, answer = server.ask("POST", path, {"model": model, **fields, "max_tokens": 2})
    assert (status, answer["model"]) == (200, model or "demo")
    if model is None:
        assert server.ask("POST", path, {**fields, "max_tokens": 2})[0] == 200


@pytest.mark.parametrize("model", ["gpt-4o-mini", "whisper-1", "claude-3", "org/unknown", ":latest", "demo:7b", "dem"])
def test_the_hint_for_an_unknown_model_is_true(model: str, server: ServedProgram) -> None:
    status, answer = server.ask("POST", CHAT, {"model": model, "messages": MESSAGES})
    error = answer["error"]
    if status == 200:  # a unique part of a name
        return
    assert (status in {400, 404}, error["param"]) == (True, "model")
    assert "GET /v1/models" in error["hint"] or "letters" in error["hint"]
    assert "pull" not in error["hint"]
    for close in re.findall(r"Did you mean ([^?]+)\?", error["hint"]):
        assert server.ask("GET", f"/v1/models/{close}")[0] == 200


@pytest.mark.parametrize(
    ("field", "values"), [("top_p", [0, 1]), ("temperature", [0, 2]), ("n", [1, 128]), ("max_tokens", [1, -1]),
     ("presence_penalty", [-2, 2]), ("frequency_penalty", [-2, 2]), ("seed", [-(2**63), 9223372036854776000]),
     ("logit_bias", [{"5": -100}, {"5": 100}])],
)  # fmt: skip
def test_the_edges_of_the_reference_are_answered(field: str, values: list[Any], server: ServedProgram) -> None:
    for value in values:
        body = {"model": "demo", "messages": MESSAGES, "max_tokens": 2, field: value}
        status, answer = server.ask("POST", CHAT, body)
        assert status == 200, answer
        assert len(answer["choices"]) == body.get("n", 1)


def test_top_p_of_zero_takes_the_likeliest_token(server: ServedProgram) -> None:
    def said(**fields: Any) -> str:
        body = {"model": "demo", "messages": MESSAGES, "max_tokens": 8, **fields}
        content: str = server.ask("POST", CHAT, body)[1]["choices"][0]["message"]["content"]
        return content

    assert {said(top_p=0, temperature=2, seed=seed) for seed in range(4)} == {said(temperature=0)}


def test_a_pattern_that_grows_beyond_bounds_is_the_request_s_fault(server: ServedProgram) -> None:
    schema = {"type": "object", "properties": {"x": {"pattern": "^((a{1,1000}){1,1000}){1,1000}$", "type": "string"}}}
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": {**schema, "required": ["x"]}}}
    body = {"model": "demo", "messages": MESSAGES, "max_tokens": 60, "response_format": form}
    status, answer = server.ask("POST", CHAT, body)
    assert (status, answer["error"]["type"]) == (400, "validation_error")
    assert "too complex" in answer["error"]["message"]


def test_tools_with_fixed_names_work_with_an_alias_and_a_default_model(
    tmp_path: Path, program_environment: dict[str, str]
) -> None:
    flags = ("--alias", "gpt-4o-mini=demo", "--alias", "vision = demo-vision", "--default-model", "demo")
    said: list[Any] = [{"role": "user", "content": "What is mlxk?"}]
    with ServedProgram(tmp_path, program_environment, *flags) as server:
        address = f"http://127.0.0.1:{server.port}"
        client = OpenAI(base_url=f"{address}/v1", api_key="any")
        names = ("demo", "gpt-4o-mini", "claude-opus-4")
        answers = [
            client.chat.completions.create(model=name, messages=said, temperature=0, max_tokens=8) for name in names
        ]
        assert [answer.model for answer in answers] == ["demo", "gpt-4o-mini", "demo"]
        assert {"gpt-4o-mini", "vision"} <= {model.id for model in client.models.list()}
        other = Anthropic(base_url=address, api_key="any")
        messages = [
            other.messages.create(model=name, messages=said, max_tokens=8, extra_body={"temperature": 0})
            for name in names
        ]
        assert [message.model for message in messages] == ["demo", "gpt-4o-mini", "demo"]
        third = ollama.Client(host=address)
        options = {"temperature": 0, "num_predict": 8}
        chats = [third.chat(model=name, messages=said, options=options) for name in names]
        texts = {
            *(answer.choices[0].message.content for answer in answers),
            *(message.content[0].text for message in messages if message.content[0].type == "text"),
            *(chat.message.content for chat in chats),
        }
        assert len(texts) == 1
        client.close()
        other.close()
        third._client.close()


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--alias", "demo=demo-vision"], "'demo' cannot be an alias: it is a built-in model"),
        (["--alias", "./x=demo"], "'./x' cannot be an alias: it is a path"),
        (["--alias", "x"], "--alias: 'x' is not NAME=MODEL"),
        (["--alias", "=demo"], "--alias: '=demo' is not NAME=MODEL"),
        (["--alias", "x=demo", "--alias", "x=demo-vision"], "--alias: 'x' stands for two models"),
        (["--alias", "x=nobody-has-this"], "nobody-has-this"),
        (["--default-model", "nobody-has-this"], "nobody-has-this"),
    ],
)
def test_an_alias_that_cannot_be_is_refused_at_the_start(flags: list[str], named: str, mlxk: Program) -> None:
    ended = mlxk("serve", "--port", "0", *flags)
    assert ended.returncode != 0
    assert named in ended.stderr
    assert "Traceback" not in ended.stderr
