"""The chat loop: reads a line, prints the completion, until the user leaves.

Where standard input is no terminal, all of it is one prompt and there is no loop.
"""

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import attrs

from mlxk.application.generation_options import GenerationOptions
from mlxk.application.ports.text_generator import TextStream
from mlxk.domain.errors import CapabilityError, ContextLengthError, MlxkError, StorageError, ValidationError
from mlxk.domain.generation.conversation import Message, Role
from mlxk.domain.generation.media import DEFAULT_AUDIO_PROMPT, DEFAULT_IMAGE_PROMPT
from mlxk.domain.text import require_valid_unicode
from mlxk.entrypoints.cli import generation_arguments, named_files
from mlxk.entrypoints.cli.answer import AnswerReader, CollectedAnswer, call_line, print_notes, print_truncation, speed
from mlxk.entrypoints.cli.chat.context_window import drop, summarize, turns_in_excess, usage
from mlxk.entrypoints.cli.chat.session import Attachments, ChatSession
from mlxk.entrypoints.cli.chat.terminal import Terminal
from mlxk.entrypoints.cli.chat.transcript import turns
from mlxk.entrypoints.cli.chat.typed_input import ALIASES, AttachCommand, ChatInput, Prompt, SlashCommand, parse_input
from mlxk.entrypoints.cli.command import CommandContext, model_names
from mlxk.entrypoints.cli.exit_status import DONE
from mlxk.entrypoints.cli.named_files import NamedFile
from mlxk.entrypoints.cli.output import Output, TerminalConfirmation
from mlxk.entrypoints.cli.progress import Spinner
from mlxk.entrypoints.cli.prompt_sources import PromptSources
from mlxk.entrypoints.cli.render.formatting import counted

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
    session = ChatSession(
        generate=container.use_cases.generate_text(),
        tokenize=container.use_cases.tokenize_text(),
        built_in=container.adapters.built_in_models(),
        model=arguments.model,
        settings=options.settings,
        options=options,
        tools=generation_arguments.tools(arguments),
        system=arguments.system,
        show_reasoning=arguments.reasoning is not False,
        live=arguments.stream is not False,
        attaches=arguments.attach is not False,
        verbose=bool(arguments.verbose),
    )
    session.settings.validate()
    container.use_cases.resolve_model()(arguments.model)
    if not sys.stdin.isatty():
        if opening.prompt.strip() or opening.media:
            Chat(session, output, None).begin(opening)
        return DONE
    output.note(BANNER.format(model=arguments.model))
    chatting = Chat(session, output, Terminal(context.settings, output, lambda: model_names(container)))
    if opening.prompt or opening.media:
        with chatting.reported():
            chatting.begin(opening)
    while not session.finished:
        line = chatting.read()
        if line is None:
            break
        chatting.handle(line)
    return DONE


