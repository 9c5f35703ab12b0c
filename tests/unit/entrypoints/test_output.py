"""What a command writes: at once, without what terminals would obey, and with streams that fail."""

import contextlib
import errno
import io
import json
import os

import pytest

from mlxk.domain.errors import StorageError, ValidationError
from mlxk.entrypoints.cli.output import Output


class Full(io.StringIO):
    """A stream on a disk that is full."""

    def __init__(self) -> None:
        super().__init__()
        self.tries = 0
        self._descriptor = os.open(os.devnull, os.O_WRONLY)

    def fileno(self) -> int:
        return self._descriptor

    def close(self) -> None:
        os.close(self._descriptor)
        super().close()

    def write(self, text: str) -> int:
        self.tries += 1
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def buffered() -> tuple[io.BytesIO, io.TextIOWrapper]:
    """Return what has arrived, and a stream to it that keeps what is not flushed."""
    arrived = io.BytesIO()
    return arrived, io.TextIOWrapper(io.BufferedWriter(arrived, 2**16), encoding="utf-8")


def test_what_is_written_arrives_at_once_and_names_need_not_be_unicode() -> None:
    (results, stdout), (messages, stderr) = buffered(), buffered()
    output = Output(as_json=False, color=True, stdout=stdout, stderr=stderr)
    output.text("a\udcff")
    assert results.getvalue() == b"a\\udcff"
    output.prompt("Remove \udcff? ")
    assert messages.getvalue().startswith(b"Remove ")
    before = len(messages.getvalue())
    output.note("one\ntwo")
    assert messages.getvalue()[before:] == b"one\ntwo\n"
    output.dimmed("hm")
    assert messages.getvalue().endswith(b"two\nhm")
    output.failure("show", ValidationError("no", hint="do"))
    assert messages.getvalue().endswith(b"hmshow: Error: no\ndo\n")
    assert results.getvalue() == b"a\\udcff"
    assert (output.interactive, output.width, output.shows_progress) == (False, None, False)


def test_messages_are_coloured_for_terminals_alone() -> None:
    error = ValidationError("no", hint="do")
    for color, said in ((True, "\x1b[31mError:\x1b[0m no\n\x1b[2mdo\x1b[0m\n"), (False, "Error: no\ndo\n")):
        terminal = Terminal()
        output = Output(as_json=False, color=color, stdout=io.StringIO(), stderr=terminal)
        output.failure(None, error)
        assert terminal.getvalue() == said
        assert output.shows_progress
    assert not Output(as_json=True, color=True, stdout=io.StringIO(), stderr=Terminal()).shows_progress


def test_messages_that_cannot_be_written_stop_nothing_and_are_tried_once() -> None:
    results = io.StringIO()
    with contextlib.closing(Full()) as full:
        output = Output(as_json=False, color=False, stdout=results, stderr=full)
        for _ in range(3):
            output.note("lost")
        output.line("kept")
        assert (full.tries, results.getvalue()) == (1, "kept\n")


def test_results_that_cannot_be_written_are_one_error_on_the_other_stream() -> None:
    messages = io.StringIO()
    with contextlib.closing(Full()) as full:
        output = Output(as_json=True, color=False, stdout=full, stderr=messages)
        with pytest.raises(
            StorageError, match=r"^standard output cannot be written: No space left on device$"
        ) as failure:
            output.document("list", {})
    assert output.undelivered
    output.failure("list", failure.value)
    assert messages.getvalue().startswith("list: Error: standard output cannot be written")


def test_a_document_is_one_line_where_others_stand_before_it() -> None:
    for one_line in (False, True):
        results = io.StringIO()
        output = Output(as_json=True, color=False, stdout=results, stderr=io.StringIO())
        output.one_line = one_line
        output.failure("show", ValidationError("no"))
        assert (results.getvalue().count("\n") == 1) is one_line
        document = json.loads(results.getvalue())
        assert list(document) == ["status", "command", "data", "error"]
        assert (document["status"], document["command"], document["data"]) == ("error", "show", None)
        assert (document["error"]["type"], document["error"]["message"]) == ("validation_error", "no")
