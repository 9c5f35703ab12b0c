"""Servers that die, reply with nonsense or do not reply, and programs that send it: nothing is lost."""

import contextlib
import os
import signal
import socket
import subprocess
import threading
from pathlib import Path

import attrs
import pytest
from doubles.text_embedder import InMemoryTextEmbedder
from doubles.text_generator import InMemoryTextGenerator
from models.answers import read
from process_limits import no_further_threads
from serving.shared import MODEL, URL, SharedServer, socket_folder_of

from mlxk.adapters.unix_socket.listener import MAX_CONNECTIONS
from mlxk.adapters.unix_socket.protocol import MAX_BLOBS, PROTOCOL, DisconnectedError, encoded, receive, send
from mlxk.adapters.unix_socket.servers import socket_name
from mlxk.adapters.unix_socket.sharing import SharedTextEmbedder
from mlxk.application.ports.other_processes import ComputingPlace, RunningServer
from mlxk.application.ports.text_generator import ResidentModel
from mlxk.domain.embedding import EmbeddingRequest
from mlxk.domain.errors import ExecutionError
from mlxk.domain.generation.conversation import Conversation, Message
from mlxk.domain.generation.media import DecodedImage
from mlxk.domain.generation.request import EngineFigures, GenerationRequest, TextDelta
from mlxk.domain.models.model import ModelHandle

PROMPT = "one two three four"
REQUEST = GenerationRequest(MODEL, PROMPT)


@pytest.fixture
def server(tmp_path: Path) -> SharedServer:
    """A server that does not listen yet."""
    return SharedServer(socket_folder_of(tmp_path))


def listener_at(server: SharedServer, process: int = 1) -> socket.socket:
    """Return a socket of a server that a test plays."""
    os.makedirs(server.folder, mode=0o700, exist_ok=True)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(f"{server.folder}/{socket_name(process)}")
    listening.listen()
    return listening


def test_a_stale_socket_is_harmless_and_goes_with_the_next_server(server: SharedServer) -> None:
    with subprocess.Popen(["true"]) as ended:
        pass
    listener_at(server, ended.pid).close()
    assert read(server.sharing().submit(REQUEST)).text == PROMPT
    assert server.servers().servers() == ()
    assert os.listdir(server.folder) == [socket_name(ended.pid)]
    with server.listening():
        assert os.listdir(server.folder) == [socket_name(os.getpid())]
    assert os.listdir(server.folder) == []


def serve_once(listening: socket.socket, *replies: object) -> threading.Thread:
    """Answer each frame of one connection with the next reply; bytes are sent as they are, then it is closed."""

    def serve() -> None:
        connection, _ = listening.accept()
        with connection, contextlib.suppress(DisconnectedError, OSError):
            for reply in replies:
                receive(connection)
                for each in reply if isinstance(reply, list) else [reply]:
                    connection.sendall(each) if isinstance(each, bytes) else send(connection, each)

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


OFFER = {"url": URL, "offer": "loaded", "reason": ""}
STARTED = {"started": {"adaptations": encoded((), []), "prompt_tokens": 3}}
BEGUN = {"events": [encoded(TextDelta("one"), [])]}
DEATHS: dict[str, tuple[object, ...]] = {
    "at once": (),
    "after its offer": (OFFER,),
    "after the start": (OFFER, STARTED),
    "with an unknown class": (OFFER, [STARTED, {"events": [["value", "Popen", {"args": "id"}]]}]),
    "with wrong fields": (OFFER, [STARTED, {"events": [["value", "TextDelta", {"nonsense": 1}]]}]),
    "with a reply of another kind": (OFFER, {"what": 1}),
    "with garbage": (b"HTTP/1.1 400 Bad Request\r\n\r\n",),
    "with garbage after its offer": (OFFER, b"\xff" * 64),
    "with what is not JSON": (b"\0\0\0\1\0\0\0\0{",),
    "with no object": (b"\0\0\0\1\0\0\0\x001",),
    "with an error that is none": (OFFER, {"error": {"code": "validation_error"}}),
    "with an error of another kind": (OFFER, {"error": [1]}),
    "within a frame": (OFFER, b"\0\0\0\x10\0\0\0\0{"),
}


