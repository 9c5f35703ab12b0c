"""Media that requests name by path or address, over every API: read where the operator allows it, and refused else."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from doubles.text_generator import InMemoryTextGenerator
from models.pictures import as_png, as_wav, noise, tone
from serving.parts import CHAT, SPEECH_MODEL, Parts
from serving.running import RunningServer
from serving.web import Web, answer

from mlxk.adapters.filesystem.media_folders import FolderMediaSource
from mlxk.adapters.remote_media import RemoteMediaSource
from mlxk.application.named_media import NamedMedia
from mlxk.domain.generation.conversation import Conversation
from mlxk.domain.generation.media import MAX_NAMED
from mlxk.domain.generation.request import GenerationRequest

OMNI = "org/omni"
PNG, WAV = as_png(noise(1, 4, 4)), as_wav(tone(440, 0.5))
Json = dict[str, Any]
told = {
    "model_type": "gemma3n",
    "audio_config": {"depth": 1},
    "vision_config": {"depth": 1},
    "quantization": {"bits": 4},
}
FILES = {**CHAT, "config.json": json.dumps(told).encode(), "preprocessor_config.json": b"{}"}


def openai_image(url: str) -> tuple[str, str, Json, str]:
    """Return address, field, what the message's field has, and the field that errors name."""
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What?"}]
    return "/v1/chat/completions", "messages", {"content": content}, "messages[0].content[0].image_url.url"


def openai_sound(url: str) -> tuple[str, str, Json, str]:
    content = [{"type": "input_audio", "input_audio": {"data": url, "format": "wav"}}]
    return "/v1/chat/completions", "messages", {"content": content}, "messages[0].content[0].input_audio.data"


def responses_image(url: str) -> tuple[str, str, Json, str]:
    content = [{"type": "input_image", "image_url": url}, {"type": "input_text", "text": "What?"}]
    return "/v1/responses", "input", {"content": content}, "input[0].content[0].image_url"


def responses_sound(url: str) -> tuple[str, str, Json, str]:
    content = [{"type": "input_audio", "input_audio": url}]
    return "/v1/responses", "input", {"content": content}, "input[0].content[0].input_audio"


def anthropic_image(url: str) -> tuple[str, str, Json, str]:
    content = [{"type": "image", "source": {"type": "url", "url": url}}, {"type": "text", "text": "What?"}]
    return "/v1/messages", "messages", {"content": content}, "messages[0].content[0].source.url"


def ollama_image(url: str) -> tuple[str, str, Json, str]:
    return "/api/chat", "messages", {"content": "What?", "images": [url]}, "messages[0].images[0]"


SEEN = {"chat": openai_image, "responses": responses_image, "messages": anthropic_image, "ollama": ollama_image}
HEARD = {"chat": openai_sound, "responses": responses_sound}
Part = Callable[[str], tuple[str, str, Json, str]]


class Server:
    """A server that remembers what it was asked."""

    def __init__(self, named: NamedMedia) -> None:
        self.asked: list[GenerationRequest] = []
        self.server = RunningServer(Parts(InMemoryTextGenerator(self._answer), models={OMNI: FILES}, named_media=named))

    def _answer(self, request: GenerationRequest) -> tuple[str, ...]:
        self.asked.append(request)
        return ("Yes.",)

    def ask(self, part: Part, reference: str, **more: Any) -> tuple[int, Json]:
        path, field, message, _ = part(reference)
        body = {"model": OMNI, field: [{"role": "user", **message}], "max_tokens": 3, "stream": False, **more}
        body = {**body, "max_output_tokens": 16} if path.endswith("responses") else body
        body.pop("max_tokens") if path.endswith("responses") else None
        status, _, found = self.server.post(path, body)
        return status, found

    @property
    def prompt(self) -> Conversation:
        found = self.asked[-1].prompt
        assert isinstance(found, Conversation)
        return found


def said(found: Json) -> str:
    """Return an error as its API has it."""
    return json.dumps(found)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(PNG)
    (tmp_path / "in" / "a.wav").write_bytes(WAV)
    (tmp_path / "in" / "none.png").write_bytes(b"hello, world, hello")
    (tmp_path / "out.png").write_bytes(PNG)
    return tmp_path / "in"


@pytest.fixture
def web() -> Iterator[Web]:
    pages = {"/a.png": answer(PNG, Content_Type="image/png"), "/a.wav": answer(WAV), "/none.png": answer(b"no image")}
    with Web(pages) as found:
        yield found


@pytest.fixture
def allowing(folder: Path, web: Web) -> Iterator[Server]:
    built = Server(NamedMedia(FolderMediaSource([str(folder)]), RemoteMediaSource(web.resolve, web)))
    with built.server:
        yield built


@pytest.fixture(scope="module")
def refusing() -> Iterator[Server]:
    built = Server(NamedMedia())
    with built.server:
        yield built


@pytest.mark.parametrize("api", SEEN)
def test_an_image_is_seen_by_its_path_and_address(allowing: Server, folder: Path, web: Web, api: str) -> None:
    references = (f"{folder}/a.png", f"file://{folder}/a.png", "http://media.example/a.png")
    digests = set()
    for reference in references:
        status, found = allowing.ask(SEEN[api], reference)
        assert status == 200, found
        digests.add(allowing.prompt.images[0].digest)
    assert len(digests) == 1
    assert len(web.connected) == 1


@pytest.mark.parametrize("api", HEARD)
def test_a_sound_is_heard_by_its_path_and_address(allowing: Server, folder: Path, web: Web, api: str) -> None:
    for reference in (f"{folder}/a.wav", f"file://{folder}/a.wav", "http://media.example/a.wav"):
        status, found = allowing.ask(HEARD[api], reference)
        assert status == 200, found
        assert allowing.prompt.audio[0].seconds == 0.5


