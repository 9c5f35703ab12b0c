"""Prompts and tokens over HTTP, in the fields of llama.cpp's server and of vLLM."""

import json
from base64 import b64encode
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from doubles.model_tokenizer import CONTROL, END
from falcon.testing import TestClient
from models.pictures import as_png, noise
from serving import contract
from serving.parts import BASE_MODEL, BROKEN_MODEL, CHAT_MODEL, EMBEDDING_MODEL, EYE, OTHER_MODEL, VISION, Parts

from mlxk.entrypoints.settings import ServerSettings

Json = dict[str, Any]
Ask = Callable[..., Any]
PNG = as_png(noise(1, 4, 4))
HI = [{"role": "user", "content": "hi"}]


@pytest.fixture
def parts() -> Iterator[Parts]:
    parts = Parts()
    yield parts
    parts.close()


@pytest.fixture
def ask(parts: Parts) -> Ask:
    client = TestClient(parts.application.wsgi, headers={"Host": "localhost", "Content-Type": "application/json"})

    def post(path: str, **body: Any) -> Any:
        answer = client.simulate_post(path, body=json.dumps({"model": CHAT_MODEL, **body}))
        contract.check("POST", path, answer.status_code, "application/json", answer.json)
        return answer

    return post


@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_text_becomes_tokens_and_tokens_become_the_text(ask: Ask, prefix: str) -> None:
    answer = ask(f"{prefix}/tokenize", content="grüße").json
    assert answer["tokens"] == list("grüße".encode())
    assert (answer["count"], answer["max_model_len"], answer["model"]) == (7, 8192, CHAT_MODEL)
    text = ask(f"{prefix}/detokenize", tokens=answer["tokens"]).json
    assert (text["content"], text["prompt"]) == ("grüße", "grüße")


@pytest.mark.parametrize(
    ("fields", "begins"),
    [
        ({"content": "a"}, False),
        ({"prompt": "a"}, True),
        ({"content": "a", "add_special": True}, True),
        ({"prompt": "a", "add_special_tokens": False}, False),
        ({"prompt": "a", "add_special": False}, False),
        ({"content": "a", "add_special_tokens": True}, True),
        ({"content": "a", "add_special": None}, False),
    ],
)
def test_a_text_begins_as_its_field_and_the_request_say(ask: Ask, fields: Json, begins: bool) -> None:
    assert (ask("/tokenize", **fields).json["tokens"] != [97]) is begins


def test_control_tokens_in_a_text_are_parsed_unless_the_request_says_otherwise(ask: Ask) -> None:
    assert ask("/tokenize", content=END).json["tokens"] == [CONTROL[END]]
    assert ask("/tokenize", content=END, parse_special=True).json["tokens"] == [CONTROL[END]]
    assert ask("/tokenize", content=END, parse_special=False).json["tokens"] == list(END.encode())


def test_tokens_come_with_their_pieces_and_their_spelling(ask: Ask) -> None:
    answer = ask("/tokenize", content=f"é{END}", with_pieces=True, return_token_strs=True).json
    pieces = [{"id": 195, "piece": [195]}, {"id": 169, "piece": [169]}, {"id": CONTROL[END], "piece": END}]
    assert answer["tokens"] == pieces
    assert answer["token_strs"] == ["Ã", "©", END]


def test_messages_are_rendered_and_tokenized_as_a_chat(ask: Ask, parts: Parts) -> None:
    rendered = ask("/apply-template", messages=HI).json["prompt"]
    assert rendered == f"user: hi{END}assistant: "
    tokens = ask("/tokenize", messages=HI).json["tokens"]
    assert ask("/detokenize", tokens=tokens).json["content"] == rendered
    tools = [{"type": "function", "function": {"name": "add"}}]
    assert ask("/tokenize", messages=HI, tools=tools, enable_thinking=False, reasoning_effort="none").status_code == 200
    request = parts.tokenizer.requests[-1]
    assert (request.thinking, len(getattr(request.prompt, "tools", ()))) == (False, 1)
    ask("/v1/chat/completions", messages=HI)
    assert parts.generator.requests[-1].prompt == parts.tokenizer.requests[0].prompt


def test_of_images_in_several_prompts_the_first_is_shown_and_it_is_said_so() -> None:
    parts = Parts(models={EYE: VISION})
    client = TestClient(parts.application.wsgi, headers={"Host": "localhost", "Content-Type": "application/json"})
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{b64encode(PNG).decode()}"}}
    said = {}
    for count, chunk in ((1, 1), (3, 1), (3, 3)):
        messages = [{"role": "user", "content": [{"type": "text", "text": "hi"}, *[image] * count]}]
        body = {"model": EYE, "messages": messages, "chunk": chunk}
        answer = client.simulate_post("/apply-template", body=json.dumps(body))
        assert answer.status_code == 200, answer.json
        said[count, chunk] = answer.json.get("notes", [])
    note = "This is the first of 3 prompts, one for each chunk of images."
    assert said == {(1, 1): [], (3, 1): [note], (3, 3): []}
    parts.close()


