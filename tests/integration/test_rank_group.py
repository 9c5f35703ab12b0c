"""What rank 0 refuses before a group computes: other versions, other files, strangers, ranks that end, and models."""

import socket
import sys
import textwrap
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from doubles.event_log import InMemoryEventLog
from models import tiny_models

from mlxk.adapters.mlx.ranks.channel import versions
from mlxk.adapters.mlx.ranks.follower import RankSurroundings, content_digest
from mlxk.adapters.mlx.ranks.group import RankGroup
from mlxk.adapters.mlx.ranks.launch import Launch, RankPlace, RankPlan, launched
from mlxk.adapters.mlx.ranks.ring import Ring
from mlxk.domain.errors import ExecutionError, IncompatibleModelError, MlxkError, RankLostError
from mlxk.domain.models.footprint import WeightForm
from mlxk.domain.ranks import Division, RankHost

pytestmark = pytest.mark.mlx

RANK = """
import json, socket, sys
from mlxk.adapters.mlx.ranks.channel import introduce
orders = json.loads(sys.stdin.readline())
{before}
channel = introduce((orders["address"], orders["port"]), orders["key"], {{"rank": 1, "versions": {versions}}}, 5.0)
channel.receive()
channel.send({answer})
channel.receive()
"""
SAME = versions("1.0")


def started(
    refused: Callable[[RankGroup], MlxkError],
    program: str,
    same_files: bool = True,
    ranks: int = 2,
    silent_seconds: float = 5.0,
) -> Any:
    """Start ranks that run a program, have a group refused, and return the error with the log."""
    place = RankPlace("rank 1 on that", (sys.executable, "-c", program), "127.0.0.1")
    log, losses = InMemoryEventLog(), list[RankLostError]()
    launch = Launch(RankPlan("127.0.0.1", (place,) * (ranks - 1), same_files, silent_seconds=silent_seconds))
    by = RankSurroundings("1.0", lambda variables: nullcontext())
    error = refused(RankGroup(launch, log, by, losses.append))
    assert not losses
    return error, log


def rank(answer: object = None, before: str = "", **changes: str) -> str:
    """Return a program of a rank."""
    return textwrap.dedent(RANK).format(versions={**SAME, **changes}, answer=answer, before=before)


@pytest.fixture
def refused(tmp_path: Path) -> Callable[[RankGroup], MlxkError]:
    """Return what loads a model into a group that refuses it."""
    handle = tiny_models.build(tmp_path / "spread", "llama")

    def refuse(group: RankGroup) -> MlxkError:
        with pytest.raises(MlxkError) as caught:
            group.load(handle, WeightForm.STORED)
        return caught.value

    return refuse


@pytest.mark.parametrize("package", ["mlxk", "mlx", "mlx-lm"])
def test_another_version_is_refused_by_name(package: str, refused: Callable[[RankGroup], MlxkError]) -> None:
    error, _ = started(refused, rank(**{package: "0.0.1"}))
    assert isinstance(error, ExecutionError)
    assert error.message == f"rank 1 on that has {package} 0.0.1, and this process {SAME[package]}."


@pytest.mark.parametrize(("same_files", "digest"), [(True, "other"), (False, "sha256:theirs"), (False, None)])
def test_other_files_are_refused(
    same_files: bool, digest: str | None, refused: Callable[[RankGroup], MlxkError]
) -> None:
    error, _ = started(refused, rank({"digest": digest, "port": 1}), same_files)
    assert isinstance(error, ExecutionError)
    assert "rank 1 on that has other files of" in error.message


def test_the_digest_of_a_model_changes_with_any_byte_and_not_with_its_place(tmp_path: Path) -> None:
    handle, elsewhere = (tiny_models.build(tmp_path / name / "spread", "llama") for name in ("one", "two"))
    before = content_digest(handle)
    assert content_digest(elsewhere) == before
    (tmp_path / "two" / "spread" / "README.md").write_text("of another machine")
    assert content_digest(elsewhere) == before
    weights = tmp_path / "two" / "spread" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1000] ^= 1
    weights.write_bytes(data)
    assert content_digest(elsewhere) != before


def test_a_rank_that_cannot_take_part_says_why(refused: Callable[[RankGroup], MlxkError]) -> None:
    error, _ = started(refused, rank({"failed": "no model found", "lost_another": False}))
    assert error.message == "rank 1 on that cannot take part: no model found"


def test_a_rank_that_hangs_is_lost_by_its_silence(refused: Callable[[RankGroup], MlxkError]) -> None:
    hanging = rank().replace("channel.send(None)", "import os; os.kill(os.getpid(), 19)")
    error, _ = started(refused, hanging, silent_seconds=1.0)
    assert isinstance(error, RankLostError)
    assert "rank 1 on that has been silent for 1 seconds" in error.message


def test_a_step_that_is_never_done_ends_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlxk.adapters.mlx.ranks.group.LOOK_SECONDS", 0.01)
    launch = Launch(RankPlan("127.0.0.1", (), True, silent_seconds=0.01))
    by = RankSurroundings("1.0", lambda variables: nullcontext())
    group = RankGroup(launch, InMemoryEventLog(), by, lambda loss: None, lambda: False)
    group._watch_steps()
    with pytest.raises(RankLostError, match=r"has not done a step within 0\.06 seconds"):
        group.require_complete()


