"""The Responses API on a socket: kept responses, errors, disconnects, keep-alive, truncation, images."""

import base64
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from doubles.text_generator import InMemoryTextGenerator, Token
from models.pictures import as_png, as_wav, noise, tone
from serving.parts import CHAT_MODEL, EYE, SPEECH_MODEL, VISION, Parts
from serving.response_events import LAST, ask, put_together, read_events, stream, without_ids
from serving.running import RunningServer, eventually, read_all, unchunked
from serving.written_answers import WritingGenerator

from mlxk.domain.errors import ContextLengthError, ExecutionError
from mlxk.domain.generation.conversation import Conversation
from mlxk.domain.generation.request import GenerationRequest
from mlxk.entrypoints.settings import ServerSettings

PATH = "/v1/responses"
BODY: dict[str, Any] = {"model": CHAT_MODEL, "input": "one two"}
PICTURE = f"data:image/png;base64,{base64.b64encode(as_png(noise(1, 4, 4))).decode()}"


@pytest.fixture
def server() -> Iterator[RunningServer]:
    """Run a server that echoes."""
    with RunningServer(Parts(models={EYE: VISION})) as running:
        yield running


def saying(*tokens: Token, **parts: Any) -> RunningServer:
    """Return a server whose model says something."""
    step = parts.pop("step_seconds", 0.0)

    def answer(request: GenerationRequest) -> Sequence[Token]:
        return tokens

    return RunningServer(Parts(InMemoryTextGenerator(answer, step), **parts))


def texts(response: Any) -> list[str]:
    """Return the texts of a response."""
    return [part["text"] for item in response["output"] for part in item.get("content", ())]


@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_a_response_is_kept_until_it_is_deleted(server: RunningServer, prefix: str) -> None:
    response = ask(server, BODY, f"{prefix}/responses")
    address = f"{prefix}/responses/{response['id']}"
    assert server.get(address)[2] == response
    assert server.request("HEAD", address)[0] == 200
    assert server.request("DELETE", address)[2] == {"id": response["id"], "object": "response", "deleted": True}
    status, _, gone = server.get(address)
    assert (status, gone["error"]["code"], gone["error"]["param"]) == (404, "not_found", "response_id")
    assert server.request("DELETE", address)[0] == 404


def test_a_streamed_response_is_kept_when_its_last_event_comes(server: RunningServer) -> None:
    final = stream(server, BODY)[-1]["response"]
    assert final["store"] is True
    assert server.get(f"{PATH}/{final['id']}")[2] == final


def test_what_is_not_to_be_kept_is_not(server: RunningServer) -> None:
    response = ask(server, {**BODY, "store": False})
    assert response["store"] is False
    assert server.get(f"{PATH}/{response['id']}")[0] == 404


def test_the_items_of_a_request_are_listed_in_pages(server: RunningServer) -> None:
    items = [{"role": "user", "content": f"t{index}", "id": f"msg_{index}"} for index in range(25)]
    address = f"{PATH}/{ask(server, {**BODY, 'input': items})['id']}/input_items"
    page = server.get(address)[2]
    assert [item["id"] for item in page["data"]] == [f"msg_{index}" for index in range(24, 4, -1)]
    assert (page["first_id"], page["last_id"], page["has_more"]) == ("msg_24", "msg_5", True)
    assert page["data"][0]["content"] == [{"type": "input_text", "text": "t24"}]
    rest = server.get(f"{address}?after=msg_5&limit=100")[2]
    assert ([item["id"] for item in rest["data"]][-1], rest["has_more"]) == ("msg_0", False)
    assert server.get(f"{address}?order=asc&limit=1")[2]["data"][0]["id"] == "msg_0"
    assert server.request("HEAD", address)[0] == 200
    for query, field in (("order=up", "order"), ("limit=0", "limit"), ("limit=x", "limit"), ("limit=101", "limit")):
        status, _, wrong = server.get(f"{address}?{query}")
        assert (status, wrong["error"]["param"]) == (400, field)
    assert server.get(f"{address}?after=msg_77")[2]["error"]["param"] == "after"
    assert server.get(f"{PATH}/resp_x/input_items")[0] == 404


