"""One answer on the command line: generated, written out as it comes or when it is complete, and never lost."""

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from mlxk.domain.errors import InterruptedRunError
from mlxk.entrypoints.cli.exit_status import DONE
from mlxk.entrypoints.cli.output import Output

if TYPE_CHECKING:
    from mlxk.application.ports.text_generator import TextStream
    from mlxk.entrypoints.cli.answer import Answer


def answer(arguments: argparse.Namespace, prompt: str, start: "Callable[[], TextStream]", output: Output) -> int:
    """Answer one prompt.

    Args:
        arguments: The command line.
        prompt: What is asked, for the record.
        start: Starts the answer; may take as long as loading a model takes.
        output: Where to print.

    Raises:
        InterruptedRunError: The user interrupted; what was generated until then is delivered.
        MlxkError: Whatever the answer failed with.
    """
    from mlxk.entrypoints.cli.answer import AnswerReader
    from mlxk.entrypoints.cli.spinner import Spinner

    live = output.interactive and not arguments.no_stream and not output.as_json
    reader = AnswerReader(output, live=live, show_reasoning=not arguments.no_reasoning)
    try:
        with Spinner(output, "Loading the model") as spinner:
            stream = start()
            spinner.stop()
        with stream:
            found = reader.read(stream)
    except KeyboardInterrupt:
        raise _interrupted(output, "".join(reader.text), live) from None
    _print(arguments, output, prompt, found, live)
    return DONE


def _interrupted(output: Output, text: str, live: bool) -> InterruptedRunError:
    """Deliver what was generated until the user interrupted: as data, or within the one JSON document."""
    if output.as_json:
        return InterruptedRunError("interrupted", detail={"response": text})
    output.line("" if live else text)
    return InterruptedRunError("interrupted")


def _print(arguments: argparse.Namespace, output: Output, prompt: str, answer: "Answer", live: bool) -> None:
    from mlxk.entrypoints.cli.answer import call_line, say_notes, say_why_cut

    if output.as_json:
        from mlxk.entrypoints.cli import wire

        output.document("run", wire.answer(arguments.model, prompt, answer, not arguments.no_reasoning))
        return
    if not live:
        if answer.reasoning and not arguments.no_reasoning:
            output.note(answer.reasoning)
        if answer.text or not answer.tool_calls:
            output.line(answer.text)
    for call in answer.tool_calls:
        output.line(call_line(call))
    say_why_cut(output, answer.finished, arguments.max_tokens)
    say_notes(output, answer.finished.notes)
