"""Chat with models that only listen: what they are asked, what they refuse, and where an answer ends."""

import base64
from collections.abc import Iterator
from typing import Any

import attrs
import openai
import pytest
from models.pictures import as_png, noise
from serving.forms import uploads_left_behind
from serving.parts import CHAT_MODEL, SPEECH_MODEL, SPOKEN, Parts
from serving.running import RunningServer, eventually

from mlxk.domain.errors import CapabilityError, ExecutionError, MlxkError
from mlxk.entrypoints.http.openai.chat.jobs import TRANSCRIPTION_UNSUPPORTED
from mlxk.entrypoints.http.openai.chat.request import ChatRequest
from mlxk.entrypoints.settings import ServerSettings

SOUND = b"RIFF....WAVE"
IMAGE = "data:image/png;base64," + base64.b64encode(as_png(noise(1, 4, 4))).decode()
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}

HONOURED = {"model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens", "stop"}
HONOURED |= {"temperature", "metadata"}
WITHOUT_EFFECT = {"user", "prompt_cache_key", "safety_identifier"}
"""Names for the client and for caches."""
SATISFIED = {"tool_choice", "parallel_tool_calls", "top_logprobs", "parse_special"}
"""Say more about what is refused when it is asked for."""

REFUSED: dict[str, Any] = {
    "chat_template_kwargs": {"enable_thinking": True},
    "chunk": 2,
    "enable_thinking": True,
    "frequency_penalty": 1,
    "ignore_eos": True,
    "logit_bias": {"1": 1},
    "logprobs": True,
    "min_p": 0.5,
    "n": 2,
    "presence_penalty": 1,
    "reasoning": {"effort": "low"},
    "reasoning_budget_tokens": 1,
    "reasoning_effort": "low",
    "repetition_penalty": 1.1,
    "response_format": {"type": "json_object"},
    "seed": 3,
    "thinking": {"type": "enabled", "budget_tokens": 1},
    "thinking_budget": 1,
    "thinking_budget_tokens": 1,
    "thinking_end_token": "</think>",
    "thinking_start_token": "<think>",
    "tools": [TOOL],
    "top_k": 2,
    "top_p": 0.5,
}
HARMLESS: dict[str, Any] = {
    "enable_thinking": False,
    "frequency_penalty": 0,
    "ignore_eos": False,
    "logit_bias": {},
    "logprobs": False,
    "min_p": 0,
    "n": 1,
    "presence_penalty": 0.0,
    "reasoning_effort": "none",
    "repetition_penalty": 1,
    "response_format": {"type": "text"},
    "tools": [],
    "top_k": 0,
    "top_p": 1,
    "user": "ada",
}


@pytest.fixture
def server() -> Iterator[RunningServer]:
    with RunningServer(Parts()) as running:
        yield running


@pytest.fixture
def sdk(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
        yield client


def sound(data: bytes = SOUND) -> dict[str, Any]:
    """Return a recording as a part of a message."""
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(data).decode(), "format": "wav"}}


def text(said: str) -> dict[str, Any]:
    """Return text as a part of a message."""
    return {"type": "text", "text": said}


def spoken(*more: dict[str, Any], data: bytes = SOUND) -> Any:
    """Return a conversation whose last message is a recording."""
    return [{"role": "user", "content": [sound(data), *more]}]


def ask(server: RunningServer, messages: Any, **fields: Any) -> tuple[int, Any]:
    """Ask the model that listens; return status and answer."""
    status, _, answer = server.post("/v1/chat/completions", {"model": SPEECH_MODEL, "messages": messages, **fields})
    return status, answer


