"""``mlxk run MODEL --image FILE…``: a completion about images, chunk by chunk, each after a table of facts."""

import argparse
import functools
from typing import TYPE_CHECKING

import attrs

from mlxk.application.generation_options import GenerationOptions
from mlxk.application.incoming_message import IncomingConversation
from mlxk.application.ports.model_source import ModelSource
from mlxk.domain.errors import UsageError
from mlxk.domain.generation.conversation import Conversation
from mlxk.domain.generation.media import (
    DEFAULT_CHUNK,
    DEFAULT_IMAGE_PROMPT,
)
from mlxk.entrypoints.cli import answer
from mlxk.entrypoints.cli.command import CommandContext
from mlxk.entrypoints.cli.given_files import find_images, is_prompt
from mlxk.entrypoints.cli.output import Output
from mlxk.entrypoints.cli.shown_prompt import show_prompt

if TYPE_CHECKING:
    from mlxk.entrypoints.container import Container

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


def take_prompt(arguments: argparse.Namespace, built_in: ModelSource) -> list[str]:
    """Remove a prompt from the end of ``--image``, which takes all values up to the next flag, and return it if any."""
    values: list[str] = arguments.image or []
    if len(values) < 2 or not is_prompt(values[-1], built_in):
        return []
    arguments.image = values[:-1]
    return values[-1:]
