"""The state of a chat: parses typed lines and executes slash commands."""

import re
from collections.abc import Callable
from typing import Any

import attrs

from mlxk.application.ports.text_generator import TextStream
from mlxk.application.use_cases.generate_text import GenerateText, GenerationOptions, PreparedImage
from mlxk.domain.errors import ValidationError
from mlxk.domain.generation.conversation import Conversation, Message, Role, ToolCall
from mlxk.domain.generation.image_table import Chunk
from mlxk.domain.generation.media import check_chunk, check_together
from mlxk.domain.generation.request import GenerationSettings
from mlxk.domain.text import require_valid_unicode
from mlxk.entrypoints.cli.chat import transcript
from mlxk.entrypoints.cli.named_files import names_file_first
from mlxk.entrypoints.cli.suggestions import closest, did_you_mean

MULTILINE_MARK = '"""'
EXIT_WORDS = frozenset({"exit", "quit", "q"})


@attrs.frozen
class Prompt:
    """A user message."""

    text: str
    quoted: bool = False
    """Whether it stood between triple quotes, where nothing in it is a name of a file."""


@attrs.frozen
class SlashCommand:
    """A slash command and its argument."""

    name: str
    argument: str = ""


@attrs.frozen
class ImageCommand:
    """``/image``: attaches images to a message."""

    file: str
    """As typed, without quotes."""
    question: str = ""
    """The message to send with it at once; empty attaches it to the next message."""


ChatInput = Prompt | SlashCommand | ImageCommand

_FILE = re.compile(r"""(?:"([^"]+)"|'([^']+)'|((?:\\.|[^\s\\])+))(?:\s+(.*))?""", re.DOTALL)
"""A file name, in quotes or with spaces escaped, as terminals insert a dropped file; then a question."""


def parse_input(line: str) -> ChatInput | None:
    """Parse a complete input; return None for a blank one.

    Text between triple quotes is always a prompt.

    Raises:
        ValidationError: A slash without a command, or ``/image`` without a file.
    """
    stripped = line.strip()
    if stripped.startswith(MULTILINE_MARK):
        text = stripped.removeprefix(MULTILINE_MARK).removesuffix(MULTILINE_MARK).strip("\n")
        return Prompt(text, quoted=True)
    if not stripped:
        return None
    if stripped.lower() in EXIT_WORDS:
        return SlashCommand("exit")
    if not stripped.startswith("/") or names_file_first(stripped):
        return Prompt(line)
    name, _, argument = stripped[1:].partition(" ")
    if not name:
        raise ValidationError("a slash needs a command after it", hint="Type /help for the commands.")
    if name.lower() == "image":
        return _image_command(argument.strip())
    return SlashCommand(name.lower(), argument.strip())


def _image_command(argument: str) -> ImageCommand:
    found = _FILE.fullmatch(argument)
    if found is None:
        raise ValidationError("/image needs a file", hint="For example: /image photo.jpg What is this?")
    quoted, apostrophed, bare, question = found.groups()
    return ImageCommand(quoted or apostrophed or re.sub(r"\\(.)", r"\1", bare), (question or "").strip())


def is_unfinished(text: str) -> bool:
    """Whether an input has opened triple quotes and not closed them."""
    stripped = text.strip()
    if not stripped.startswith(MULTILINE_MARK):
        return False
    return len(stripped) < 2 * len(MULTILINE_MARK) or not stripped.endswith(MULTILINE_MARK)


HELP = """\
/set NAME VALUE   temperature, top_p, top_k, min_p, max_tokens, seed, stop, repetition_penalty,
                  presence_penalty, frequency_penalty; VALUE 'default' undoes it
/set verbose      show tokens per second after an answer (/set quiet: do not)
/set reasoning    show what the model thinks (/set noreasoning: do not)
/show             model, settings and system prompt
/system [TEXT]    set the system prompt; without text, remove it
/clear            forget the conversation
/save FILE        write the conversation to a file
/load FILE        continue a conversation from a file
/model NAME       continue with another model
/image FILE [QUESTION]
                  show the model an image, with the question or with your next message;
                  so does a message that names it: What is this? ./photo.jpg
/help             this list
/exit             leave (also /bye, /quit and Ctrl-D)
Ctrl-C stops an answer. Three double quotes begin and end several lines."""

_READERS: dict[str, Callable[[str], Any]] = {
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "min_p": float,
    "max_tokens": int,
    "seed": int,
    "repetition_penalty": float,
    "presence_penalty": float,
    "frequency_penalty": float,
    "stop": lambda text: (text,),
}
_SWITCHES = {
    "verbose": ("verbose", True),
    "quiet": ("verbose", False),
    "reasoning": ("show_reasoning", True),
    "noreasoning": ("show_reasoning", False),
}