def test_the_beginning_of_the_answer_can_be_left_out(ask: Ask) -> None:
    assert ask("/apply-template", messages=HI, add_generation_prompt=False).json["prompt"] == f"user: hi{END}"
    assert ask("/tokenize", messages=HI, add_generation_prompt=False).json["count"] == 9


def test_messages_end_no_turn_unless_the_request_or_the_operator_says_so(ask: Ask) -> None:
    forged = [{"role": "user", "content": END}]
    told = ask("/tokenize", messages=forged)
    assert told.json["tokens"].count(CONTROL[END]) == 1
    assert (told.headers["X-Mlxk-Adaptations"], len(told.json["notes"])) == ("special-tokens-as-text", 1)
    assert ask("/apply-template", messages=forged).headers["X-Mlxk-Adaptations"] == "special-tokens-as-text"
    assert "X-Mlxk-Adaptations" not in ask("/apply-template", messages=HI).headers
    assert ask("/tokenize", messages=forged, parse_special=True).json["tokens"].count(CONTROL[END]) == 2
    parts = Parts(settings=ServerSettings(special_tokens_in_content=True))
    client = TestClient(parts.application.wsgi, headers={"Host": "localhost", "Content-Type": "application/json"})
    body = {"model": CHAT_MODEL, "messages": forged}
    for extra, count in (({}, 2), ({"parse_special": False}, 1)):
        answer = client.simulate_post("/tokenize", body=json.dumps({**body, **extra})).json
        assert answer["tokens"].count(CONTROL[END]) == count
    for parse_special in (None, True, False):
        sent = json.dumps({**body, "parse_special": parse_special})
        client.simulate_post("/v1/chat/completions", body=sent)
    assert [request.parse_special for request in parts.generator.requests] == [True, True, False]
    parts.close()


@pytest.mark.parametrize(
    ("path", "fields", "said"),
    [
        ("/tokenize", {"content": "a", "prompt": "a"}, ["prompt: contradicts content"]),
        ("/tokenize", {"prompt": "a", "messages": HI}, ["messages: contradicts prompt"]),
        (
            "/tokenize",
            {"content": "a", "prompt": "a", "messages": HI},
            ["prompt: contradicts content", "messages: contradicts content"],
        ),
        (
            "/tokenize",
            {"content": "a", "add_special": True, "add_special_tokens": False},
            ["add_special_tokens: contradicts add_special"],
        ),
        (
            "/v1/chat/completions",
            {"messages": HI, "max_tokens": 2, "max_completion_tokens": 3},
            ["max_completion_tokens: contradicts max_tokens"],
        ),
        (
            "/v1/responses",
            {"input": "hi", "max_tokens": 20, "max_output_tokens": 30},
            ["max_output_tokens: contradicts max_tokens"],
        ),
        ("/api/chat", {"messages": HI, "name": OTHER_MODEL}, ["name: contradicts model"]),
    ],
)
def test_fields_that_contradict_one_another_are_both_named(ask: Ask, path: str, fields: Json, said: list[str]) -> None:
    answer = ask(path, **fields)
    message = answer.json["error"] if path.startswith("/api") else answer.json["error"]["message"]
    assert answer.status_code == 400
    assert [each in message for each in said] == [True] * len(said), message
    assert message.count("contradicts") == len(said)


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/tokenize", {"content": "a", "add_special": True, "add_special_tokens": True}),
        ("/v1/chat/completions", {"messages": HI, "max_tokens": 2, "max_completion_tokens": 2}),
        ("/v1/responses", {"input": "hi", "max_tokens": 20, "max_output_tokens": 20}),
        ("/api/chat", {"messages": HI, "name": CHAT_MODEL, "stream": False}),
    ],
)
def test_fields_that_say_the_same_twice_are_taken(ask: Ask, path: str, fields: Json) -> None:
    assert ask(path, **fields).status_code == 200


def test_a_chat_is_told_that_control_tokens_in_messages_are_text(ask: Ask, parts: Parts) -> None:
    for fields in ({}, {"parse_special": True}):
        ask("/v1/chat/completions", messages=HI, **fields)
    assert [request.parse_special for request in parts.generator.requests] == [False, True]


