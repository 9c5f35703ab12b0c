"""Images, sound and text in one message over every API, by the names of each and by those of the others."""

import base64
import json
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from doubles.text_generator import InMemoryTextGenerator
from models.clips import greys, written
from models.pictures import as_png, as_wav, noise, tone
from serving.parts import CHAT, CHAT_MODEL, EYE, SPEECH_MODEL, VISION, Parts
from serving.running import RunningServer

from mlxk.domain.generation.conversation import Conversation
from mlxk.domain.generation.media import DecodedAudio, DecodedImage
from mlxk.domain.generation.request import GenerationRequest
from mlxk.domain.generation.video import DecodedVideo

OMNI = "org/omni"
Json = dict[str, Any]
TOLD = {
    "model_type": "gemma3n",
    "audio_config": {"depth": 1},
    "vision_config": {"depth": 1},
    "quantization": {"bits": 4},
}
FILES = {**CHAT, "config.json": json.dumps(TOLD).encode(), "preprocessor_config.json": b"{}"}
SOUND = base64.b64encode(as_wav(tone(440, 0.5))).decode()
PNG = as_png(noise(1, 4, 4))
BARE = base64.b64encode(PNG).decode()
IMAGE = f"data:image/png;base64,{BARE}"
CLIP = base64.b64encode(written(greys(8))).decode()

TEXTS: list[Json] = [{"type": "text", "text": "What?"}, {"type": "input_text", "text": "What?"}]
IMAGES: list[Json] = [
    {"type": "image_url", "image_url": {"url": IMAGE}},
    {"type": "image_url", "image_url": IMAGE},
    {"type": "input_image", "image_url": IMAGE},
    {"type": "input_image", "image_url": {"url": IMAGE}},
    {"type": "image", "image": IMAGE},
    {"type": "image", "image": BARE},
    {"type": "image", "url": IMAGE},
    {"type": "image", "image_url": {"url": IMAGE}},
    {"type": "image", "data": BARE, "mimeType": "image/png"},
    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": BARE}},
    {"type": "image", "source": {"type": "base64", "media_type": "application/octet-stream", "data": IMAGE}},
    {"type": "image", "source": {"type": "url", "url": IMAGE}},
]
SOUNDS: list[Json] = [
    {"type": "input_audio", "input_audio": {"data": SOUND, "format": "wav"}},
    {"type": "input_audio", "input_audio": {"data": SOUND}},
    {"type": "input_audio", "input_audio": {"data": SOUND, "format": "flac"}},
    {"type": "input_audio", "input_audio": {"data": SOUND, "format": "audio/x-wav"}},
    {"type": "input_audio", "input_audio": {"url": f"data:audio/wav;base64,{SOUND}"}},
    {"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64,{SOUND}"}},
    {"type": "audio_url", "audio_url": f"data:audio/wav;base64,{SOUND}"},
    {"type": "audio", "audio": f"data:;base64,{SOUND}"},
    {"type": "audio", "source": {"type": "base64", "media_type": "audio/wav", "data": SOUND}},
    {"type": "input_audio", "input_audio": SOUND},
    {"type": "input_audio", "input_audio": f"data:audio/wav;base64,{SOUND}"},
]
CLIPS: list[Json] = [
    {"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{CLIP}"}},
    {"type": "video", "video": CLIP},
    {"type": "video", "url": f"data:;base64,{CLIP}"},
    {"type": "video", "source": {"type": "base64", "media_type": "video/mp4", "data": CLIP}},
]
OPENINGS = (
    "data:image/png;base64,",
    "DATA:IMAGE/PNG;BASE64,",
    " data:image/png;base64, ",
    'data:image/png;name="a, b.png";charset=utf-8;base64,',
    "data:image/jfif;base64,",
    "data:application/octet-stream;base64,",
    "data:;base64,",
    "data:image/*;base64,",
    "",
)
"""What clients write before base64; the content says what it is."""

SPELLINGS: dict[str, Callable[[str], str]] = {
    "plain": lambda data: data,
    "in lines": lambda data: f"{data[:20]}\r\n{data[20:]}\n",
    "without padding": lambda data: data.rstrip("="),
    "for addresses": lambda data: data.replace("+", "-").replace("/", "_"),
}

APIS = {
    "/v1/chat/completions": ("messages", {"max_tokens": 3}),
    "/v1/responses": ("input", {"max_output_tokens": 16}),
    "/v1/messages": ("messages", {"max_tokens": 3}),
    "/api/chat": ("messages", {"stream": False}),
}


