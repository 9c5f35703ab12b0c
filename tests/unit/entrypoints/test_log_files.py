"""Which file a server's log is, and what becomes of the one before it."""

import os
from pathlib import Path

import pytest

from mlxk.domain.errors import StorageError
from mlxk.entrypoints import server_log


def test_a_log_gets_the_name_of_its_port_and_the_one_before_it_is_put_aside(tmp_path: Path) -> None:
    state = str(tmp_path)
    for text in ("one", "two", "three"):
        path = server_log.make_for_start(state)
        Path(path).write_text(text)
        assert server_log.rename(path, state, "server-8000") == server_log.path_of(state, "server-8000")
    logs = {each.name: each.read_text() for each in (tmp_path / "logs").iterdir()}
    assert logs == {"server-8000.log": "three", "server-8000.log.1": "two"}
    assert server_log.newest(state) == server_log.path_of(state, "server-8000")


@pytest.mark.parametrize(("text", "kept"), [("why", {"server-failed.log"}), ("", set())])
def test_the_log_of_a_start_that_failed_is_kept_where_it_says_something(
    tmp_path: Path, text: str, kept: set[str]
) -> None:
    path = server_log.make_for_start(str(tmp_path))
    Path(path).write_text(text)
    server_log.keep_failed(path, str(tmp_path))
    assert set(os.listdir(tmp_path / "logs")) == kept


@pytest.mark.parametrize(("starts", "kept"), [(True, {"service.log", "service.log.1"}), (False, {"service.log"})])
def test_a_large_log_is_put_aside_only_when_its_server_starts(tmp_path: Path, starts: bool, kept: set[str]) -> None:
    path = server_log.make(str(tmp_path), "service")
    os.truncate(path, server_log.MOST_KEPT_BYTES + 1)
    server_log.make(str(tmp_path), "service", starts=starts)
    assert set(os.listdir(tmp_path / "logs")) == kept


def test_a_log_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("in the way")
    path = server_log.path_of(str(tmp_path), "service")
    with pytest.raises(StorageError) as caught:
        server_log.make(str(tmp_path), "service")
    assert caught.value.message == f"the log '{path}' cannot be written: File exists"
    assert caught.value.hint == "XDG_STATE_HOME says where logs are kept."


def test_a_link_in_place_of_a_log_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    other = tmp_path / "other"
    other.write_text("kept")
    Path(server_log.path_of(str(tmp_path), "service")).symlink_to(other)
    with pytest.raises(StorageError, match="cannot be written: "):
        server_log.make(str(tmp_path), "service")
    assert other.read_text() == "kept"


def test_a_log_that_cannot_get_another_name_keeps_its_own(tmp_path: Path) -> None:
    state = str(tmp_path)
    path = server_log.make_for_start(state)
    Path(path).write_text("one")
    Path(server_log.path_of(state, "server-8000")).mkdir()
    assert server_log.rename(path, state, "server-8000") == path
    assert Path(path).read_text() == "one"


def test_a_log_that_was_removed_is_not_missed(tmp_path: Path) -> None:
    path = server_log.make_for_start(str(tmp_path))
    os.unlink(path)
    server_log.keep_failed(path, str(tmp_path))
    assert os.listdir(tmp_path / "logs") == []


def test_ports_are_listed_by_number_and_other_logs_are_not(tmp_path: Path) -> None:
    assert server_log.ports(str(tmp_path)) == []
    for name in ("server-9000", "server-80", "server-starting-7", "service", "server-failed"):
        server_log.make(str(tmp_path), name)
    assert server_log.ports(str(tmp_path)) == [80, 9000]
