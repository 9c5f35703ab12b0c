"""Renders transcripts in the formats of OpenAI: JSON, JSON with segments, text, subtitles, and events."""

import json

from mlxk.domain import transcription
from mlxk.domain.transcription import Segment, SpeechTask, TimedWord, Transcript
from mlxk.entrypoints.http.generation.sse import sse_frame

JSON_TYPE = "application/json"
TEXT_TYPE = "text/plain; charset=utf-8"
VTT_TYPE = "text/vtt; charset=utf-8"

UNKNOWN_LANGUAGE = "unknown"
"""Language when the model reports none; clients expect a string."""


def rendered(transcript: Transcript, response_format: str) -> tuple[str, bytes]:
    """Return the type and the bytes of a response in any format but ``verbose_json``."""
    match response_format:
        case "text":
            return TEXT_TYPE, f"{transcript.text}\n".encode()
        case "srt":
            return TEXT_TYPE, transcription.srt(transcript).encode()
        case "vtt":
            return VTT_TYPE, transcription.vtt(transcript).encode()
        case _:
            return JSON_TYPE, _encoded({"text": transcript.text, "usage": _usage(transcript)})


def verbose(transcript: Transcript, task: SpeechTask, *, words: bool, segments: bool) -> tuple[str, bytes]:
    """Return the type and the bytes of a ``verbose_json`` response."""
    document: dict[str, object] = {
        "task": task.value,
        "language": transcript.language or UNKNOWN_LANGUAGE,
        "duration": round(transcript.seconds, 3),
        "text": transcript.text,
    }
    if segments:
        document["segments"] = [_segment(number, each) for number, each in enumerate(transcript.segments)]
    if words:
        document["words"] = [_word(each) for each in transcript.words]
    return JSON_TYPE, _encoded({**document, "usage": _usage(transcript)})


def delta(text: str) -> bytes:
    """Return the event of new text."""
    return sse_frame({"type": "transcript.text.delta", "delta": text})


def done(transcript: Transcript) -> bytes:
    """Return the event of the complete transcript."""
    return sse_frame({"type": "transcript.text.done", "text": transcript.text, "usage": _usage(transcript)})


def _usage(transcript: Transcript) -> dict[str, object]:
    return {"type": "duration", "seconds": round(transcript.seconds, 3)}


def _segment(number: int, segment: Segment) -> dict[str, object]:
    """Return a segment; numbers that the model does not report are 0, since clients expect numbers."""
    fields: dict[str, object] = {
        "id": number,
        "seek": segment.offset,
        "start": round(segment.start, 3),
        "end": round(segment.end, 3),
        "text": segment.text,
        "tokens": list(segment.tokens),
        "temperature": segment.temperature or 0.0,
        "avg_logprob": segment.mean_logprob or 0.0,
        "compression_ratio": segment.compression_ratio or 0.0,
        "no_speech_prob": segment.silence_probability or 0.0,
    }
    return fields if segment.speaker is None else {**fields, "speaker": segment.speaker}


def _word(word: TimedWord) -> dict[str, object]:
    return {"word": word.text.strip(), "start": round(word.start, 3), "end": round(word.end, 3)}


def _encoded(document: object) -> bytes:
    return json.dumps(document, ensure_ascii=False, allow_nan=False).encode()