class Server:
    """A server that remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[GenerationRequest] = []
        models = {OMNI: FILES, EYE: VISION}
        self.server = RunningServer(Parts(InMemoryTextGenerator(self._answer), models=models))

    def _answer(self, request: GenerationRequest) -> tuple[str, ...]:
        self.asked.append(request)
        return ("Yes.",)

    def ask(self, api: str, *parts: Json, role: str = "user", model: str = OMNI) -> tuple[int, str]:
        """Return the status and the answer as text."""
        field, more = APIS[api]
        opening = [] if role == "user" else [{"role": "user", "content": "Hello"}]
        body = {"model": model, field: [*opening, {"role": role, "content": list(parts)}], **more}
        status, _, found = self.server.post(api, body)
        return status, json.dumps(found)

    @property
    def parts(self) -> list[type]:
        """The kinds of the parts that the model got."""
        prompt = self.asked[-1].prompt
        assert isinstance(prompt, Conversation)
        return [type(part) for part in prompt.messages[-1].parts]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    built = Server()
    with built.server:
        yield built


@pytest.mark.parametrize("api", APIS)
def test_every_form_of_a_part_is_understood(server: Server, api: str) -> None:
    for image in IMAGES:
        status, found = server.ask(api, image, TEXTS[0])
        assert (status, server.parts) == (200, [DecodedImage, str]), found
    for sound in SOUNDS:
        status, found = server.ask(api, TEXTS[1], sound)
        assert (status, server.parts) == (200, [str, DecodedAudio]), found
    for clip in CLIPS:
        status, found = server.ask(api, clip, TEXTS[0])
        assert (status, server.parts) == (200, [DecodedVideo, str]), found


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_base64_is_read_as_clients_write_it(server: Server, spelling: str) -> None:
    spell = SPELLINGS[spelling]
    # Bytes whose base64 has padding, and characters that the alphabet for addresses has others for.
    image, sound, clip = (
        spell(base64.b64encode(data + b"\xff\xfe\xfd\xfb\xff\xff\xfe"[: 7 - len(data) % 3]).decode())
        for data in (PNG, base64.b64decode(SOUND), base64.b64decode(CLIP))
    )
    assert spelling != "for addresses" or "_" in image
    for opening in OPENINGS:
        for part, kind in (
            ({"type": "image_url", "image_url": {"url": opening + image}}, DecodedImage),
            ({"type": "input_audio", "input_audio": {"data": opening + sound}}, DecodedAudio),
            ({"type": "video_url", "video_url": {"url": opening + clip}}, DecodedVideo),
        ):
            status, found = server.ask("/v1/chat/completions", part, TEXTS[0])
            assert (status, server.parts) == (200, [kind, str]), (opening, found)


def test_base64_in_a_data_url_may_be_escaped(server: Server) -> None:
    url = "data:image/png;base64," + urllib.parse.quote(BARE, safe="")
    status, found = server.ask("/v1/chat/completions", {"type": "image_url", "image_url": {"url": url}}, TEXTS[0])
    assert (status, server.parts) == (200, [DecodedImage, str]), found


def test_a_text_that_is_almost_base64_is_refused_in_no_time(server: Server) -> None:
    almost = "A" + " " * 500_000 + "!"
    status, found = server.ask("/v1/chat/completions", {"type": "image_url", "image_url": {"url": almost}})
    assert (status, "must be a data URL" in found) == (400, True)
    status, found = server.ask("/v1/chat/completions", {"type": "input_audio", "input_audio": f"/{almost}"})
    assert (status, "is the path of a file" in found) == (400, True)


@pytest.mark.parametrize("api", APIS)
def test_images_sound_and_text_go_together_in_their_order(server: Server, api: str) -> None:
    for parts in (
        (IMAGES[0], SOUNDS[0], TEXTS[0]),
        (SOUNDS[1], IMAGES[2]),
        (TEXTS[0], SOUNDS[2], IMAGES[1], SOUNDS[0]),
    ):
        status, found = server.ask(api, *parts)
        assert status == 200, found
        kinds = {"image_url": DecodedImage, "input_image": DecodedImage, "input_audio": DecodedAudio, "text": str}
        asked = [kinds[part["type"]] for part in parts]
        assert server.parts == asked + ([] if str in asked else [str])
    prompt = server.asked[-2].prompt
    assert isinstance(prompt, Conversation)
    assert prompt.messages[-1].parts[-1] == "Describe what is to be seen and heard."


def test_images_of_ollama_stand_behind_the_parts(server: Server) -> None:
    bare = IMAGE.partition(",")[2]
    message = {"role": "user", "content": [TEXTS[0], SOUNDS[0]], "images": [bare]}
    status, _, found = server.server.post("/api/chat", {"model": OMNI, "messages": [message], "stream": False})
    assert (status, server.parts) == (200, [str, DecodedAudio, DecodedImage]), found
    message["images"] = [bare, "!"]
    status, _, found = server.server.post("/api/chat", {"model": OMNI, "messages": [message], "stream": False})
    assert (status, found["error"].startswith("messages[0].images[1]: ")) == (400, True)


@pytest.mark.parametrize("api", APIS)
def test_what_is_wrong_with_a_part_is_said_of_its_field(server: Server, api: str) -> None:
    field = APIS[api][0]
    broken: list[tuple[Json, str]] = [
        (
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,!!!!"}},
            "image_url.url: is not valid base64",
        ),
        ({"type": "input_image", "image_url": "data:image/png;base64,!!!!"}, "image_url: is not valid base64"),
        ({"type": "input_audio", "input_audio": {"data": "!!!!"}}, "input_audio.data: is not valid base64"),
        ({"type": "input_audio", "input_audio": "!!!!"}, "input_audio: is not valid base64"),
        ({"type": "audio_url", "audio_url": {"url": "data:audio/wav,x"}}, "audio_url.url: must be data:<type>;base64,"),
        ({"type": "image", "source": {"type": "base64", "data": "/etc/x!"}}, "source.data: is not valid base64"),
        ({"type": "image", "source": {"type": "file", "file_id": "f"}}, "source: files by their id are not supported"),
        ({"type": "audio_url", "audio_url": BARE}, "audio_url: No known sound format: the recording"),
        ({"type": "input_audio", "input_audio": {}}, "input_audio: needs either url or data"),
        ({"type": "image_url", "image_url": IMAGE, "image": IMAGE}, "image: contradicts image_url"),
        ({"type": "input_audio", "input_audio": 3}, "input_audio: "),
        ({"type": "image_url"}, "image_url: is required"),
    ]
    for part, said in broken:
        status, found = server.ask(api, TEXTS[0], part)
        assert (status, f"{field}[0].content[1].{said}" in found) == (400, True), found


NOTE = "data:text/plain;base64," + base64.b64encode("\ufeffGrüße.\n".encode()).decode()


@pytest.mark.parametrize("api", APIS)
def test_a_file_of_text_becomes_text_of_the_message(server: Server, api: str) -> None:
    for part in (
        {"type": "file", "file": {"filename": "notes/a.txt", "file_data": NOTE}},
        {"type": "input_file", "filename": "a.txt", "file_data": NOTE.partition(",")[2]},
    ):
        for model in (OMNI, CHAT_MODEL):
            status, found = server.ask(api, part, TEXTS[0], model=model)
            prompt = server.asked[-1].prompt
            assert isinstance(prompt, Conversation)
            assert (status, prompt.messages[-1].content) == (200, "[File: a.txt]\nGrüße.\n\nWhat?"), found
        status, found = server.ask(api, part, IMAGES[0])
        assert (status, server.parts) == (200, [str, DecodedImage]), found


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize(
    ("part", "said"),
    [
        ({"file": {"file_id": "f"}}, "file.file_id: is not supported: no files are stored here"),
        ({"file_url": "https://example.org/a.txt"}, "file_url: is not supported"),
        ({"file": {"filename": "a.txt"}}, "file.file_data: is required"),
        ({}, "file_data: is required"),
        ({"file_data": "JVBERi0xLjc="}, "file_data: is a PDF"),
        ({"file_data": BARE}, "file_data: is an image; send it in a part of the type image_url"),
        ({"file_data": "AAECAw=="}, "file_data: is no text"),
        ({"file_data": "Y2Fm6Q=="}, "file_data: is no text in UTF-8"),
        ({"file_data": "!!!!"}, "file_data: is not valid base64"),
    ],
    ids=["id", "address", "no data", "nothing", "PDF", "image", "bytes", "Latin-1", "no base64"],
)
def test_a_file_that_is_not_read_is_refused_by_its_field(server: Server, api: str, part: Json, said: str) -> None:
    status, found = server.ask(api, {"type": "input_file", **part}, TEXTS[0])
    assert (status, f"{APIS[api][0]}[0].content[0].{said}" in found) == (400, True), found


@pytest.mark.parametrize("api", APIS)
def test_models_and_roles_that_take_no_media_are_named(server: Server, api: str) -> None:
    field, count = APIS[api][0], len(server.asked)
    for model, part in ((EYE, SOUNDS[0]), (CHAT_MODEL, SOUNDS[0])):
        status, found = server.ask(api, TEXTS[0], part, model=model)
        refused = 400 if api in ("/api/chat", "/v1/messages") else 422
        assert (status, f"Model '{model}' does not support audio inputs" in found) == (refused, True), found
    for role in ("assistant", "system"):
        for part in (IMAGES[0], SOUNDS[0], CLIPS[0]):
            status, found = server.ask(api, part, role=role)
            assert (status, f"{field}[1]" in found) == (400, True), found
    assert len(server.asked) == count


def test_a_recording_in_any_form_is_transcribed(server: Server) -> None:
    for sound in SOUNDS:
        status, found = server.ask("/v1/chat/completions", sound, model=SPEECH_MODEL)
        assert status == 200, found
