"""``mlxk serve`` with scripted answers in place of an engine: the real supervisor, worker, sockets and signals.

Run as a program: the first argument is the settings as JSON. The supervisor starts the same file as its worker, and
with ``reload`` takes the working directory for the program's source.
An answer repeats ``word`` as often as the request allows; a prompt of ``die`` ends the worker at once. One that is an
object of JSON is answered with its ``say``, so many ``times``, behind its ``before``, in so many ``pieces``.
"""

import json
import os
import sys
from collections.abc import Sequence

sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from doubles.document_reranker import InMemoryDocumentReranker
from doubles.model_tokenizer import InMemoryModelTokenizer
from doubles.speech_synthesizer import InMemorySpeechSynthesizer
from doubles.speech_transcriber import InMemorySpeechTranscriber
from doubles.text_embedder import InMemoryTextEmbedder
from doubles.text_generator import InMemoryTextGenerator

from mlxk.domain.errors import ExecutionError, MlxkError
from mlxk.domain.generation.conversation import Conversation
from mlxk.domain.generation.request import GenerationRequest
from mlxk.entrypoints.container import Container, build
from mlxk.entrypoints.http.process.serve import announce
from mlxk.entrypoints.http.process.sockets import listen, port_of
from mlxk.entrypoints.http.process.supervisor import Supervisor
from mlxk.entrypoints.http.process.worker import main as run_worker
from mlxk.entrypoints.settings import ServerSettings, Settings

STEP_SECONDS = float(os.environ.get("STEP_SECONDS", "0.01"))


def answers(request: GenerationRequest) -> Sequence[str]:
    """Answer as the prompt says."""
    prompt = request.prompt.messages[-1].content if isinstance(request.prompt, Conversation) else request.prompt
    if prompt == "die":
        os._exit(9)
    if prompt == "Hello" and os.path.exists("fail-preload"):
        raise ExecutionError("the model cannot be loaded")
    if prompt.startswith('{"say":'):
        wanted = json.loads(prompt)
        text = wanted["before"] + wanted["say"] * wanted["times"]
        size = -(-len(text) // wanted["pieces"])
        return [text[start : start + size] for start in range(0, len(text), size)]
    return (" word",) * (request.settings.max_tokens or 10)


def scripted(settings: Settings, server: ServerSettings | None) -> Container:
    """Wire the program, but for its engine."""
    container = build(settings, server)
    container.adapters.text_generator.override(InMemoryTextGenerator(answers, STEP_SECONDS))
    container.adapters.model_tokenizer.override(InMemoryModelTokenizer())
    container.adapters.speech_transcriber.override(InMemorySpeechTranscriber())
    container.adapters.speech_synthesizer.override(InMemorySpeechSynthesizer())
    container.adapters.text_embedder.override(InMemoryTextEmbedder())
    container.adapters.document_reranker.override(InMemoryDocumentReranker())
    return container


def supervise(settings: ServerSettings) -> int:
    """Serve under a supervisor, writing the port to standard output when ready."""
    sockets = listen(settings.host, settings.port)
    line = json.dumps({"port": port_of(sockets)}) + "\n"
    command = (sys.executable, "-P", os.path.abspath(__file__), "--worker")
    source = os.getcwd() if settings.reload else None
    return Supervisor(settings, sockets, lambda: announce(line), source, command).run()


def main(arguments: Sequence[str]) -> int:
    """Be the supervisor or its worker; an error is written to standard output."""
    if arguments[0] == "--worker":
        del sys.argv[1]
        run_worker(scripted)
    try:
        return supervise(ServerSettings(**json.loads(arguments[0])))
    except MlxkError as error:
        sys.stdout.write(json.dumps({"message": error.message}) + "\n")
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
