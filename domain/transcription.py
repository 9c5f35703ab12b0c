"""Speech to text: settings, segments and transcripts, and transcripts as subtitle files (SubRip, WebVTT)."""

import enum
import math
import re
from collections.abc import Sequence

import attrs

from mlxk.domain.errors import ValidationError
from mlxk.domain.models.model import Capability, ModelHandle

MAX_AUDIO_SECONDS = 2 * 60 * 60
"""Length of a recording; a small file can hold days of silence."""

MAX_HINT_CHARACTERS = 4096
"""Length of a prompt; models read far less of it."""

_LANGUAGE = re.compile(r"[A-Za-z][A-Za-z -]{1,31}")


class SpeechTask(enum.Enum):
    """What is to be written down; values are the names on the wire."""

    TRANSCRIBE = "transcribe"
    TRANSLATE = "translate"
    """In English, whatever was spoken."""

    @property
    def capability(self) -> Capability:
        """What a model needs for it."""
        return Capability.AUDIO if self is SpeechTask.TRANSCRIBE else Capability.AUDIO_TRANSLATE_EN


@attrs.frozen
class TranscriptionSettings:
    """How to listen."""

    task: SpeechTask = SpeechTask.TRANSCRIBE
    language: str | None = None
    """What is spoken, as a code such as ``de`` or a name such as ``german``; None lets the model find out."""
    hint: str | None = None
    """Words that are likely to occur, or text that came before; None gives none."""
    temperature: float = 0.0
    """0 always writes the likeliest text."""
    words: bool = False
    """Whether to time every word, where the model can."""

    def faults(self) -> dict[str, str]:
        """Return what is wrong with each setting out of range, by the name that users know it by."""
        faults = {}
        if self.language is not None and not _LANGUAGE.fullmatch(self.language):
            faults["language"] = "must be a code such as 'de', or a name in English such as 'german'"
        if self.hint is not None and len(self.hint) > MAX_HINT_CHARACTERS:
            faults["prompt"] = f"must have at most {MAX_HINT_CHARACTERS} characters (got {len(self.hint)})"
        if not 0 <= self.temperature <= 1:  # false for what is no number, too
            faults["temperature"] = f"must be at least 0 and at most 1 (got {self.temperature:g})"
        return faults

    def validate(self) -> None:
        """Check every range.

        Raises:
            ValidationError: Names each setting at fault, all at once.
        """
        faults = self.faults()
        if faults:
            raise ValidationError("; ".join(f"{name} {wrong}" for name, wrong in faults.items()))


@attrs.frozen
class TranscriptionRequest:
    """One recording to write down."""

    model: ModelHandle
    path: str
    """The file of sound, on this machine."""
    name: str
    """What the user calls the file; refusals name it so."""
    settings: TranscriptionSettings = TranscriptionSettings()


@attrs.frozen
class TimedWord:
    """One word and when it was spoken."""

    text: str
    start: float
    """Seconds."""
    end: float
    """Seconds."""
    probability: float | None = None


@attrs.frozen
class Segment:
    """A stretch of speech: a sentence or so."""

    text: str
    start: float
    """Seconds."""
    end: float
    """Seconds."""
    words: tuple[TimedWord, ...] = ()
    speaker: str | None = None
    """Who speaks, for models that tell voices apart."""
    language: str | None = None
    """For models that tell it anew for every stretch."""
    tokens: tuple[int, ...] = ()
    offset: int = 0
    """Where the window it was heard in begins, in hundredths of a second."""
    temperature: float | None = None
    """At which it was written."""
    mean_logprob: float | None = None
    """Mean log probability of its tokens; None when the model does not say."""
    compression_ratio: float | None = None
    """How well its text can be compressed; high for text that repeats itself."""
    silence_probability: float | None = None
    """How likely it is that nobody speaks."""


@attrs.frozen
class Transcript:
    """Everything that was heard."""

    text: str
    seconds: float
    """Length of the recording."""
    language: str | None = None
    """As a code where the model says it so; None when it does not say."""
    segments: tuple[Segment, ...] = ()
    """In the order they were heard; empty when nothing was said."""

    @property
    def words(self) -> tuple[TimedWord, ...]:
        """Every timed word."""
        return tuple(word for segment in self.segments for word in segment.words)


@attrs.frozen
class Heard:
    """A report on the way: how far the model is, and what it heard since the last one."""

    done_seconds: float
    """Of the recording."""
    total_seconds: float
    segments: tuple[Segment, ...] = ()


TranscriptEvent = Heard | Transcript
"""What transcribing yields: any number of ``Heard``, then exactly one ``Transcript``."""


def finite(value: object) -> float | None:
    """Return a number that JSON can hold, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    number = float(value)
    return number if math.isfinite(number) else None


_SHORTEST = 0.001
"""Seconds a cue lasts at least; players skip those that last no time."""


def srt(transcript: Transcript) -> str:
    """Return a SubRip file: numbered cues, a comma before the milliseconds."""
    cues = (
        f"{number}\n{_clock(start, ',')} --> {_clock(end, ',')}\n{text}\n"
        for number, (start, end, text) in enumerate(_cues(transcript), start=1)
    )
    return "\n".join(cues)


def vtt(transcript: Transcript) -> str:
    """Return a WebVTT file; the characters that begin markup in it are written as references."""
    cues = (
        f"{_clock(start, '.')} --> {_clock(end, '.')}\n{_escaped(text)}\n" for start, end, text in _cues(transcript)
    )
    return "\n".join(["WEBVTT\n", *cues])


def segments_table(segments: Sequence[Segment]) -> str:
    """Return the collapsible table of segments, in Markdown, without an end of line."""
    count = f"{len(segments)} segment{'' if len(segments) == 1 else 's'}"
    rows = (f"| {segment.start:.2f}s | {segment.end:.2f}s | {_cell(segment)} |" for segment in segments)
    lines = ("<details>", f"<summary>Audio Segments ({count})</summary>", "", "| Start | End | Text |")
    return "\n".join([*lines, "|-------|-----|------|", *rows, "", "</details>"])


def _cues(transcript: Transcript) -> list[tuple[float, float, str]]:
    """Return what is shown when: the segments, or the whole text for models that time none."""
    said = [(each.start, each.end, _one_paragraph(each.text)) for each in transcript.segments]
    if not transcript.segments:
        said = [(0.0, transcript.seconds, _one_paragraph(transcript.text))]
    return [(start, max(end, start + _SHORTEST), text) for start, end, text in said if text]


def _one_paragraph(text: str) -> str:
    """Return a text without the blank lines that would end a cue."""
    return "\n".join(line.strip() for line in text.splitlines() if line.strip())


def _clock(seconds: float, point: str) -> str:
    milliseconds = round(max(seconds, 0.0) * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{rest // 1000:02d}{point}{rest % 1000:03d}"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _cell(segment: Segment) -> str:
    text = " ".join(segment.text.split()).replace("|", "\\|")
    return f"{segment.speaker}: {text}" if segment.speaker else text
