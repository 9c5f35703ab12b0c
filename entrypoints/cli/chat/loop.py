"""The chat loop: reads a line, prints the completion, until the user leaves.

Where standard input is no terminal, all of it is one prompt and there is no loop.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from prompt_toolkit import PromptSession
from prompt_toolkit.history import FileHistory, History, InMemoryHistory

from mlxk.application.use_cases.generate_text import GenerationOptions, PreparedImage
from mlxk.domain.errors import CapabilityError, MlxkError, StorageError
from mlxk.domain.generation.media import DEFAULT_IMAGE_PROMPT
from mlxk.domain.text import require_valid_unicode
from mlxk.entrypoints.cli import generation_arguments, named_files
from mlxk.entrypoints.cli.answer import AnswerReader, CollectedAnswer, call_line, print_notes, print_truncation, speed
from mlxk.entrypoints.cli.chat.session import (
    ChatInput,
    ChatSession,
    ImageCommand,
    Prompt,
    SlashCommand,
    is_unfinished,
    parse_input,
)
from mlxk.entrypoints.cli.command import CommandContext
from mlxk.entrypoints.cli.exit_status import DONE
from mlxk.entrypoints.cli.image_run import find_images
from mlxk.entrypoints.cli.named_files import NamedFile
from mlxk.entrypoints.cli.output import Output
from mlxk.entrypoints.cli.progress import Spinner
from mlxk.entrypoints.cli.prompt_sources import PromptSources
from mlxk.entrypoints.settings import Settings

if TYPE_CHECKING:
    from mlxk.entrypoints.container import Container

BANNER = "Chatting with {model}. /help lists the commands, Ctrl-D leaves."


def chat(
    arguments: argparse.Namespace,
    context: CommandContext,
    container: "Container",
    output: Output,
    opening: PromptSources,
    options: GenerationOptions,
) -> int:
    """Chat until the user leaves; ``opening`` is the first prompt when it is not empty."""
    require_valid_unicode(arguments.system or "", "--system")
    require_valid_unicode(opening.prompt, "prompt")
    resolve = container.use_cases.resolve_model()
    session = ChatSession(
        generate=container.use_cases.generate_text(),
        check_model=lambda reference: resolve(reference).name,
        prepare_images=_image_preparation(container),
        model=arguments.model,
        settings=options.settings,
        options=options,
        tools=generation_arguments.tools(arguments),
        system=arguments.system,
        show_reasoning=arguments.reasoning is not False,
        live=arguments.stream is not False,
        attaches=arguments.attach is not False,
    )
    session.settings.validate()
    resolve(arguments.model)
    if not sys.stdin.isatty():
        _attach(session, opening.images)
        if opening.prompt.strip() or opening.images:
            _answer(session, output, opening.prompt or DEFAULT_IMAGE_PROMPT)
        return DONE
    output.note(BANNER.format(model=arguments.model))
    if opening.prompt or opening.images:
        _open(session, output, opening)
    terminal = _terminal(context.settings)
    while not session.finished:
        line = _read(terminal)
        if line is None:
            break
        _handle_line(session, output, line)
    return DONE


def _open(session: ChatSession, output: Output, opening: PromptSources) -> None:
    """Complete the prompt of the command line, whose files are found already."""
    with _reported(output):
        _attach(session, opening.images)
        _answer(session, output, opening.prompt or DEFAULT_IMAGE_PROMPT)


def _attach(session: ChatSession, images: Sequence[NamedFile]) -> None:
    """Attach images to the next message; if one cannot be used, none are."""
    before = session.waiting
    try:
        for image in images:
            session.attach_images(image.path)
    except MlxkError:
        session.waiting = before
        raise


def _image_preparation(container: "Container") -> Callable[[str, str, int], tuple[PreparedImage, ...]]:
    """Return the function that decodes the images a user names; see ``ChatSession.prepare_images``."""

    def prepare(model: str, typed: str, first: int) -> tuple[PreparedImage, ...]:
        files = find_images(typed, container.adapters.built_in_models(), "/image")
        return container.use_cases.generate_text().prepare_images(model, files, first)

    return prepare


def _terminal(settings: Settings) -> PromptSession[str]:
    """Return the line editor, with a history file where it can be written."""
    history: History = InMemoryHistory()
    try:
        os.makedirs(os.path.dirname(settings.chat_history), mode=0o700, exist_ok=True)
        os.close(os.open(settings.chat_history, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
        history = FileHistory(settings.chat_history)
    except OSError:
        history = InMemoryHistory()  # a read-only home costs the history, not the chat
    return PromptSession(history=history)


def _read(terminal: PromptSession[str]) -> str | None:
    """Return the next input, of one line or several; None after Ctrl-D, empty after Ctrl-C."""
    try:
        text = terminal.prompt(">>> ")
        while is_unfinished(text):
            text += "\n" + terminal.prompt("... ")
        return text
    except EOFError:
        return None
    except KeyboardInterrupt:
        return ""


def _handle_line(session: ChatSession, output: Output, line: str) -> None:
    try:
        typed = parse_input(line)
    except MlxkError as error:
        output.failure(None, error)
        return
    if typed is not None:
        _handle(session, output, typed)


def _handle(session: ChatSession, output: Output, typed: ChatInput) -> None:
    """Complete a prompt or execute a command."""
    with _reported(output):
        if isinstance(typed, SlashCommand):
            result = session.execute(typed)
            if result:
                output.note(result)
        elif isinstance(typed, ImageCommand):
            output.note(session.attach_images(typed.file))
            if typed.question:
                _answer(session, output, typed.question)
        else:
            _ask(session, output, typed)


@contextlib.contextmanager
def _reported(output: Output) -> Iterator[None]:
    """Print errors; Ctrl-C cancels. The chat continues."""
    try:
        yield
    except MlxkError as error:
        output.failure(None, error)
    except OSError as error:
        output.failure(None, StorageError(f"standard output: {error.strerror}"))
    except KeyboardInterrupt:
        output.note("[stopped]")


def _ask(session: ChatSession, output: Output, typed: Prompt) -> None:
    """Attach the images that a prompt names, and complete it; images alone wait for the next message."""
    pieces = named_files.find([typed.text]) if session.attaches and not typed.quoted else []
    attached: list[NamedFile] = []
    for file in pieces:
        if not isinstance(file, NamedFile) or not file.is_media or file in attached:
            continue
        try:
            if file.is_recording:
                raise CapabilityError("a chat takes no sound; see mlxk run --audio")
            _attach(session, [file])
        except CapabilityError as error:
            output.note(f"[{file.typed} stays words: {error}]")
            continue
        output.note(f"[attached: {file.typed}]")
        attached.append(file)
    text = named_files.without_media(pieces, attached) if attached else typed.text
    if text:
        _answer(session, output, text)
    else:
        output.note("shown with your next message")


def _answer(session: ChatSession, output: Output, prompt: str) -> None:
    """Print the completion of a prompt; after Ctrl-C keep the part that was generated."""
    reader = AnswerReader(output, live=session.live, show_reasoning=session.show_reasoning)
    message = session.user_message(prompt)
    try:
        activity = "Reading the prompt" if session.answered == session.model else "Loading the model"
        with Spinner(output, activity) as spinner:
            stream = session.ask(message)
            spinner.stop()
        with stream:
            answer = reader.read(stream)
    except KeyboardInterrupt:
        output.line("" if session.live else "".join(reader.text))
        output.note("[stopped]")
        if reader.text:
            session.keep(message, "".join(reader.text), reasoning="".join(reader.reasoning))
        return
    session.keep(message, answer.text, answer.tool_calls, answer.reasoning)
    _print_remainder(session, output, answer)


def _print_remainder(session: ChatSession, output: Output, answer: CollectedAnswer) -> None:
    """Print the parts of a completion that were not printed as they arrived."""
    if not session.live:
        if answer.reasoning and session.show_reasoning:
            output.note(answer.reasoning)
        if answer.text or not answer.tool_calls:
            output.line(answer.text)
    for call in answer.tool_calls:
        output.line(call_line(call))
    print_notes(output, session.new_notes(answer.finished.notes))
    print_truncation(output, answer.finished, session.settings.max_tokens, chatting=True)
    if session.verbose:
        output.note(speed(answer))