def test_a_recording_in_a_chat_is_answered_with_what_is_said(server: RunningServer, sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(model=SPEECH_MODEL, messages=spoken(text("Ada, Grace")))
    assert answer.choices[0].message.content == SPOKEN.text
    assert answer.choices[0].finish_reason == "stop"
    (request,) = server.parts.transcriber.requests
    assert (request.settings.hint, request.settings.temperature) == ("Ada, Grace", 0.0)
    assert eventually(lambda: uploads_left_behind() == [])


def test_a_recording_in_a_chat_is_streamed_as_it_is_heard(sdk: openai.OpenAI) -> None:
    chunks = list(sdk.chat.completions.create(model=SPEECH_MODEL, messages=spoken(), stream=True))
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices[0].delta.content]
    assert pieces == ["Hello there.", " How are you?"]
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert eventually(lambda: uploads_left_behind() == [])


@pytest.mark.parametrize(
    ("model", "messages", "more", "message"),
    [
        (SPEECH_MODEL, [{"role": "user", "content": "hello"}], {}, "the last message has no input_audio"),
        (CHAT_MODEL, spoken(), {}, "does not support audio inputs"),
        (SPEECH_MODEL, spoken(data=b""), {}, "input_audio.data: is empty"),
        (SPEECH_MODEL, spoken(), {"temperature": 1.5}, "temperature"),
    ],
)
def test_a_chat_that_cannot_be_heard_is_refused(
    model: str, messages: Any, more: dict[str, Any], message: str, sdk: openai.OpenAI
) -> None:
    with pytest.raises(openai.APIStatusError, match=message):
        sdk.chat.completions.create(model=model, messages=messages, **more)
    assert uploads_left_behind() == []


def test_every_field_of_a_chat_is_honoured_or_refused_by_a_model_that_only_listens() -> None:
    fields = {field.name for field in attrs.fields(ChatRequest)}
    assert set(REFUSED) == set(TRANSCRIPTION_UNSUPPORTED)
    assert fields == HONOURED | WITHOUT_EFFECT | SATISFIED | set(TRANSCRIPTION_UNSUPPORTED)


@pytest.mark.parametrize(("field", "value"), REFUSED.items())
@pytest.mark.parametrize("stream", [False, True])
def test_what_a_model_that_only_listens_does_not_do_is_refused_by_name(
    field: str, value: Any, stream: bool, server: RunningServer
) -> None:
    status, answer = ask(server, spoken(), stream=stream, **{field: value})
    error = answer["error"]
    assert (status, error["type"], error["param"]) == (422, "capability_not_supported", field)
    assert error["message"].startswith(f"{field}: is not supported: ")
    assert server.parts.transcriber.requests == []


@pytest.mark.parametrize(("field", "value"), [*HARMLESS.items(), *((field, None) for field in REFUSED)])
def test_what_asks_for_nothing_special_is_accepted(field: str, value: Any, server: RunningServer) -> None:
    status, answer = ask(server, spoken(), **{field: value})
    assert (status, answer["choices"][0]["message"]["content"]) == (200, SPOKEN.text)


def test_tools_that_must_not_be_called_are_accepted(server: RunningServer) -> None:
    assert ask(server, spoken(), tools=[TOOL], tool_choice="none")[0] == 200


@pytest.mark.parametrize(
    ("messages", "params"),
    [
        ([{"role": "system", "content": "Be brief."}, *spoken()], ["messages[0]"]),
        ([*spoken(), {"role": "assistant", "content": "Hm."}, *spoken()], ["messages[0]"]),
        (spoken(text("What?"), {"type": "image_url", "image_url": {"url": IMAGE}}), ["messages[0].content[2]"]),
        (spoken({"type": "file", "file": {"file_data": "aGk="}}), ["messages[0].content[1]"]),
        (spoken(sound(), sound()), ["messages[0].content[1]", "messages[0].content[2]"]),
        ([{"role": "user", "content": "hello"}], ["messages[0].content"]),
    ],
)
def test_what_stands_beside_one_recording_is_refused_by_its_place(
    messages: Any, params: list[str], server: RunningServer
) -> None:
    status, answer = ask(server, messages)
    assert (status, answer["error"]["type"]) == (422, "capability_not_supported")
    assert [problem["param"] for problem in answer["error"]["detail"]["problems"]] == params