def test_neighbours_that_do_not_reach_each_other_are_named() -> None:
    ring, other = Ring("127.0.0.1"), Ring("127.0.0.1")
    addresses = [f"127.0.0.1:{each.port}" for each in (ring, other)]
    with pytest.raises(RankLostError, match=f"rank 1 has not reached rank 0 at {addresses[0]}"):
        ring.meet(0, addresses, 0.1)
    with pytest.raises(RankLostError, match=f"rank 1 cannot reach rank 0 at {addresses[0]}: Connection refused"):
        other.meet(1, addresses, 0.1)


def test_the_connections_of_a_ring_are_found_by_their_addresses_and_ended_with_it() -> None:
    ring = Ring("127.0.0.1")
    ring._addresses = [f"127.0.0.1:{ring.port}"]
    with (
        socket.create_connection(("127.0.0.1", ring.port)) as neighbour,
        ring._listener.accept()[0],
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as stranger,
        server.accept()[0] as answering,
    ):
        ring.break_up()
        assert neighbour.recv(1) == b""
        answering.sendall(b"x")
        assert stranger.recv(1) == b"x"


def test_a_rank_that_ends_is_named_with_its_last_words(refused: Callable[[RankGroup], MlxkError]) -> None:
    error, _ = started(refused, "import sys; sys.exit('no such thing')")
    assert isinstance(error, RankLostError)
    assert error.message == "rank 1 on that ended while it was started: no such thing"


STRANGERS = """
from struct import pack
for sent in (b"GET / HTTP/1.1\\r\\n\\r\\n", pack(">I", 2**31), pack(">I", 2) + b"[]", pack(">I", 4) + b"\\x80abc"):
    with socket.create_connection((orders["address"], orders["port"])) as stranger:
        stranger.sendall(sent)
        while stranger.recv(100): pass
orders["key"] = orders["key"][::-1] if {wrong} else orders["key"]
"""


def test_strangers_are_turned_away_and_ranks_let_in(refused: Callable[[RankGroup], MlxkError]) -> None:
    error, log = started(refused, rank({"failed": "as a rank", "lost_another": False}, STRANGERS.format(wrong=False)))
    assert "as a rank" in error.message
    assert [each.event for each in log.events] == ["a connection that is no rank's was refused"] * 4


def test_a_rank_with_another_key_is_no_rank(refused: Callable[[RankGroup], MlxkError]) -> None:
    error, _ = started(refused, rank({"failed": "as a rank", "lost_another": False}, STRANGERS.format(wrong=True)))
    assert "as a rank" not in error.message


@pytest.mark.parametrize(("architecture", "ranks"), [("lfm2", 2), ("llama", 3)])
def test_a_model_that_is_not_divided_is_refused_before_any_rank_has_loaded(
    architecture: str, ranks: int, tmp_path: Path
) -> None:
    handle = tiny_models.build(tmp_path / "spread", architecture)

    def refuse(group: RankGroup) -> MlxkError:
        with pytest.raises(IncompatibleModelError) as caught:
            group.load(handle, WeightForm.STORED)
        return caught.value

    error, _ = started(refuse, "import time; time.sleep(60)", ranks=ranks)
    assert "lfm2" in error.message if ranks == 2 else "(4) are no multiple of 3" in error.message


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(RankLostError, match="cannot listen"):
        Ring("192.0.2.1")
    with pytest.raises(ExecutionError, match="cannot listen"):
        Launch(RankPlan("192.0.2.1", (), False))


def test_the_port_for_ranks_is_bound_to_the_address_that_is_given() -> None:
    launch = Launch(RankPlan("127.0.0.1", (), True))
    try:
        port = launch._listener.getsockname()[1]
        with pytest.raises(OSError, match="refused"), socket.create_connection(("127.0.0.2", port), timeout=5):
            pass
    finally:
        launch.end(0.0)


def test_a_rank_of_another_host_is_started_by_ssh_and_never_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[[RankGroup], MlxkError]
) -> None:
    typed = tmp_path / "typed"
    (tmp_path / "ssh").write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {typed}\necho no route to host >&2\nexit 255\n')
    (tmp_path / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    hosts = (RankHost("one", "127.0.0.1"), RankHost("ada@two", "192.0.2.2", "/opt/my tools/python"))
    launch = launched(Division(hosts, same_files=False, silent_seconds=5.0), "mlxk.entrypoints.rank", {})
    assert launch is not None
    by = RankSurroundings("1.0", lambda variables: nullcontext())
    error = refused(RankGroup(launch, InMemoryEventLog(), by, lambda loss: None))
    assert error.message == "rank 1 on ada@two ended while it was started: no route to host"
    words = typed.read_text().splitlines()
    assert words[-5:] == ["-T", "-o", "BatchMode=yes", "ada@two", "'/opt/my tools/python' -P -m mlxk.entrypoints.rank"]
