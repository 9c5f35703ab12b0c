"""``mlxk run MODEL --image FILE…``: a completion about images, chunk by chunk, each after a table of facts."""

import argparse
import functools
import glob
import os
import re
import stat
from typing import TYPE_CHECKING

import attrs

from mlxk.application.generation_options import GenerationOptions
from mlxk.application.incoming_message import IncomingConversation
from mlxk.application.ports.model_source import ModelSource
from mlxk.domain.errors import StorageError, UsageError, ValidationError
from mlxk.domain.generation.conversation import Conversation
from mlxk.domain.generation.media import (
    DEFAULT_CHUNK,
    DEFAULT_IMAGE_PROMPT,
    SIGNATURE_BYTES,
    EncodedImage,
    check_size,
    format_of,
)
from mlxk.entrypoints.cli import answer
from mlxk.entrypoints.cli.command import CommandContext
from mlxk.entrypoints.cli.named_files import IMAGE_NAME
from mlxk.entrypoints.cli.output import Output
from mlxk.entrypoints.cli.shown_prompt import show_prompt

if TYPE_CHECKING:
    from mlxk.entrypoints.container import Container

_WILD = re.compile(r"[*?\[]")
_PATTERN = re.compile(r"\S*[*\[]\S*")
"""One word with these characters is a pattern, even where no file matches it, and not a prompt."""

TEXT_ONLY = {"chat": "--chat", "tools": "--tools", "mcp": "--mcp", "no_chat_template": "--no-chat-template"}
"""Flags that cannot be combined with images, by their attribute of the arguments."""


def execute(
    arguments: argparse.Namespace,
    prompt: str,
    options: GenerationOptions,
    context: CommandContext,
    container: "Container",
    output: Output,
) -> int:
    """Print the completion about the images: as it arrives on a terminal, else chunk by chunk.

    Args:
        arguments: The command line.
        prompt: The prompt; if empty, a request for a description.
        options: How to generate.
        context: The environment of the command.
        container: The program.
        output: Where to print.
    """
    for name, flag in TEXT_ONLY.items():
        if getattr(arguments, name):
            hint = "In a chat, type: /image FILE" if name == "chat" else None
            raise UsageError(f"{flag} and --image exclude each other", hint=hint)
    built_in = container.adapters.built_in_models()
    files = [file for typed in arguments.image for file in find_images(typed, built_in)]
    prompt = prompt or DEFAULT_IMAGE_PROMPT
    chunk = arguments.chunk if arguments.chunk is not None else context.settings.serve.chunk or DEFAULT_CHUNK
    options = attrs.evolve(options, chunk=chunk)
    shown = IncomingConversation.of(Conversation.of(prompt, arguments.system), *files, images_field="--image")
    if arguments.show_prompt:
        return show_prompt(arguments, prompt, shown, options, container, output)
    start = functools.partial(container.use_cases.generate_text(), arguments.model, [shown], options)
    last = min(chunk, len(files))
    numbers = "image 1" if last == 1 else f"images 1-{last}"
    return answer.answer(arguments, prompt, start, output, f"Looking at {numbers} of {len(files)}")


@attrs.frozen
class ImageFile:
    """An image file, read when it is called."""

    path: str
    typed: str
    named_by: str
    """The flag or the command that it was given to."""

    def __call__(self) -> EncodedImage:
        """Read the file.

        Raises:
            StorageError, ValidationError: It cannot be read, or is not an image any more.
        """
        try:
            with open(self.path, "rb") as file:
                data = file.read()
        except OSError as error:
            raise self._unreadable(error) from error
        return EncodedImage.of(data, self._place, os.path.basename(self.path))

    def check(self) -> None:
        """Check signature and size, before a model is loaded.

        Raises:
            StorageError, ValidationError: The file is missing, not an image, or too large.
        """
        try:
            if not stat.S_ISREG(os.stat(self.path).st_mode):
                raise ValidationError(f"{self._place} is no regular file")
            with open(self.path, "rb") as opened:
                beginning = opened.read(SIGNATURE_BYTES)
                size = os.fstat(opened.fileno()).st_size
        except OSError as error:
            raise self._unreadable(error) from error
        check_size(size, self._place)
        format_of(beginning, self._place)

    @property
    def _place(self) -> str:
        return f"{self.named_by}: '{self.typed}'"

    def _unreadable(self, error: OSError) -> StorageError | ValidationError:
        if isinstance(error, FileNotFoundError):
            return ValidationError(f"Image not found: {self.typed}")
        return StorageError(f"{self._place} cannot be read: {error.strerror}")


def find_images(typed: str, built_in: ModelSource, named_by: str = "--image") -> list[ImageFile]:
    """Return the files that a value names, at least one, with signature and size checked.

    Args:
        typed: A path, a pattern, or ``MODEL/FILE`` for a sample of a built-in model.
        built_in: Where samples are.
        named_by: The flag or the command that the value was given to.

    Raises:
        StorageError, ValidationError: A file is missing, not an image, or too large.
    """
    files = [ImageFile(path, typed, named_by) for path in _paths(typed, built_in)]
    for file in files:
        file.check()
    return files


def take_prompt(arguments: argparse.Namespace, built_in: ModelSource) -> list[str]:
    """Remove a prompt from the end of ``--image``, which takes all values up to the next flag, and return it if any."""
    values: list[str] = arguments.image or []
    if len(values) < 2 or not is_prompt(values[-1], built_in):
        return []
    arguments.image = values[:-1]
    return values[-1:]


def is_prompt(value: str, built_in: ModelSource) -> bool:
    """Whether a value is a prompt: neither an existing file, nor one misspelt, nor a pattern."""
    if IMAGE_NAME.search(value) or _PATTERN.fullmatch(value):
        return False
    return not any(map(os.path.exists, _paths(value, built_in)))


def _paths(value: str, built_in: ModelSource) -> list[str]:
    """Return the paths that a value names: itself, those that a pattern matches, or a sample of a built-in model."""
    path = os.path.abspath(os.path.expanduser(value))
    if os.path.exists(path):
        return [path]
    if _WILD.search(value) and (found := sorted(glob.glob(path))):
        return found
    model, _, name = value.partition("/")
    handle = built_in.find(model)
    if handle is not None and name and "/" not in name:
        return [os.path.join(handle.directory, name)]
    return [path]
