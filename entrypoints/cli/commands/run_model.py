"""``mlxk run MODEL PROMPT``: generate text."""

import argparse
from typing import TYPE_CHECKING

from mlxk.domain.errors import FeatureGateError, InterruptedRunError, UsageError
from mlxk.entrypoints.cli.commands.model_argument import add_model_argument
from mlxk.entrypoints.cli.door import Door
from mlxk.entrypoints.cli.exit_status import DONE
from mlxk.entrypoints.cli.output import Output

if TYPE_CHECKING:
    from mlxk.application.ports.text_generator import TextStream
    from mlxk.domain.generation import Finished, GenerationSettings

HELP = "generate text with a model"
PIPE_WORD = "-"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare model, prompt and sampling flags."""
    add_model_argument(parser)
    parser.add_argument("words", nargs="*", metavar="PROMPT", help="the prompt; '-' reads standard input")
    parser.add_argument("--prompt", metavar="TEXT", help="the prompt, instead of words")
    parser.add_argument("--system", metavar="TEXT", help="a system prompt")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="most tokens to generate")
    parser.add_argument("--temperature", type=float, metavar="F", help="0 always takes the likeliest token")
    parser.add_argument(
        "--top-p", type=float, metavar="F", help="sample from the likeliest tokens of this much probability"
    )
    parser.add_argument("--top-k", type=int, metavar="N", help="sample from the N likeliest tokens; 0 is off")
    parser.add_argument("--min-p", type=float, metavar="F", help="drop tokens below this share of the likeliest one")
    parser.add_argument("--repetition-penalty", type=float, metavar="F", help="above 1 discourages repeating")
    parser.add_argument("--seed", type=int, metavar="N", help="the same seed gives the same text")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before this text; repeatable")
    parser.add_argument("--no-stream", action="store_true", help="print the answer when it is complete")
    parser.add_argument("--no-chat-template", action="store_true", help="give the model the prompt as it is")


def execute(arguments: argparse.Namespace, door: Door, output: Output) -> int:
    """Generate, streaming on a terminal, and print the answer."""
    prompt = _prompt(arguments, door)
    container = door.build(door.settings)
    from mlxk.domain.conversation import Conversation

    request = prompt if arguments.no_chat_template else Conversation.of(prompt, arguments.system)
    if arguments.no_chat_template and arguments.system:
        raise UsageError("--system needs the chat template; leave out --no-chat-template")
    streaming = output.interactive and not arguments.no_stream and not output.as_json
    generate = container.use_cases.generate_text()
    try:
        with generate(arguments.model, request, _settings(arguments)) as stream:
            text, finished = _collect(stream, output if streaming else None)
    finally:
        container.adapters.text_generator().close()
    if output.as_json:
        from mlxk.entrypoints.cli import wire

        output.document("run", wire.answer(arguments.model, prompt, text, finished))
        return DONE
    output.line("" if streaming else text)
    _say_why_cut(output, finished, arguments.max_tokens)
    return DONE


def _prompt(arguments: argparse.Namespace, door: Door) -> str:
    """Join the prompt from flag, words and standard input."""
    words = " ".join(word for word in arguments.words if word != PIPE_WORD)
    text = words if arguments.prompt is None else str(arguments.prompt)
    if PIPE_WORD in arguments.words:
        if not door.settings.enable_pipes:
            raise FeatureGateError(
                "reading the prompt from standard input requires MLXK2_ENABLE_PIPES=1",
                hint="Set the variable, or give the prompt as words.",
            )
        return door.read_pipe(text)
    if not text:
        raise UsageError("run needs a prompt", hint='For example: mlxk run demo "What is mlxk?"')
    return text


def _settings(arguments: argparse.Namespace) -> "GenerationSettings":
    from mlxk.domain.generation import GenerationSettings

    return GenerationSettings(
        max_tokens=arguments.max_tokens,
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        top_k=arguments.top_k,
        min_p=arguments.min_p,
        repetition_penalty=arguments.repetition_penalty,
        seed=arguments.seed,
        stop=tuple(arguments.stop),
    )


def _collect(stream: "TextStream", live: Output | None) -> tuple[str, "Finished"]:
    """Gather the answer, writing it out as it comes when there is a live output."""
    from mlxk.domain.generation import Finished

    pieces: list[str] = []
    for event in stream:
        if isinstance(event, Finished):
            return "".join(pieces), event
        pieces.append(event.text)
        if live:
            live.text(event.text)
    raise InterruptedRunError("the answer ended early")


def _say_why_cut(output: Output, finished: "Finished", asked: int | None) -> None:
    """Tell on standard error that the answer was cut, and how to get more."""
    from mlxk.domain.generation import FinishReason

    if finished.reason is not FinishReason.LENGTH:
        return
    tokens = finished.usage.completion_tokens
    if asked is not None and tokens >= asked:
        output.note(f"[Output cut at {tokens} tokens (--max-tokens). Pass a larger --max-tokens to allow more.]")
        return
    output.note(
        f"[Output cut at {tokens} tokens: prompt ({finished.usage.prompt_tokens}) and output fill the model's context "
        "window. Shorten the prompt to allow more.]"
    )
