"""Images that come again over HTTP: the encoder runs once for each, and ``/metrics`` counts it."""

import base64
import re
from pathlib import Path
from typing import Any

import pytest
from models.pictures import as_png, noise
from models.tiny_vision import build
from serving.running import RunningServer
from serving.whole_program import WholeProgram

from mlxk.entrypoints.settings import ServerSettings

pytestmark = pytest.mark.mlx

PARTS = {
    "chat": ("/v1/chat/completions", "messages", lambda url: {"type": "image_url", "image_url": {"url": url}}, "text"),
    "responses": ("/v1/responses", "input", lambda url: {"type": "input_image", "image_url": url}, "input_text"),
}


def data_url(seed: int) -> str:
    return "data:image/png;base64," + base64.b64encode(as_png(noise(seed))).decode()


def counted(server: RunningServer) -> tuple[int, int, int]:
    """Return bytes, hits and misses."""
    page = server.get("/metrics")[2].decode()
    found = dict(re.findall(r"^mlxk_vision_cache_(bytes|hits|misses) (\d+)", page, re.MULTILINE))
    return int(found["bytes"]), int(found["hits"]), int(found["misses"])


def ask(server: RunningServer, api: str, seeds: tuple[int, ...], words: str) -> None:
    path, field, part, text = PARTS[api]
    content = [{"type": text, "text": words}, *(part(data_url(seed)) for seed in seeds), {"type": text, "text": "?"}]
    limit = {"max_output_tokens": 16} if api == "responses" else {"max_tokens": 4}
    status, _, answer = server.post(path, {"model": "eye", field: [{"role": "user", "content": content}], **limit})
    assert status == 200, answer


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    build(folder / "models" / "eye", "qwen2_vl", 3)
    return folder


def test_an_image_is_encoded_once_whichever_prompt_and_api_it_comes_in(home: Path) -> None:
    program: Any = WholeProgram(home, ServerSettings(), MLXK_WORKSPACE_HOME=str(home / "models"))
    with RunningServer(program) as server:
        ask(server, "chat", (1,), "One:")
        size, hits, misses = counted(server)
        assert (size > 0, hits, misses) == (True, 0, 1)
        ask(server, "responses", (1,), "Two:")
        assert counted(server) == (size, 1, 1)
        ask(server, "chat", (1, 2), "Three:")
        assert counted(server) == (2 * size, 2, 2)
        ask(server, "responses", (2, 1), "Four:")
        assert counted(server) == (2 * size, 4, 2)


def test_without_room_every_image_is_encoded_again(home: Path) -> None:
    settings = ServerSettings(vision_cache_mib=0)
    program: Any = WholeProgram(home, settings, MLXK_WORKSPACE_HOME=str(home / "models"))
    with RunningServer(program) as server:
        ask(server, "chat", (1,), "One:")
        ask(server, "chat", (1,), "Two:")
        assert counted(server) == (0, 0, 2)
