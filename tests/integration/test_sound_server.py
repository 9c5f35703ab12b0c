"""Sound in a chat over HTTP, with a model that writes text and takes sound beside it."""

import base64
import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from doubles.text_generator import InMemoryTextGenerator
from models.pictures import as_png, as_wav, noise, tone
from serving.parts import CHAT, Parts
from serving.running import RunningServer

from mlxk.domain.generation.conversation import Conversation, Message, Role
from mlxk.domain.generation.media import DecodedAudio, DecodedImage
from mlxk.domain.generation.request import GenerationRequest

OMNI, BLIND = "org/omni", "org/blind"
BEEP, LONG = as_wav(tone(440, 0.5)), as_wav(tone(220, 31))
Json = dict[str, Any]


def model(**config: Any) -> dict[str, bytes]:
    """Return the files of a model."""
    told = {"model_type": "gemma3n", "audio_config": {"depth": 1}, "quantization": {"bits": 4, "group_size": 32}}
    return {**CHAT, "config.json": json.dumps({**told, **config}).encode()}


def sound(data: bytes = BEEP) -> Json:
    """Return a part of a message."""
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(data).decode(), "format": "wav"}}


def text(said: str) -> Json:
    """Return a part of a message."""
    return {"type": "text", "text": said}


def user(*parts: Json) -> Json:
    """Return a message."""
    return {"role": "user", "content": list(parts)}


class Ear:
    """A server with models that hear and remember what they were asked."""

    def __init__(self) -> None:
        self.asked: list[GenerationRequest] = []
        models = {OMNI: {**model(vision_config={"depth": 1}), "preprocessor_config.json": b"{}"}, BLIND: model()}
        self.server = RunningServer(Parts(InMemoryTextGenerator(self._answer), models=models))

    def _answer(self, request: GenerationRequest) -> tuple[str, ...]:
        self.asked.append(request)
        return ("A ", "beep.")

    def post(self, *messages: Json, name: str = OMNI, **fields: Any) -> tuple[int, Json]:
        """Ask."""
        status, _, answer = self.server.post("/v1/chat/completions", {"model": name, "messages": messages, **fields})
        return status, answer

    def turns(self) -> tuple[Message, ...]:
        """Return the conversation that the model got last."""
        prompt = self.asked[-1].prompt
        assert isinstance(prompt, Conversation)
        return prompt.messages


@pytest.fixture
def ear() -> Iterator[Ear]:
    built = Ear()
    with built.server:
        yield built


def test_a_sound_is_played_in_its_turn_and_greedily_by_mlx_vlm(ear: Ear) -> None:
    said = {"role": "assistant", "content": "A beep."}
    status, answer = ear.post(user(sound(), text("What is it?")), said, user(text("Why?"), sound()), max_tokens=5)
    assert (status, answer["choices"][0]["message"]["content"]) == (200, "A beep.")
    assert (ear.asked[0].backends[0], ear.asked[0].settings.temperature) == ("mlx-vlm", 0.0)
    first, second, last = ear.turns()
    assert [type(part) for part in first.parts] == [DecodedAudio, str]
    assert (first.content, first.audio[0].seconds) == ("What is it?", 0.5)
    assert (second.role, second.parts) == (Role.ASSISTANT, ())
    assert [type(part) for part in last.parts] == [str, DecodedAudio]


def test_a_sound_without_a_word_is_to_be_transcribed(ear: Ear) -> None:
    ear.post(user(sound()))
    assert ear.turns()[0].parts[1:] == ("Transcribe this audio.",)


@pytest.mark.parametrize("riff", [0, 36, len(BEEP) - 8])
def test_a_recording_that_was_not_finished_is_heard_to_its_end(riff: int, ear: Ear) -> None:
    place = BEEP.index(b"data")
    unfinished = BEEP[:4] + riff.to_bytes(4, "little") + BEEP[8 : place + 4] + bytes(4) + BEEP[place + 8 :]
    status, answer = ear.post(user(sound(unfinished)))
    if riff == len(BEEP) - 8:  # the file is finished, and says that it has no sound
        assert (status, "holds no sound" in answer["error"]["message"]) == (400, True)
    else:
        assert status == 200, answer
        ear.post(user(sound()))
        heard, whole = (request.prompt.messages[0].audio[0] for request in ear.asked)  # type: ignore[union-attr]
        assert heard == whole


def test_a_sound_goes_with_an_image_and_without_eyes_the_image_is_told_of(ear: Ear) -> None:
    address = "data:image/png;base64," + base64.b64encode(as_png(noise(1, 4, 4))).decode()
    both = user({"type": "image_url", "image_url": {"url": address}}, text("Match?"), sound())
    ear.post(both)
    assert [type(part) for part in ear.turns()[0].parts] == [DecodedImage, str, DecodedAudio]
    ear.post(both, user(text("Well?")), name=BLIND)
    earlier = ear.turns()[0]
    assert [type(part) for part in earlier.parts] == [str, DecodedAudio, str]
    assert earlier.parts[2] == "[1 image(s) were attached]"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (LONG, "the recording has 31.0 s of sound; in a prompt a model takes at most 30 s"),
        (b"no sound at all, whatever it says", "No known sound format: the recording"),
        (BEEP[:20], "damaged"),
        (b"", "is empty"),
    ],
)
def test_a_sound_that_cannot_be_heard_is_refused_by_its_place(data: bytes, message: str, ear: Ear) -> None:
    status, answer = ear.post(user(text("What?"), sound(data)))
    place = "messages[0].content[1].input_audio.data"
    assert (status, answer["error"]["param"]) == (400, place)
    assert answer["error"]["message"].startswith(f"{place}: ")
    assert message in answer["error"]["message"]
    assert ear.asked == []


def test_transcripts_are_not_asked_of_such_a_model(ear: Ear) -> None:
    sdk = openai.OpenAI(base_url=f"{ear.server.url}/v1", api_key="none", max_retries=0)
    with pytest.raises(openai.UnprocessableEntityError, match="not a transcription model"):
        sdk.audio.transcriptions.create(model=OMNI, file=("beep.wav", BEEP))