def test_a_response_goes_on_from_another_without_its_instructions(server: RunningServer) -> None:
    first = ask(server, {**BODY, "instructions": "Be brief."})
    assert texts(first) == ["Be brief. one two"]
    second = ask(server, {**BODY, "input": "three", "previous_response_id": first["id"]})
    third = stream(
        server,
        {"model": CHAT_MODEL, "input": [{"role": "user", "content": "four"}], "previous_response_id": second["id"]},
    )[-1]["response"]
    assert texts(second) == [f"one two {texts(first)[0]} three"]
    assert texts(third) == [f"one two {texts(first)[0]} three {texts(second)[0]} four"]
    assert third["previous_response_id"] == second["id"]
    assert len(server.get(f"{PATH}/{third['id']}/input_items")[2]["data"]) == 1


def test_a_chain_whose_beginning_is_gone_is_refused_and_not_cut(server: RunningServer) -> None:
    first = ask(server, BODY)
    second = ask(server, {**BODY, "previous_response_id": first["id"]})
    server.request("DELETE", f"{PATH}/{first['id']}")
    status, _, answer = server.post(PATH, {**BODY, "previous_response_id": second["id"]})
    assert (status, answer["error"]["code"]) == (404, "previous_response_not_found")


def test_an_item_is_referred_to_with_and_without_a_type(server: RunningServer) -> None:
    first = ask(server, BODY)
    said = first["output"][0]["id"]
    for reference in ({"type": "item_reference", "id": said}, {"id": said}):
        items = [reference, {"role": "user", "content": "go on"}]
        second = ask(server, {**BODY, "input": items})
        assert texts(second) == ["one two go on"]
        listed = server.get(f"{PATH}/{second['id']}/input_items?order=asc")[2]["data"]
        assert listed[0] == first["output"][0]


def test_one_key_does_not_reach_what_was_kept_for_another() -> None:
    with RunningServer(Parts(settings=ServerSettings(api_keys=("ada", "bob")))) as server:
        ada, bob = {"Authorization": "Bearer ada"}, {"Authorization": "Bearer bob"}
        response = ask(server, BODY, **ada)
        address = f"{PATH}/{response['id']}"
        assert server.get(address, **ada)[0] == 200
        assert server.get(address, **{"X-API-Key": "ada"})[0] == 200
        assert server.get(address, **bob)[0] == 404
        assert server.get(f"{address}/input_items", **bob)[0] == 404
        assert server.request("DELETE", address, None, bob)[0] == 404
        again = {**BODY, "previous_response_id": response["id"]}
        assert server.post(PATH, again, **bob)[0] == 404
        reference = {**BODY, "input": [{"id": response["output"][0]["id"]}]}
        assert server.post(PATH, reference, **bob)[0] == 404
        assert server.post(PATH, reference, **ada)[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status", "code"),
    [
        ("POST", PATH, b"", {}, 400, "validation_error"),
        ("POST", PATH, b"{", {}, 400, "validation_error"),
        ("POST", PATH, b"[]", {}, 400, "validation_error"),
        ("POST", PATH, b'{"model": 7, "input": {}}', {}, 400, "validation_error"),
        ("POST", PATH, b"{}", {"Content-Type": "text/csv"}, 415, "unsupported_media_type"),
        ("POST", PATH, b"{}", {"Content-Encoding": "br"}, 415, "unsupported_media_type"),
        ("POST", PATH, b" " * (2**20 + 1), {}, 413, "payload_too_large"),
        ("GET", PATH, None, {}, 405, "method_not_allowed"),
        ("POST", f"{PATH}/resp_1", b"{}", {}, 405, "method_not_allowed"),
        ("GET", f"{PATH}/resp_1", None, {}, 404, "not_found"),
        ("GET", f"{PATH}/resp_1?stream=true", None, {}, 400, "parameter_not_supported"),
        ("GET", f"{PATH}/resp_1/nothing", None, {}, 404, "not_found"),
        ("POST", PATH, b"{}", {"Authorization": "Bearer no"}, 401, "unauthorized"),
        ("DELETE", "/responses/resp_1", None, {"Authorization": "Bearer no"}, 401, "unauthorized"),
        ("POST", PATH, b"{}", {"Origin": "https://evil.example"}, 403, "forbidden_origin"),
    ],
)
def test_every_error_has_openais_shape(
    method: str, path: str, body: bytes | None, headers: dict[str, str], status: int, code: str
) -> None:
    settings = ServerSettings(api_keys=("key",), max_body_mib=1)
    with RunningServer(Parts(settings=settings)) as server:
        sent = {"Content-Type": "application/json", "Authorization": "Bearer key", **headers}
        got, _, answer = server.request(method, path, body, sent)
        assert (got, answer["error"]["code"]) == (status, code)
        assert set(answer["error"]) >= {"message", "type", "code", "param"}


