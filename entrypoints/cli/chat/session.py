"""The state of a chat: its conversation, settings and attachments, and the slash commands that only change these."""

import os
import re
from collections.abc import Callable
from typing import Any

import attrs

from mlxk.application.generation_input import GenerationOptions, Recording
from mlxk.application.ports.model_cache import ModelSource
from mlxk.application.ports.text_generator import TextStream
from mlxk.application.use_cases.generate_text import GenerateText, PreparedImage
from mlxk.application.use_cases.make_room import MakeRoom
from mlxk.domain.errors import ValidationError
from mlxk.domain.generation.conversation import Conversation, Message, MessagePart, Role, turns
from mlxk.domain.generation.image_table import Chunk, ShownVideo
from mlxk.domain.generation.media import check_chunk, check_together
from mlxk.domain.generation.request import Finished
from mlxk.domain.generation.settings import GenerationSettings
from mlxk.domain.generation.video import VideoSampling, check_frames, require_few_videos
from mlxk.domain.text import lines_of, require_valid_unicode
from mlxk.entrypoints.cli import input_files
from mlxk.entrypoints.cli.answer import speed
from mlxk.entrypoints.cli.chat import transcript
from mlxk.entrypoints.cli.chat.typed_input import ALIASES, SlashCommand, help_about, unknown_command
from mlxk.entrypoints.cli.command_line_parser import closest, did_you_mean
from mlxk.entrypoints.cli.render.formatting import counted

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

SUMMARY_HEADING = "Summary of the conversation so far:\n"
"""Begins the user message that carries the summary of earlier turns."""

SUMMARY_TAKEN = "I go on from there."
"""The model's answer to that message."""

_THINKING = {"thinking": True, "nothinking": False}

SETTING_NAMES = (*_READERS, *_SWITCHES, *_THINKING)
"""The names that ``/set`` accepts."""

_SUGGESTIONS = (*SETTING_NAMES, "/system TEXT", "/model NAME")
_SYNONYMS = {
    "num_predict": "max_tokens",
    "repeat_penalty": "repetition_penalty",
    "stats": "verbose",
    "system": "/system TEXT",
    "model": "/model NAME",
    "think": "thinking",
    "nothink": "nothinking",
}
"""The counterpart here of each name that similar programs set."""


@attrs.frozen
class Attachments:
    """Files attached to the next message."""

    images: tuple[PreparedImage, ...] = ()
    videos: tuple[ShownVideo, ...] = ()
    recordings: tuple[MessagePart, ...] = ()
    files: tuple[tuple[str, str], ...] = ()
    """Names and texts of text files."""

    def message(self, text: str) -> Message:
        """Return a user message with these attachments; texts of files precede its text, as on the command line.

        Raises:
            ValidationError: The text is not valid Unicode.
        """
        require_valid_unicode(text, "prompt")
        full_text = "\n\n".join(part for part in (*input_files.labelled(self.files), text) if part.strip())
        if self.images or self.videos:
            chunk = Chunk(tuple(image.shown for image in self.images), videos=self.videos)
            clips = (clip.read.video for clip in self.videos)
            return chunk.message([*(image.pixels for image in self.images), *clips, *self.recordings, full_text])
        return Message.of_parts(*self.recordings, full_text) if self.recordings else Message(Role.USER, full_text)


