"""The stream of a server's log on real pipes: whole lines in their order, and none that delays or fails a writer."""

import os
import select
import time
from collections.abc import Iterator

import pytest
from serving.running import eventually

from mlxk.entrypoints.http.process.log_stream import CLOSE_SECONDS, MAX_PARTIAL, MAX_QUEUED_BYTES, LossyStream


class Pipe:
    """A pipe with the stream at its one end; ``lost`` are the losses that were reported."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.reader, False)
        self.lost: list[int] = []
        self.stream = LossyStream(self.writer, self.lost.append)
        self.received = b""

    def read(self) -> bytes:
        """Return what has arrived so far."""
        while True:
            try:
                part = os.read(self.reader, 2**20)
            except BlockingIOError:
                return self.received
            if not part:
                return self.received
            self.received += part

    def holds(self, text: bytes) -> bool:
        return eventually(lambda: self.read() == text)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.stream.close()
    for descriptor in (pipe.reader, pipe.writer):
        try:
            os.close(descriptor)
        except OSError:
            continue  # the test has closed it


def test_lines_are_written_when_they_end_and_each_once(pipe: Pipe) -> None:
    for text in ("one\ntw", "o", "\nthree\nfo", "ur"):
        assert pipe.stream.write(text) == len(text)
    assert pipe.holds(b"one\ntwo\nthree\n")
    pipe.stream.flush()
    assert pipe.holds(b"one\ntwo\nthree\nfour")
    pipe.stream.flush()
    pipe.stream.write("ü\udcff\n")
    pipe.stream.close()
    assert pipe.holds(b"one\ntwo\nthree\nfour" + "ü\\udcff\n".encode())
    assert pipe.lost == []


def test_a_line_without_an_end_is_written_once_it_is_long(pipe: Pipe) -> None:
    pipe.stream.write("x" * MAX_PARTIAL)
    pipe.stream.write("y")
    assert pipe.holds(b"x" * MAX_PARTIAL + b"y")


def test_a_reader_that_stops_delays_nobody_and_is_told_how_many_lines_it_has_missed(pipe: Pipe) -> None:
    line, count = "z" * 1023 + "\n", 2 * MAX_QUEUED_BYTES // 1024
    began = time.monotonic()
    for number in range(count):
        if number == count // 8:  # more than a pipe holds, so that nothing is written after the first line is lost
            assert eventually(lambda: not select.select([], [pipe.writer], [], 0)[1])
        pipe.stream.write(line)
    assert time.monotonic() - began < 60
    assert pipe.lost == []
    assert eventually(lambda: bool(pipe.read()) and bool(pipe.lost))
    assert eventually(lambda: len(pipe.read()) == (count - sum(pipe.lost)) * 1024)
    assert sum(pipe.lost) >= count // 4
    lost = sum(pipe.lost)
    pipe.stream.write("again\n")
    assert eventually(lambda: pipe.read().endswith(b"z\nagain\n"))
    assert sum(pipe.lost) == lost


@pytest.mark.parametrize(
    ("text", "lines"), [("z" * (MAX_QUEUED_BYTES + 1) + "\n", 1), ("z\n" * MAX_QUEUED_BYTES, MAX_QUEUED_BYTES)]
)
def test_each_line_of_what_is_lost_is_counted(pipe: Pipe, text: str, lines: int) -> None:
    pipe.stream.write(text)
    pipe.stream.write("next\n")
    assert eventually(lambda: pipe.lost == [lines])
    assert pipe.holds(b"next\n")


@pytest.mark.parametrize("blocking", [True, False])
def test_closing_waits_for_a_reader_for_a_moment_only(pipe: Pipe, blocking: bool) -> None:
    os.set_blocking(pipe.writer, blocking)
    pipe.stream.write("z" * 2**19 + "\n")
    began = time.monotonic()
    pipe.stream.close()
    assert CLOSE_SECONDS * 0.9 <= time.monotonic() - began < CLOSE_SECONDS + 30
    pipe.stream.write("late\n")
    assert eventually(lambda: b"z" in pipe.read())
    assert b"late" not in pipe.read()


def test_each_line_that_could_not_be_written_is_counted_and_told_with_the_next_that_can(pipe: Pipe) -> None:
    good = os.dup(pipe.writer)
    with open(os.devnull, "rb") as unwritable:
        os.dup2(unwritable.fileno(), pipe.writer)
    for lines in (2, 5):
        pipe.stream.write("one\n" if lines == 5 else "one\ntwo\n")
        pipe.stream.write("three\nfour\n" if lines == 5 else "")
        assert eventually(lambda: pipe.stream._lost == lines)  # noqa: B023 - called at once
    os.dup2(good, pipe.writer)
    os.close(good)
    pipe.stream.write("next\n")
    assert eventually(lambda: pipe.lost == [5])
    assert pipe.holds(b"next\n")


def test_a_pipe_without_a_reader_fails_nobody(pipe: Pipe) -> None:
    os.close(pipe.reader)
    for _ in range(3):
        assert pipe.stream.write("line\n") == 5
    pipe.stream.close()
    assert not pipe.stream.isatty()