def test_the_context_window_in_openais_words() -> None:
    generator = InMemoryTextGenerator(context_length=3)
    with RunningServer(Parts(generator)) as server:
        for streamed in (False, True):
            status, _, answer = server.post(PATH, {**BODY, "input": "a b c d", "stream": streamed})
            assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
            assert answer["error"]["param"] == "input"


def test_a_failure_in_a_stream_is_a_response_that_failed() -> None:
    overflow = ContextLengthError("too long", detail={"prompt_tokens": 9, "context_length": 8})
    for error, code in ((ExecutionError("it failed"), "server_error"), (overflow, "context_length_exceeded")):
        with saying("a", error) as server:
            last = stream(server, BODY)[-1]
            assert (last["type"], last["response"]["error"]["code"]) == ("response.failed", code)
            assert server.get(f"{PATH}/{last['response']['id']}")[0] == 404
            assert server.post(PATH, BODY)[2]["error"]["code"] == error.code


def test_silence_is_filled_with_events() -> None:
    with saying("a", "b", step_seconds=0.3, keep_alive_seconds=0.05) as server:
        kinds = [event["type"] for event in stream(server, BODY)]
    assert kinds.count("response.in_progress") > 2
    assert kinds[-1] == "response.completed"


@pytest.mark.parametrize("streamed", [True, False])
def test_a_disconnect_cancels_the_generation_and_keeps_nothing(streamed: bool) -> None:
    with saying(*([" word"] * 100_000), step_seconds=0.002) as server:
        connection = server.raw(PATH, {**BODY, "stream": streamed})
        assert eventually(lambda: server.parts.generator.state(0.1).running == 1)
        connection.close()
        assert eventually(lambda: server.parts.generator.state(0.1).running == 0)


def test_stop_strings_and_the_token_limit() -> None:
    with saying("one", " two", " END", " three") as server:
        assert texts(ask(server, {**BODY, "stop": " END"})) == ["one two"]
        response = ask(server, {**BODY, "max_output_tokens": 2})
        assert (response["status"], response["incomplete_details"]) == (
            "incomplete",
            {"reason": "max_output_tokens"},
        )
        assert stream(server, {**BODY, "max_output_tokens": 2})[-1]["type"] == "response.incomplete"


def turns(*texts_of_turns: str) -> list[Any]:
    """Return items of a user and an assistant in turns, after a developer's."""
    roles = ("user", "assistant")
    said = [{"role": roles[index % 2], "content": text} for index, text in enumerate(texts_of_turns)]
    return [{"role": "developer", "content": "short"}, *said]


def test_truncation_auto_leaves_out_the_oldest_turns_and_says_so() -> None:
    with RunningServer(Parts(InMemoryTextGenerator(context_length=6))) as server:
        items = turns("a a a", "b b", "c c", "d", "last one")
        status, headers, answer = server.post(PATH, {**BODY, "input": items, "truncation": "auto"})
        assert (status, headers["x-mlxk-adaptations"]) == (200, "oldest-turns-dropped")
        words = texts(answer)[0].split()
        assert (words[0], words[-2:]) == ("short", ["last", "one"])
        assert "a" not in words
        assert server.post(PATH, {**BODY, "input": items})[0] == 400
        short = {**BODY, "input": items[-1:], "truncation": "auto"}
        assert "x-mlxk-adaptations" not in server.post(PATH, short)[1]
        long = {**BODY, "input": "one two three four five six seven", "truncation": "auto"}
        assert server.post(PATH, long)[2]["error"]["code"] == "context_length_exceeded"