@attrs.define
class Chat:
    """Executes what the user types, and prints what comes of it."""

    session: ChatSession
    output: Output
    terminal: Terminal | None
    """None where standard input is no terminal, so that nothing can be asked."""

    def begin(self, opening: PromptSources) -> None:
        """Complete the prompt of the command line, whose files are found already."""
        self._attach(opening.media)
        heard = self.session.waiting.recordings and not self.session.waiting.images
        self._send(opening.prompt or (DEFAULT_AUDIO_PROMPT if heard else DEFAULT_IMAGE_PROMPT))

    def read(self) -> str | None:
        """Return the next input; None after its end."""
        return None if self.terminal is None else self.terminal.read()

    def handle(self, line: str) -> None:
        """Complete a prompt or execute a command."""
        with self.reported():
            typed = parse_input(line)
            if typed is not None:
                self._handle(typed)

    @contextlib.contextmanager
    def reported(self) -> Iterator[None]:
        """Print errors; Ctrl-C cancels. The chat continues."""
        try:
            yield
        except MlxkError as error:
            self.output.failure(None, error)
        except OSError as error:
            self.output.failure(None, StorageError(f"standard output: {error.strerror}"))
        except KeyboardInterrupt:
            self.output.note("[stopped]")

    def _handle(self, typed: ChatInput) -> None:
        if isinstance(typed, Prompt):
            self._ask(typed)
        elif isinstance(typed, AttachCommand):
            self.output.note(self.session.attach(typed.name, typed.file))
            if typed.question:
                self._send(typed.question)
        else:
            self._execute(typed)

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
        elif result := self.session.execute(command):
            self.output.note(result)

    def _attach(self, files: Sequence[NamedFile]) -> None:
        """Attach images and sound to the next message; if one cannot be used, none are."""
        before = self.session.waiting
        try:
            for file in files:
                self.session.attach("audio" if file.is_recording else "image", file.path)
        except MlxkError:
            self.session.waiting = before
            raise

    def _ask(self, typed: Prompt) -> None:
        """Attach what a prompt names, and complete it; images and sound alone wait for the next message."""
        pieces = named_files.find([typed.text]) if self.session.attaches and not typed.quoted else []
        attached: list[NamedFile] = []
        for file in pieces:
            if not isinstance(file, NamedFile) or file in attached:
                continue
            try:
                if not file.is_media:
                    raise CapabilityError(f"its text is added by /file {file.typed}")
                self._attach([file])
            except CapabilityError as error:
                self.output.note(f"[{file.typed} stays words: {error}]")
                continue
            self.output.note(f"[attached: {file.typed}]")
            attached.append(file)
        text = named_files.without_media(pieces, attached) if attached else typed.text
        if text:
            self._send(text)
        else:
            self.output.note("shown with your next message")

    def _send(self, text: str) -> None:
        """Complete a message of this text and of what is attached."""
        if self._answer(self.session.waiting.message(text)):
            self.session.waiting = Attachments()

    def _answer(self, message: Message) -> bool:
        """Print the completion of a message and keep both; after Ctrl-C keep the part that was generated.

        Returns:
            Whether anything was generated.
        """
        session = self.session
        reader = AnswerReader(self.output, live=session.live, show_reasoning=session.show_reasoning)
        try:
            activity = "Reading the prompt" if session.answered == session.model else "Loading the model"
            with Spinner(self.output, activity) as spinner:
                stream = self._ask_with_room(message, spinner)
                spinner.stop()
            if stream is None:
                return False
            with stream:
                answer = reader.read(stream)
        except KeyboardInterrupt:
            self.output.line("" if session.live else "".join(reader.text))
            self.output.note("[stopped]")
            if not reader.text:
                return False
            partial = Message(Role.ASSISTANT, "".join(reader.text), reasoning="".join(reader.reasoning))
            session.answered = session.model
            session.keep(message, partial)
            return True
        session.count(answer.finished)
        session.keep(message, Message(Role.ASSISTANT, answer.text, answer.tool_calls, reasoning=answer.reasoning))
        self._print_remainder(answer)
        return True

    def _ask_with_room(self, message: Message, spinner: Spinner) -> TextStream | None:
        """Start a completion; where the context window is too small, ask the user what is to go.

        Returns:
            The stream; None when the user wants neither.

        Raises:
            ContextLengthError: The message does not fit alone, or nobody can be asked.
        """
        while True:
            try:
                return self.session.ask(message)
            except ContextLengthError as error:
                spinner.stop()
                if self.terminal is None:
                    raise
                if not self._make_room(error, message, self.terminal):
                    return None

    def _make_room(self, error: ContextLengthError, message: Message, terminal: Terminal) -> bool:
        """Drop or summarize the oldest turns, as the user chooses; return whether one of them was done."""
        count = turns_in_excess(self.session, [message], error)
        self.output.note(error.message)
        oldest = f"the {count} oldest of {counted(len(turns(self.session.messages)), 'turn')}"
        choice = terminal.choose(f"Make room: (d)rop {oldest}, (s)ummarize them, or leave the message? [d/s/N]: ")
        if choice in ("d", "drop"):
            self.output.note(drop(self.session, count))
        elif choice in ("s", "summarize", "summarise"):
            self._summarize(str(count))
        else:
            self.output.note("the message is not sent; /drop, /summarize and /clear make room")
            return False
        return True

    def _print_remainder(self, answer: CollectedAnswer) -> None:
        """Print the parts of a completion that were not printed as they arrived."""
        if not self.session.live:
            if answer.reasoning and self.session.show_reasoning:
                self.output.note(answer.reasoning)
            if answer.text or not answer.tool_calls:
                self.output.line(answer.text)
        for call in answer.tool_calls:
            self.output.line(call_line(call))
        print_notes(self.output, self.session.new_notes(answer.finished.notes))
        print_truncation(self.output, answer.finished, self.session.settings.max_tokens, chatting=True)
        if self.session.verbose:
            self.output.note(f"[{speed(answer.finished)}]")

    def _retry(self) -> None:
        self._answer_again(self.session.last_turn[0])
        settings = self.session.settings
        if settings.temperature == 0 or settings.seed is not None:
            cause = "temperature is 0" if settings.temperature == 0 else f"the seed is {settings.seed}"
            self.output.note(f"[{cause}, so that every answer to the same words is the same]")

    def _answer_again(self, message: Message) -> None:
        """Complete a message in place of the last turn, which stays when nothing is generated."""
        session = self.session
        before, answered = session.saved, False
        session.messages = before.messages[: -len(session.last_turn)]
        try:
            answered = self._answer(message)
        finally:
            if not answered:
                session.restore(before)

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
            raise ValidationError("the last message has images or sound, which an editor cannot change")
        text = self.terminal.edit(last.content)
        if not text.strip() or text == last.content:
            self.output.note("nothing was changed, so nothing is sent")
            return
        require_valid_unicode(text, "prompt")
        self.output.note(text)
        self._answer_again(Message(Role.USER, text))

    def _stats(self) -> None:
        self.output.note("\n".join([*self.session.statistics(), f"context: {usage(self.session)}"]))

    def _drop(self, argument: str) -> None:
        self.output.note(drop(self.session, _number(argument, 1)))

    def _summarize(self, argument: str) -> None:
        count = _number(argument, len(turns(self.session.messages)))
        with Spinner(self.output, "Summarizing") as spinner:

            def note(text: str) -> None:
                spinner.stop()
                self.output.note(text)

            note(summarize(self.session, count, note))

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


def _number(argument: str, default: int) -> int:
    if not argument:
        return default
    if not argument.isdecimal():
        raise ValidationError(f"the number of turns must be a whole number (got '{argument}')")
    return int(argument)
