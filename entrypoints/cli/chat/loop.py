"""The chat loop: reads input and prints the completion, until the user leaves.

Where standard input is not a terminal, all of it is one prompt, and there is no loop.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import attrs

from mlxk.application.generation_input import GenerationOptions
from mlxk.domain.errors import CapabilityError, MlxkError, StorageError, ValidationError
from mlxk.domain.generation.conversation import Message, Role, turns
from mlxk.domain.generation.media import DEFAULT_AUDIO_PROMPT, DEFAULT_IMAGE_PROMPT
from mlxk.domain.generation.video import DEFAULT_VIDEO_PROMPT
from mlxk.domain.text import require_valid_unicode
from mlxk.entrypoints.cli import generation_arguments, input_files
from mlxk.entrypoints.cli.chat.kept_chats import Keeper
from mlxk.entrypoints.cli.chat.session import Attachments, ChatSession
from mlxk.entrypoints.cli.chat.terminal import Terminal
from mlxk.entrypoints.cli.chat.transcript import first_words
from mlxk.entrypoints.cli.chat.turn import TurnPrinter, drop, usage
from mlxk.entrypoints.cli.chat.typed_input import ALIASES, AttachCommand, ChatInput, Prompt, SlashCommand, parse_input
from mlxk.entrypoints.cli.command import CommandContext, model_names
from mlxk.entrypoints.cli.input_files import NamedFile
from mlxk.entrypoints.cli.output import DONE, Output, TerminalConfirmation
from mlxk.entrypoints.cli.prompt_sources import PromptSources
from mlxk.entrypoints.cli.render.formatting import counted
from mlxk.entrypoints.cli.tool_calls import OfferedTools

if TYPE_CHECKING:
    from mlxk.entrypoints.container import Container

BANNER = "Chatting with {model}. /help lists the commands, Ctrl-D leaves."


@attrs.frozen
class ChatOpening:
    """The prompt, attachments and options that the command line gives a chat."""

    sources: PromptSources
    """The first prompt, which may be empty."""
    options: GenerationOptions
    """How to generate."""
    kept: Keeper | None = None
    """Saves the chat, and may have resumed it; None for a chat that is not kept."""
    toolbox: OfferedTools | None = None
    """None without tool servers."""
    attachments: tuple[tuple[str, str], ...] = ()
    """Attachments of the first message from flags: kind, and path as typed."""

    @property
    def is_empty(self) -> bool:
        """Whether there is neither a prompt nor an attachment."""
        return not (self.sources.prompt.strip() or self.sources.media or self.attachments)


def chat(
    arguments: argparse.Namespace,
    context: CommandContext,
    container: "Container",
    output: Output,
    opening: ChatOpening,
) -> int:
    """Chat until the user leaves; return the exit status.

    Raises:
        MlxkError: The chat cannot be started; later errors are printed, and the chat goes on.
    """
    options, kept, toolbox = opening.options, opening.kept, opening.toolbox
    require_valid_unicode(arguments.system or "", "--system")
    require_valid_unicode(opening.sources.prompt, "prompt")
    session = ChatSession(
        generate=container.use_cases.generate_text(),
        room=container.use_cases.make_room(),
        built_in=container.adapters.built_in_models(),
        model=arguments.model,
        settings=options.settings,
        options=options,
        tools=toolbox.definitions if toolbox else generation_arguments.tools(arguments),
        system=arguments.system,
        show_reasoning=arguments.reasoning is not False,
        live=arguments.stream is not False,
        attaches=arguments.attach is not False,
        verbose=bool(arguments.verbose),
        sampling=generation_arguments.video_sampling(arguments),
    )
    session.settings.validate()
    if kept is not None and kept.written is not None:
        session.restore(kept.written, arguments.system)
    session.generate.require(arguments.model, options)
    if not sys.stdin.isatty():
        if not opening.is_empty:
            Chat(session, output, None, TurnPrinter(session, output, None, toolbox), kept).begin(opening)
        return DONE
    output.note(BANNER.format(model=arguments.model))
    if kept is not None:
        output.note(_keeping_note(kept, session))
    if toolbox is not None:
        output.note(f"Tools: {', '.join(toolbox.tools) or 'none'}.")
    terminal = Terminal(context.settings, output, lambda: model_names(container))
    loop = Chat(session, output, terminal, TurnPrinter(session, output, terminal, toolbox), kept)
    if opening.sources.prompt or not opening.is_empty:
        with loop.reported():
            loop.begin(opening)
    while not session.finished:
        line = loop.read()
        if line is None:
            break
        loop.handle(line)
    return DONE


def _keeping_note(kept: Keeper, session: ChatSession) -> str:
    if kept.name is None:
        return "This chat is kept; mlxk chats lists the chats, and mlxk run --continue goes on with the last one."
    count = counted(len(turns(session.messages)), "turn")
    began = first_words((*session.earlier, *session.messages))
    return f"Continuing '{kept.name}', {count}{f', which began with {began}' if began else ''}."


@attrs.define
class Chat:
    """Executes the user's input, and prints results and errors."""

    session: ChatSession
    output: Output
    terminal: Terminal | None
    """None where standard input is not a terminal, and no question can be asked."""
    turns: TurnPrinter
    kept: Keeper | None = None
    """Saves the chat; None when it is not kept, or can no longer be."""

    def begin(self, opening: ChatOpening) -> None:
        """Complete the prompt of the command line; at a terminal, attachments without a prompt wait for a message."""
        sources = opening.sources
        flagged = [(kind, typed, f"--{kind}") for kind, typed in opening.attachments]
        self._attach_all([*map(_kind_of, sources.media), *flagged])
        if self.terminal is not None and not sources.prompt and not sources.media:
            names = ", ".join(os.path.basename(typed) for _, typed in opening.attachments)
            self.output.note(f"{names}: shown with your next message")
            return
        waiting = self.session.waiting
        default = DEFAULT_IMAGE_PROMPT
        if not waiting.images and (waiting.videos or waiting.recordings):
            default = DEFAULT_VIDEO_PROMPT if waiting.videos else DEFAULT_AUDIO_PROMPT
        self._send(sources.prompt or default)
        self._keep()

    def read(self) -> str | None:
        """Return the next input; None after its end."""
        return None if self.terminal is None else self.terminal.read()

    def handle(self, line: str) -> None:
        """Complete a prompt or execute a slash command."""
        with self.reported():
            parsed = parse_input(line)
            if parsed is not None:
                self._handle(parsed)
        self._keep()

    def _keep(self) -> None:
        """Save the chat, if it is kept and has changed."""
        if self.kept is None:
            return
        try:
            if note := self.kept.keep(self.session.saved):
                self.output.note(f"[{note}]")
        except MlxkError as error:
            self.kept = None
            self.output.note(f"[this chat is not kept any more: {error.message}]")

    @contextlib.contextmanager
    def reported(self) -> Iterator[None]:
        """Print errors of the block, and end it on Ctrl-C, so that the chat goes on."""
        try:
            yield
        except MlxkError as error:
            self.output.failure(None, error)
        except OSError as error:
            self.output.failure(None, StorageError(f"standard output: {error.strerror}"))
        except KeyboardInterrupt:
            self.output.note("[stopped]")

    def _handle(self, parsed: ChatInput) -> None:
        if isinstance(parsed, Prompt):
            self._ask(parsed)
        elif isinstance(parsed, AttachCommand):
            self.output.note(self.session.attach(parsed.name, parsed.file))
            if parsed.question:
                self._send(parsed.question)
        else:
            self._execute(parsed)

    def _execute(self, command: SlashCommand) -> None:
        actions: dict[str, Callable[[str], None]] = {
            "retry": lambda _: self._retry(),
            "edit": self._edit,
            "copy": lambda _: self._copy(),
            "stats": lambda _: self._stats(),
            "drop": self._drop,
            "summarize": self._summarize,
            "save": self._save,
        }
        action = actions.get(ALIASES.get(command.name, command.name))
        if action is not None:
            action(command.argument)
            return
        result = self.session.execute(command)
        if result:
            self.output.note(result)
        if command.name in ("clear", "load") and self.kept is not None:
            self.kept.begin_anew()

    def _attach_all(self, media: Sequence[tuple[str, str, str | None]]) -> None:
        """Attach media, given as the arguments of ``ChatSession.attach``, to the next message; after an error, none."""
        before = self.session.waiting
        try:
            for kind, typed, field in media:
                self.session.attach(kind, typed, field)
        except MlxkError:
            self.session.waiting = before
            raise

    def _ask(self, prompt: Prompt) -> None:
        """Attach the media that a prompt names, and complete it; media without words wait for the next message."""
        pieces = input_files.find([prompt.text]) if self.session.attaches and not prompt.quoted else []
        attached: list[NamedFile] = []
        if pieces:
            self._note_unrecognized_media(prompt.text)
        for file in pieces:
            if not isinstance(file, NamedFile) or file in attached:
                continue
            try:
                if not file.is_media:
                    raise CapabilityError(f"its text is added by /file {file.typed}")
                self._attach_all([_kind_of(file)])
            except CapabilityError as error:
                self.output.note(f"[{file.typed} stays words: {error}]")
                continue
            self.output.note(f"[attached: {file.typed}]")
            attached.append(file)
        text = input_files.without_media(pieces, attached) if attached else prompt.text
        if text:
            self._send(text)
        else:
            self.output.note("shown with your next message")

    def _note_unrecognized_media(self, text: str) -> None:
        """Print which words look like media files and are not attached, if the model takes media."""
        generate = self.session.generate
        unrecognized = input_files.unrecognized_media([text])
        if unrecognized and input_files.takes_media(generate.describe(generate.resolve(self.session.model))):
            for name, reason in unrecognized:
                self.output.note(f"[{name} stays words: {reason}]")

    def _send(self, text: str) -> None:
        """Complete a message with this text and the waiting attachments."""
        if self.turns.complete(self.session.waiting.message(text)):
            self.session.waiting = Attachments()

    def _retry(self) -> None:
        self.turns.again(self.session.last_turn[0])
        settings = self.session.settings
        if settings.temperature == 0 or settings.seed is not None:
            cause = "temperature is 0" if settings.temperature == 0 else f"the seed is {settings.seed}"
            self.output.note(f"[{cause}, so that every answer to the same words is the same]")

    def _edit(self, argument: str) -> None:
        if self.terminal is None:
            return
        if argument.lower() not in ("", "last"):
            raise ValidationError(f"/edit does not know '{argument}'", hint="Write /edit, or /edit last.")
        if not argument:
            text = self.terminal.edit("")
            if not text.strip():
                self.output.note("nothing was written, so nothing is sent")
                return
            self.output.note(text)
            self._send(text)
            return
        last = self.session.last_turn[0]
        if last.parts:
            raise ValidationError("the last message has images, clips or sound, which an editor cannot change")
        text = self.terminal.edit(last.content)
        if not text.strip() or text == last.content:
            self.output.note("nothing was changed, so nothing is sent")
            return
        require_valid_unicode(text, "prompt")
        self.output.note(text)
        self.turns.again(Message(Role.USER, text))

    def _stats(self) -> None:
        self.output.note("\n".join([*self.session.statistics(), f"context: {usage(self.session)}"]))

    def _drop(self, argument: str) -> None:
        self.output.note(drop(self.session, _number(argument, 1)))

    def _summarize(self, argument: str) -> None:
        self.turns.summarize(_number(argument, len(turns(self.session.messages))))

    def _copy(self) -> None:
        answer = next((each for each in reversed(self.session.messages) if each.role is Role.ASSISTANT), None)
        if answer is None or self.terminal is None:
            raise ValidationError("there is no answer to copy yet")
        if not answer.content:
            raise ValidationError("the last answer has no text to copy")
        self.output.note(self.terminal.copy(answer.content))

    def _save(self, argument: str) -> None:
        try:
            self.output.note(self.session.save(argument, replace=False))
        except FileExistsError:
            if TerminalConfirmation(self.output).ask((), f"'{argument}' exists. Replace it?", default=False):
                self.output.note(self.session.save(argument, replace=True))
            else:
                self.output.note("not saved")


def _kind_of(file: NamedFile) -> tuple[str, str, None]:
    """Return the arguments of ``ChatSession.attach`` for a media file named in a prompt."""
    return "audio" if file.is_recording else "video" if file.is_video else "image", file.path, None


_MAX_DIGITS = 100
"""Digits of a number of turns; ``int`` raises on thousands of digits."""


def _number(argument: str, default: int) -> int:
    if not argument:
        return default
    if not argument.isdecimal():
        raise ValidationError(f"the number of turns must be a whole number (got '{argument}')")
    if len(argument) > _MAX_DIGITS:
        raise ValidationError("the number of turns is too large")
    return int(argument)