def test_an_image_of_a_message_and_one_of_a_tools_result_are_seen(server: RunningServer) -> None:
    image = {"type": "input_image", "image_url": PICTURE, "detail": "high"}
    call = {"type": "function_call", "name": "view_image", "arguments": "{}", "call_id": "c"}
    result = {"type": "function_call_output", "call_id": "c", "output": [image]}
    asked = {"role": "user", "content": [{"type": "input_text", "text": "What?"}, image]}
    for items in ([asked], [{"role": "user", "content": "Look."}, call, result]):
        server.parts.generator.requests.clear()
        status, headers, _ = server.post(PATH, {"model": EYE, "input": items})
        assert status == 200
        assert "detail" in headers["x-mlxk-ignored-fields"]
        [reached] = server.parts.generator.requests
        assert isinstance(reached.prompt, Conversation)
        assert len(reached.prompt.messages[-1].images) == 1


@pytest.mark.parametrize(
    ("url", "field"),
    [
        ("/path/to/image.jpg", "input[0].content[0].image_url"),
        ("https://example.com/a.png", "input[0].content[0].image_url"),
        ({"url": "data:image/png;base64,!"}, "input[0].content[0].image_url.url"),
    ],
)
def test_an_image_that_is_none_is_named_by_its_field(server: RunningServer, url: Any, field: str) -> None:
    items = [{"role": "user", "content": [{"type": "input_image", "image_url": url}]}]
    status, _, answer = server.post(PATH, {"model": EYE, "input": items})
    assert (status, answer["error"]["param"]) == (400, field)


def test_a_model_without_vision_refuses_images_by_their_field(server: RunningServer) -> None:
    items = [{"role": "user", "content": [{"type": "input_image", "image_url": PICTURE}]}]
    status, _, answer = server.post(PATH, {**BODY, "input": items})
    assert (status, answer["error"]["param"]) == (422, "input[0].content[0]")


def test_a_model_that_only_listens_answers_with_the_transcript(server: RunningServer) -> None:
    data = base64.b64encode(as_wav(tone(440))).decode()
    audio = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
    body = {"model": SPEECH_MODEL, "input": [{"role": "user", "content": [audio]}]}
    assert texts(ask(server, body)) == ["Hello there. How are you?"]
    broken = {"model": SPEECH_MODEL, "messages": [{"role": "user", "content": [{**audio, "input_audio": "/a.wav"}]}]}
    status, _, answer = server.post("/responses", broken)
    assert (status, answer["error"]["param"]) == (400, "messages[0].content[0].input_audio")


def test_a_hundred_and_fifty_requests_say_the_same_streamed_and_whole() -> None:
    names = [{"type": "function", "name": name, "parameters": {"type": "object"}} for name in ("get_weather", "f")]
    kinds: set[str] = set()
    with RunningServer(Parts(WritingGenerator())) as server:
        for seed in range(150):
            body = {**BODY, "seed": seed, "tools": names if seed % 3 else [], "max_output_tokens": 1 + seed}
            events, response = stream(server, body), ask(server, body)
            assert without_ids(events[-1]["response"]) == without_ids(response)
            assert put_together(events) == events[-1]["response"]["output"]
            kinds |= {item["type"] for item in response["output"]} | {response["status"]}
    assert kinds == {"message", "reasoning", "function_call", "completed", "incomplete"}


def test_a_server_that_stops_ends_a_stream_as_failed() -> None:
    with saying(*([" word"] * 100_000), step_seconds=0.002) as server:
        connection = server.raw(PATH, {**BODY, "stream": True}, extra="Connection: close\r\n")
        assert eventually(lambda: server.parts.generator.state(0.1).running == 1)
        server.hurry()
        server.hurry()
        body = unchunked(read_all(connection).partition(b"\r\n\r\n")[2]).decode()
    events = read_events(body)
    assert events[-1]["type"] in LAST
    assert events[-1]["response"]["error"]["code"] == "server_error"