@pytest.mark.parametrize("replies", DEATHS.values(), ids=DEATHS)
def test_a_server_that_ends_before_its_first_event_is_replaced_by_this_process(
    server: SharedServer, replies: tuple[object, ...]
) -> None:
    with listener_at(server) as listening:
        thread = serve_once(listening, *replies)
        assert read(server.sharing().submit(REQUEST)).text == PROMPT
        thread.join()
    assert len(server.local.requests) == 1


@pytest.mark.parametrize("last", [BEGUN, [BEGUN, b"\xff" * 64]], ids=["closed", "garbage"])
def test_a_server_that_ends_within_an_answer_is_reported(server: SharedServer, last: object) -> None:
    with listener_at(server) as listening:
        thread = serve_once(listening, OFFER, [STARTED, *(last if isinstance(last, list) else [last])])
        stream = server.sharing().submit(REQUEST)
        assert next(stream) == TextDelta("one")
        with pytest.raises(ExecutionError, match="has ended") as raised:
            next(stream)
        thread.join()
    assert raised.value.hint
    assert server.local.requests == []


def test_an_error_of_this_process_is_raised_where_it_replaces_a_server(server: SharedServer) -> None:
    server.local = InMemoryTextGenerator(lambda _: (ExecutionError("it failed here"),))
    with listener_at(server) as listening:
        thread = serve_once(listening, OFFER, STARTED)
        with pytest.raises(ExecutionError, match=r"^it failed here$"):
            read(server.sharing().submit(REQUEST))
        thread.join()


def test_an_embedding_server_that_declines_is_replaced_and_its_reason_known(server: SharedServer) -> None:
    servers = server.servers()
    embedder = SharedTextEmbedder(lambda: server.local_embedder, servers)
    with listener_at(server) as listening:
        thread = serve_once(listening, OFFER, {"declined": "The server is busy."})
        assert len(embedder.embed(EmbeddingRequest(MODEL, ("a",))).vectors) == 1
        thread.join()
    assert servers.last_place() == ComputingPlace(None, "the server says: The server is busy.")


def test_a_request_with_too_many_parts_for_the_socket_is_computed_here(server: SharedServer) -> None:
    image = DecodedImage(1, 1, bytes(3), "d" * 64)
    message = Message.of_parts("look", *[image] * (MAX_BLOBS + 1))
    servers = server.servers()
    with server.listening():
        read(server.sharing(servers).submit(GenerationRequest(MODEL, Conversation((message,)))))
    assert (len(server.generator.requests), len(server.local.requests)) == (0, 1)
    assert servers.last_place() == ComputingPlace(None, "the request is too large for the socket")


def test_what_is_no_request_for_a_socket_is_asked_of_this_process(server: SharedServer) -> None:
    sharing = server.sharing()
    with server.listening():
        sharing.load(REQUEST)
        assert server.generator.state(0).models == ()
        assert (server.local.state(0).models, sharing.state(0).models) == ((MODEL,), (MODEL,))
        assert sharing.unload(MODEL) == (MODEL,)
        assert sharing.state(0).models == ()


def test_a_server_that_cannot_read_the_model_is_not_used(server: SharedServer) -> None:
    server.sizes, server.budget_bytes = {MODEL: None}, 10_000
    servers = server.servers()
    with server.listening():
        assert servers.offer(MODEL) is None
    assert servers.last_place() == ComputingPlace(None, f"the server {URL} cannot read the model")


def test_the_engine_of_a_server_knows_whether_the_program_is_still_there(server: SharedServer) -> None:
    asked, gone, told = threading.Event(), threading.Event(), threading.Event()
    answers: list[bool] = []

    def answer(request: GenerationRequest) -> tuple[str, ...]:
        answers.append(request.is_abandoned())
        asked.set()
        assert gone.wait(60)
        answers.append(request.is_abandoned())
        told.set()
        return ()

    server.generator = InMemoryTextGenerator(answer)
    with server.listening():
        offer = server.servers().offer(MODEL)
        assert offer is not None
        with offer.connection:
            send(offer.connection, {"request": encoded(REQUEST, [])})
            assert asked.wait(60)
        gone.set()
        assert told.wait(60)
    assert answers == [False, True]


