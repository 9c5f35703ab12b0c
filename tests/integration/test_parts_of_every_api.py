"""Images, sound and text in one message over every API, by the names of each and by those of the others."""

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest
from doubles.text_generator import InMemoryTextGenerator
from models.pictures import as_png, as_wav, noise, tone
from serving.parts import CHAT, CHAT_MODEL, EYE, SPEECH_MODEL, VISION, Parts
from serving.running import RunningServer

from mlxk.domain.generation.conversation import Conversation
from mlxk.domain.generation.media import DecodedAudio, DecodedImage
from mlxk.domain.generation.request import GenerationRequest

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
IMAGE = "data:image/png;base64," + base64.b64encode(as_png(noise(1, 4, 4))).decode()

TEXTS: list[Json] = [{"type": "text", "text": "What?"}, {"type": "input_text", "text": "What?"}]
IMAGES: list[Json] = [
    {"type": "image_url", "image_url": {"url": IMAGE}},
    {"type": "image_url", "image_url": IMAGE},
    {"type": "input_image", "image_url": IMAGE},
    {"type": "input_image", "image_url": {"url": IMAGE}},
]
SOUNDS: list[Json] = [
    {"type": "input_audio", "input_audio": {"data": SOUND, "format": "wav"}},
    {"type": "input_audio", "input_audio": {"data": SOUND}},
    {"type": "input_audio", "input_audio": {"data": SOUND, "format": "flac"}},
    {"type": "input_audio", "input_audio": SOUND},
    {"type": "input_audio", "input_audio": f"data:audio/wav;base64,{SOUND}"},
]
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
        (
            {"type": "input_audio", "input_audio": {"data": SOUND, "format": "midi"}},
            "input_audio.format: must be one of",
        ),
        ({"type": "input_audio", "input_audio": 3}, "input_audio: "),
        ({"type": "image_url"}, "image_url: is required"),
    ]
    for part, said in broken:
        status, found = server.ask(api, TEXTS[0], part)
        assert (status, f"{field}[0].content[1].{said}" in found) == (400, True), found


@pytest.mark.parametrize("api", APIS)
def test_models_and_roles_that_take_no_media_are_named(server: Server, api: str) -> None:
    field, count = APIS[api][0], len(server.asked)
    for model, part in ((EYE, SOUNDS[0]), (CHAT_MODEL, SOUNDS[0])):
        status, found = server.ask(api, TEXTS[0], part, model=model)
        refused = 400 if api in ("/api/chat", "/v1/messages") else 422
        assert (status, f"Model '{model}' does not support audio inputs" in found) == (refused, True), found
    for role in ("assistant", "system"):
        for part in (IMAGES[0], SOUNDS[0]):
            status, found = server.ask(api, part, role=role)
            assert (status, f"{field}[1]" in found) == (400, True), found
    assert len(server.asked) == count


def test_a_recording_in_any_form_is_transcribed(server: Server) -> None:
    for sound in SOUNDS:
        status, found = server.ask("/v1/chat/completions", sound, model=SPEECH_MODEL)
        assert status == 200, found
