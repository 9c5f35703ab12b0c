"""Every error class, raised through the command line and through each HTTP API: what, where, and what next."""

import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from doubles.text_generator import InMemoryTextGenerator, Token
from serving.forms import FORM, encoded_form
from serving.parts import CHAT_MODEL, EMBEDDING_MODEL, SPEECH_MODEL, Parts
from serving.running import RunningServer, events_of, read_all

from mlxk.domain.errors import MlxkError, all_error_types
from mlxk.domain.generation.request import GenerationRequest
from mlxk.entrypoints.cli.command import CommandContext
from mlxk.entrypoints.cli.output import EXIT_STATUS
from mlxk.entrypoints.cli.program import run
from mlxk.entrypoints.container import Container, build
from mlxk.entrypoints.http.errors import HTTP_STATUS, RETRY_SECONDS
from mlxk.entrypoints.settings import ServerSettings, Settings, read_settings

MESSAGE, HINT = "The thing at fault cannot be used.", "Do this next."
ERRORS = [kind for kind in all_error_types() if kind.code in HTTP_STATUS]
SOUND = (Path(__file__).parents[1] / "sounds" / "hello.flac").read_bytes()
CHAT = {"model": CHAT_MODEL, "messages": [{"role": "user", "content": "one two three"}]}

every_error = pytest.mark.parametrize("kind", ERRORS, ids=[kind.code for kind in ERRORS])


class Fault:
    """What everything behind the APIs fails with; None for nothing."""

    error: MlxkError | None = None
    after: Sequence[Token] = ()
    """Tokens before the failure; without any, the request itself is refused."""

    def script(self, request: GenerationRequest) -> Sequence[Token]:
        """Return the tokens of an answer."""
        if self.error is None:
            return (" word",)
        if not self.after:
            raise self.error
        return (*self.after, self.error)


@pytest.fixture(scope="module")
def fault() -> Fault:
    return Fault()


@pytest.fixture(scope="module")
def server(fault: Fault) -> Iterator[RunningServer]:
    with RunningServer(Parts(InMemoryTextGenerator(fault.script))) as running:
        yield running


PATHS: dict[str, tuple[bytes, str]] = {
    "/v1/chat/completions": (json.dumps(CHAT).encode(), "application/json"),
    "/v1/chat/completions?stream": (json.dumps({**CHAT, "stream": True}).encode(), "application/json"),
    "/v1/completions": (json.dumps({"model": CHAT_MODEL, "prompt": "one"}).encode(), "application/json"),
    "/v1/embeddings": (json.dumps({"model": EMBEDDING_MODEL, "input": "one"}).encode(), "application/json"),
    "/v1/audio/transcriptions": (encoded_form([("model", SPEECH_MODEL), ("file", ("a.flac", SOUND))]), FORM),
    "/v1/audio/translations": (encoded_form([("model", SPEECH_MODEL), ("file", ("a.flac", SOUND))]), FORM),
}


@every_error
@pytest.mark.parametrize("path", PATHS)
def test_every_api_says_what_where_and_what_next(
    path: str, kind: type[MlxkError], server: RunningServer, fault: Fault
) -> None:
    error = kind(MESSAGE, hint=HINT)
    fault.error, fault.after = error, ()
    server.parts.transcriber.failure = server.parts.embedder.failure = error
    body, content_type = PATHS[path]
    connection = server.connect()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX-Request-ID: id-1\r\n"
    connection.sendall(f"{head}Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    first, _, answer = read_all(connection).partition(b"\r\n\r\n")
    document = json.loads(answer)
    assert int(first.split(b" ")[1]) == HTTP_STATUS[kind.code]
    said = document["error"]
    assert (said["type"], said["code"], said["retryable"]) == (kind.code, kind.code, kind.retryable)
    assert MESSAGE in said["message"] and said["hint"] == HINT
    assert document["request_id"] == "id-1"
    retry = f"retry-after: {RETRY_SECONDS.get(kind.code)}".encode()
    assert (retry in first.lower()) == (kind.code in RETRY_SECONDS)


@every_error
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_an_error_within_a_stream_is_its_last_event(
    path: str, kind: type[MlxkError], server: RunningServer, fault: Fault
) -> None:
    fault.error, fault.after = kind(MESSAGE, hint=HINT), ("some", " words")
    asked: dict[str, Any] = CHAT if "chat" in path else {"model": CHAT_MODEL, "prompt": "one"}
    events = events_of(read_all(server.raw(path, {**asked, "stream": True}, extra="Connection: close\r\n")))
    assert "[DONE]" not in events
    said = events[-1]["error"]
    assert (said["type"], said["message"], said["hint"]) == (kind.code, MESSAGE, HINT)
    first, _, whole = read_all(server.raw(path, asked, extra="Connection: close\r\n")).partition(b"\r\n\r\n")
    assert int(first.split(b" ")[1]) == HTTP_STATUS[kind.code]
    assert json.loads(whole)["error"]["type"] == kind.code


def test_a_fault_of_the_program_itself_says_nothing_of_its_text(fault: Fault) -> None:
    def broken(request: GenerationRequest) -> Sequence[Token]:
        raise ValueError("the private prompt")

    with RunningServer(Parts(InMemoryTextGenerator(broken))) as other:
        for path, (body, content_type) in PATHS.items():
            if "completions" in path:
                status, _, document = other.request("POST", path, body, {"Content-Type": content_type})
                assert (status, document["error"]["type"]) == (500, "internal_error")
                assert "private" not in json.dumps(document) and "ValueError" not in json.dumps(document)
        assert other.post("/v1/embeddings", {"model": EMBEDDING_MODEL, "input": "one"})[0] == 200


@pytest.mark.parametrize("as_json", [True, False])
@pytest.mark.parametrize("kind", all_error_types(), ids=[kind.code for kind in all_error_types()])
def test_the_command_line_says_what_where_and_what_next(
    kind: type[MlxkError], as_json: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(request: GenerationRequest) -> Sequence[Token]:
        raise kind(MESSAGE, hint=HINT)

    def failing(settings: Settings, server: ServerSettings | None = None) -> Container:
        container = build(settings, server)
        container.adapters.text_generator.override(InMemoryTextGenerator(refuse))
        return container

    with open(os.devnull) as null:
        context = CommandContext(
            settings=read_settings({"HOME": str(tmp_path)}),
            build=failing,
            standard_input=null.fileno(),
            serve=lambda *_: 1,
        )
        status = run(["run", "demo", "hi", *(["--json"] if as_json else [])], context)
    printed = capsys.readouterr()
    assert status == EXIT_STATUS[kind.code]
    if as_json:
        document = json.load(io.StringIO(printed.out))
        said = document["error"]
        assert (document["status"], said["type"], said["message"], said["hint"]) == ("error", kind.code, MESSAGE, HINT)
    else:
        assert (printed.out, printed.err) == ("", f"run: Error: {MESSAGE}\n{HINT}\n")