def test_a_recording_that_is_empty_is_named_by_its_field(allowing: Server, folder: Path) -> None:
    (folder / "empty.wav").touch()
    for part in HEARD.values():
        status, found = allowing.ask(part, f"{folder}/empty.wav", model=SPEECH_MODEL)
        field = part("")[3]
        assert (status, found["error"]["param"]) == (400, field)
        assert found["error"]["message"] == f"{field}: is empty"


def test_a_recording_is_transcribed_by_its_path(allowing: Server, folder: Path) -> None:
    status, found = allowing.ask(openai_sound, f"{folder}/a.wav", model=SPEECH_MODEL, max_tokens=50)
    assert (status, found["choices"][0]["message"]["content"]) == (200, "Hello there. How are you?")


@pytest.mark.parametrize("part", [*SEEN.values(), *HEARD.values()])
def test_without_leave_a_refusal_names_the_field_and_the_flag(refusing: Server, part: Part) -> None:
    for reference, flag in (
        ("/data/a.png", "--allow-media-path DIR"),
        ("file:///data/a.png", "--allow-media-path DIR"),
        ("http://127.0.0.1:8000/health", "--allow-remote-media"),
        ("https://media.example/a.png", "--allow-remote-media"),
    ):
        status, found = refusing.ask(part, reference)
        assert status == 400
        assert part(reference)[3] in said(found)
        assert flag in said(found), found
    assert refusing.asked == []


@pytest.mark.parametrize("part", [*SEEN.values(), *HEARD.values()])
def test_what_cannot_be_had_is_refused_by_its_field(allowing: Server, folder: Path, web: Web, part: Part) -> None:
    for reference, reason in (
        (f"{folder}/../out.png", "is not below a folder"),
        ("/etc/passwd.png", "is not below a folder"),
        (f"{folder}/absent.png", "there is no such file"),
        (f"{folder}/none.png", "known"),
        ("http://media.example/absent.png", "status 404"),
        ("http://media.example/none.png", "known"),
        ("http://inside.example/a.png", "public addresses"),
        (f"http://127.0.0.1:{web.port}/a.png", "public addresses"),
    ):
        status, found = allowing.ask(part, reference)
        assert status == 400
        assert part(reference)[3] in said(found)
        assert reason in said(found), found
        assert str(folder) not in said(found)
    assert allowing.asked == []
    assert {host for host, _ in web.connected} == {"93.184.216.34"}


def test_base64_that_begins_as_a_path_does_is_no_path(refusing: Server) -> None:
    for reference in ("/9j/4AAQSkZJRgABAQ==", "//uQxAAAAAAAAAAAAAAAAAAAAAAA"):
        _, found = refusing.ask(ollama_image, reference)
        assert "--allow" not in said(found)
        _, found = refusing.ask(openai_sound, reference)
        assert "--allow" not in said(found)


def test_a_request_reads_each_reference_once_and_not_any_number(allowing: Server, folder: Path, web: Web) -> None:
    part = {"type": "image_url", "image_url": {"url": "http://media.example/a.png"}}
    body = {"model": OMNI, "messages": [{"role": "user", "content": [part] * 5}], "chunk": 5}
    assert allowing.server.post("/v1/chat/completions", body)[0] == 200
    assert len(web.connected) == 1
    for number in range(MAX_NAMED + 1):
        (folder / f"{number}.png").write_bytes(PNG)
    parts = [{"type": "image_url", "image_url": {"url": f"{folder}/{number}.png"}} for number in range(MAX_NAMED + 1)]
    body["messages"] = [{"role": "user", "content": parts}]
    status, _, found = allowing.server.post("/v1/chat/completions", body)
    assert (status, found["error"]["param"]) == (400, f"messages[0].content[{MAX_NAMED}].image_url.url")
    assert f"at most {MAX_NAMED}" in found["error"]["message"]


def test_what_a_request_names_is_limited_together(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for limit, value in (("MAX_NAMED_BYTES", len(PNG) + 10), ("MAX_NAMED_SECONDS", 0.0)):
        monkeypatch.setattr(f"mlxk.application.named_media.{limit}", value)
    with Web({"/a.png": answer(PNG)}) as web:
        built = Server(NamedMedia(FolderMediaSource([str(folder)]), RemoteMediaSource(web.resolve, web)))
        with built.server:
            (folder / "b.png").write_bytes(PNG)
            parts = [{"type": "image_url", "image_url": {"url": f"{folder}/{name}.png"}} for name in "ab"]
            body = {"model": OMNI, "messages": [{"role": "user", "content": parts}], "chunk": 2}
            status, _, found = built.server.post("/v1/chat/completions", body)
            assert (status, found["error"]["param"]) == (400, "messages[0].content[1].image_url.url")
            status, found = built.ask(openai_image, "http://media.example/a.png")
            assert (status, "takes too long" in said(found)) == (400, True)


def test_tokens_are_counted_with_named_media_too(allowing: Server, folder: Path) -> None:
    _, _, message, _ = anthropic_image(f"{folder}/a.png")
    body = {"model": OMNI, "messages": [{"role": "user", **message}]}
    assert allowing.server.post("/v1/messages/count_tokens", body)[0] == 200
    _, _, message, field = openai_image(f"{folder}/../out.png")
    status, _, found = allowing.server.post("/apply-template", {**body, "messages": [{"role": "user", **message}]})
    assert (status, found["error"]["param"]) == (400, field)
