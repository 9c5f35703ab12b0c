"""What is read of standard input, of whichever kind it is, and what is left in it."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlxk.domain.errors import StorageError, ValidationError
from mlxk.entrypoints.cli.prompt_sources import MAX_INPUT_BYTES, StandardInput

MIB = 2**20
REPLACED = "run: standard input is not valid UTF-8; invalid bytes were replaced"


@contextlib.contextmanager
def opened(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    descriptor = os.open(path, flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@pytest.fixture
def note() -> list[str]:
    """Collect what is said."""
    return []


@pytest.mark.parametrize(
    ("read", "text", "said"),
    [
        (0, "one\ntwo\n", []),
        (4, "", ["[standard input is a file that was read in part, so it is not joined; '-' reads the rest]"]),
        (8, "", []),
    ],
)
def test_a_file_is_joined_whole_or_not_at_all(
    tmp_path: Path, note: list[str], read: int, text: str, said: list[str]
) -> None:
    (tmp_path / "lines").write_text("one\ntwo\n")
    with opened(tmp_path / "lines") as descriptor:
        os.read(descriptor, read)
        assert (StandardInput(descriptor).beside_words(note.append), note) == (text, said)
        if not text:
            assert StandardInput(descriptor).read(note.append) == "one\ntwo\n"[read:]


def test_what_was_opened_for_writing_is_not_read(tmp_path: Path, note: list[str]) -> None:
    (tmp_path / "log").write_text("lines\n")
    with opened(tmp_path / "log", os.O_WRONLY) as descriptor:
        assert (StandardInput(descriptor).beside_words(note.append), note) == ("", [])


def test_a_socket_is_read_for_a_dash_only(note: list[str]) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(b"kept")
        ours.shutdown(socket.SHUT_WR)
        given = StandardInput(theirs.fileno())
        assert given.beside_words(note.append) == ""
        assert note == ["[standard input is a socket, so it is not joined; '-' reads it]"]
        assert given.read(note.append) == "kept"


@pytest.mark.parametrize(
    ("content", "text", "said"),
    [
        (b"caf\xe9", "caf\ufffd", [REPLACED]),
        ("\ufeffa \ufffd".encode(), "a \ufffd", []),
        (b"\0text", "\0text", []),
    ],
    ids=["latin 1", "a replacement that was there", "a zero byte"],
)
def test_bytes_that_are_no_text_are_replaced_and_that_is_said(
    tmp_path: Path, note: list[str], content: bytes, text: str, said: list[str]
) -> None:
    (tmp_path / "text").write_bytes(content)
    with opened(tmp_path / "text") as descriptor:
        assert (StandardInput(descriptor).read(note.append), note) == (text, said)


def test_a_file_that_is_no_text_is_refused_with_the_flags_for_media(tmp_path: Path, note: list[str]) -> None:
    (tmp_path / "image").write_bytes(b"\xff\xd8\xff\0")
    with opened(tmp_path / "image") as descriptor, pytest.raises(ValidationError) as refusal:
        StandardInput(descriptor).beside_words(note.append)
    assert refusal.value.message == "standard input is no text"
    assert refusal.value.hint == "Show an image with --image -, a clip with --video -, and give sound with --audio -."


@pytest.mark.parametrize(
    ("most", "reason"),
    [(MIB, "1 MiB"), (MAX_INPUT_BYTES, "64 MiB, more than any context window holds")],
)
def test_more_than_the_limit_is_refused_and_as_much_is_read(
    tmp_path: Path, note: list[str], most: int, reason: str
) -> None:
    (tmp_path / "large").touch()
    os.truncate(tmp_path / "large", most)
    with opened(tmp_path / "large") as descriptor:
        assert len(StandardInput(descriptor).data(None, note.append, most)) == most
    os.truncate(tmp_path / "large", most + 1)
    with opened(tmp_path / "large") as descriptor, pytest.raises(ValidationError) as refusal:
        StandardInput(descriptor).data(None, note.append, most)
    assert refusal.value.message == f"standard input is larger than {reason}"


def test_what_cannot_be_read_is_said_with_the_reason(tmp_path: Path, note: list[str]) -> None:
    with opened(tmp_path) as descriptor, pytest.raises(StorageError) as failure:
        StandardInput(descriptor).read(note.append)
    assert failure.value.message == "standard input cannot be read: Is a directory"
