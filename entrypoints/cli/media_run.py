"""``mlxk run MODEL`` with images, clips and recordings, and ``--show-prompt``.

Images are shown to the model in chunks, each with a table of metadata; together with a clip, all in one chunk. A speech
model transcribes a recording, as text, subtitles or JSON; a chat model that takes audio answers the prompt about it,
images and clips.
"""

import argparse
import functools
import json
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import attrs

from mlxk.application.generation_input import GenerationOptions, ImageSource, IncomingConversation, Prompt, Recording
from mlxk.application.policy import answers_about_audio, require_speech_model
from mlxk.application.ports.model_cache import ModelSource
from mlxk.domain.errors import CapabilityError, ExecutionError, UsageError
from mlxk.domain.generation.conversation import Conversation
from mlxk.domain.generation.media import (
    DEFAULT_AUDIO_PROMPT,
    DEFAULT_CHUNK,
    DEFAULT_IMAGE_PROMPT,
    DEFAULT_MIXED_PROMPT,
)
from mlxk.domain.generation.video import DEFAULT_VIDEO_PROMPT, EncodedVideo
from mlxk.domain.transcription import (
    Segment,
    SpeechTask,
    TimedWord,
    Transcript,
    TranscriptEvent,
    TranscriptionProgress,
    TranscriptionSettings,
    segments_table,
    srt,
    vtt,
)
from mlxk.entrypoints.cli import answer, generation_arguments
from mlxk.entrypoints.cli.command import CommandContext
from mlxk.entrypoints.cli.generation_arguments import ENGLISH
from mlxk.entrypoints.cli.input_files import find_images, find_videos, recording_path
from mlxk.entrypoints.cli.output import DONE, Output
from mlxk.entrypoints.cli.progress import Spinner, TranscriptionBar
from mlxk.entrypoints.cli.render.formatting import counted

if TYPE_CHECKING:
    from mlxk.application.ports.model_tasks import TokenizedText
    from mlxk.entrypoints.container import Container


_DEFAULT_PROMPTS = {
    (True, False): DEFAULT_IMAGE_PROMPT,
    (False, True): DEFAULT_AUDIO_PROMPT,
    (True, True): DEFAULT_MIXED_PROMPT,
}
"""The default prompt, by whether there are images and whether there are recordings."""


def ask_about_media(
    arguments: argparse.Namespace,
    prompt: str,
    options: GenerationOptions,
    context: CommandContext,
    container: "Container",
    output: Output,
) -> int:
    """Print the completion about images, clips and recordings: as it arrives on a terminal, else chunk by chunk.

    Args:
        arguments: The command line.
        prompt: The prompt; if empty, a default one.
        options: How to generate.
        context: Has the default chunk size.
        container: Has models and use cases.
        output: Where to print.

    Raises:
        MlxkError: A flag does not apply, a file cannot be read, or the completion failed.
    """
    built_in = container.adapters.built_in_models()
    recordings = _recordings(arguments, built_in)
    files: list[ImageSource] = []
    clips: list[EncodedVideo] = []
    if arguments.image or arguments.video:
        _require_image_flags(arguments)
        files = [file for typed in arguments.image or () for file in find_images(typed, built_in)]
        sampling = generation_arguments.video_sampling(arguments)
        clips = [clip for typed in arguments.video or () for clip in find_videos(typed, built_in, sampling)]
        chunk = arguments.chunk if arguments.chunk is not None else context.settings.serve.chunk or DEFAULT_CHUNK
        options = attrs.evolve(options, chunk=chunk)
    default = DEFAULT_VIDEO_PROMPT if clips and not files else _DEFAULT_PROMPTS[bool(files), bool(recordings)]
    prompt = prompt or default
    text_only = Conversation.of(prompt, arguments.system, generation_arguments.tools(arguments))
    field = "--image" if files else "--video"
    conversation = IncomingConversation.of(text_only, *files, *clips, *recordings, images_field=field)
    if arguments.show_prompt:
        return show_prompt(arguments, prompt, conversation, options, container, output)
    start = functools.partial(container.use_cases.generate_text(), arguments.model, [conversation], options)
    if not files and not clips:
        return answer.answer(arguments, prompt, start, output)
    first_chunk = _first_chunk(len(files), len(clips), options.chunk)
    return answer.answer(arguments, prompt, start, output, f"Looking at {first_chunk}")


def _require_image_flags(arguments: argparse.Namespace) -> None:
    """Raise UsageError for a flag that cannot be combined with images and clips."""
    for name, flag in generation_arguments.WITHOUT_IMAGES.items():
        if getattr(arguments, name):
            raise UsageError(f"{flag} and --{'image' if arguments.image else 'video'} exclude each other")


def _first_chunk(images: int, clips: int, chunk: int) -> str:
    """Describe the images and clips of the first chunk, for the spinner."""
    if clips:
        return " and ".join([*([counted(images, "image")] if images else []), counted(clips, "clip")])
    last = min(chunk, images)
    return f"{'image 1' if last == 1 else f'images 1-{last}'} of {images}"


