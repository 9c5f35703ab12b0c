"""``mlxk serve`` with scripted answers in place of an engine: the real supervisor, worker, sockets and signals.

Run as a program: the first argument is the settings as JSON. The supervisor starts the same file as its worker, and
with ``reload`` takes the working directory for the program's source.
An answer repeats ``word`` as often as the request allows; a prompt of ``die`` ends the worker at once.
"""

import json
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from doubles.speech_transcriber import InMemorySpeechTranscriber
from doubles.text_embedder import InMemoryTextEmbedder
from doubles.text_generator import InMemoryTextGenerator

from mlxk.domain.errors import ExecutionError
from mlxk.domain.generation.conversation import Conversation
from mlxk.domain.generation.request import GenerationRequest
from mlxk.entrypoints.container import Container, build
from mlxk.entrypoints.http import sockets
from mlxk.entrypoints.http.handover import become_supervisor, orders_of
from mlxk.entrypoints.http.worker import run_supervised
from mlxk.entrypoints.settings import ServerSettings, Settings

STEP_SECONDS = 0.01


def answers(request: GenerationRequest) -> Sequence[str]:
    """Answer as the prompt says."""
    prompt = request.prompt.messages[-1].content if isinstance(request.prompt, Conversation) else request.prompt
    if prompt == "die":
        os._exit(9)
    if prompt == "Hello" and os.path.exists("fail-preload"):
        raise ExecutionError("the model cannot be loaded")
    return (" word",) * (request.settings.max_tokens or 10)


def scripted(settings: Settings, server: ServerSettings | None) -> Container:
    """Wire the program, but for its engine."""
    container = build(settings, server)
    container.adapters.text_generator.override(InMemoryTextGenerator(answers, STEP_SECONDS))
    container.adapters.speech_transcriber.override(InMemorySpeechTranscriber())
    container.adapters.text_embedder.override(InMemoryTextEmbedder())
    return container


def supervise(settings: ServerSettings) -> NoReturn:
    """Serve under a supervisor, saying the port on standard output when ready."""
    listening = sockets.listen(settings.host, settings.port)
    ready = json.dumps({"port": sockets.ports(listening)}) + "\n"
    source = os.getcwd() if settings.reload else ""
    here = (sys.executable, "-P", os.path.abspath(__file__))
    become_supervisor(listening, settings, ready, end=(*here, "--end"), source=source, worker=(*here, "--worker"))


def main(arguments: Sequence[str]) -> int:
    """Be the program, its worker, or what tells how it ended."""
    if arguments[0] == "--worker":
        status = run_supervised(orders_of(arguments[1:]), scripted)
        sys.stderr.flush()
        os._exit(status)
    if arguments[0] == "--end":
        sys.stdout.write(arguments[1] + "\n")
        return 1
    supervise(ServerSettings(**json.loads(arguments[0])))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