def test_an_embedding_server_that_ends_is_replaced_by_this_process(server: SharedServer) -> None:
    with listener_at(server) as listening:
        thread = serve_once(listening, OFFER, b"")
        assert len(server.embedding().embed(EmbeddingRequest(MODEL, ("a",))).vectors) == 1
        thread.join()


def test_a_server_that_does_not_reply_is_given_up(server: SharedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlxk.adapters.unix_socket.servers.REPLY_SECONDS", 0.1)
    servers = server.servers()
    with listener_at(server):
        assert servers.offer(MODEL) is None
    place = servers.last_place()
    assert place is not None
    assert place.reason == "the server does not respond"


def test_the_server_that_has_the_model_is_chosen_among_several(server: SharedServer) -> None:
    without = {"url": "http://without", "offer": "fits", "reason": ""}
    server.generator.load(REQUEST)
    with server.listening(), listener_at(server, 1) as first, listener_at(server, 9999999) as last:
        thread = serve_once(first, without)
        servers = server.servers()
        assert read(server.sharing(servers).submit(REQUEST)).text == PROMPT
        place = servers.last_place()
        thread.join()
        last.setblocking(False)
        with pytest.raises(BlockingIOError):  # no other one is asked after it
            last.accept()
    assert place is not None
    assert place.server == URL


FRAMES = {
    "nothing": b"",
    "a short header": b"\0\0",
    "a huge document": b"\xff\xff\xff\xff\0\0\0\0",
    "too many blobs": b"\0\0\0\2\xff\xff\xff\xff{}",
    "a huge blob": b"\0\0\0\2\0\0\0\1" + b"\xff" * 8 + b"{}",
    "deep nesting": b"\0\1\x86\xa0\0\0\0\0" + b"[" * 100_000,
    "another protocol": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
}


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
def test_a_server_survives_what_is_no_request(server: SharedServer, frame: bytes) -> None:
    with server.listening():
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(f"{server.folder}/{socket_name(os.getpid())}")
            connection.sendall(frame)
            connection.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionError):
                assert connection.recv(1) == b""
        assert read(server.sharing().submit(REQUEST)).text == PROMPT
    assert len(server.generator.requests) == 1


@pytest.mark.parametrize("model", [None, 5, encoded(REQUEST, []), ["value", "Popen", {"args": "id"}]])
def test_a_server_closes_the_connection_of_who_names_no_model(server: SharedServer, model: object) -> None:
    with server.listening(), connected_to(server) as connection:
        send(connection, {"protocol": PROTOCOL, "operation": "unload", "model": model})
        assert connection.recv(1) == b""


@pytest.mark.parametrize(
    "state", [{}, {"models": 5}, {"models": [], "pid": "x", "url": "", "version": ""}, b"\xff" * 64]
)
def test_a_server_that_describes_itself_with_nonsense_is_not_listed(server: SharedServer, state: object) -> None:
    with listener_at(server) as listening:
        thread = serve_once(listening, state)
        assert server.servers().servers() == ()
        thread.join()


@pytest.mark.parametrize("replies", [(), (b"\xff" * 64,), ({},), ([{}, b"x"],)], ids=["none", "garbage", "end", "more"])
def test_a_server_that_ends_while_it_is_asked_to_has_stopped_and_unloads_nothing(
    server: SharedServer, replies: tuple[object, ...]
) -> None:
    with listener_at(server) as listening:
        playing = RunningServer(f"{server.folder}/{socket_name(1)}", os.getpid(), URL, "0", ())
        thread = serve_once(listening, *replies)
        server.servers().stop(playing)
        thread.join()
        thread = serve_once(listening, b"\xff" * 64)
        with pytest.raises(ExecutionError) as raised:
            server.servers().unload(playing, ResidentModel(MODEL, 0, None))
        thread.join()
    assert raised.value.message == f"the server {URL} (process {os.getpid()}) does not respond"