WITHOUT_AUDIO = {
    "image": "--image",
    "video": "--video",
    "system": "--system",
    "chat": "--chat",
    "tools": "--tools",
    "mcp": "--mcp",
    "json_schema": "--json-schema",
    "thinking": "--thinking",
    "thinking_budget": "--thinking-budget",
    "reasoning_effort": "--reasoning-effort",
    "thinking_start_token": "--thinking-start-token",
    "thinking_end_token": "--thinking-end-token",
    "template_option": "--template-option",
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
    "draft_tokens": "--draft-tokens",
    "draft_kind": "--draft-kind",
    "adapter": "--adapter",
    "kv_bits": "--kv-bits",
    "kv_scheme": "--kv-scheme",
    "kv_group_size": "--kv-group-size",
    "max_kv_size": "--max-kv-size",
    "quantize_activations": "--quantize-activations",
    "no_chat_template": "--no-chat-template",
    "show_prompt": "--show-prompt",
    "special_tokens_in_content": "--special-tokens-in-content",
}
"""Flags that do not apply to a transcription, by attribute."""

TRANSCRIPTS_ONLY = {"language": "--language", "translate": "--translate", "time_words": "--words"}
"""Flags that apply only to a transcription, by attribute."""


def run_audio(
    arguments: argparse.Namespace,
    prompt: str,
    options: GenerationOptions,
    context: CommandContext,
    container: "Container",
    output: Output,
) -> int:
    """Print the transcript of a speech model, or the completion of a chat model that takes audio.

    Args:
        arguments: The command line.
        prompt: A hint for the transcription, or the prompt of the chat model, also about images; may be empty.
        options: How a chat model generates.
        context: Has the settings.
        container: Has models and use cases.
        output: Where to print.

    Raises:
        MlxkError: A flag does not apply, a file cannot be read, or the model failed.
    """
    _check_flags(arguments, output)
    recordings = _recordings(arguments, container.adapters.built_in_models())
    description = container.use_cases.describe_model()(container.use_cases.resolve_model()(arguments.model))
    if answers_about_audio(description):
        for name, flag in generation_arguments.CONVERSATIONS_ONLY.items():
            if getattr(arguments, name):
                raise UsageError(f"{flag} and --audio exclude each other")
        require_plain_answer(arguments)
        return ask_about_media(arguments, prompt, options, context, container, output)
    require_speech_model(description)
    _require_transcription_flags(arguments, as_json=output.as_json)
    if len(recordings) > 1:
        raise UsageError("Multiple audio files not supported. Process one file at a time.")
    (recording,) = recordings
    events = container.use_cases.transcribe_audio()(description, recording, _settings(arguments, prompt))
    as_text = arguments.format in (None, "text") and not output.as_json
    live = as_text and output.interactive and arguments.stream is not False
    began = time.monotonic()
    transcript = _read(events, output, live=live)
    seconds = time.monotonic() - began
    if as_text:
        _print_text(output, transcript, live=live, table=context.settings.audio_segments)
    else:
        _print(arguments, output, transcript, prompt)
    if arguments.verbose and not output.as_json:
        output.note(f"[{transcript.seconds:.1f} s of sound in {seconds:.1f} s]")
    return DONE


def _recordings(arguments: argparse.Namespace, built_in: ModelSource) -> list[Recording]:
    return [Recording(recording_path(typed, built_in), typed) for typed in arguments.audio or ()]


def _check_flags(arguments: argparse.Namespace, output: Output) -> None:
    """Raise UsageError for flags that are invalid with every model."""
    if arguments.translate not in (None, ENGLISH):
        raise UsageError(f"--translate only supports English target ('en'); got '{arguments.translate}'.")
    if output.as_json and arguments.format:
        raise UsageError("--json and --format exclude each other; --json holds text and segments")


def _require_transcription_flags(arguments: argparse.Namespace, *, as_json: bool) -> None:
    """Raise UsageError for a flag that does not apply to a transcription, or to the format of its output."""
    if arguments.time_words and not as_json and arguments.format != "json":
        raise UsageError("--words needs --format json, which has the times")
    for name, flag in WITHOUT_AUDIO.items():
        # A value from the settings file is no error: it is meant for other runs.
        if getattr(arguments, name) not in (None, False, []) and name not in arguments.from_file:
            raise UsageError(f"{flag} does not apply to --audio")


def require_plain_answer(arguments: argparse.Namespace) -> None:
    """Raise CapabilityError for a flag of transcripts, which a chat model does not support."""
    unsupported = next((flag for name, flag in TRANSCRIPTS_ONLY.items() if getattr(arguments, name)), None)
    if arguments.format not in (None, "text"):
        unsupported = unsupported or f"--format {arguments.format}"
    if unsupported:
        raise CapabilityError(
            f"{unsupported}: '{arguments.model}' answers in plain text, without languages to choose and without times.",
            hint="Say in the prompt what you want, or use a speech-to-text model, such as one of the Whisper family.",
        )


