"""Requests over the socket of a server: the same events as in this process, and nothing is lost when the server is."""

import gc
import os
import stat
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
from doubles.text_generator import InMemoryTextGenerator
from models.answers import read
from serving.running import eventually
from serving.shared import MODEL, PROGRAM, URL, SharedServer, is_taken, socket_folder_of

from mlxk.adapters.unix_socket.protocol import DisconnectedError, Program, decoded, encoded, receive, send
from mlxk.adapters.unix_socket.servers import socket_name
from mlxk.domain.embedding import EmbeddingRequest, EmbeddingSettings, ImageInput, InputKind
from mlxk.domain.errors import (
    Advice,
    CapabilityError,
    ContextLengthError,
    Remedy,
    ValidationError,
)
from mlxk.domain.generation.conversation import Conversation, Message, Role, ToolCall
from mlxk.domain.generation.grammar import ForcedCall, Grammar
from mlxk.domain.generation.media import DecodedAudio, DecodedImage
from mlxk.domain.generation.request import Finished, FinishReason, GenerationRequest, TextDelta
from mlxk.domain.generation.settings import Effort, EngineOptions, GenerationSettings
from mlxk.domain.models.model import ModelHandle, Origin

PROMPT = "one two three four"
OTHER = ModelHandle("org/two", "/cache/hub/two", Origin.CACHE, "2" * 40)
MESSAGES = (
    Message(Role.SYSTEM, "Be brief. \ud800 \u2028"),
    Message(Role.ASSISTANT, "", tool_calls=(ToolCall("f", '{"a": 1}', "c1"),), reasoning="hm"),
    Message(Role.TOOL, "2", tool_call_id="c1"),
    Message.of_parts("look", DecodedImage(1, 2, bytes(range(6)), "d" * 64), DecodedAudio(b"\0\1", "e" * 64)),
)
GRAMMAR = Grammar.json_schema({"type": "object", "properties": {"a": {"type": "integer"}}}, "field")
REQUESTS = {
    "plain": GenerationRequest(MODEL, PROMPT),
    "tokens": GenerationRequest(MODEL, (1, 2, 3), context_limit=10, keep_alive_seconds=float("inf")),
    "conversation": GenerationRequest(
        MODEL,
        Conversation(MESSAGES, ('{"type": "function"}',)),
        GenerationSettings(
            max_tokens=3, temperature=0.1, stop=("a", "b"), logit_bias=((1, -2.5),), seed=2**63, grammar=GRAMMAR
        ),
        thinking=True,
        effort=Effort.HIGH,
        template_options={"a": [1, {"b": None}], "c": ["value", "Finished", {}]},
        thinking_tags=("<a>", "</a>"),
        engine_options=EngineOptions("/x", ModelHandle("d", "/d", Origin.WORKSPACE, None, "./d"), 4),
        backends=("x",),
    ),
    "forced call": GenerationRequest(MODEL, "x", GenerationSettings(forced_call=ForcedCall("f", GRAMMAR))),
}


@pytest.fixture
def server(tmp_path: Path) -> SharedServer:
    """A server that does not listen yet."""
    return SharedServer(socket_folder_of(tmp_path))


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_a_request_arrives_as_it_was_sent(server: SharedServer, request_: GenerationRequest) -> None:
    with server.listening():
        read(server.sharing().submit(request_))
    (received,) = server.generator.requests
    assert received == request_
    assert server.local.requests == []


def test_the_events_are_those_of_the_server(server: SharedServer) -> None:
    request = GenerationRequest(MODEL, PROMPT, GenerationSettings(logprobs=1, echo=True, max_tokens=3))
    with server.listening():
        shared = list(server.sharing().submit(request))
    here = list(server.local.submit(request))
    assert shared == here
    assert isinstance(shared[-1], Finished)
    assert [type(each) for each in shared] == [type(each) for each in here]


def test_a_stream_that_was_read_is_not_kept(server: SharedServer) -> None:
    with server.listening():
        generator = server.sharing()
        stream = generator.submit(REQUESTS["plain"])
        read(stream)
        kept = weakref.ref(stream)
        del stream
        assert eventually(lambda: gc.collect() >= 0 and kept() is None, 10.0)


ERRORS = {
    "hint": ValidationError("top_p: no", hint="Try less.", matches=("a", "b"), detail={"problems": [1, {"a": "b"}]}),
    "advice": CapabilityError("no", hint=Advice(Remedy.USE_CHAT, {"name": "x"}), options=("tools",), fix=Remedy.FETCH),
    "no hint": ContextLengthError("too long"),
}


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
def test_an_error_in_the_answer_is_raised_with_all_that_it_says(server: SharedServer, error: Exception) -> None:
    server.generator = InMemoryTextGenerator(lambda _: ("begun", error))  # type: ignore[arg-type, return-value]
    with server.listening():
        stream = server.sharing().submit(REQUESTS["plain"])
        assert next(stream) == TextDelta("begun")
        with pytest.raises(type(error)) as raised:
            next(stream)
    assert vars(raised.value) == vars(error)


