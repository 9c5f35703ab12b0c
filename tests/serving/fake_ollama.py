"""A server that speaks Ollama's API as Ollama does.

Streams are lines, durations nanoseconds, and counters absent when they are 0; there is one completion at a time; models
are loaded on request, unloaded and pulled.

    with FakeOllama({"qwen2.5-coder:1.5b": 10**9}, step_seconds=0.002) as server:
        server.url, server.loaded, server.pulled, server.asked
"""

import http.server
import json
import threading
import time
from types import TracebackType
from typing import Any, Self

VERSION = "0.12.3"
CONTEXT = 4096


class FakeOllama(http.server.ThreadingHTTPServer):
    """Answers every prompt with as many words as it may, up to ``longest``.

    Args:
        models: Those on its disk, each with its size in bytes.
        step_seconds: Time of each token.
        load_seconds: Time to load a model.
        port: 0 for any.
    """

    daemon_threads = True

    def __init__(
        self, models: dict[str, int], step_seconds: float = 0.001, load_seconds: float = 0.01, port: int = 0
    ) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.models = dict(models)
        self.step_seconds = step_seconds
        self.load_seconds = load_seconds
        self.longest = 10**6
        self.answer = "word"
        self.loaded: set[str] = set()
        self.pulled: list[str] = []
        self.asked: list[dict[str, Any]] = []
        self.one_at_a_time = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def known(self, name: str) -> str | None:
        """Return the whole name of a model; one without a tag means ``:latest``."""
        whole = name if ":" in name else f"{name}:latest"
        return whole if whole in self.models else None


class Handler(http.server.BaseHTTPRequestHandler):
    server: FakeOllama

    def do_GET(self) -> None:
        models = [{"name": name, "model": name, "size": size} for name, size in sorted(self.server.models.items())]
        running = [{**each, "size_vram": each["size"]} for each in models if each["name"] in self.server.loaded]
        documents = {
            "/api/version": {"version": VERSION},
            "/api/tags": {"models": models},
            "/api/ps": {"models": running},
        }
        self.send(documents.get(self.path, {"error": "not found"}), 200 if self.path in documents else 404)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/api/pull":
            self.pull(body)
            return
        name = self.server.known(body["model"])
        if self.path not in ("/api/chat", "/api/generate"):
            self.send({"error": "not found"}, 404)
        elif name is None:
            self.send({"error": f"model '{body['model']}' not found"}, 404)
        else:
            with self.server.one_at_a_time:
                self.complete(name, body)

    def pull(self, body: dict[str, Any]) -> None:
        if body["model"] == "nosuch":
            self.lines([{"status": "pulling manifest"}, {"error": "pull model manifest: file does not exist"}])
            return
        self.server.pulled.append(body["model"])
        self.server.models[body["model"]] = 5 * 10**8
        layer = {"status": "pulling abc", "digest": "sha256:abc", "total": 5 * 10**8}
        self.lines([{"status": "pulling manifest"}, layer, {**layer, "completed": 5 * 10**8}, {"status": "success"}])

    def load(self, name: str) -> int:
        """Have a model in memory; return how long that took, in nanoseconds."""
        began = time.monotonic()
        if name not in self.server.loaded:
            time.sleep(self.server.load_seconds)
            self.server.loaded.add(name)
        return max(1, round((time.monotonic() - began) * 1e9))

    def complete(self, name: str, body: dict[str, Any]) -> None:
        chat = self.path == "/api/chat"
        prompt = body["messages"][-1]["content"] if chat and body.get("messages") else body.get("prompt", "")
        common = {"model": name, "created_at": "2026-01-01T00:00:00.000000000Z"}
        if not prompt:
            unloads = body.get("keep_alive") == 0
            took = 0 if unloads else self.load(name)
            if unloads:
                self.server.loaded.discard(name)
            end = {**common, **self.part("", chat), "done": True, "done_reason": "unload" if unloads else "load"}
            self.send({**end, **({"load_duration": took, "total_duration": took} if took else {})})
            return
        self.server.asked.append(body)
        options = body.get("options", {})
        words = len(prompt.split())
        if words > options.get("num_ctx", CONTEXT):
            if body.get("truncate") is False:
                self.send({"error": "the input length exceeds the context length"}, 400)
                return
            words = CONTEXT
        wanted = options.get("num_predict", -1)
        count = self.server.longest if wanted < 0 else min(wanted, self.server.longest)
        load = self.load(name)
        began = time.monotonic()
        time.sleep(self.server.step_seconds)
        read = time.monotonic()
        self.begin("application/x-ndjson")
        for _ in range(count):
            time.sleep(self.server.step_seconds)
            self.line({**common, **self.part(f"{self.server.answer} ", chat), "done": False})
        ended = time.monotonic()
        durations = {"total": ended - began, "prompt_eval": read - began, "eval": ended - read}
        counted = {f"{kind}_duration": round(seconds * 1e9) for kind, seconds in durations.items()}
        counted |= {"load_duration": load, "prompt_eval_count": words, "eval_count": count}
        reason = "length" if count == wanted else "stop"
        kept = {key: value for key, value in counted.items() if value}
        self.line({**common, **self.part("", chat), "done": True, "done_reason": reason, **kept})

    @staticmethod
    def part(text: str, chat: bool) -> dict[str, Any]:
        """Return a piece of an answer in the form of its address."""
        return {"message": {"role": "assistant", "content": text}} if chat else {"response": text}

    def begin(self, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.end_headers()

    def line(self, document: object) -> None:
        self.wfile.write(json.dumps(document).encode() + b"\n")
        self.wfile.flush()

    def lines(self, documents: list[dict[str, Any]]) -> None:
        self.begin("application/x-ndjson")
        for each in documents:
            self.line(each)

    def send(self, document: object, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.end_headers()
        self.wfile.write(json.dumps(document).encode())

    def log_message(self, *_: Any) -> None:
        """Print nothing."""
