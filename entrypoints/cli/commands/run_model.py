"""``mlxk run MODEL [PROMPT]``: answer one prompt, or chat."""

import argparse
import contextlib
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import attrs

from mlxk.application.generation_input import GenerationOptions
from mlxk.application.policy import answers_about_audio
from mlxk.application.ports.text_generator import TextStream
from mlxk.domain.errors import UsageError, ValidationError
from mlxk.domain.generation.conversation import Conversation
from mlxk.entrypoints.cli import answer, generation_arguments, media_run, prompt_sources, tool_calls
from mlxk.entrypoints.cli.chat.kept_chats import Keeper, KeptChats, complete_names
from mlxk.entrypoints.cli.command import (
    CommandContext,
    add_cpu_argument,
    add_model_argument,
    add_pull_argument,
    add_server_argument,
    computing_settings,
    fetch_absent,
    model_reference,
    note_backend,
    print_place,
    suggesting_pull,
)
from mlxk.entrypoints.cli.media_run import show_prompt
from mlxk.entrypoints.cli.output import Output, TerminalConfirmation
from mlxk.entrypoints.cli.tool_calls import OfferedTools, ToolRounds

if TYPE_CHECKING:
    from mlxk.entrypoints.container import Container


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare model, prompt and sampling flags."""
    add_model_argument(parser, optional=True)
    prompt_sources.add_arguments(parser)
    add_pull_argument(parser)
    parser.add_argument("-s", "--system", metavar="TEXT", help="a system prompt")
    parser.add_argument(
        "-m",
        "--model",
        dest="named",
        type=model_reference,
        metavar="MODEL",
        help="the model; every word is then the prompt",
    )
    parser.add_argument(
        "-v", "--verbose", action=argparse.BooleanOptionalAction, help="print tokens per second after the answer"
    )
    add_server_argument(parser)
    add_cpu_argument(parser)
    parser.add_argument("-c", "--chat", action="store_true", help="chat; a prompt, if any, is the first turn")
    parser.add_argument(
        "--keep", action=argparse.BooleanOptionalAction, help="keep the chat, so that it can be continued, or not"
    )
    chat_name = parser.add_argument(
        "--continue",
        dest="continued",
        nargs="?",
        const="",
        metavar="NAME",
        help="go on with the last chat that was kept, or with this one; MODEL may be left out",
    )
    complete_names(chat_name)
    generation_arguments.add_image_arguments(parser)
    generation_arguments.add_audio_arguments(parser)
    generation_arguments.add_sampling_arguments(parser)
    generation_arguments.add_engine_arguments(parser)
    parser.add_argument(
        "--stream",
        action=argparse.BooleanOptionalAction,
        help="print the answer as it arrives (on a terminal), or when it is complete",
    )
    parser.add_argument("--no-chat-template", action="store_true", help="give the model the prompt as it is")
    parser.add_argument("--show-prompt", action="store_true", help="print what the model would get, and do not run it")
    parser.add_argument(
        "--reasoning", action=argparse.BooleanOptionalAction, help="show what the model thinks (yes), or not"
    )
    parser.add_argument(
        "--thinking",
        "--enable-thinking",
        action=argparse.BooleanOptionalAction,
        help="have the model reason first, or not",
    )
    parser.add_argument(
        "--special-tokens-in-content",
        action=argparse.BooleanOptionalAction,
        help="let control tokens in the prompt's text take effect",
    )
    parser.add_argument("--tools", metavar="FILE", help="functions the model may call: a JSON array in OpenAI's form")
    tool_calls.add_arguments(parser)
    parser.set_defaults(missing=_missing)


def _missing(arguments: argparse.Namespace) -> str | None:
    """Return the missing argument, MODEL, unless a flag or a kept chat gives the model."""
    sources = (arguments.model, arguments.named, arguments.continued)
    return None if any(each is not None for each in sources) else "MODEL"


def execute(arguments: argparse.Namespace, context: CommandContext, output: Output) -> int:
    """Print the completion of a prompt, as it arrives on a terminal; without a prompt, chat."""
    if arguments.named is not None:  # -mNAME and -vm NAME, which are not moved to the front before parsing
        arguments.words = [*filter(None, [arguments.model]), *arguments.words]
        arguments.model = arguments.named
    keeper = _kept_chat(arguments, context, output)
    if arguments.no_chat_template:
        _require_template(arguments)
    if arguments.allow_tool and not arguments.mcp:
        raise UsageError("--allow-tool requires --mcp FILE")
    settings = computing_settings(arguments, context.settings)
    container = context.build(settings)
    note_backend(settings, arguments.hostfile, output)
    try:
        with suggesting_pull(context.settings):
            options = _options(arguments)
            options.settings.validate()
            fetch_absent((arguments.model, arguments.draft_model), lambda: container, output, pull=arguments.pull)
            with (
                prompt_sources.piped_media(arguments, context, output, *_MEDIA_FLAGS),
                _toolbox(arguments, container, output) as toolbox,
            ):
                status = _run(arguments, context, container, output, options, (keeper, toolbox))
        if arguments.verbose:
            print_place(container, output)
        return status
    finally:
        container.adapters.text_generator().close()


_TEMPLATE_FLAGS = {
    "system": "--system",
    "tools": "--tools",
    "mcp": "--mcp",
    "thinking": "--thinking",
    "reasoning_effort": "--reasoning-effort",
    "template_option": "--template-option",
    "special_tokens_in_content": "--special-tokens-in-content",
}
"""Flags that have no effect without a chat template, by their attribute of the arguments."""


def _require_template(arguments: argparse.Namespace) -> None:
    """Refuse flags that have no effect with ``--no-chat-template``."""
    for name, flag in _TEMPLATE_FLAGS.items():
        # Values from the settings file are ignored silently where they do not apply.
        if getattr(arguments, name) != arguments.parser.get_default(name) and name not in arguments.from_file:
            raise UsageError(f"{flag} needs the chat template; leave out --no-chat-template")


def _kept_chat(arguments: argparse.Namespace, context: CommandContext, output: Output) -> Keeper | None:
    """Return the keeper that saves the chat; None when the chat is not kept.

    ``--continue`` reads the chat that it names, and takes its model unless one is given.

    Raises:
        MlxkError: The chat cannot be found or read.
    """
    keeper = Keeper(KeptChats.beside(context.settings.chat_history))
    if arguments.continued is None:
        return keeper if (context.settings.keep_chats if arguments.keep is None else arguments.keep) else None
    if " " in (arguments.model or ""):  # neither a model nor a chat has spaces in its name
        arguments.words, arguments.model = [arguments.model, *arguments.words], None
    if " " in arguments.continued:
        arguments.words, arguments.continued = [arguments.continued, *arguments.words], ""
    try:
        name = keeper.chats.find(arguments.continued)
    except ValidationError as error:
        if arguments.words or arguments.prompt or not keeper.chats.names():
            raise
        hint = f"{error.hint}. A prompt of one word: --prompt {shlex.quote(arguments.continued)}"
        raise ValidationError(error.message, hint=hint) from error
    saved, arguments.chat = keeper.resume(name), True
    keeper.writes = arguments.keep is not False
    if arguments.model is None:
        arguments.model = saved.model
    elif arguments.model != saved.model:
        output.note(f"['{saved.model}' had this chat; '{arguments.model}' goes on with it]")
    return keeper


def _run(
    arguments: argparse.Namespace,
    context: CommandContext,
    container: "Container",
    output: Output,
    options: GenerationOptions,
    keeper_and_tools: tuple[Keeper | None, OfferedTools | None],
) -> int:
    _, toolbox = keeper_and_tools
    sources = prompt_sources.read(arguments, context, container, output)
    prompt = sources.prompt
    has_images, has_audio = generation_arguments.has_images(arguments), generation_arguments.has_audio(arguments)
    in_chat = arguments.chat and (not has_audio or _answers_about_audio(arguments, container))
    if has_audio and not in_chat:
        return media_run.run_audio(arguments, prompt, options, context, container, output)
    if has_images and not in_chat:
        return media_run.ask_about_media(arguments, prompt, options, context, container, output)
    if arguments.chat or (not prompt and sys.stdin.isatty()):
        _require_chat(arguments, output)
        from mlxk.entrypoints.cli.chat.loop import ChatOpening, chat  # noqa: PLC0415 - loads prompt_toolkit

        media = tuple((kind, typed) for kind in _MEDIA_FLAGS for typed in getattr(arguments, kind) or ())
        return chat(arguments, context, container, output, ChatOpening(sources, options, *keeper_and_tools, media))
    if arguments.keep:
        output.note("[--keep keeps chats, and this is none; --chat begins one with this prompt]")
    if not prompt:
        raise UsageError("run needs a prompt", hint=_hint(arguments, context))
    model_input = prompt if arguments.no_chat_template else _conversation(arguments, prompt, toolbox)
    if arguments.show_prompt:
        return show_prompt(arguments, prompt, model_input, options, container, output)
    generate = container.use_cases.generate_text()

    rounds = (
        ToolRounds(toolbox, list(model_input.messages)) if toolbox and isinstance(model_input, Conversation) else None
    )

    def begin() -> Sequence[TextStream]:
        if rounds is None or not isinstance(model_input, Conversation):
            return generate(arguments.model, [model_input], options)
        return generate(arguments.model, [attrs.evolve(model_input, messages=tuple(rounds.messages))], options)

    return answer.answer(arguments, prompt, begin, output, rounds=rounds)


_MEDIA_FLAGS = ("image", "video", "audio")
"""Flags of media files; a chat sends them with its first message."""


def _answers_about_audio(arguments: argparse.Namespace, container: "Container") -> bool:
    description = container.use_cases.describe_model()(container.use_cases.resolve_model()(arguments.model))
    return answers_about_audio(description)


def _hint(arguments: argparse.Namespace, context: CommandContext) -> str:
    if sys.stdin.isatty() or (context.settings.enable_pipes and not arguments.no_stdin):
        return 'For example: mlxk run demo "What is mlxk?"'
    switch = "--no-stdin" if arguments.no_stdin else "MLXK2_ENABLE_PIPES=0"
    return f"{switch} leaves standard input unread; '{prompt_sources.PIPE_WORD}' reads it."


def _conversation(arguments: argparse.Namespace, prompt: str, toolbox: OfferedTools | None) -> Conversation:
    tools = toolbox.definitions if toolbox else generation_arguments.tools(arguments)
    return Conversation.of(prompt, arguments.system, tools)


def _toolbox(
    arguments: argparse.Namespace, container: "Container", output: Output
) -> contextlib.AbstractContextManager[OfferedTools | None]:
    """Return a context of the tools of ``--mcp``, None without it; it starts the tool servers, and stops them."""
    if not arguments.mcp:
        return contextlib.nullcontext()
    return tool_calls.toolbox(
        arguments,
        generation_arguments.tools(arguments),
        container.adapters.tool_servers(),
        TerminalConfirmation(output),
        output,
    )


def _options(arguments: argparse.Namespace) -> GenerationOptions:
    return GenerationOptions(
        settings=generation_arguments.settings(arguments),
        thinking=arguments.thinking,
        effort=generation_arguments.effort(arguments),
        template_options=generation_arguments.template_options(arguments),
        thinking_tags=generation_arguments.thinking_tags(arguments),
        engine_options=generation_arguments.engine_options(arguments),
        draft_reference=arguments.draft_model,
        draft_kind=arguments.draft_kind,
        strict_memory=bool(arguments.strict_memory),
        strict_capabilities=bool(arguments.strict_capabilities),
        parse_special=bool(arguments.special_tokens_in_content),
    )


def _require_chat(arguments: argparse.Namespace, output: Output) -> None:
    """Refuse flags that do not apply to a chat."""
    if output.as_json:
        raise UsageError("chat and --json exclude each other; give a prompt")
    if arguments.audio:
        media_run.require_plain_answer(arguments)
    if arguments.chunk is not None and "chunk" not in arguments.from_file:
        output.note("[--chunk has no effect in a chat: the model sees all images of a message together]")
    if arguments.show_prompt:
        raise UsageError("chat and --show-prompt exclude each other; give a prompt")
    if arguments.no_chat_template:
        raise UsageError("chat and --no-chat-template exclude each other; give a prompt")