def test_an_error_before_the_answer_is_raised_at_once(server: SharedServer) -> None:
    server.generator = InMemoryTextGenerator(context_length=2)
    with server.listening(), pytest.raises(ContextLengthError, match="holds 2"):
        server.sharing().submit(REQUESTS["plain"])
    assert server.local.requests == []


def test_cancelling_a_stream_cancels_it_on_the_server(server: SharedServer) -> None:
    server.generator = InMemoryTextGenerator(lambda _: ("a",) * 100_000, step_seconds=0.001)
    with server.listening():
        with server.sharing().submit(REQUESTS["plain"]) as stream:
            next(stream)
            stream.cancel()
            *_, last = stream
        assert isinstance(last, Finished)
        assert last.reason is FinishReason.CANCELLED
        assert server.generator.streams[0].cancelled


def test_a_program_that_has_gone_ends_its_stream(server: SharedServer) -> None:
    server.generator = InMemoryTextGenerator(lambda _: ("a",) * 100_000, step_seconds=0.001)
    with server.listening():
        offer = server.servers().offer(MODEL)
        assert offer is not None
        send(offer.connection, {"request": encoded(REQUESTS["plain"], [])})
        receive(offer.connection)
        offer.connection.close()
        assert eventually(lambda: server.generator.streams[0].cancelled, 30)


def test_vectors_are_those_of_the_server_to_the_last_bit(server: SharedServer) -> None:
    settings = EmbeddingSettings(InputKind.QUERY, "task", 8, truncate=True)
    request = EmbeddingRequest(MODEL, ("a b c", (1, 2)), settings)
    with server.listening():
        found = server.embedding().embed(request)
        with pytest.raises(ValidationError, match="dimensions"):
            server.embedding().embed(EmbeddingRequest(MODEL, ("a",), EmbeddingSettings(dimensions=999)))
    assert server.embedder.requests[0] == request
    assert server.local_embedder.requests == []
    assert found == server.local_embedder.embed(request)


def test_images_and_several_vectors_of_an_input_cross_the_socket(server: SharedServer) -> None:
    picture = ImageInput(DecodedImage(2, 1, bytes(range(6)), "digest"), "beside it")
    request = EmbeddingRequest(MODEL, ("a b c", picture, "d"), EmbeddingSettings(prompt_name="sts"))
    server.embedder.several = server.local_embedder.several = True
    with server.listening():
        found = server.embedding().embed(request)
    assert (server.embedder.requests, server.local_embedder.requests) == ([request], [])
    assert found == server.local_embedder.embed(request)
    assert [len(each) for each in found.of_tokens] == [3, 3, 1]