def test_everything_that_is_not_done_is_said_at_once(server: RunningServer) -> None:
    long = text("x" * 5000)
    status, answer = ask(server, spoken(text(" "), long, sound()), temperature=1.5, seed=1)
    params = [problem["param"] for problem in answer["error"]["detail"]["problems"]]
    assert (status, answer["error"]["type"]) == (400, "validation_error")
    assert sorted(params) == ["messages[0].content[2].text", "messages[0].content[3]", "seed", "temperature"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_recording_that_is_none_is_refused_before_anything_is_sent(stream: bool, server: RunningServer) -> None:
    server.parts.transcriber.refuse_everything()
    status, answer = ask(server, spoken(), stream=stream)
    field = "messages[0].content[0].input_audio.data"
    assert (status, answer["error"]["type"], answer["error"]["param"]) == (400, "validation_error", field)
    assert uploads_left_behind() == []
    assert server.parts.application._limit.admitted == 0


@pytest.mark.parametrize(
    ("failure", "status", "message"),
    [
        (CapabilityError("It cannot."), 422, "model: It cannot."),
        (CapabilityError.in_field("prompt", "takes no hint"), 422, "messages[0].content[1].text: takes no hint"),
        (ExecutionError("The model failed."), 500, "The model failed."),
    ],
)
def test_what_fails_as_a_recording_begins_to_be_heard_is_said_and_leaves_nothing(
    failure: MlxkError, status: int, message: str, server: RunningServer
) -> None:
    server.parts.transcriber.failure = failure
    answered, body = ask(server, spoken(text("Ada, Grace")))
    assert (answered, body["error"]["message"]) == (status, message)
    assert uploads_left_behind() == []
    assert server.parts.application._limit.admitted == 0


def test_the_operators_limit_holds_when_a_request_names_none() -> None:
    with RunningServer(Parts(settings=ServerSettings(max_tokens=2))) as server:
        for limit, reason in (({}, "length"), ({"max_tokens": 100}, "stop")):
            status, answer = ask(server, spoken(), **limit)
            assert (status, answer["choices"][0]["finish_reason"]) == (200, reason)


@pytest.mark.parametrize(
    ("limit", "content", "reason", "tokens"),
    [
        ({"max_tokens": 1}, "", "length", 0),
        ({"max_tokens": 2}, "Hello there.", "length", 2),
        ({"max_completion_tokens": 4}, "Hello there.", "length", 2),
        ({"max_completion_tokens": 5}, SPOKEN.text, "stop", 5),
        ({"stop": "there"}, "Hello ", "stop", 2),
        ({"stop": [". H", "zzz"]}, "Hello there", "stop", 5),
        ({"stop": "you?!"}, SPOKEN.text, "stop", 5),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_ends_at_its_limits(
    limit: dict[str, Any], content: str, reason: str, tokens: int, stream: bool, sdk: openai.OpenAI
) -> None:
    create: Any = sdk.chat.completions.create
    if stream:
        options = {"include_usage": True}
        chunks = list(create(model=SPEECH_MODEL, messages=spoken(), stream=True, stream_options=options, **limit))
        said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        ended, used = chunks[-2].choices[0].finish_reason, chunks[-1].usage
    else:
        answer = create(model=SPEECH_MODEL, messages=spoken(), **limit)
        said, ended, used = answer.choices[0].message.content, answer.choices[0].finish_reason, answer.usage
    assert (said, ended, used.completion_tokens) == (content, reason, tokens)
    assert eventually(lambda: uploads_left_behind() == [])


def test_advice_about_a_model_that_only_listens_names_the_address_to_use(server: RunningServer) -> None:
    status, _, answer = server.post("/v1/completions", {"model": SPEECH_MODEL, "prompt": "hello"})
    assert (status, "/v1/audio/transcriptions" in answer["error"]["hint"]) == (422, True)
