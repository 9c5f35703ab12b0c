"""The contract of asking for a yes, held by the double and by the terminal."""

import io
from collections.abc import Callable

import pytest
from doubles.confirmation import InMemoryConfirmation

from mlxk.application.ports.system import Confirmation
from mlxk.entrypoints.cli.output import Output, TerminalConfirmation

Build = Callable[[bool | None], Confirmation]


class Terminal(io.StringIO):
    """Text that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def at_a_terminal(answer: bool | None) -> Confirmation:
    if answer is None:
        stdin: io.StringIO = io.StringIO("yes\n")
    else:
        stdin = Terminal("what?\nyes\n" if answer else "NO\n")
    output = Output(as_json=False, color=False, stdout=Terminal(), stderr=Terminal())
    return TerminalConfirmation(output, stdin)


@pytest.fixture(params=["in_memory", "terminal"])
def build(request: pytest.FixtureRequest) -> Build:
    return InMemoryConfirmation if request.param == "in_memory" else at_a_terminal


@pytest.mark.parametrize("default", [True, False])
@pytest.mark.parametrize("answer", [True, False, None])
def test_the_answer_is_the_one_given_or_none_when_nobody_is_there(
    build: Build, answer: bool | None, default: bool
) -> None:
    assert build(answer).ask(("A fact.",), "Go on?", default=default) is answer


@pytest.mark.parametrize("default", [True, False])
def test_an_empty_line_at_the_terminal_means_the_default_and_an_end_of_input_means_no(default: bool) -> None:
    output = Output(as_json=False, color=False, stdout=Terminal(), stderr=Terminal())
    assert TerminalConfirmation(output, Terminal("\n")).ask((), "Go on?", default=default) is default
    stderr = Terminal()
    output = Output(as_json=False, color=False, stdout=Terminal(), stderr=stderr)
    assert TerminalConfirmation(output, Terminal("")).ask((), "Go on?", default=default) is False
    assert stderr.getvalue().endswith("]: \n")


def test_beside_json_nobody_is_asked() -> None:
    stderr = Terminal()
    output = Output(as_json=True, color=False, stdout=Terminal(), stderr=stderr)
    assert TerminalConfirmation(output, Terminal("yes\n")).ask((), "Go on?", default=True) is None
    assert stderr.getvalue() == ""