DIFFERENCES = {
    "model cache": attrs.evolve(PROGRAM, cache="/other"),
    "workspace folder": attrs.evolve(PROGRAM, workspaces="/other"),
    "environment": attrs.evolve(PROGRAM, variables=(("MLX_DISABLE_COMPILE", "1"),)),
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_a_server_that_would_answer_otherwise_is_not_used_and_the_reason_is_known(
    server: SharedServer, name: str
) -> None:
    servers = server.servers()
    with server.listening(DIFFERENCES[name]):
        read(server.sharing(servers).submit(REQUESTS["plain"]))
    place = servers.last_place()
    assert place is not None
    assert (place.server, place.reason) == (None, f"the server {URL} has another {name}")
    assert len(server.local.requests) == 1


@attrs.frozen
class OtherProgram(Program):
    """A program that differs in one fact."""

    fact: str = ""

    def facts(self) -> dict[str, object]:
        """Return the facts with another one."""
        return {**Program.facts(self), self.fact: "other"}


@pytest.mark.parametrize("fact", ["version", "installation", "libraries"])
def test_a_server_of_another_version_is_not_used(server: SharedServer, fact: str) -> None:
    servers = server.servers(OtherProgram(PROGRAM.cache, PROGRAM.workspaces, fact=fact))
    with server.listening():
        assert servers.offer(MODEL) is None
    place = servers.last_place()
    assert place is not None
    assert place.reason == f"the server {URL} has another {fact}"


def test_what_is_installed_after_its_start_makes_a_server_one_of_another_version(
    server: SharedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with server.listening():
        assert is_taken(server)
        monkeypatch.setattr("mlxk.__version__", "99")
        assert not is_taken(server)


def test_a_model_is_listed_also_while_the_engine_has_no_time_to_report_it(
    server: SharedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.generator.load(REQUESTS["plain"])
    busy = attrs.evolve(server.generator.state(0), responding=False, residents=())
    monkeypatch.setattr(server.generator, "state", lambda _: busy)
    with server.listening():
        (listed,) = server.servers().servers()
        assert is_taken(server)
    assert [(each.handle, each.weight_bytes) for each in listed.models] == [(MODEL, 1000)]


def test_a_server_for_one_model_loads_no_other(server: SharedServer) -> None:
    server.loads = False
    with server.listening():
        assert not is_taken(server)
        server.generator.load(REQUESTS["plain"])
        assert is_taken(server)


def test_a_server_with_other_frames_is_not_used(server: SharedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with server.listening():
        servers = server.servers()
        monkeypatch.setattr("mlxk.adapters.unix_socket.servers.PROTOCOL", 2)
        assert servers.offer(MODEL) is None
        assert servers.servers() == ()
    place = servers.last_place()
    assert place is not None
    assert place.reason == f"the server {URL} is of another version"


def test_a_model_that_does_not_fit_beside_those_in_memory_is_computed_here(server: SharedServer) -> None:
    servers = server.servers()
    server.budget_bytes = 999
    with server.listening():
        read(server.sharing(servers).submit(REQUESTS["plain"]))
        assert len(server.local.requests) == 1
        server.generator.load(REQUESTS["plain"])  # now it has it
        read(server.sharing(servers).submit(REQUESTS["plain"]))
    assert len(server.generator.requests) == 1


@pytest.mark.parametrize(("size", "reason"), [(600, "has no room for"), (None, "has a model whose size")])
def test_a_server_that_is_busy_knows_what_its_models_take(
    server: SharedServer, monkeypatch: pytest.MonkeyPatch, size: int | None, reason: str
) -> None:
    server.generator.load(GenerationRequest(OTHER, PROMPT))
    busy = attrs.evolve(server.generator.state(0), responding=False, residents=())
    monkeypatch.setattr(server.generator, "state", lambda _: busy)
    server.budget_bytes = 1000
    server.sizes = {MODEL: 600, OTHER: size}
    servers = server.servers()
    with server.listening():
        assert servers.offer(MODEL) is None
    place = servers.last_place()
    assert place is not None
    assert place.reason is not None
    assert reason in place.reason


def test_a_server_that_is_full_has_the_request_computed_here(server: SharedServer) -> None:
    server.full = True
    servers = server.servers()
    with server.listening():
        assert read(server.sharing(servers).submit(REQUESTS["plain"])).text == PROMPT
    place = servers.last_place()
    assert place is not None
    assert place.reason == "the server says: The server is busy."


def test_without_a_server_requests_are_computed_here(server: SharedServer) -> None:
    servers = server.servers()
    assert read(server.sharing(servers).submit(REQUESTS["plain"])).text == PROMPT
    assert len(server.embedding().embed(EmbeddingRequest(MODEL, ("a",))).vectors) == 1
    place = servers.last_place()
    assert place is not None
    assert place.reason == "no server of this user is running"


def test_values_of_classes_that_are_not_listed_do_not_cross() -> None:
    with pytest.raises(TypeError, match="Path"):
        encoded(Path("/"), [])
    for document in (["value", "Path", {}], ["enum", "Role", "nobody"], ["blob", 3], ["other", 1], [1], []):
        with pytest.raises(DisconnectedError):
            decoded(document)


AS_NOBODY = (
    "import os, socket; os.setgroups([]); os.setgid(65534); os.setuid(65534); c = socket.socket(socket.AF_UNIX); "
)
"""Begins a script that becomes another user."""


@pytest.fixture
def passable(tmp_path: Path) -> Iterator[None]:
    """Let other users pass through the folders of this test."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    closed = [folder for folder in (tmp_path, *tmp_path.parents) if folder.stat().st_mode & 0o005 != 0o005]
    modes = {folder: stat.S_IMODE(folder.stat().st_mode) for folder in closed}
    for folder in closed:
        folder.chmod(0o755)
    yield
    for folder, mode in modes.items():
        folder.chmod(mode)


@pytest.mark.usefixtures("passable")
def test_another_user_reaches_no_server(server: SharedServer) -> None:
    path = f"{server.folder}/{socket_name(os.getpid())}"
    script = f"{AS_NOBODY} c.settimeout(30); c.connect('{path}'); print(c.recv(1))"

    def connect() -> "subprocess.CompletedProcess[str]":
        return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)

    with server.listening():
        assert "PermissionError" in connect().stderr
        # Also where the folder lets everybody in, the kernel says who it is.
        for each in (os.path.dirname(server.folder), server.folder, path):
            os.chmod(each, 0o777)
        done = connect()
    assert done.stdout.strip() == "b''" or "ConnectionResetError" in done.stderr, done


@pytest.mark.usefixtures("passable")
def test_the_server_of_another_user_is_not_used(server: SharedServer) -> None:
    os.makedirs(server.folder, mode=0o700)
    os.chown(server.folder, 65534, 65534)
    script = f"{AS_NOBODY} c.bind('{server.folder}/1.sock'); c.listen(); print('listening', flush=True); c.accept()"
    servers = server.servers()
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert servers.offer(MODEL) is None  # not his folder
        os.chown(server.folder, 0, 0)
        assert servers.offer(MODEL) is None  # nor his server
        process.kill()
    place = servers.last_place()
    assert place is not None
    assert place.reason == "no server of this user is running"
