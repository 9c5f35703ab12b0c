"""What a command writes: at once, without what terminals would obey, and with streams that fail."""

import contextlib
import errno
import io
import json
import os

import pytest

from mlxk.domain.errors import StorageError, ValidationError
from mlxk.entrypoints.cli.output import Output, TerminalConfirmation, choose


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


def asked(typed: str, *names: str) -> tuple[int | None, str]:
    """Return the index that someone who types this chooses, and what they see."""
    terminal = Terminal()
    output = Output(as_json=False, color=False, stdout=io.StringIO(), stderr=terminal)
    return choose(output, "Which one?", names, io.StringIO(typed)), terminal.getvalue()


@pytest.mark.parametrize(
    ("typed", "names", "index"),
    [
        ("2\n", ("a", "b"), 1),
        (" b \n", ("a", "b"), 1),
        ("1\n", ("2", "1"), 1),
        ("", ("a", "b"), None),
        ("\n", ("a",), 0),
        ("1", ("a",), 0),
    ],
    ids=["number", "name", "a name that is a number", "end of input", "the only one", "no line break"],
)
def test_an_entry_of_a_list_is_chosen_by_number_or_name(typed: str, names: tuple[str, ...], index: int | None) -> None:
    question = "Which one? [1]: " if len(names) == 1 else "Which one? [1-2]: "
    assert asked(typed, *names) == (index, question + ("" if typed else "\n"))


def test_what_is_no_entry_is_asked_again_until_the_input_ends() -> None:
    again = "Write a number from 1 to 2, or a name of the list.\n"
    question = "Which one? [1-2]: "
    assert asked("\n3\n0\nc\n2\n", "a", "b") == (1, f"{question}{again}" * 4 + question)
    assert asked("c\n", "a", "b") == (None, f"{question}{again}{question}\n")


@pytest.mark.parametrize(
    ("typed", "default", "answer"),
    [
        ("y\n", False, True),
        ("YES\n", False, True),
        ("n\n", True, False),
        ("\n", True, True),
        ("\n", False, False),
        ("", True, False),
        ("maybe\ny\n", False, True),
    ],
)
def test_a_question_is_answered_by_yes_or_no_or_its_default(typed: str, default: bool, answer: bool) -> None:
    class Keyboard(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    output = Output(as_json=False, color=False, stdout=io.StringIO(), stderr=terminal)
    confirmation = TerminalConfirmation(output, Keyboard(typed))
    assert confirmation.ask(("It is large.",), "Go on?", default=default) is answer
    question = f"Go on? [{'Y/n' if default else 'y/N'}]: "
    assert terminal.getvalue() == "It is large.\n" + question * max(1, typed.count("\n")) + ("" if typed else "\n")
    assert TerminalConfirmation(output, io.StringIO(typed)).ask((), "Go on?", default=default) is None