@attrs.define
class ChatSession:
    """One chat."""

    generate: GenerateText
    room: MakeRoom
    built_in: ModelSource
    """Has samples of media."""
    model: str
    """The reference of the current model."""
    settings: GenerationSettings
    options: GenerationOptions
    """How to generate; ``settings`` replace the settings in it."""
    tools: tuple[str, ...] = ()
    """Function definitions as JSON text."""
    system: str | None = None
    """The system prompt; None for that of the model's profile, empty for none."""
    show_reasoning: bool = True
    live: bool = True
    """Whether completions are printed as they arrive."""
    attaches: bool = True
    """Whether to attach media that a message names."""
    sampling: VideoSampling = attrs.field(factory=VideoSampling)
    """How frames are sampled from clips."""
    verbose: bool = False
    messages: tuple[Message, ...] = ()
    """The turns in the model's context; each is a user message with the answers of the model and the tools."""
    earlier: tuple[Message, ...] = ()
    """Older turns, which were dropped from the model's context."""
    summary: str = ""
    """A summary of ``earlier`` in the model's context; may be empty."""
    waiting: Attachments = Attachments()
    """Attachments of the next message."""
    finished: bool = False
    """Whether the user left the chat."""
    answered: str = ""
    """The model of the last completion, which is loaded; empty before the first."""
    last: Finished | None = None
    """The end of the last completion."""
    answers: int = 0
    """Number of completions in this chat."""
    generated: int = 0
    """Number of tokens generated in this chat."""
    printed_notes: frozenset[str] = frozenset()
    """Notes about completions that this chat has printed already."""

    def conversation(self, *turn: Message) -> Conversation:
        """Return the model's context: system prompt, summary, turns, and the current, incomplete turn."""
        system = self.system_prompt
        opening = (Message(Role.SYSTEM, system),) if system else ()
        # Not in the system prompt, which would replace that of the model's profile.
        summary = (Message(Role.USER, SUMMARY_HEADING + self.summary), Message(Role.ASSISTANT, SUMMARY_TAKEN))
        return Conversation((*opening, *(summary if self.summary else ()), *self.messages, *turn), self.tools)

    @property
    def system_prompt(self) -> str | None:
        """The system prompt of this chat, else that of the model's profile; None without one.

        Raises:
            MlxkError: The model cannot be found.
        """
        if self.system is not None:
            return self.system or None
        return self.generate.profile_of(self.generate.resolve(self.model)).system

    @property
    def generation(self) -> GenerationOptions:
        """How to generate, with the settings of the session."""
        return attrs.evolve(self.options, settings=self.settings, fills_system=False)

    def ask(self, *turn: Message) -> TextStream:
        """Start a completion of an incomplete turn; ``keep`` adds the finished turn to the conversation."""
        (stream,) = self.generate(self.model, [self.conversation(*turn)], self.generation)
        return stream

    def keep(self, *turn: Message) -> None:
        """Add a turn to the conversation."""
        self.messages = (*self.messages, *turn)

    def count(self, finished: Finished) -> None:
        """Count a completion for ``/stats``."""
        self.last, self.answered = finished, self.model
        self.answers += 1
        self.generated += finished.usage.completion_tokens

    def new_notes(self, notes: tuple[str, ...]) -> tuple[str, ...]:
        """Return the notes that this chat has not printed yet, and mark them as printed."""
        new = tuple(note for note in notes if note not in self.printed_notes)
        self.printed_notes |= frozenset(new)
        return new

    def attach(self, kind: str, typed: str, field: str | None = None) -> str:
        """Attach a file, or several images or clips, to the next message and return a confirmation.

        Args:
            kind: One of ``ATTACHING``.
            typed: The path as typed, or a pattern.
            field: Names the source in errors; None for the slash command of the kind.

        Raises:
            MlxkError: The model does not support it, or it cannot be read; the session is unchanged.
        """
        actions = {"image": self._attach_images, "video": self._attach_videos, "audio": self._attach_recording}
        names = actions.get(kind, self._attach_file)(typed, field or f"/{kind}")
        return f"{names}: {'added to' if kind == 'file' else 'shown with'} your next message"

    def _attach_images(self, typed: str, field: str) -> str:
        first = 1 + sum(len(message.images) for message in self.messages) + len(self.waiting.images)
        files = input_files.find_images(typed, self.built_in, field)
        images = (*self.waiting.images, *self.generate.prepare_images(self.model, files, first))
        check_chunk(len(images), f"{field}: images in one turn")
        check_together([len(each.shown.image.data) for each in images], field)
        self.waiting = attrs.evolve(self.waiting, images=images)
        return ", ".join(each.shown.image.title for each in images)

    def _attach_videos(self, typed: str, field: str) -> str:
        first = 1 + sum(len(message.videos) for message in self.messages) + len(self.waiting.videos)
        files = input_files.find_videos(typed, self.built_in, self.sampling, field)
        require_few_videos(len(files) + len(self.waiting.videos), field)
        clips = [self.generate.prepare_video(self.model, file, number) for number, file in enumerate(files, first)]
        check_frames([clip.read.video for clip in (*self.waiting.videos, *clips)], field)
        self.waiting = attrs.evolve(self.waiting, videos=(*self.waiting.videos, *clips))
        return ", ".join(clip.video.title for clip in clips)

    def _attach_recording(self, typed: str, field: str) -> str:
        recording = Recording(input_files.recording_path(typed, self.built_in, field), typed)
        decoded = self.generate.prepare_recording(self.model, recording)
        self.waiting = attrs.evolve(self.waiting, recordings=(*self.waiting.recordings, decoded))
        return f"'{os.path.basename(recording.path)}'"

    def _attach_file(self, typed: str, field: str) -> str:
        files = input_files.read_files([typed], field)
        self.waiting = attrs.evolve(self.waiting, files=(*self.waiting.files, *files))
        return f"'{typed}', {counted(len(lines_of(files[0][1])), 'line')}"

    def execute(self, command: SlashCommand) -> str:
        """Execute a slash command and return its output, which may be empty.

        Raises:
            MlxkError: The command is unknown or failed; the session is unchanged.
        """
        actions: dict[str, Callable[[str], str]] = {
            "help": help_about,
            "set": self._set,
            "show": lambda _: self._show(),
            "system": self._system,
            "clear": lambda _: self._clear(),
            "undo": lambda _: self._undo(),
            "load": self._load,
            "model": self._model,
            "exit": lambda _: self._exit(),
        }
        action = actions.get(ALIASES.get(command.name, command.name))
        if action is None:
            raise unknown_command(command.name)
        return action(command.argument)

    def _set(self, argument: str) -> str:
        # Similar programs have the forms "/set parameter NAME VALUE" and "NAME=VALUE".
        match = re.match(r"(?:parameter\s+)?([^\s=]*)(?:=|\s+(?:=\s+)?)?(.*)", argument, re.DOTALL | re.IGNORECASE)
        name, value = match.groups() if match else ("", "")
        name = name.lower().replace("-", "_")
        if not name:
            raise ValidationError("/set needs a name", hint="For example: /set temperature 0.5")
        if name in _SWITCHES and not value:
            field, state = _SWITCHES[name]
            setattr(self, field, state)
            return f"{name} is set"
        if name in _THINKING and not value:
            options = attrs.evolve(self.options, thinking=_THINKING[name])
            self.generate.require(self.model, attrs.evolve(options, settings=self.settings))
            self.options = options
            return f"{name} is set"
        if name not in _READERS or not value:
            near = [f"/set {name} VALUE"] if name in _READERS else closest(name, _SUGGESTIONS, _SYNONYMS)
            raise ValidationError(
                f"/set {name} needs a value" if name in _READERS else f"/set does not know '{name}'",
                hint=f"{did_you_mean(near)} Type /help for the names.".lstrip(),
            )
        empty = () if name == "stop" else None
        try:
            converted = empty if value == "default" else _READERS[name](value)
        except ValueError:
            kind = "a whole number" if _READERS[name] is int else "a number"
            raise ValidationError(f"{name} must be {kind} (got '{value}')") from None
        change: dict[str, Any] = {name: converted}
        changed = attrs.evolve(self.settings, **change)
        changed.validate()
        self.settings = changed
        return f"{name} is {value}"

    def _show(self) -> str:
        settings = {
            field.name: ", ".join(map(repr, value)) if isinstance(value, tuple) else value
            for field in attrs.fields(GenerationSettings)
            if (value := getattr(self.settings, field.name)) is not None and value is not False and value != ()
        }
        lines = [f"model: {self.model}", *(f"{name}: {value}" for name, value in settings.items())]
        lines += [] if self.options.thinking is None else [f"thinking: {'yes' if self.options.thinking else 'no'}"]
        lines += [f"system: {self.system_prompt}"] if self.system_prompt else []
        shown = sum(len(message.images) for message in self.messages)
        waiting = self.waiting
        lines += [f"images: {shown} shown, {len(waiting.images)} waiting"] if shown or waiting.images else []
        watched = sum(len(message.videos) for message in self.messages)
        lines += [f"clips: {watched} shown, {len(waiting.videos)} waiting"] if watched or waiting.videos else []
        lines += [f"recordings waiting: {len(waiting.recordings)}"] if waiting.recordings else []
        lines += [f"files waiting: {', '.join(name for name, _ in waiting.files)}"] if waiting.files else []
        lines += [f"summary: {self.summary}"] if self.summary else []
        dropped = len(turns(self.earlier))
        more = f", and {dropped} dropped" if dropped else ""
        return "\n".join([*lines, f"turns: {len(turns(self.messages))}{more}"])

    def statistics(self) -> tuple[str, ...]:
        """Return lines about the completions of this chat."""
        if self.last is None:
            return ("no answer yet",)
        first_token, load = self.last.timings.first_token_seconds, self.last.timings.load_seconds
        return (
            f"last answer: {speed(self.last)}",
            f"first token after {first_token:.2f} s, {load:.2f} s of it to load the model",
            f"this chat: {counted(self.answers, 'answer')}, {counted(self.generated, 'token')}",
        )

    def _system(self, argument: str) -> str:
        require_valid_unicode(argument, "/system")
        self.system = argument
        return "the system prompt is set" if argument else "the system prompt is removed"

    def _clear(self) -> str:
        self.messages, self.earlier, self.summary, self.waiting = (), (), "", Attachments()
        return "the conversation is forgotten"

    @property
    def last_turn(self) -> tuple[Message, ...]:
        """The last turn.

        Raises:
            ValidationError: There is none.
        """
        if not self.messages:
            raise ValidationError("there is no message yet")
        return turns(self.messages)[-1]

    def _undo(self) -> str:
        turn = self.last_turn
        self.messages = self.messages[: -len(turn)]
        left = len(turns(self.messages))
        return f"taken back: {transcript.first_words(turn)} ({counted(left, 'turn')} left)"

    @property
    def saved(self) -> transcript.SavedChat:
        """The chat in the form that is saved."""
        return transcript.SavedChat(self.model, self.system_prompt, self.messages, self.earlier, self.summary)

    def restore(self, saved: transcript.SavedChat, system: str | None = None) -> None:
        """Continue a saved conversation; ``system`` replaces its system prompt unless it is None."""
        self.messages, self.system = saved.messages, (saved.system or "") if system is None else system
        self.earlier, self.summary = saved.earlier, saved.summary

    def save(self, path: str, *, replace: bool) -> str:
        """Write the conversation to a file and return a confirmation.

        Raises:
            FileExistsError: The file exists, and ``replace`` is false.
            StorageError, ValidationError: See ``transcript.save``.
        """
        if not path:
            raise ValidationError("/save needs a file", hint="For example: /save talk.json")
        transcript.save(path, self.saved, replace=replace)
        lost = [
            kind
            for kind, has in (
                ("images", lambda each: each.images),
                ("video", lambda each: each.videos),
                ("sound", lambda each: each.audio),
            )
            if any(map(has, self.messages))
        ]
        return f"saved to {path}" + (f", without its {' and '.join(lost)}" if lost else "")

    def _load(self, argument: str) -> str:
        if not argument:
            raise ValidationError("/load needs a file", hint="For example: /load talk.json")
        loaded = transcript.load(argument)
        before = len(turns(self.messages))
        self.restore(loaded)
        facts = [f"loaded {counted(len(turns(self.messages)), 'turn')}"]
        facts += [f"in place of the {counted(before, 'turn')} before"] if before else []
        if loaded.model != self.model:
            facts += [f"which '{loaded.model}' answered; '{self.model}' goes on with it (or: /model {loaded.model})"]
        return ", ".join(facts)

    def _model(self, argument: str) -> str:
        if not argument:
            return f"the model is {self.model}; another one is named with /model NAME, and Tab shows the names"
        self.generate.require(argument, self.generation)
        self.model = argument
        count = len(turns(self.messages))
        return f"the model is {argument}" + (f"; it goes on with the {counted(count, 'turn')} so far" if count else "")

    def _exit(self) -> str:
        self.finished = True
        return ""