def test_a_model_is_unloaded_later_while_the_engine_has_no_time(
    server: SharedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.generator.load(REQUEST)
    loading, unload = threading.Event(), server.generator.unload
    unloaded = threading.Event()

    def unload_later(model: ModelHandle | None = None, *, once_idle: bool = False) -> tuple[ModelHandle, ...]:
        assert loading.wait(60)
        gone = unload(model, once_idle=once_idle)
        unloaded.set()
        return gone

    monkeypatch.setattr(server.generator, "unload", unload_later)
    with server.listening():
        (listed,) = server.servers().servers()
        try:
            assert not server.servers().unload(listed, listed.models[0])
        finally:
            loading.set()
        assert unloaded.wait(60)
        assert server.servers().servers()[0].models == ()


def test_what_a_newer_server_says_beyond_what_is_known_is_ignored(server: SharedServer) -> None:
    class_name, fields = encoded(MODEL, [])[1:]
    handle = ["value", class_name, {**fields, "shards": ["tuple", [["value", "Shard", {}]]]}]
    engine = attrs.asdict(EngineFigures(1, 2, 3, 4, 5, 6, 7))
    state = {
        "pid": 4242,
        "url": URL,
        "version": "99.0",
        "models": [{"handle": handle, "weight_bytes": 8, "idle_seconds_left": None, "pinned": True}],
        "engine": {**engine, "wishes": 9},
    }
    with listener_at(server, 4242) as listening:
        thread = serve_once(listening, state)
        (listed,) = server.servers().servers()
        thread.join()
    assert (listed.process, listed.version, listed.engine) == (4242, "99.0", EngineFigures(1, 2, 3, 4, 5, 6, 7))
    assert listed.models == (ResidentModel(MODEL, 8, None),)


def test_a_connection_without_a_thread_is_closed_and_later_ones_are_served(server: SharedServer) -> None:
    with server.listening():
        with no_further_threads():
            for _ in range(MAX_CONNECTIONS + 1):
                with connected_to(server) as connection:
                    assert connection.recv(1) == b""
        assert read(server.sharing().submit(REQUEST)).text == PROMPT
    assert len(server.generator.requests) == 1
    assert len(server.log.named("no thread can be started for another program")) == MAX_CONNECTIONS + 1


def test_every_program_that_stops_a_server_waits_until_it_has_ended(
    server: SharedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    signals: list[tuple[int, int]] = []
    monkeypatch.setattr("os.kill", lambda *what: signals.append(what))
    with server.listening(), contextlib.ExitStack() as connections:
        stopping = [connections.enter_context(connected_to(server)) for _ in range(3)]
        for each in stopping:
            send(each, {"protocol": PROTOCOL, "operation": "stop"})
            assert receive(each)[0] == {}
        for each in stopping:
            each.settimeout(0.2)
            with pytest.raises(TimeoutError):  # it does not end while the server goes on
                each.recv(1)
    assert signals == [(server.owner, signal.SIGTERM)]


@pytest.mark.parametrize("kind", ["generate", "embed"])
def test_a_program_that_takes_none_of_its_answer_gives_its_place_back(
    server: SharedServer, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr("mlxk.adapters.unix_socket.listener.SEND_SECONDS", 1)
    server.generator = InMemoryTextGenerator(lambda _: ("a" * 2**20,) * 100)
    server.embedder = InMemoryTextEmbedder(2**16)
    texts = EmbeddingRequest(MODEL, ("a",) * 10)
    given_back = threading.Event()
    monkeypatch.setattr(SharedServer, "_admit", lambda _: given_back.set)
    with server.listening():
        offer = server.servers().offer(MODEL)
        assert offer is not None
        with offer.connection as connection:
            send(connection, {"request": encoded(REQUEST if kind == "generate" else texts, [])})
            assert given_back.wait(60)
    assert len(server.generator.requests) + len(server.embedder.requests) == 1


def connected_to(server: SharedServer) -> socket.socket:
    """Return a connection to a server of this process."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(60)
    connection.connect(f"{server.folder}/{socket_name(os.getpid())}")
    return connection
