"""``mlxk run MODEL --audio FILE``: what is said in a recording, as text, subtitles or JSON.

A model that writes text and takes sound beside it is asked about the recording instead, as about anything else.
"""

import argparse
import functools
import os
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from mlxk.domain.errors import CapabilityError, ExecutionError, InterruptedRunError, UsageError
from mlxk.domain.generation.media import DEFAULT_AUDIO_PROMPT
from mlxk.entrypoints.cli import answer
from mlxk.entrypoints.cli.command import CommandContext
from mlxk.entrypoints.cli.exit_status import DONE
from mlxk.entrypoints.cli.output import Output

if TYPE_CHECKING:
    from mlxk.application.ports.model_source import ModelSource
    from mlxk.application.use_cases.generate_text import Question
    from mlxk.application.use_cases.transcribe_audio import Recording
    from mlxk.domain.transcription import Segment, Transcript, TranscriptEvent, TranscriptionSettings

FORMATS = ("text", "json", "srt", "vtt")

ENGLISH = "en"

TEXT_ONLY = {
    "image": "--image",
    "system": "--system",
    "chat": "--chat",
    "tools": "--tools",
    "json_schema": "--json-schema",
    "thinking": "--thinking",
    "thinking_budget": "--thinking-budget",
    "reasoning_effort": "--reasoning-effort",
    "stop": "--stop",
    "max_tokens": "--max-tokens",
    "top_p": "--top-p",
    "top_k": "--top-k",
    "min_p": "--min-p",
    "repetition_penalty": "--repetition-penalty",
    "presence_penalty": "--presence-penalty",
    "frequency_penalty": "--frequency-penalty",
    "seed": "--seed",
    "draft_model": "--draft-model",
    "adapter": "--adapter",
    "kv_bits": "--kv-bits",
    "max_kv_size": "--max-kv-size",
    "no_chat_template": "--no-chat-template",
}
"""Flags that mean nothing to a model that only listens, by the name of what they set."""

TRANSCRIPTS_ONLY = {"language": "--language", "translate": "--translate", "time_words": "--words"}
"""Flags that mean nothing to a model that is asked about sound, by the name of what they set."""

CONVERSATIONS_ONLY = {"image": "--image", "chat": "--chat", "no_chat_template": "--no-chat-template"}
"""Flags that cannot be combined with a recording that is asked about, by the name of what they set."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of listening."""
    group = parser.add_argument_group(
        "audio",
        "What is said in a recording; PROMPT is a hint of what to expect, or asks a model that also writes text.",
    )
    group.add_argument("--audio", nargs="+", action="extend", metavar="FILE", help="write down what is said in a file")
    group.add_argument("--language", metavar="CODE", help="what is spoken, such as de; found out when left out")
    group.add_argument("--translate", nargs="?", const=ENGLISH, metavar="en", help="write it down in English")
    group.add_argument(
        "--words",
        action="store_true",
        dest="time_words",
        help="time every word, where the model can; see --format json",
    )
    group.add_argument("--format", choices=FORMATS, help="text (default), json, or subtitles as srt or vtt")


def wanted(arguments: argparse.Namespace) -> bool:
    """Whether there is a recording to listen to.

    Raises:
        UsageError: There is none, but a flag that needs one.
    """
    if arguments.audio:
        return True
    flags = {
        "--translate": arguments.translate,
        "--language": arguments.language,
        "--words": arguments.time_words,
        "--format": arguments.format,
    }
    given = next((flag for flag, value in flags.items() if value), None)
    if given:
        raise UsageError(f"{given} requires --audio FILE.")
    return False


def execute(
    arguments: argparse.Namespace,
    prompt: str,
    question: "Callable[[str], Question]",
    context: CommandContext,
    output: Output,
) -> int:
    """Listen, and print what was heard: as it comes on a terminal, else when it is complete.

    Args:
        arguments: The command line.
        prompt: Words that are likely to occur, or what to ask about the recording; empty gives none.
        question: Makes of a prompt what to ask a model that also writes text, and how.
        context: The world.
        output: Where to print.
    """
    _require_sense(arguments, output)
    container = context.build(context.settings)
    try:
        recording, prompt = _recording(arguments.audio, prompt, container.adapters.built_in_models())
        ask = container.use_cases.ask_about_recording()
        if ask.takes(arguments.model):
            _require_question(arguments)
            asked = question(prompt or DEFAULT_AUDIO_PROMPT)
            start = functools.partial(ask, arguments.model, recording, asked)
            return answer.answer(arguments, prompt or DEFAULT_AUDIO_PROMPT, start, output)
        _require_listening(arguments)
        settings = _settings(arguments, prompt)
        events = container.use_cases.transcribe_audio()(arguments.model, recording, settings)
        as_text = arguments.format in (None, "text") and not output.as_json
        live = as_text and output.interactive and not arguments.no_stream
        transcript = _listen(events, output, live=live)
        if as_text:
            _print_text(output, transcript, live=live, table=context.settings.audio_segments)
        else:
            _print(arguments, output, transcript, prompt)
        return DONE
    finally:
        container.adapters.text_generator().close()


