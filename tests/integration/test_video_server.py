"""Clips over HTTP: the parts of every API, frames with their times, tables, and what is refused by its field."""

import base64
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from doubles.text_generator import InMemoryTextGenerator
from models.clips import greys, with_durations, written
from models.pictures import as_png, as_wav, noise, tone
from PIL import Image
from serving.parts import CHAT_MODEL, EYE, SPEECH_MODEL, VISION, Parts
from serving.running import RunningServer

from mlxk.adapters.filesystem.media_folders import FolderMediaSource
from mlxk.adapters.pillow import PillowImageReader
from mlxk.application.named_media import NamedMedia
from mlxk.domain.generation.conversation import Conversation, Message
from mlxk.domain.generation.media import DecodedVideo
from mlxk.domain.generation.request import GenerationRequest

Json = dict[str, Any]
CLIP = written(greys(30))
"""Three seconds."""

DATA = base64.b64encode(CLIP).decode()
URL = f"data:video/mp4;base64,{DATA}"
TEXT = {"type": "text", "text": "What happens?"}


class Server:
    """A server that remembers what it was asked."""

    def __init__(self, named: NamedMedia | None = None) -> None:
        self.asked: list[GenerationRequest] = []
        parts = Parts(
            InMemoryTextGenerator(self._answer),
            models={EYE: VISION},
            images=PillowImageReader(),
            named_media=named or NamedMedia(),
        )
        self.server = RunningServer(parts)

    def _answer(self, request: GenerationRequest) -> tuple[str, ...]:
        self.asked.append(request)
        return ("It brightens.",)

    def chat(self, *parts: Json, model: str = EYE, **fields: Any) -> tuple[int, Json]:
        return self.post("/v1/chat/completions", "messages", {"role": "user", "content": list(parts)}, model, **fields)

    def post(self, path: str, field: str, message: Json, model: str = EYE, **more: Any) -> tuple[int, Json]:
        tokens = {"max_tokens": 8} if path == "/v1/messages" else {}
        status, _, found = self.server.post(path, {"model": model, field: [message], **tokens, **more})
        return status, found

    @property
    def message(self) -> Message:
        """The last message that the model got."""
        prompt = self.asked[-1].prompt
        assert isinstance(prompt, Conversation)
        return prompt.messages[-1]

    @property
    def clip(self) -> DecodedVideo:
        """Its only clip."""
        (found,) = self.message.videos
        return found


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    with running.server:
        yield running


Shape = Callable[[str], Json]
SHAPES: dict[str, Shape] = {
    "video_url": lambda url: {"type": "video_url", "video_url": {"url": url}},
    "video_url, plain": lambda url: {"type": "video_url", "video_url": url},
    "input_video": lambda url: {"type": "input_video", "input_video": {"data": url.rpartition(",")[2]}},
    "input_video by video_url": lambda url: {"type": "input_video", "video_url": url},
    "video": lambda url: {"type": "video", "video": url},
}


