"""Images and sound over every API with a real model: the text that mlx-vlm itself writes, and turns that go on."""

import base64
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from models.pictures import about, as_png, as_wav, noise, oracle, tone
from models.tiny_vision import build
from serving.running import RunningServer
from serving.whole_program import WholeProgram

from mlxk.adapters.mlx.audio_file import MlxAudioDecoder
from mlxk.domain.generation.conversation import MessagePart
from mlxk.domain.models.model import ModelHandle

pytestmark = pytest.mark.mlx
Json = dict[str, Any]
MOST = 16
PNG, WAV = as_png(noise(1)), as_wav(tone(440, 0.5))
IMAGE = {
    "type": "image_url",
    "image_url": {"url": f"data:image/png;base64,{base64.b64encode(PNG).decode()}"},
}
SOUND = {"type": "input_audio", "input_audio": {"data": base64.b64encode(WAV).decode(), "format": "wav"}}
APIS: dict[str, tuple[str, Json, Callable[[Json], str]]] = {
    "/v1/chat/completions": ("messages", {"max_tokens": MOST}, lambda found: found["choices"][0]["message"]["content"]),
    "/v1/responses": (
        "input",
        {"max_output_tokens": MOST},
        lambda found: "".join(part["text"] for item in found["output"] for part in item.get("content") or ()),
    ),
    "/v1/messages": ("messages", {"max_tokens": MOST}, lambda found: found["content"][0]["text"]),
    "/api/chat": (
        "messages",
        {"stream": False, "options": {"num_predict": MOST}},
        lambda found: found["message"]["content"],
    ),
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningServer, ModelHandle, MessagePart]]:
    """Return a server with a model that sees and hears, the model, and the sound as it decodes it."""
    home = tmp_path_factory.mktemp("home")
    handle = build(home / "models" / "omni", "gemma4", 4)
    (home / "beep.wav").write_bytes(WAV)
    program: Any = WholeProgram(home, MLXK_WORKSPACE_HOME=str(home / "models"))
    with RunningServer(program) as server:
        yield server, handle, MlxAudioDecoder().decode(str(home / "beep.wav"), "beep.wav")


@pytest.mark.parametrize("api", APIS)
def test_the_text_about_an_image_and_a_sound_is_mlx_vlms_own(
    api: str, served: tuple[RunningServer, ModelHandle, MessagePart]
) -> None:
    server, handle, sound = served
    field, limits, text_of = APIS[api]
    text = {"type": "text", "text": "Do they match?"}
    shown: dict[str, tuple[list[Json], tuple[MessagePart, ...]]] = {
        "both": ([IMAGE, SOUND, text], (noise(1), sound, "Do they match?")),
        "image": ([IMAGE, text], (noise(1), "Do they match?")),
        "sound": ([text, SOUND], ("Do they match?", sound)),
    }
    for name, (parts, meant) in shown.items():
        body = {"model": "omni", field: [{"role": "user", "content": parts}], **limits}
        status, _, found = server.post(api, body)
        assert status == 200, found
        words = b"".join(oracle(handle, about(*meant), MOST)).decode(errors="replace")
        assert text_of(found) == words, name


def test_a_conversation_with_images_and_sounds_goes_on_where_it_was(
    served: tuple[RunningServer, ModelHandle, MessagePart], tmp_path: Path
) -> None:
    server, _, _ = served
    other = {**IMAGE, "image_url": {"url": f"data:image/png;base64,{base64.b64encode(as_png(noise(9))).decode()}"}}
    messages: list[Json] = []
    before = 0
    for parts in ([IMAGE], [SOUND], [other, SOUND], []):
        messages.append({"role": "user", "content": [*parts, {"type": "text", "text": "And what is it now?"}]})
        status, _, found = server.post("/v1/chat/completions", {"model": "omni", "messages": messages, "max_tokens": 8})
        assert status == 200, found
        usage = found["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] >= before - 8
        before = usage["prompt_tokens"]
        messages.append({"role": "assistant", "content": "A fox."})