def _settings(arguments: argparse.Namespace, prompt: str) -> TranscriptionSettings:
    return TranscriptionSettings(
        task=SpeechTask.TRANSLATE if arguments.translate else SpeechTask.TRANSCRIBE,
        language=None if (arguments.language or "").strip().lower() in ("", "auto") else arguments.language.strip(),
        hint=prompt or None,
        temperature=arguments.temperature or 0.0,
        words=arguments.time_words,
    )


def _read(events: Iterable[TranscriptEvent], output: Output, *, live: bool) -> Transcript:
    """Read the events to their end and return the transcript; show progress, or with ``live`` print segments."""
    segments: list[Segment] = []
    with TranscriptionBar(output, wanted=not live) as progress:
        try:
            for event in events:
                if isinstance(event, Transcript):
                    return event
                if isinstance(event, TranscriptionProgress):
                    progress(event.done_seconds, event.total_seconds)
                    segments.extend(event.segments)
                    if live:
                        text = _joined(event.segments)
                        output.text(text.lstrip() if len(segments) == len(event.segments) else text)
        except KeyboardInterrupt:
            raise answer.interrupted(output, "" if live else _joined(segments).strip()) from None
    raise ExecutionError("the transcription ended without a transcript")


def _joined(segments: Sequence[Segment]) -> str:
    return "".join(segment.text for segment in segments)


def _print_text(output: Output, transcript: Transcript, *, live: bool, table: bool) -> None:
    output.line("" if live and transcript.segments else transcript.text)
    if table and transcript.segments:
        output.line(f"\n{segments_table(transcript.segments)}")


def _print(arguments: argparse.Namespace, output: Output, transcript: Transcript, prompt: str) -> None:
    translated = bool(arguments.translate)
    if output.as_json:
        data = {
            "model": arguments.model,
            "prompt": prompt,
            "response": transcript.text,
            "finish_reason": "stop",
            "transcript": _transcript_json(transcript, translated),
        }
        output.document("run", data)
    elif arguments.format == "json":
        document = _transcript_json(transcript, translated)
        output.text(json.dumps(document, ensure_ascii=False, indent=2, allow_nan=False) + "\n")
    else:
        output.text(srt(transcript) if arguments.format == "srt" else vtt(transcript))


def _transcript_json(transcript: Transcript, translated: bool) -> dict[str, object]:
    return {
        "task": (SpeechTask.TRANSLATE if translated else SpeechTask.TRANSCRIBE).value,
        "language": transcript.language,
        "duration_seconds": round(transcript.seconds, 3),
        "text": transcript.text,
        "segments": [_segment_json(each) for each in transcript.segments],
    }


def _segment_json(segment: Segment) -> dict[str, object]:
    fields: dict[str, object] = {
        "start": round(segment.start, 3),
        "end": round(segment.end, 3),
        "text": segment.text.strip(),
    }
    if segment.speaker is not None:
        fields["speaker"] = segment.speaker
    if segment.words:
        fields["words"] = [_word_json(each) for each in segment.words]
    return fields


def _word_json(word: TimedWord) -> dict[str, object]:
    return {
        "word": word.text.strip(),
        "start": round(word.start, 3),
        "end": round(word.end, 3),
        "probability": None if word.probability is None else round(word.probability, 4),
    }


def show_prompt(
    arguments: argparse.Namespace,
    typed: str,
    prompt: Prompt,
    options: GenerationOptions,
    container: "Container",
    output: Output,
) -> int:
    """Print the prompt as the chat template renders it on standard output, and its token count on standard error.

    Args:
        arguments: The command line.
        typed: The prompt as typed, for the JSON document.
        prompt: The conversation or text to render.
        options: How the completion would be generated.
        container: Has models and use cases.
        output: Where to print.

    Raises:
        MlxkError: The prompt cannot be rendered.
    """
    with Spinner(output, "Loading the tokenizer"):
        prompts = container.use_cases.tokenize_text()(arguments.model, prompt, options)
    rendered, notes = prompts[0], list(prompts[0].notes)
    if len(prompts) > 1:
        notes.append(f"This is the first of {len(prompts)} prompts, one for each chunk of images.")
    if output.as_json:
        data: dict[str, object] = {
            "model": arguments.model,
            "prompt": typed,
            "text": rendered.text,
            "tokens": list(rendered.tokens),
            "token_count": len(rendered.tokens),
        }
        output.document("run", {**data, "notes": notes} if notes else data)
        return DONE
    output.text(rendered.text)
    if output.interactive and not rendered.text.endswith("\n"):
        output.line()
    for note in (_token_count(rendered), *notes):
        output.note(f"[{note}]")
    return DONE


def _token_count(rendered: "TokenizedText") -> str:
    window = "" if rendered.context_length is None else f" of the {rendered.context_length} of the context window"
    return f"{counted(len(rendered.tokens), 'token')}{window}"
