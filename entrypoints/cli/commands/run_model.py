"""``mlxk run MODEL [PROMPT]``: answer one prompt, or chat."""

import argparse
import functools
import sys
from typing import TYPE_CHECKING

from mlxk.application.generation_options import GenerationOptions
from mlxk.domain.errors import UsageError
from mlxk.domain.generation.conversation import Conversation
from mlxk.entrypoints.cli import answer, audio_run, generation_arguments, image_run, prompt_sources
from mlxk.entrypoints.cli.command import (
    CommandContext,
    add_model_argument,
    add_server_argument,
    print_place,
    sharing_settings,
)
from mlxk.entrypoints.cli.fetching import add_pull_argument, fetch_absent, naming_the_flag
from mlxk.entrypoints.cli.output import Output
from mlxk.entrypoints.cli.references import model_reference
from mlxk.entrypoints.cli.shown_prompt import show_prompt

if TYPE_CHECKING:
    from mlxk.entrypoints.container import Container


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare model, prompt and sampling flags."""
    add_model_argument(parser)
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
    parser.add_argument("-c", "--chat", action="store_true", help="chat; a prompt, if any, is the first turn")
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


def execute(arguments: argparse.Namespace, context: CommandContext, output: Output) -> int:
    """Print the completion of a prompt, as it arrives on a terminal; without a prompt, chat."""
    if arguments.named is not None:  # -mNAME and -vm NAME, which are not moved to the front before parsing
        arguments.words = [arguments.model, *arguments.words]
        arguments.model = arguments.named
    if arguments.no_chat_template and (arguments.system or arguments.tools):
        raise UsageError("--system and --tools need the chat template; leave out --no-chat-template")
    container = context.build(sharing_settings(arguments, context.settings))
    try:
        with naming_the_flag():
            _options(arguments).settings.validate()
            fetch_absent((arguments.model, arguments.draft_model), lambda: container, output, pull=arguments.pull)
            status = _run(arguments, context, container, output)
        if arguments.verbose:
            print_place(container, output)
        return status
    finally:
        container.adapters.text_generator().close()


def _run(arguments: argparse.Namespace, context: CommandContext, container: "Container", output: Output) -> int:
    sources = prompt_sources.read(arguments, context, container, output)
    prompt = sources.prompt
    options = functools.partial(_options, arguments)
    if generation_arguments.has_audio(arguments):
        return audio_run.execute(arguments, prompt, options, context, container, output)
    if generation_arguments.has_images(arguments):
        return image_run.execute(arguments, prompt, options(), context, container, output)
    if arguments.chat or (not prompt and sys.stdin.isatty()):
        return _chat(arguments, context, container, output, sources)
    if not prompt:
        raise UsageError("run needs a prompt", hint=_hint(arguments, context))
    given = prompt if arguments.no_chat_template else _conversation(arguments, prompt)
    if arguments.show_prompt:
        return show_prompt(arguments, prompt, given, options(), container, output)
    start = functools.partial(container.use_cases.generate_text(), arguments.model, [given], options())
    return answer.answer(arguments, prompt, start, output)


def _hint(arguments: argparse.Namespace, context: CommandContext) -> str:
    if sys.stdin.isatty() or (context.settings.enable_pipes and not arguments.no_stdin):
        return 'For example: mlxk run demo "What is mlxk?"'
    switch = "--no-stdin" if arguments.no_stdin else "MLXK2_ENABLE_PIPES=0"
    return f"{switch} leaves standard input unread; '{prompt_sources.PIPE_WORD}' reads it."


def _conversation(arguments: argparse.Namespace, prompt: str) -> Conversation:
    return Conversation.of(prompt, arguments.system, generation_arguments.tools(arguments))


def _options(arguments: argparse.Namespace) -> GenerationOptions:
    return GenerationOptions(
        settings=generation_arguments.settings(arguments),
        thinking=arguments.thinking,
        effort=generation_arguments.effort(arguments),
        template_options=generation_arguments.template_options(arguments),
        thinking_tags=generation_arguments.thinking_tags(arguments),
        engine_options=generation_arguments.engine_options(arguments),
        draft_reference=arguments.draft_model,
        strict_memory=bool(arguments.strict_memory),
        strict_capabilities=bool(arguments.strict_capabilities),
        parse_special=bool(arguments.special_tokens_in_content),
    )


def _chat(
    arguments: argparse.Namespace,
    context: CommandContext,
    container: "Container",
    output: Output,
    sources: prompt_sources.PromptSources,
) -> int:
    if output.as_json:
        raise UsageError("chat and --json exclude each other; give a prompt")
    if arguments.show_prompt:
        raise UsageError("chat and --show-prompt exclude each other; give a prompt")
    if arguments.no_chat_template:
        raise UsageError("chat and --no-chat-template exclude each other; give a prompt")
    from mlxk.entrypoints.cli.chat.loop import chat  # noqa: PLC0415 - prompt_toolkit is loaded only to chat

    return chat(arguments, context, container, output, sources, _options(arguments))
