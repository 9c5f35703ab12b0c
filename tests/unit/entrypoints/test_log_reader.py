"""A log that grows, goes, comes back and is emptied while it is read."""

import os
from pathlib import Path

import pytest

from mlxk.domain.errors import StorageError
from mlxk.entrypoints.server_log import MOST_READ_BYTES, LogReader


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log of two lines."""
    path = tmp_path / "server-8000.log"
    path.write_bytes(b"one\ntwo\n")
    return path


def add(log: Path, data: bytes) -> None:
    """Append bytes."""
    with log.open("ab") as file:
        file.write(data)


def test_a_letter_that_is_written_in_two_parts_is_one(log: Path) -> None:
    add(log, "caf\u00e9".encode()[:-1])
    with LogReader(str(log)) as reader:
        assert reader.last(9, whole=True) == (["one", "two"], False)
        assert reader.further() == []
        add(log, "\u00e9\n\U0001f388".encode()[1:-2])
        assert reader.further() == ["caf\u00e9"]
        add(log, "\U0001f388\n".encode()[2:])
        assert reader.further() == ["\U0001f388"]


def test_a_last_line_without_an_end_is_shown_where_nothing_follows(log: Path) -> None:
    add(log, b"thr")
    with LogReader(str(log)) as reader:
        assert reader.last(2, whole=False) == (["two", "thr"], False)
        assert reader.last(0, whole=False) == ([], False)


def test_of_a_large_log_the_end_is_read_and_what_is_missing_is_said(log: Path) -> None:
    line = b"x" * 1023 + b"\n"
    log.write_bytes(b"first\n" + line * (MOST_READ_BYTES // 1024 + 9))
    with LogReader(str(log)) as reader:
        lines, is_shortened = reader.last(10**9, whole=False)
        assert is_shortened
        assert set(lines) == {"x" * 1023}
        assert len(lines) == MOST_READ_BYTES // 1024 - 1
        assert reader.last(5, whole=False) == (["x" * 1023] * 5, False)


def test_a_line_without_an_end_is_shown_in_parts(log: Path) -> None:
    with LogReader(str(log)) as reader:
        reader.last(0, whole=True)
        add(log, b"y" * (3 * 2**20))
        parts = [part for _ in range(4) for part in reader.further()]
        add(log, b"\n")
        parts += reader.further()
    assert "".join(parts) == "y" * (3 * 2**20)
    assert len(parts) > 1


def test_a_log_that_has_gone_is_waited_for_and_what_was_last_in_it_is_not_lost(log: Path) -> None:
    with LogReader(str(log)) as reader:
        reader.last(9, whole=True)
        add(log, b"three\nfour")
        log.rename(f"{log}.1")
        assert reader.further() == ["three"]
        assert reader.further() == []
        log.write_bytes(b"five\n")
        assert reader.further() == ["four"]
        assert reader.further() == ["five"]


def test_a_log_that_was_emptied_is_read_from_its_start(log: Path) -> None:
    with LogReader(str(log)) as reader:
        reader.last(9, whole=True)
        os.truncate(log, 0)
        assert reader.further() == []
        add(log, b"new\n")
        assert reader.further() == ["new"]


def test_a_log_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be read"):
        LogReader(str(tmp_path))
