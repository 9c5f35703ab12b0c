"""``mlxk run MODEL --image FILE…``: what a model says about images, chunk by chunk, each after a table of facts."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

import attrs

from mlxk.domain.errors import InterruptedRunError, UsageError
from mlxk.domain.generation.media import DEFAULT_CHUNK, DEFAULT_IMAGE_PROMPT
from mlxk.entrypoints.cli.command import CommandContext
from mlxk.entrypoints.cli.exit_status import DONE
from mlxk.entrypoints.cli.image_files import ImageFile, find_images, is_prompt
from mlxk.entrypoints.cli.output import Output

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlxk.application.ports.model_source import ModelSource
    from mlxk.application.text_streams import DescribedChunk
    from mlxk.application.use_cases.describe_images import Showing
    from mlxk.application.use_cases.generate_text import Question
    from mlxk.entrypoints.cli.answer import AnswerReader, CollectedAnswer

TEXT_ONLY = {"chat": "--chat", "tools": "--tools", "no_chat_template": "--no-chat-template"}
"""Flags that cannot be combined with images, by the name of what they set."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of looking."""
    group = parser.add_argument_group("images", "What a model says about images; the prompt may stand before or after.")
    group.add_argument("--image", nargs="+", action="extend", metavar="FILE", help="show a model these files")
    group.add_argument("--chunk", type=int, metavar="N", help="images shown together, 1 to 5; one by one by default")


def wanted(arguments: argparse.Namespace) -> bool:
    """Whether there are images to look at.

    Raises:
        UsageError: There are none, but a flag that needs some.
    """
    if arguments.chunk is not None and not arguments.image:
        raise UsageError("--chunk requires --image FILE.")
    return bool(arguments.image)


def execute(
    arguments: argparse.Namespace, prompt: str, question: "Question", context: CommandContext, output: Output
) -> int:
    """Show the images, and print what is said about them: as it comes on a terminal, else chunk by chunk.

    Args:
        arguments: The command line.
        prompt: What to ask; empty asks for a description, unless the last of the files is no file.
        question: How to ask.
        context: The world.
        output: Where to print.
    """
    from mlxk.application.use_cases.describe_images import Showing

    for name, flag in TEXT_ONLY.items():
        if getattr(arguments, name):
            hint = "In a chat, type: /image FILE" if name == "chat" else None
            raise UsageError(f"{flag} and --image exclude each other", hint=hint)
    container = context.build(context.settings)
    try:
        files, prompt = _files(arguments.image, prompt, container.adapters.built_in_models())
        showing = Showing(
            prompt=prompt or DEFAULT_IMAGE_PROMPT,
            question=question,
            system=arguments.system,
            chunk=arguments.chunk if arguments.chunk is not None else context.settings.serve.chunk or DEFAULT_CHUNK,
            facts=context.settings.exif_metadata,
        )
        described = container.use_cases.describe_images()(arguments.model, files, showing)
        _Printer(arguments, output, len(files), showing).print(described)
        return DONE
    finally:
        container.adapters.text_generator().close()


class _Printer:
    """Prints chunk after chunk, and at the end, where that is wanted, one document of all of them."""

    def __init__(self, arguments: argparse.Namespace, output: Output, total: int, showing: "Showing") -> None:
        self._arguments = arguments
        self._output = output
        self._total = total
        self._showing = showing
        self._live = output.interactive and not arguments.no_stream and not output.as_json
        self._answers: list[CollectedAnswer] = []

    def print(self, described: "Iterator[DescribedChunk]") -> None:
        """Print everything.

        Raises:
            InterruptedRunError: The user interrupted; what was said until then is delivered.
            MlxkError: Whatever made a chunk fail; the ones before it are printed.
        """
        from mlxk.entrypoints.cli.answer import say_notes

        while (chunk := self._next(described)) is not None:
            self._answers.append(self._read(chunk))
        whole = _joined(self._answers)
        if self._output.as_json:
            from mlxk.entrypoints.cli.answer import answer_json

            shown = not self._arguments.no_reasoning
            self._output.document("run", answer_json(self._arguments.model, self._showing.prompt, whole, shown))
        else:
            say_notes(self._output, whole.finished.notes)

    def _next(self, described: "Iterator[DescribedChunk]") -> "DescribedChunk | None":
        from mlxk.entrypoints.cli.progress import Spinner

        first = len(self._answers) * self._showing.chunk + 1
        last = min(first + self._showing.chunk - 1, self._total)
        numbers = f"image {first}" if first == last else f"images {first}-{last}"
        with Spinner(self._output, f"Looking at {numbers} of {self._total}"):
            return next(described, None)

    def _read(self, described: "DescribedChunk") -> "CollectedAnswer":
        from mlxk.entrypoints.cli.answer import AnswerReader, say_why_cut

        reader = AnswerReader(self._output, live=self._live, show_reasoning=not self._arguments.no_reasoning)
        opening = f"{described.chunk.table()}\n\n"
        if not self._output.as_json:
            self._output.text(("\n" if self._answers else "") + opening)
        try:
            with described.stream as stream:
                answer = reader.read(stream)
        except KeyboardInterrupt:
            raise self._interrupted(opening, reader) from None
        if not self._output.as_json:
            if not self._live:
                self._output.line(answer.text)
            say_why_cut(self._output, answer.finished, self._arguments.max_tokens)
        return attrs.evolve(answer, text=opening + answer.text)

    def _interrupted(self, opening: str, reader: "AnswerReader") -> InterruptedRunError:
        text = "".join(reader.text)
        if self._output.as_json:
            said = [*(answer.text for answer in self._answers), opening + text]
            return InterruptedRunError("interrupted", detail={"response": "\n\n".join(said)})
        self._output.line("" if self._live else text)
        return InterruptedRunError("interrupted")


def _files(values: Sequence[str], prompt: str, built_in: "ModelSource") -> tuple[list[ImageFile], str]:
    """Return the files, looked at from outside, and the prompt: a last value that is no file is one, if none is given.

    Raises:
        StorageError, ValidationError: A file is missing, no image, or too large.
    """
    typed = list(values)
    if len(typed) > 1 and not prompt and is_prompt(typed[-1], built_in):
        prompt = typed.pop()
    return [file for value in typed for file in find_images(value, built_in)], prompt


def _joined(answers: "Sequence[CollectedAnswer]") -> "CollectedAnswer":
    """Return one answer made of all: texts one after the other, tokens and seconds added up."""
    from mlxk.domain.generation.request import Finished
    from mlxk.entrypoints.cli.answer import CollectedAnswer

    return CollectedAnswer(
        "\n\n".join(answer.text for answer in answers),
        "\n\n".join(answer.reasoning for answer in answers if answer.reasoning),
        (),
        Finished.joined([answer.finished for answer in answers]),
    )
