"""Model folders that would run code, and media that mean harm: the installed program refuses both and lives on."""

import base64
import http.client
import json
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from models import tiny_models, tiny_vision
from models.pictures import as_png, noise
from models.tiny_speech import build_whisper, murmur, write_wav

pytestmark = [pytest.mark.e2e, pytest.mark.mlx]

Program = Callable[..., "subprocess.CompletedProcess[str]"]
KINDS = ("text", "vision", "speech")
CODE = "import pathlib\npathlib.Path({trace!r}).touch()\n"
SOUND = Path(__file__).parents[2] / "adapters" / "builtin" / "models" / "demo-speech" / "hello.wav"
HOSTILE = 60
"""Files of each kind that the server is sent; more of them are decoded, without a server, in the integration tests."""


@pytest.fixture
def evil(tmp_path: Path) -> dict[str, str]:
    """Build a model of every kind that asks for code of its own in whatever way a library might follow."""
    builders = {"text": tiny_models.build, "vision": tiny_vision.build, "speech": build_whisper}
    for kind in KINDS:
        folder = tmp_path / kind
        builders[kind](folder)
        (folder / "evil.py").write_text(CODE.format(trace=str(tmp_path / f"{kind}-ran")))
        wanted = {"auto_map": {"AutoProcessor": "evil.P", "AutoConfig": "evil.C", "AutoTokenizer": ["evil.T", None]}}
        for name in ("config.json", "tokenizer_config.json", "processor_config.json"):
            document = folder / name
            known = json.loads(document.read_text()) if document.exists() else {}
            document.write_text(json.dumps({**known, **wanted, "model_file": "evil.py"}))
    return {kind: str(tmp_path / kind) for kind in KINDS}


class Server:
    """A started ``mlxk serve`` whose temporary files can be counted."""

    def __init__(self, environment: dict[str, str], folder: Path) -> None:
        self.temporary = folder / "temporary"
        self.temporary.mkdir()
        self.log = folder / "log"
        with self.log.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mlxk", "serve", "--port", "0", "--json"],
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**environment, "TMPDIR": str(self.temporary)},
                text=True,
            )
        assert self._process.stdout is not None
        self._port: int = json.loads(self._process.stdout.readline())["data"]["port"]
        self._process.stdout.close()

    def post(self, path: str, body: bytes, kind: str = "application/json") -> tuple[int, Any]:
        """Send something; return the status and what came back."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        try:
            connection.request("POST", path, body, {"Content-Type": kind})
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def ask(self, model: str, *content: dict[str, Any]) -> tuple[int, Any]:
        """Ask in a conversation."""
        body = {"model": model, "max_tokens": 4, "messages": [{"role": "user", "content": list(content)}]}
        return self.post("/v1/chat/completions", json.dumps(body).encode())

    def hear(self, model: str, data: bytes) -> tuple[int, Any]:
        """Send a recording."""
        fields = f'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\n{model}\r\n'
        file = '--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
        return self.post(
            "/v1/audio/transcriptions",
            (fields + file).encode() + data + b"\r\n--x--\r\n",
            "multipart/form-data; boundary=x",
        )

    def stop(self) -> int:
        """End it; return its status."""
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(60)


@pytest.fixture
def server(program_environment: dict[str, str], tmp_path: Path) -> Iterator[Server]:
    found = Server({**program_environment, "MLXK_WORKSPACE_HOME": str(tmp_path)}, tmp_path)
    yield found
    assert found.stop() == 0
    assert "Traceback" not in found.log.read_text()


def picture(data: bytes) -> dict[str, Any]:
    """Return an image as a part of a message."""
    return {
        "type": "image_url",
        "image_url": {"url": f"data:image/png;base64,{base64.b64encode(data).decode()}"},
    }


def words(text: str) -> dict[str, Any]:
    """Return text as a part of a message."""
    return {"type": "text", "text": text}


def test_the_program_runs_no_code_that_comes_with_a_model(mlxk: Program, evil: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(as_png(noise(1)))
    write_wav(tmp_path / "a.wav", murmur(0.2))
    asked = {"text": ("hello",), "vision": ("hello", "--image", "a.png"), "speech": ("--audio", "a.wav")}
    for kind in KINDS:
        done = mlxk("run", evil[kind], *asked[kind])
        assert (done.returncode, done.stdout) == (1, ""), done
        assert "code" in done.stderr
        assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("*-ran"))


def test_the_server_runs_no_code_that_comes_with_a_model(server: Server, evil: dict[str, str], tmp_path: Path) -> None:
    answers = [
        server.ask("text", words("hello")),
        server.ask("vision", words("hello"), picture(as_png(noise(1)))),
        server.hear("speech", SOUND.read_bytes()),
    ]
    for status, answer in answers:
        assert 400 <= status < 600, answer
        assert "code" in answer["error"]["message"], answer
    assert not list(tmp_path.glob("*-ran"))


def test_hostile_media_are_refused_or_taken_and_leave_nothing_behind(server: Server) -> None:
    chance, image, sound = random.Random(3), as_png(noise(1)), SOUND.read_bytes()
    seen, heard = set(), set()
    for _ in range(HOSTILE):
        seen.add(server.ask("demo-vision", words("What is it?"), picture(damaged(chance, image)))[0])
        heard.add(server.hear("demo-speech", damaged(chance, sound)[: chance.randrange(4, 100)])[0])
    assert seen <= {200, 400}
    assert heard <= {200, 400, 501}
    assert 400 in seen & heard
    assert server.ask("demo-vision", words("Who are you?"))[0] == 200
    assert [path for path in server.temporary.rglob("*") if path.is_file() and "mlx/" not in str(path)] == []


def damaged(chance: random.Random, data: bytes) -> bytes:
    """Return a file that is cut, changed, or noise behind its beginning."""
    content = bytearray(data)
    kind = chance.randrange(3)
    if kind == 0:
        return data[: chance.randrange(1, len(data))]
    if kind == 1:
        for _ in range(chance.randint(1, 30)):
            content[chance.randrange(len(content))] = chance.randrange(256)
        return bytes(content)
    return data[: chance.randrange(4, 60)] + chance.randbytes(chance.randrange(400))
