"""Values with which clients say that they ask for nothing: taken as if the field were absent, in every API."""

import json
from typing import Any

import pytest
from falcon.testing import TestClient
from serving import asking, ollama
from serving.parts import CHAT_MODEL, EMBEDDING_MODEL, SPEECH_MODEL

CHAT = {"messages": ollama.MESSAGES, "stream": False}
GENERATE = {"prompt": "one two three", "stream": False}
EMBED = {"model": EMBEDDING_MODEL, "input": "a"}
SPOKEN = {
    "model": SPEECH_MODEL,
    "messages": [
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}]}
    ],
}
RESPONSE = {"input": "one two three"}

OF_OLLAMA = {"format": [""], "keep_alive": [""], "think": [""], "top_logprobs": [0], "options": [{}], "shift": [False]}
FIELDS: list[tuple[str, dict[str, Any], dict[str, list[Any]]]] = [
    ("/api/chat", CHAT, OF_OLLAMA | {"options": [{}, {"repeat_last_n": -1}]}),
    (
        "/api/generate",
        GENERATE,
        OF_OLLAMA | {"truncate": [False], "template": [""], "context": [[]], "width": [0], "height": [0], "steps": [0]},
    ),
    ("/api/embed", EMBED, {"keep_alive": [""], "options": [{}]}),
    ("/api/embeddings", {"model": EMBEDDING_MODEL, "prompt": "a"}, {"keep_alive": [""], "options": [{}]}),
    (
        "/v1/embeddings",
        EMBED,
        {"encoding_format": [""], "input_type": [""], "instruct": [""], "prompt_name": [""]},
    ),
    (
        "/v1/responses",
        RESPONSE,
        {
            "max_tokens": [-1],
            "max_output_tokens": [-1],
            "metadata": [{}, []],
            "reasoning": [{}, {"context": "auto"}, {"mode": "standard"}],
            "text": [{}, {"verbosity": "medium"}],
            "logit_bias": [[]],
            "stream_options": [{}, []],
            "background": [False],
            "context_management": [[]],
            "n": [1],
            "service_tier": ["auto", "default"],
            "prompt_cache_options": [{}],
            "prompt_cache_retention": ["in_memory", "in-memory"],
        },
    ),
    (
        "/v1/chat/completions",
        SPOKEN,
        {
            "enable_thinking": [False],
            "frequency_penalty": [0, 0.0],
            "ignore_eos": [False],
            "logit_bias": [{}],
            "logprobs": [False],
            "min_p": [0.0],
            "n": [1],
            "presence_penalty": [0.0],
            "repetition_penalty": [1.0],
            "reasoning_effort": ["none", "medium"],
            "response_format": [{"type": "text"}],
            "chat_template_kwargs": [{}],
            "tools": [[]],
            "top_k": [0, -1],
            "top_p": [1.0],
        },
    ),
]
CASES = [
    pytest.param(path, body, name, value, id=f"{path} {body.get('model', '')} {name}={json.dumps(value)}")
    for path, body, fields in FIELDS
    for name, values in fields.items()
    for value in values
]


@pytest.mark.parametrize(("path", "body", "name", "value"), CASES)
def test_a_value_that_asks_for_nothing_is_taken_and_nothing_is_reported(
    path: str, body: dict[str, Any], name: str, value: Any
) -> None:
    parts = (ollama.parts if path.startswith("/api") else asking.parts)()
    parts.generator.requests.clear()
    client = TestClient(parts.application.wsgi, headers={"Host": "localhost", "Content-Type": "application/json"})
    sent = json.dumps({"model": CHAT_MODEL, **body, name: value})
    answer = client.simulate_post(path, body=sent)
    assert answer.status_code == 200, answer.text
    assert "X-Mlxk-Ignored-Fields" not in answer.headers
    settings = [request.settings for request in parts.generator.requests]
    parts.generator.requests.clear()
    client.simulate_post(path, body=json.dumps({"model": CHAT_MODEL, **body}))
    assert settings == [request.settings for request in parts.generator.requests]
