"""``mlxk run MODEL --image FILE…``: what a model says about images, chunk by chunk, each after a table of facts."""

import argparse
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import attrs

from mlxk.domain.errors import UsageError
from mlxk.domain.generation.media import DEFAULT_CHUNK, DEFAULT_IMAGE_PROMPT
from mlxk.entrypoints.cli import answer
from mlxk.entrypoints.cli.command import CommandContext
from mlxk.entrypoints.cli.image_files import ImageFile, find_images, is_prompt
from mlxk.entrypoints.cli.output import Output

if TYPE_CHECKING:
    from mlxk.application.ports.model_source import ModelSource
    from mlxk.application.use_cases.generate_text import GenerationOptions

TEXT_ONLY = {"chat": "--chat", "tools": "--tools", "no_chat_template": "--no-chat-template"}
"""Flags that cannot be combined with images, by the name of what they set."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of images."""
    group = parser.add_argument_group("images", "What a model says about images; the prompt may stand before or after.")
    group.add_argument("--image", nargs="+", action="extend", metavar="FILE", help="show a model these files")
    group.add_argument("--chunk", type=int, metavar="N", help="images shown together, 1 to 5; one by one by default")


def wanted(arguments: argparse.Namespace) -> bool:
    """Whether there are images.

    Raises:
        UsageError: There are none, but a flag that needs some.
    """
    if arguments.chunk is not None and not arguments.image:
        raise UsageError("--chunk requires --image FILE.")
    return bool(arguments.image)


def execute(
    arguments: argparse.Namespace, prompt: str, options: "GenerationOptions", context: CommandContext, output: Output
) -> int:
    """Show the images to the model, and print its answers: as they arrive on a terminal, else chunk by chunk.

    Args:
        arguments: The command line.
        prompt: The prompt; if empty, the last of the files when it is no file, else a request for a description.
        options: How to generate.
        context: The environment of the command.
        output: Where to print.
    """
    from mlxk.application.incoming_message import IncomingConversation
    from mlxk.domain.generation.conversation import Conversation

    for name, flag in TEXT_ONLY.items():
        if getattr(arguments, name):
            hint = "In a chat, type: /image FILE" if name == "chat" else None
            raise UsageError(f"{flag} and --image exclude each other", hint=hint)
    container = context.build(context.settings)
    try:
        files, prompt = _files(arguments.image, prompt, container.adapters.built_in_models())
        prompt = prompt or DEFAULT_IMAGE_PROMPT
        chunk = arguments.chunk if arguments.chunk is not None else context.settings.serve.chunk or DEFAULT_CHUNK
        start = functools.partial(
            container.use_cases.generate_text(),
            arguments.model,
            [IncomingConversation.of(Conversation.of(prompt, arguments.system), *files, images_field="--image")],
            attrs.evolve(options, chunk=chunk),
        )
        last = min(chunk, len(files))
        numbers = "image 1" if last == 1 else f"images 1-{last}"
        return answer.answer(arguments, prompt, start, output, f"Looking at {numbers} of {len(files)}")
    finally:
        container.adapters.text_generator().close()


def _files(values: Sequence[str], prompt: str, built_in: "ModelSource") -> tuple[list[ImageFile], str]:
    """Return the files, checked but not read, and the prompt: a last value that is no file, unless one is given.

    Raises:
        StorageError, ValidationError: A file is missing, no image, or too large.
    """
    typed = list(values)
    if len(typed) > 1 and not prompt and is_prompt(typed[-1], built_in):
        prompt = typed.pop()
    return [file for value in typed for file in find_images(value, built_in)], prompt
