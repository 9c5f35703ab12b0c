"""The state of a chat, and what each slash command does to it.

Owns the conversation, the settings and the model; knows no terminal. The loop feeds it and shows what it answers.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import attrs

from mlxk.application.ports.text_generator import TextStream
from mlxk.domain.conversation import Conversation, Message, Role
from mlxk.domain.errors import ValidationError
from mlxk.domain.generation import GenerationSettings
from mlxk.entrypoints.cli.chat import transcript
from mlxk.entrypoints.cli.chat.input import Command

if TYPE_CHECKING:
    from mlxk.application.use_cases.generate_text import GenerateText, Question

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
/help             this list
/exit             leave (also Ctrl-D)
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

    generate: "GenerateText"
    check_model: Callable[[str], str]
    """Resolves a reference to the model's name, or raises."""
    model: str
    settings: GenerationSettings
    question: "Question"
    """How to ask: everything about a request but its conversation and settings."""
    tools: tuple[str, ...] = ()
    system: str | None = None
    show_reasoning: bool = True
    verbose: bool = False
    messages: tuple[Message, ...] = ()
    finished: bool = False
    """Whether the user wants to leave."""

    def ask(self, text: str) -> TextStream:
        """Start the answer to a prompt; the turn is kept by ``keep`` once it is answered."""
        opening = (Message(Role.SYSTEM, self.system),) if self.system else ()
        conversation = Conversation((*opening, *self.messages, Message(Role.USER, text)), self.tools)
        question = attrs.evolve(self.question, prompt=conversation, settings=self.settings)
        return self.generate(self.model, question)

    def keep(self, prompt: str, answer: str) -> None:
        """Remember a turn and its answer."""
        self.messages = (*self.messages, Message(Role.USER, prompt), Message(Role.ASSISTANT, answer))

    def obey(self, command: Command) -> str:
        """Carry out a slash command and return what to tell the user; empty for nothing.

        Raises:
            MlxkError: The command is unknown, or it failed; the session is as it was.
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
            raise ValidationError(f"there is no command /{command.name}", hint="Type /help for the commands.")
        return action(command.argument)

    def _set(self, argument: str) -> str:
        name, _, value = argument.partition(" ")
        name, value = name.lower().replace("-", "_"), value.strip()
        if name in _SWITCHES and not value:
            field, state = _SWITCHES[name]
            setattr(self, field, state)
            return f"{name} is set"
        if name not in _READERS or not value:
            raise ValidationError(f"/set does not know '{argument}'", hint="Type /help for the names.")
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
        return "\n".join([*lines, f"turns: {len(self.messages) // 2}"])

    def _system(self, argument: str) -> str:
        self.system = argument or None
        return "the system prompt is set" if argument else "the system prompt is removed"

    def _clear(self) -> str:
        self.messages = ()
        return "the conversation is forgotten"

    def _save(self, argument: str) -> str:
        if not argument:
            raise ValidationError("/save needs a file", hint="For example: /save talk.json")
        transcript.save(argument, transcript.Transcript(self.model, self.system, self.messages))
        return f"saved to {argument}"

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
