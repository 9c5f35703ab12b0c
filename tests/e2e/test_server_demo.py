"""``mlxk serve`` as installed, with the built-in model: what the documents show, what the SDK sees, what logs hide."""

import contextlib
import http.client
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from serving import contract
from serving.running import eventually
from tokenizers import Tokenizer

pytestmark = [pytest.mark.e2e, pytest.mark.mlx]

CANARY = "canary-5e1f"
PAGE = Path(__file__).parents[2] / "docs" / "server.md"
DEMO = Path(__file__).parents[2] / "adapters" / "builtin" / "models" / "demo"


CHAT = "/v1/chat/completions"


def encoded(**fields: Any) -> bytes:
    """Return the body of a request."""
    return json.dumps(fields).encode()


class Served:
    """A started ``mlxk serve``."""

    def __init__(self, directory: Path, environment: dict[str, str], *flags: str) -> None:
        self._log = directory / "serve.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlxk", "serve", "--port", "0", "--json", *flags],
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=directory,
                env=environment,
                text=True,
            )
        assert self.process.stdout is not None
        self.first: dict[str, Any] = json.loads(self.process.stdout.readline())
        self.process.stdout.close()
        self.port: int = self.first["data"]["port"]

    @property
    def log(self) -> str:
        """What was logged so far."""
        return self._log.read_text(encoding="utf-8")

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, str, Any]:
        """Ask; return status, kind and body, held against the contract."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)) as connection:
            connection.request(method, path, body, {"Content-Type": "application/json", **named})
            response = connection.getresponse()
            data = response.read().decode()
        kind = (response.getheader("Content-Type") or "").partition(";")[0]
        parsed = json.loads(data) if kind == "application/json" else data
        contract.check(method, path, response.status, kind, parsed)
        return response.status, kind, parsed

    def chat(self, **fields: Any) -> tuple[int, str, Any]:
        """Ask in a conversation."""
        messages = [{"role": "user", "content": "What is mlxk?"}]
        return self.ask(
            "POST", "/v1/chat/completions", json.dumps({"model": "demo", "messages": messages, **fields}).encode()
        )

    def stop(self) -> int:
        """End it and return the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A clean environment with a home of its own."""
    home = tmp_path_factory.mktemp("home")
    return {
        "HOME": str(home),
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.environ["PYTHONPATH"],
        "MLX_DISABLE_COMPILE": "1",
    }


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Iterator[Served]:
    """Serve the built-in model to every test that leaves the server as it was."""
    server = Served(
        tmp_path_factory.mktemp("serve"), environment, "--model", "demo", "--log-level", "debug", "--log-json"
    )
    yield server
    assert server.stop() == 0


def examples() -> Iterator[tuple[str, str, bytes]]:
    """Yield method, path and body of every request the page shows."""
    for block in re.findall(r"```sh\n(curl .*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
        words = shlex.split(block)
        address = next(word for word in words if word.startswith("http://"))
        body = words[words.index("-d") + 1].encode() if "-d" in words else None
        yield "GET" if body is None else "POST", address.partition(":8000")[2], body or b""


def test_every_example_of_the_page_works(served: Served) -> None:
    answers = [served.ask(method, path, body) for method, path, body in examples()]
    assert [status for status, _, _ in answers] == [200] * 7
    plain, streamed, form, call, texts, tokens, rendered = (answer for _, _, answer in answers)
    assert "knife for local models" in plain["choices"][0]["message"]["content"]
    assert streamed.endswith("data: [DONE]\n\n")
    assert json.loads(form["choices"][0]["message"]["content"])["city"] in {"Paris", "Rome"}
    function = call["choices"][0]["message"]["tool_calls"][0]["function"]
    assert (function["name"], json.loads(function["arguments"])["city"]) == ("get_weather", "Paris")
    assert len(texts["choices"]) == 2
    assert tokens["count"] == len(tokens["tokens"])
    assert rendered["prompt"] == "<|im_start|>user\nWhat is mlxk?<|im_end|>\n<|im_start|>assistant\n"


def test_the_python_example_of_the_page_works(served: Served, environment: dict[str, str]) -> None:
    [program] = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", program.replace(":8000", f":{served.port}")],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
        timeout=60,
    )
    assert "knife for local models" in done.stdout


def test_every_flag_in_the_page_exists(environment: dict[str, str]) -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "mlxk", "serve", "--help"], capture_output=True, text=True, env=environment, check=True
    )
    assert set(re.findall(r"`(--[a-z-]+)", PAGE.read_text(encoding="utf-8"))) <= set(
        re.findall(r"--[a-z-]+", shown.stdout)
    )


def said(message: Any) -> tuple[str, str | None, list[tuple[str, str]]]:
    """Return content, reasoning and calls of a message."""
    calls = [(call.function.name, call.function.arguments) for call in message.tool_calls or []]
    return message.content or "", getattr(message, "reasoning_content", None), calls


def test_a_streamed_answer_and_one_in_one_piece_say_the_same(served: Served) -> None:
    questions = ["What is mlxk?", "Who are you?", "hi", "What is the weather in Rome?"]
    tools: Any = [
        {
            "type": "function",
            "function": {"name": "get_weather", "parameters": {"properties": {"city": {"type": "string"}}}},
        }
    ]
    with openai.OpenAI(base_url=f"http://127.0.0.1:{served.port}/v1", api_key="any", max_retries=0) as sdk:
        for question in questions:
            for extra in ({}, {"tools": tools}, {"extra_body": {"enable_thinking": True}}):
                common: Any = {
                    "model": "demo",
                    "messages": [{"role": "user", "content": question}],
                    "temperature": 0,
                    "max_tokens": 80,
                    **extra,
                }
                whole = sdk.chat.completions.create(**common)
                with sdk.chat.completions.stream(**common, stream_options={"include_usage": True}) as stream:
                    put_together = stream.until_done().get_final_completion()
                first, second = whole.choices[0], put_together.choices[0]
                assert said(first.message) == said(second.message)
                assert first.finish_reason == second.finish_reason
                assert whole.usage is not None
                assert put_together.usage is not None
                assert whole.usage.completion_tokens == put_together.usage.completion_tokens


def test_token_ids_are_a_prompt_like_the_text_they_make(served: Served) -> None:
    """The tokenizer of the model says which ids the text has."""
    text = "mlxk is"
    ids = Tokenizer.from_file(str(DEMO / "tokenizer.json")).encode(text).ids

    def texts(prompt: Any) -> tuple[list[str], int]:
        asked = encoded(model="demo", prompt=prompt, max_tokens=8, temperature=0)
        answer = served.ask("POST", "/v1/completions", asked)[2]
        return [choice["text"] for choice in answer["choices"]], answer["usage"]["prompt_tokens"]

    assert texts(ids) == texts(text)
    assert texts([ids, ids[:1]])[0] == [*texts(ids)[0], *texts(ids[:1])[0]]
    status, _, answer = served.ask("POST", "/v1/completions", encoded(model="demo", prompt=[10**6]))
    assert (status, answer["error"]["type"]) == (400, "validation_error")


def test_a_seed_gives_the_same_text_alone_and_in_company(served: Served) -> None:
    def text(seed: int) -> Any:
        return served.chat(seed=seed, temperature=1.5, max_tokens=20)[2]["choices"][0]["message"]["content"]

    alone = [text(seed) for seed in range(4)]
    together: dict[int, Any] = {}
    threads = [threading.Thread(target=lambda seed=seed: together.update({seed: text(seed)})) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[seed] for seed in range(4)] == alone


def test_a_client_that_goes_stops_the_computing(served: Served) -> None:
    body = {"model": "demo", "prompt": "a", "max_tokens": 2000, "stream": True, "logit_bias": {"0": -1}, "n": 4}
    data = json.dumps(body).encode()
    connection = socket.create_connection(("127.0.0.1", served.port))
    connection.sendall(
        f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data
    )
    assert connection.recv(1)
    connection.close()
    assert eventually(lambda: "mlxk_answers_running 0" in served.ask("GET", "/metrics")[2])


@pytest.mark.parametrize("form", ["text", "json"])
def test_nothing_a_client_says_and_no_directory_is_in_the_log(
    tmp_path: Path, environment: dict[str, str], form: str
) -> None:
    """The level is the one at which everything is logged that any other logs."""
    place = tmp_path / CANARY
    sound, damaged, keys = place / "mine", place / "broken", place / "keys"
    for copy in (sound, damaged):
        shutil.copytree(DEMO, copy)
    config = json.loads((damaged / "config.json").read_text())
    (damaged / "config.json").write_text(json.dumps({**config, "rope_scaling": {"rope_type": "unknown"}}))
    keys.write_text(f"{CANARY}-key")
    flags = ["--model", str(sound), "--allow-model-paths", "--api-key-file", str(keys), "--log-level", "debug"]
    server = Served(tmp_path, environment, *flags, *(["--log-json"] if form == "json" else []))
    headers = {"Authorization": f"Bearer {CANARY}-key", "X_Custom": CANARY, "User_Agent": CANARY, "Cookie": CANARY}
    try:
        statuses = {
            server.ask(method, path, body, **{**headers, **more})[0]
            for method, path, body, more in said_with_canaries(str(sound), str(damaged))
        }
    finally:
        assert server.stop() == 0
    assert {200, 400, 401, 403, 404, 415} <= statuses
    assert CANARY not in server.log
    assert str(place.parent) not in server.log
    assert all(said in server.log for said in ("mine", "generation finished", "a model was not loaded"))
    if form == "json":
        lines = [json.loads(line) for line in server.log.splitlines()]
        assert all({"ts", "level", "msg"} <= set(line) for line in lines)
        finished = [line for line in lines if line["msg"] == "generation finished"]
        fields = {"logger", "model", "request_id", "duration_ms", "prompt_tokens", "completion_tokens"}
        assert all(fields <= set(line) for line in finished)


Saying = tuple[str, str, bytes | None, dict[str, str]]


def said_with_canaries(sound: str, damaged: str) -> Iterator[Saying]:
    """Yield method, address, body and headers of requests that say the canary wherever something can be said."""
    turn = [{"role": "user", "content": CANARY}]
    texts = "/v1/completions"
    tool = {"type": "function", "function": {"name": CANARY, "description": CANARY, "parameters": {"$ref": CANARY}}}
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{CANARY}"}}
    bodies = [
        (CHAT, encoded(model="mine", messages=turn, max_tokens=3)),
        (CHAT, encoded(model=sound, messages=turn, max_tokens=3, stream=True)),
        (CHAT, encoded(model=damaged, messages=turn)),
        (CHAT, encoded(model=f"{damaged}/none", messages=turn)),
        (CHAT, encoded(model="mine", messages=turn, tools=[tool], tool_choice="required")),
        (CHAT, encoded(model="mine", messages=[{"role": "user", "content": [image]}])),
        (CHAT, encoded(model="mine", messages=turn, response_format={"type": CANARY})),
        (texts, encoded(model="mine", prompt=CANARY, stream=True, max_tokens=3, stop=[CANARY], user=CANARY)),
        (texts, encoded(model="mine", prompt=CANARY * 3000)),
        (CHAT, encoded(model=CANARY, messages=[])),
        (CHAT, encoded(model=CANARY, messages=turn)),
        (CHAT, b"{" + CANARY.encode()),
        (CHAT, encoded(**{CANARY: CANARY}, stop=[CANARY] * 99)),
        ("/v1/embeddings", encoded(model="mine", input=CANARY)),
        ("/v1/unload", encoded(model=CANARY)),
    ]
    for path, body in bodies:
        yield "POST", path, body, {}
    yield "GET", f"/v1/models/{CANARY}", None, {}
    yield "GET", f"/{CANARY}?{CANARY}={CANARY}", None, {}
    yield CANARY.upper(), CHAT, None, {}
    yield "POST", CHAT, b"", {"Content_Type": CANARY}
    yield "GET", "/v1/models", None, {"Authorization": f"Bearer {CANARY}"}
    yield "GET", "/v1/models", None, {"Host": f"{CANARY}.example"}
    yield "GET", "/v1/models", None, {"Origin": f"https://{CANARY}.example"}
    yield "GET", "/v1/models", None, {"X_Request_ID": f"{CANARY} {CANARY}"}


def test_images_are_named_by_path_only_below_the_folder_that_was_allowed(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for place in (folder, tmp_path):
        shutil.copy(DEMO.with_name("demo-vision") / "blue-square.jpg", place)

    def ask(server: Served, url: str) -> tuple[int, str]:
        content = [{"type": "text", "text": "What color is it?"}, {"type": "image_url", "image_url": {"url": url}}]
        body = encoded(model="demo-vision", messages=[{"role": "user", "content": content}])
        status, _, answer = server.ask("POST", CHAT, body)
        return status, json.dumps(answer)

    server = Served(tmp_path, environment, "--allow-media-path", "pictures")
    try:
        status, answer = ask(server, f"{folder}/blue-square.jpg")
        assert (status, "blue" in answer.lower()) == (200, True), answer
        assert ask(server, f"{tmp_path}/blue-square.jpg")[0] == 400
        status, answer = ask(server, f"http://127.0.0.1:{server.port}/health")
        assert (status, "--allow-remote-media" in answer) == (400, True)
    finally:
        server.stop()
    server = Served(tmp_path, environment, "--allow-remote-media")
    try:
        status, answer = ask(server, f"http://127.0.0.1:{server.port}/health")
        assert (status, "public addresses" in answer) == (400, True)
        status, answer = ask(server, f"{folder}/blue-square.jpg")
        assert (status, "--allow-media-path DIR" in answer) == (400, True)
    finally:
        server.stop()


def test_models_are_listed_with_what_is_loaded(served: Served) -> None:
    _, _, listed = served.ask("GET", "/v1/models")
    assert (listed["data"][0]["id"], listed["data"][0]["loaded"]) == ("demo", True)
    assert served.ask("GET", "/v1/models/demo")[2] == listed["data"][0]


def test_memory_is_given_back_on_request_and_after_a_while(tmp_path: Path, environment: dict[str, str]) -> None:
    server = Served(tmp_path, environment, "--keep-alive", "1", "--no-supervisor", "--max-tokens", "4")
    try:

        def loaded() -> bool:
            return bool(server.ask("GET", "/v1/models/demo")[2]["loaded"])

        assert not loaded()
        status, _, answer = server.chat()
        assert (status, answer["choices"][0]["finish_reason"]) == (200, "length")
        assert loaded()
        assert server.ask("POST", "/v1/unload", b"{}")[2]["data"] == ["demo"]
        assert not loaded()
        assert server.chat()[0] == 200
        assert eventually(lambda: not loaded())
        assert server.ask("POST", "/v1/unload", json.dumps({"model": "demo"}).encode())[0] == 400
    finally:
        assert server.stop() == 0


def test_a_port_in_use_is_known_before_anything_is_loaded(served: Served, mlxk: Callable[..., Any]) -> None:
    done = mlxk("serve", "--port", str(served.port), "--model", "demo", "--json")
    assert done.returncode == 3
    assert "loaded a model" not in done.stderr
    assert json.loads(done.stdout)["error"]["type"] == "port_in_use"


def test_a_model_that_is_not_there_starts_nothing(mlxk: Callable[..., Any]) -> None:
    for flags in ((), ("--no-supervisor",)):
        done = mlxk("serve", "--port", "0", "--model", "no/such-model", *flags)
        assert done.returncode == 1
        assert "no model found matching" in done.stderr
        assert done.stdout == ""