def _require_sense(arguments: argparse.Namespace, output: Output) -> None:
    if arguments.translate not in (None, ENGLISH):
        raise UsageError(f"--translate only supports English target ('en'); got '{arguments.translate}'.")
    if output.as_json and arguments.format:
        raise UsageError("--json and --format exclude each other; --json holds text and segments")


def _require_listening(arguments: argparse.Namespace) -> None:
    """Refuse what a model that only listens does not know."""
    for name, flag in TEXT_ONLY.items():
        if getattr(arguments, name) not in (None, False, []):
            raise UsageError(f"{flag} does not apply to --audio")


def _require_question(arguments: argparse.Namespace) -> None:
    """Refuse what cannot be said to, or had from, a model that is asked about sound."""
    for name, flag in CONVERSATIONS_ONLY.items():
        if getattr(arguments, name):
            raise UsageError(f"{flag} and --audio exclude each other")
    unknown = next((flag for name, flag in TRANSCRIPTS_ONLY.items() if getattr(arguments, name)), None)
    if arguments.format not in (None, "text"):
        unknown = unknown or f"--format {arguments.format}"
    if unknown:
        raise CapabilityError(
            f"{unknown}: '{arguments.model}' answers in plain text, without languages to choose and without times.",
            hint="Say in the prompt what you want, or use a speech-to-text model, such as one of the Whisper family.",
        )


def _recording(values: Sequence[str], prompt: str, built_in: "ModelSource") -> "tuple[Recording, str]":
    """Return the one recording, and the prompt: a last value that is no file is one, when there is none otherwise."""
    from mlxk.application.use_cases.transcribe_audio import Recording

    files = list(values)
    if len(files) > 1 and not prompt and not os.path.exists(os.path.expanduser(files[-1])):
        prompt = files.pop()
    if len(files) > 1:
        raise UsageError("Multiple audio files not supported. Process one file at a time.")
    return Recording(_path(files[0], built_in), files[0]), prompt


def _path(typed: str, built_in: "ModelSource") -> str:
    """Return where a file is; ``demo-speech/hello.wav`` is one that comes with a built-in model."""
    path = os.path.abspath(os.path.expanduser(typed))
    model, _, name = typed.partition("/")
    handle = None if os.path.exists(path) else built_in.find(model)
    if handle is not None and name and "/" not in name:
        return os.path.join(handle.directory, name)
    return path


def _settings(arguments: argparse.Namespace, prompt: str) -> "TranscriptionSettings":
    from mlxk.domain.transcription import SpeechTask, TranscriptionSettings

    return TranscriptionSettings(
        task=SpeechTask.TRANSLATE if arguments.translate else SpeechTask.TRANSCRIBE,
        language=arguments.language,
        hint=prompt or None,
        temperature=arguments.temperature or 0.0,
        words=arguments.time_words,
    )


def _listen(events: "Iterable[TranscriptEvent]", output: Output, *, live: bool) -> "Transcript":
    """Return what is heard, showing how far it is."""
    from mlxk.domain.transcription import Transcript, TranscriptionProgress
    from mlxk.entrypoints.cli.progress import ListeningProgress

    heard: list[Segment] = []
    with ListeningProgress(output, shown=not live) as progress:
        try:
            for event in events:
                if isinstance(event, Transcript):
                    return event
                if isinstance(event, TranscriptionProgress):
                    progress(event.done_seconds, event.total_seconds)
                    heard.extend(event.segments)
                    if live:
                        _write_live(output, event.segments, first=len(heard) == len(event.segments))
        except KeyboardInterrupt:
            raise _interrupted(output, "".join(segment.text for segment in heard).strip(), live) from None
    raise ExecutionError("the transcription ended without a transcript")


def _interrupted(output: Output, text: str, live: bool) -> InterruptedRunError:
    """Deliver what was heard until the user interrupted: as data, or within the one JSON document."""
    if output.as_json:
        return InterruptedRunError("interrupted", detail={"response": text})
    output.line("" if live else text)
    return InterruptedRunError("interrupted")


def _write_live(output: Output, segments: "Sequence[Segment]", *, first: bool) -> None:
    text = "".join(segment.text for segment in segments)
    output.text(text.lstrip() if first else text)


def _print_text(output: Output, transcript: "Transcript", *, live: bool, table: bool) -> None:
    from mlxk.domain.transcription import segments_table

    output.line("" if live and transcript.segments else transcript.text)
    if table and transcript.segments:
        output.line(f"\n{segments_table(transcript.segments)}")


def _print(arguments: argparse.Namespace, output: Output, transcript: "Transcript", prompt: str) -> None:
    from mlxk.domain.transcription import srt, vtt
    from mlxk.entrypoints.cli.render import media_json

    translated = bool(arguments.translate)
    if output.as_json:
        output.document("run", media_json.answered(arguments.model, prompt, transcript, translated))
    elif arguments.format == "json":
        output.text(media_json.as_json(transcript, translated))
    else:
        output.text(srt(transcript) if arguments.format == "srt" else vtt(transcript))