@pytest.mark.parametrize("api", ["chat", "responses"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_clip_arrives_in_each_form(api: str, shape: str, server: Server) -> None:
    path, field, kind = {
        "chat": ("/v1/chat/completions", "messages", "text"),
        "responses": ("/v1/responses", "input", "input_text"),
    }[api]
    message = {"role": "user", "content": [{**SHAPES[shape](URL), "fps": 2}, {"type": kind, "text": "What happens?"}]}
    status, found = server.post(path, field, message)
    assert status == 200, found
    assert [frame.index for frame in server.clip.frames] == [0, 6, 12, 17, 23, 29]
    assert server.message.content == "What happens?"


def stills(count: int, width: int = 64) -> list[str]:
    """Return the frames of a clip, each a data URL of an image."""
    frames = (Image.fromarray(frame) for frame in greys(count, width))
    return [f"data:image/png;base64,{base64.b64encode(png_of(frame)).decode()}" for frame in frames]


def png_of(image: Image.Image) -> bytes:
    """Return an image as a file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("api", ["/v1/chat/completions", "/v1/responses", "/v1/messages", "/api/chat"])
def test_a_clip_may_be_the_list_of_its_frames(api: str, server: Server) -> None:
    field = "input" if api == "/v1/responses" else "messages"
    joined = ",".join(each.partition(",")[2] for each in stills(6))
    for part in (
        {"type": "video", "video": stills(6), "fps": 4},
        {"type": "video_url", "video_url": {"url": f"data:video/jpeg;base64,{joined}", "fps": 4}},
    ):
        more: Json = {"stream": False} if api == "/api/chat" else {}
        status, found = server.post(api, field, {"role": "user", "content": [part, TEXT]}, **more)
        assert status == 200, found
        assert [(frame.index, frame.seconds) for frame in server.clip.frames] == [(i, i / 4) for i in range(6)]
        assert [frame.image.pixels[0] for frame in server.clip.frames] == [8 * i + 8 for i in range(6)]


def test_frames_of_a_list_are_chosen_evenly_and_described(server: Server) -> None:
    part = {"type": "video", "video": stills(20), "max_frames": 4}
    status, found = server.chat(part, TEXT, metadata=True)
    assert status == 200, found
    assert [frame.index for frame in server.clip.frames] == [0, 6, 13, 19]
    content = found["choices"][0]["message"]["content"]
    assert "| 10.0 s | 64x48 | png | 4 of 20 |" in content


@pytest.mark.parametrize(
    ("frames", "below", "fault"),
    [
        ([], "video", "at least 1"),
        ([*stills(2), *stills(2, 32)], "video[2]", "has 32 by 48 pixels, and the first frame 64 by 48"),
        ([*stills(2), "data:image/png;base64,AAAA"], "video[2]", "is not an image of a known format"),
        ([*stills(1), 3], "video[1]", "must be a string"),
        (stills(1) * 129, "video", "at most 128"),
    ],
    ids=["none", "sizes", "no image", "a number", "too many"],
)
def test_a_frame_at_fault_is_named_by_its_place(frames: Any, below: str, fault: str, server: Server) -> None:
    status, found = server.chat({"type": "video", "video": frames}, TEXT)
    assert (status, found["error"]["param"]) == (400, f"messages[0].content[0].{below}")
    assert fault in found["error"]["message"]


@pytest.mark.parametrize(
    "source",
    [{"type": "url", "url": URL}, {"type": "base64", "media_type": "video/mp4", "data": DATA}],
    ids=["url", "base64"],
)
def test_a_clip_arrives_as_a_block_of_anthropics_messages(source: Json, server: Server) -> None:
    block = {"type": "video", "source": source, "max_frames": 2}
    status, found = server.post("/v1/messages", "messages", {"role": "user", "content": [block, TEXT]})
    assert status == 200, found
    assert [frame.index for frame in server.clip.frames] == [0, 29]
    foreign = {**SHAPES["video_url"](URL), "max_frames": 4}
    assert server.post("/v1/messages", "messages", {"role": "user", "content": [foreign, TEXT]})[0] == 200
    assert len(server.clip.frames) == 4
    status, found = server.post("/v1/messages", "messages", {"role": "user", "content": [block, foreign]}, CHAT_MODEL)
    assert status == 200, found
    assert "[A video was left out here: this model takes no video.]" in str(server.asked[-1].prompt)


def test_the_sampling_may_stand_beside_the_url(server: Server) -> None:
    source = {"url": URL, "fps": 10, "max_frames": 8, "max_pixels": 300}
    assert server.chat({"type": "video_url", "video_url": source}, TEXT)[0] == 200
    first = server.clip.frames[0].image
    assert (len(server.clip.frames), first.width, first.height) == (8, 20, 15)


def test_several_clips_and_an_image_are_shown_together(server: Server) -> None:
    image = {
        "type": "image_url",
        "image_url": {"url": f"data:image/png;base64,{base64.b64encode(as_png(noise(1))).decode()}"},
    }
    clip = SHAPES["video_url"](URL)
    status, found = server.chat(clip, image, image, clip, TEXT, metadata=True)
    assert status == 200, found
    texts = [part for part in server.message.parts if isinstance(part, str)]
    assert texts == ["Video 1:", "Image 1:", "Image 1:", "Video 2:", "What happens?"]
    content = found["choices"][0]["message"]["content"]
    assert "🎬 Video Metadata (2 clips)" in content
    assert "| 2 | video_" in content
    assert content.endswith("It brightens.")


def test_a_clip_alone_is_described(server: Server) -> None:
    assert server.chat(SHAPES["video"](URL))[0] == 200
    assert server.message.content == "Describe the video."


def test_an_earlier_clip_is_a_note_for_a_model_without_vision(server: Server) -> None:
    turns = [
        {"role": "user", "content": [SHAPES["video"](URL), TEXT]},
        {"role": "assistant", "content": "It brightens."},
        {"role": "user", "content": "And then?"},
    ]
    status, _, found = server.server.post("/v1/chat/completions", {"model": CHAT_MODEL, "messages": turns})
    assert status == 200, found
    prompt = server.asked[-1].prompt
    assert isinstance(prompt, Conversation)
    assert prompt.messages[0].content == "What happens?\n\n[1 video(s) were attached]"


@pytest.mark.parametrize(
    ("durations", "seen"),
    [
        ([100] * 10 + [6000, 100], [0, 9, 10, 10, 10, 10, 10, 11]),
        ([100] * 10 + [10_000], [0, 5, 10, 10, 10, 10, 10, 10]),
    ],
    ids=["in between", "at the end"],
)
def test_while_nothing_changes_the_model_sees_what_is_still_shown(
    durations: list[int], seen: list[int], server: Server
) -> None:
    clip = base64.b64encode(with_durations(greys(len(durations)), durations)).decode()
    status, found = server.chat({**SHAPES["video"](f"data:image/gif;base64,{clip}"), "fps": 2, "max_frames": 8}, TEXT)
    assert status == 200, found
    frames = server.clip.frames
    assert [round(frame.image.pixels[0] / 8) - 1 for frame in frames] == seen
    assert [frame.seconds for frame in frames] == sorted({frame.seconds for frame in frames})


def test_a_clip_is_read_from_an_allowed_folder(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(CLIP)
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n")
    running = Server(NamedMedia(files=FolderMediaSource((str(tmp_path),))))
    with running.server:
        assert running.chat({"type": "video_url", "video_url": {"url": f"{tmp_path}/clip.mp4"}}, TEXT)[0] == 200
        status, found = running.chat({"type": "video_url", "video_url": {"url": f"{tmp_path}/list.m3u8"}}, TEXT)
        assert (status, found["error"]["param"]) == (400, "messages[0].content[0].video_url.url")


CUT = f"data:video/mp4;base64,{base64.b64encode(CLIP[:300]).decode()}"
PLAYLIST = f"data:video/mp4;base64,{base64.b64encode(b'#EXTM3U').decode()}"


@pytest.mark.parametrize(
    ("part", "below", "fault"),
    [
        (SHAPES["video_url"]("data:video/mp4;base64,!!!!"), "video_url.url", "is not valid base64"),
        (SHAPES["video_url"]("data:text/plain;base64,AAAA"), "video_url.url", "is not a clip in a known container"),
        (SHAPES["video_url"]("data:video/mp4,AAAA"), "video_url.url", "must be data:<type>;base64,<data>"),
        (SHAPES["video_url"]("https://example.com/a.mp4"), "video_url.url", "is an address"),
        (SHAPES["video"]("/etc/hostname"), "video", "is the path of a file"),
        (
            SHAPES["video_url"](f"data:video/jpeg;base64,{'AA,' * 128}AA"),
            "video_url.url",
            "has 129 frames; at most 128",
        ),
        (SHAPES["video_url"](PLAYLIST), "video_url.url", "is not a clip in a known container"),
        (SHAPES["video_url, plain"](CUT), "video_url", "is damaged, or no MP4"),
        (SHAPES["video_url"](""), "video_url.url", "the clip is empty"),
        ({"type": "video_url"}, "video_url", "is required"),
        ({"type": "video_url", "video_url": {}}, "video_url", "needs either url or data"),
        ({"type": "video", "video": URL, "video_url": URL}, "video", "contradicts video_url"),
        ({**SHAPES["video"](URL), "fps": 0}, "fps", "must be above 0 and at most 60"),
        ({"type": "video_url", "video_url": {"url": URL, "max_frames": 129}}, "video_url.max_frames", "at most 128"),
        ({**SHAPES["video"](URL), "max_pixels": 1}, "max_pixels", "must be at least 256"),
    ],
)
def test_a_fault_is_told_by_its_field(part: Json, below: str, fault: str, server: Server) -> None:
    status, found = server.chat(TEXT, part)
    assert status == 400
    assert (found["error"]["param"], fault in found["error"]["message"]) == (f"messages[0].content[1].{below}", True), (
        found
    )
    content = [{"type": "input_text", "text": "What?"}, part]
    status, found = server.post("/v1/responses", "input", {"role": "user", "content": content})
    assert (status, found["error"]["param"]) == (400, f"input[0].content[1].{below}")


def test_a_fault_of_a_block_is_told_by_its_field(server: Server) -> None:
    def fault(source: Json, **more: Any) -> str:
        block = {"type": "video", "source": source, **more}
        status, found = server.post("/v1/messages", "messages", {"role": "user", "content": [block, TEXT]})
        assert status == 400
        return str(found["error"]["message"])

    cut = CUT.rpartition(",")[2]
    assert "messages[0].content[0].source.data: is damaged" in fault(
        {"type": "base64", "media_type": "video/mp4", "data": cut}
    )
    assert "messages[0].content[0].fps: must be above 0" in fault({"type": "url", "url": URL}, fps=0)
    foreign = {"type": "video_url", "video_url": {"url": CUT}}
    status, found = server.post("/v1/messages", "messages", {"role": "user", "content": [foreign, TEXT]})
    assert (status, "messages[0].content[0].video_url.url: is damaged" in str(found)) == (400, True), found


def test_models_that_take_no_clips_say_so(server: Server) -> None:
    status, found = server.chat(SHAPES["video"](URL), TEXT, model=CHAT_MODEL)
    assert (status, found["error"]["param"]) == (422, "messages[0].content[0]")
    refusal = f"'{CHAT_MODEL}' is a text model and takes no video"
    assert refusal in found["error"]["message"]
    message = {"role": "user", "content": [SHAPES["video_url"](URL), TEXT]}
    for path, field in (("/v1/responses", "input"), ("/api/chat", "messages")):
        status, found = server.post(path, field, message, CHAT_MODEL)
        assert (status in (400, 422), refusal in str(found)) == (True, True), found
    sound = {"data": base64.b64encode(as_wav(tone(440, 0.2))).decode(), "format": "wav"}
    spoken = {"type": "input_audio", "input_audio": sound}
    status, found = server.chat(spoken, SHAPES["video"](URL), model=SPEECH_MODEL)
    assert (status, "takes no clips" in str(found)) == (422, True), found


def test_too_many_clips_are_refused(server: Server) -> None:
    status, found = server.chat(*[SHAPES["video"](URL)] * 9, TEXT)
    assert (status, "there are 9 clips; at most 8 are taken" in found["error"]["message"]) == (400, True)
    clips = [{**SHAPES["video"](URL), "fps": 10, "max_frames": 30}] * 5
    status, found = server.chat(*clips, TEXT)
    assert (status, "5 clips have 150 frames together; at most 128 are taken" in found["error"]["message"]) == (
        400,
        True,
    )


@pytest.mark.parametrize("role", ["system", "assistant"])
def test_clips_are_for_users(role: str, server: Server) -> None:
    message = {"role": role, "content": [SHAPES["video"](URL), TEXT]}
    status, found = server.post("/v1/chat/completions", "messages", message)
    assert (status, found["error"]["param"]) == (400, "messages[0].content[0].type")
