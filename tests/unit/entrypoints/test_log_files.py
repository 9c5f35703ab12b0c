"""Which file a server's log is, and what becomes of the one before it."""

import os
from pathlib import Path

import pytest

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