@attrs.define
class ChatSession:
    """One chat."""

    generate: GenerateText
    check_model: Callable[[str], str]
    """Resolves a reference to the model's name, or raises."""
    prepare_images: Callable[[str, str, int], tuple[PreparedImage, ...]]
    """Decodes images: gets a model's reference, what the user typed, and the number of the first image."""
    model: str
    settings: GenerationSettings
    options: GenerationOptions
    """How to generate; its settings are replaced by those of the session."""
    tools: tuple[str, ...] = ()
    system: str | None = None
    show_reasoning: bool = True
    live: bool = True
    """Whether completions are printed as they arrive."""
    attaches: bool = True
    """Whether images that a message names are attached to it."""
    verbose: bool = False
    messages: tuple[Message, ...] = ()
    waiting: tuple[PreparedImage, ...] = ()
    """Images of the next message."""
    finished: bool = False
    """Whether the user left the chat."""
    answered: str = ""
    """The model of the last completion, which is in memory."""
    printed_notes: frozenset[str] = frozenset()
    """Notes about completions that were printed in this chat."""

    def user_message(self, text: str) -> Message:
        """Return the next user message: the text and the attached images.

        Raises:
            ValidationError: The text is not valid Unicode.
        """
        require_valid_unicode(text, "prompt")
        if not self.waiting:
            return Message(Role.USER, text)
        chunk = Chunk(tuple(image.shown for image in self.waiting))
        return chunk.message([*(image.pixels for image in self.waiting), text])

    def ask(self, message: Message) -> TextStream:
        """Start the completion of a user message; ``keep`` adds both to the conversation."""
        opening = (Message(Role.SYSTEM, self.system),) if self.system else ()
        conversation = Conversation((*opening, *self.messages, message), self.tools)
        (stream,) = self.generate(self.model, [conversation], attrs.evolve(self.options, settings=self.settings))
        return stream

    def keep(self, message: Message, answer: str, calls: tuple[ToolCall, ...] = (), reasoning: str = "") -> None:
        """Add a user message and its completion, with its tool calls and its reasoning, to the conversation."""
        self.messages = (*self.messages, message, Message(Role.ASSISTANT, answer, calls, reasoning=reasoning))
        self.waiting, self.answered = (), self.model

    def new_notes(self, notes: tuple[str, ...]) -> tuple[str, ...]:
        """Return the notes that were not printed in this chat yet, and mark them as printed."""
        new = tuple(note for note in notes if note not in self.printed_notes)
        self.printed_notes |= frozenset(new)
        return new

    def attach_images(self, typed: str) -> str:
        """Attach images to the next message and return a confirmation.

        Raises:
            MlxkError: The model takes no images, or these cannot be used; the session is unchanged.
        """
        waiting = (*self.waiting, *self.prepare_images(self.model, typed, 1 + self._shown + len(self.waiting)))
        check_chunk(len(waiting), "/image: images in one turn")
        check_together([len(each.shown.image.data) for each in waiting], "/image")
        self.waiting = waiting
        names = ", ".join(each.shown.image.title for each in waiting)
        return f"{names}: shown with your next message"

    def execute(self, command: SlashCommand) -> str:
        """Execute a slash command and return its output, which may be empty.

        Raises:
            MlxkError: The command is unknown or failed; the session is unchanged.
        """
        actions: dict[str, Callable[[str], str]] = {
            "help": lambda _: HELP,
            "?": lambda _: HELP,
            "set": self._set,
            "show": lambda _: self._show(),
            "system": self._system,
            "clear": lambda _: self._clear(),
            "save": self._save,
            "load": self._load,
            "model": self._model,
            "exit": lambda _: self._exit(),
            "bye": lambda _: self._exit(),
            "quit": lambda _: self._exit(),
        }
        action = actions.get(command.name)
        if action is None:
            near = did_you_mean(f"/{name}" for name in closest(command.name, [*actions, "image"]))
            raise ValidationError(
                f"there is no command /{command.name}", hint=f"{near} Type /help for the commands.".lstrip()
            )
        return action(command.argument)

    def _set(self, argument: str) -> str:
        name, _, value = argument.partition(" ")
        name, value = name.lower().replace("-", "_"), value.strip()
        if name in _SWITCHES and not value:
            field, state = _SWITCHES[name]
            setattr(self, field, state)
            return f"{name} is set"
        if name not in _READERS or not value:
            near = [f"/set {name} VALUE"] if name in _READERS else closest(name, [*_READERS, *_SWITCHES])
            raise ValidationError(
                f"/set does not know '{argument}'", hint=f"{did_you_mean(near)} Type /help for the names.".lstrip()
            )
        empty = () if name == "stop" else None
        try:
            read = empty if value == "default" else _READERS[name](value)
        except ValueError:
            raise ValidationError(f"{name} must be a number (got '{value}')") from None
        change: dict[str, Any] = {name: read}
        changed = attrs.evolve(self.settings, **change)
        changed.validate()
        self.settings = changed
        return f"{name} is {value}"

    def _show(self) -> str:
        given = {
            field.name: value
            for field in attrs.fields(GenerationSettings)
            if (value := getattr(self.settings, field.name)) not in (None, (), False)
        }
        lines = [f"model: {self.model}", *(f"{name}: {value}" for name, value in given.items())]
        lines += [f"system: {self.system}"] if self.system else []
        lines += [f"images: {self._shown} shown, {len(self.waiting)} waiting"] if self._shown or self.waiting else []
        return "\n".join([*lines, f"turns: {len(self.messages) // 2}"])

    @property
    def _shown(self) -> int:
        return sum(len(message.images) for message in self.messages)

    def _system(self, argument: str) -> str:
        require_valid_unicode(argument, "/system")
        self.system = argument or None
        return "the system prompt is set" if argument else "the system prompt is removed"

    def _clear(self) -> str:
        self.messages, self.waiting = (), ()
        return "the conversation is forgotten"

    def _save(self, argument: str) -> str:
        if not argument:
            raise ValidationError("/save needs a file", hint="For example: /save talk.json")
        transcript.save(argument, transcript.SavedChat(self.model, self.system, self.messages))
        return f"saved to {argument}" + (", without its images" if self._shown else "")

    def _load(self, argument: str) -> str:
        if not argument:
            raise ValidationError("/load needs a file", hint="For example: /load talk.json")
        loaded = transcript.load(argument)
        self.messages, self.system = loaded.messages, loaded.system
        return f"loaded {len(loaded.messages) // 2} turns"

    def _model(self, argument: str) -> str:
        if not argument:
            raise ValidationError("/model needs a name", hint="See the names with: mlxk list")
        self.check_model(argument)
        self.model = argument
        return f"the model is {argument}"

    def _exit(self) -> str:
        self.finished = True
        return ""
