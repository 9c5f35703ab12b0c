"""``mlxk serve`` with scripted answers in place of an engine: the real supervisor, worker, sockets and signals.

Run as a program: the first argument is the settings as JSON. The supervisor starts the same file as its worker, and
with ``reload`` takes the working directory for the program's source.
An answer repeats ``word`` as often as the request allows; a prompt of ``die`` ends the worker at once.
"""

import json
import os
import sys
import time
from collections.abc import Sequence

from mlxk.adapters.in_memory.speech_transcriber import InMemorySpeechTranscriber
from mlxk.adapters.in_memory.text_embedder import InMemoryTextEmbedder
from mlxk.adapters.in_memory.text_generator import InMemoryTextGenerator
from mlxk.domain.conversation import Conversation
from mlxk.domain.errors import ExecutionError
from mlxk.domain.generation import GenerationRequest
from mlxk.entrypoints.container import Container, build
from mlxk.entrypoints.http import sockets
from mlxk.entrypoints.http.supervisor import Supervision, Supervisor, source_watch
from mlxk.entrypoints.http.worker import run_supervised
from mlxk.entrypoints.server_settings import ServerSettings
from mlxk.entrypoints.settings import Settings, read_settings

STEP_SECONDS = 0.01


def answers(request: GenerationRequest) -> Sequence[str]:
    """Answer as the prompt says."""
    prompt = request.prompt.messages[-1].content if isinstance(request.prompt, Conversation) else request.prompt
    if prompt == "die":
        os._exit(9)
    if prompt == "Hello" and os.path.exists("fail-preload"):
        raise ExecutionError("the model cannot be loaded")
    return (" word",) * (request.settings.max_tokens or 10)


def say(message: object) -> None:
    """Write one line for the test."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def scripted(settings: Settings, server: ServerSettings | None) -> Container:
    """Wire the program, but for its engine."""
    container = build(settings, server)
    container.adapters.text_generator.override(InMemoryTextGenerator(answers, STEP_SECONDS))
    container.adapters.speech_transcriber.override(InMemorySpeechTranscriber())
    container.adapters.text_embedder.override(InMemoryTextEmbedder())
    return container


def supervise(settings: ServerSettings) -> int:
    """Serve under a supervisor, saying the port on standard output when ready."""
    listening = sockets.listen(settings.host, settings.port)
    port = sockets.ports(listening)
    began = time.monotonic()

    def ready() -> None:
        say({"port": port, "seconds": time.monotonic() - began})

    command = (sys.executable, "-P", os.path.abspath(__file__), "--worker")
    log = build(read_settings()).adapters.event_log
    changed = source_watch(os.getcwd()) if settings.reload else None
    return Supervisor(listening, settings, Supervision(log, ready, changed, command)).run()


if __name__ == "__main__":
    if sys.argv[1] == "--worker":
        status = run_supervised(int(sys.argv[2]), [int(each) for each in sys.argv[3:]], scripted)
        sys.stderr.flush()
        os._exit(status)
    try:
        sys.exit(supervise(ServerSettings(**json.loads(sys.argv[1]))))
    except ExecutionError as error:
        say({"failure": error.code, "message": error.message})
        sys.exit(1)