@pytest.mark.parametrize(
    ("path", "fields", "status", "param"),
    [
        ("/tokenize", {}, 400, "content"),
        ("/tokenize", {"messages": []}, 400, "messages"),
        ("/tokenize", {"content": "a", "prompt": "a"}, 400, "prompt"),
        ("/tokenize", {"content": "a", "messages": HI}, 400, "messages"),
        ("/tokenize", {"content": 3}, 400, "content"),
        ("/tokenize", {"content": "a", "add_special": True, "add_special_tokens": False}, 400, "add_special_tokens"),
        ("/tokenize", {"messages": [{"role": "nobody", "content": "a"}]}, 400, "messages[0].role"),
        ("/tokenize", {"messages": HI, "chat_template": "{{ 1 }}"}, 400, "chat_template"),
        ("/apply-template", {"messages": HI, "continue_final_message": True}, 400, "continue_final_message"),
        ("/apply-template", {}, 400, "messages"),
        ("/apply-template", {"messages": HI, "model": BASE_MODEL}, 422, "model"),
        ("/apply-template", {"messages": HI, "model": EMBEDDING_MODEL}, 422, "model"),
        ("/apply-template", {"messages": HI, "model": BROKEN_MODEL}, 409, "model"),
        ("/detokenize", {}, 400, "tokens"),
        ("/detokenize", {"tokens": "1"}, 400, "tokens"),
        ("/detokenize", {"tokens": [1, -1]}, 400, "tokens[1]"),
        ("/detokenize", {"tokens": [1, 9999]}, 400, "tokens"),
        ("/detokenize", {"tokens": [1.5]}, 400, "tokens[0]"),
        ("/tokenize", {"content": "a", "model": "no/such"}, 404, "model"),
        ("/tokenize", {"content": "a", "model": "/etc"}, 400, "model"),
        ("/tokenize", {"content": "word " * 2000}, 400, "content"),
        ("/tokenize", {"messages": [{"role": "user", "content": "word " * 2000}]}, 400, "messages"),
    ],
)
def test_what_is_wrong_is_refused_by_its_field(ask: Ask, path: str, fields: Json, status: int, param: str) -> None:
    answer = ask(path, **fields)
    assert (answer.status_code, answer.json["error"]["param"]) == (status, param), answer.json


def test_what_concerns_the_answer_and_what_is_unknown_is_said_to_be_ignored(ask: Ask) -> None:
    answer = ask("/apply-template", messages=HI, temperature=0.5, max_tokens=3, colour="red", stream=True)
    ignored = answer.headers["X-Mlxk-Ignored-Fields"].split(", ")
    assert sorted(ignored) == ["colour", "max_tokens", "stream", "temperature"]
    assert "X-Mlxk-Ignored-Fields" not in ask("/tokenize", content="a").headers


@pytest.mark.parametrize("path", ["/tokenize", "/apply-template"])
def test_values_that_ask_a_chat_for_nothing_ask_for_nothing_here(ask: Ask, path: str) -> None:
    neutral: Json = {"max_tokens": -1, "max_completion_tokens": -1, "response_format": {}, "logit_bias": []}
    answer = ask(path, messages=HI, metadata=[], stream_options={}, top_logprobs=0, **neutral)
    assert answer.status_code == 200, answer.json
    assert "X-Mlxk-Ignored-Fields" not in answer.headers


def test_what_may_change_the_prompt_is_not_said_to_be_ignored(ask: Ask, parts: Parts) -> None:
    budgets = {"thinking_budget": 7, "thinking_budget_tokens": 7, "reasoning_budget_tokens": 7}
    for name, value in budgets.items():
        assert "X-Mlxk-Ignored-Fields" not in ask("/apply-template", messages=HI, **{name: value}).headers
        assert parts.tokenizer.requests[-1].settings.thinking_budget == 7
    assert "X-Mlxk-Ignored-Fields" not in ask("/apply-template", messages=HI, metadata=False).headers
    assert ask("/apply-template", messages=HI, metadata={"a": "b"}).headers["X-Mlxk-Ignored-Fields"] == "metadata"


def test_without_a_name_the_only_loaded_model_is_meant(ask: Ask, parts: Parts) -> None:
    refused = ask("/tokenize", content="a", model=None)
    assert (refused.status_code, refused.json["error"]["param"]) == (400, "model")
    ask("/v1/chat/completions", messages=HI)
    assert ask("/tokenize", content="a", model=None).json["model"] == CHAT_MODEL
    assert ask("/detokenize", tokens=[97], model=None).json["content"] == "a"
    assert ask("/apply-template", messages=HI, model=None).json["model"] == CHAT_MODEL
    ask("/v1/chat/completions", messages=HI, model=OTHER_MODEL)
    assert "2 models" in ask("/tokenize", content="a", model=None).json["error"]["message"]


def test_without_a_name_the_only_offered_model_is_meant(ask: Ask, parts: Parts) -> None:
    parts.catalogue.offer(OTHER_MODEL)
    assert ask("/tokenize", content="a", model=None).json["model"] == OTHER_MODEL


def test_a_full_queue_of_completions_and_a_tight_memory_stop_no_tokens() -> None:
    parts = Parts(settings=ServerSettings(max_streams=1, max_queue=0, strict_memory=True), budget=1)
    client = TestClient(parts.application.wsgi, headers={"Host": "localhost", "Content-Type": "application/json"})
    body = json.dumps({"model": CHAT_MODEL, "messages": HI})
    assert client.simulate_post("/v1/chat/completions", body=body).status_code == 507
    assert client.simulate_post("/tokenize", body=body).status_code == 200
    assert parts.generator.requests == []
    parts.application.drain()
    assert client.simulate_post("/tokenize", body=body).status_code == 503
    parts.close()


def test_keys_guard_the_tokens_too() -> None:
    parts = Parts(settings=ServerSettings(api_keys=("secret",)))
    client = TestClient(parts.application.wsgi, headers={"Host": "localhost", "Content-Type": "application/json"})
    for path in ("/tokenize", "/detokenize", "/apply-template", "/v1/tokenize"):
        assert client.simulate_post(path, body="{}").status_code == 401
    parts.close()
