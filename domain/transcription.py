"""Speech to text: requests, segments, transcripts, and subtitle files (SubRip, WebVTT)."""

import enum
import math
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import attrs

from mlxk.domain.errors import ValidationError
from mlxk.domain.models.model import Capability, ModelHandle

MAX_AUDIO_SECONDS = 2 * 60 * 60
"""Longest recording; a small file can hold days of silence."""

MAX_HINT_CHARACTERS = 4096
"""Longest prompt; models read far less of it."""

_LANGUAGE = re.compile(r"[A-Za-z][A-Za-z0-9 _.@()-]{1,31}")
_LOCALE = re.compile(r"([A-Za-z]{2,3})([-_][A-Za-z0-9]{1,8})*([.@][A-Za-z0-9-]*)*")
_PARENTHESIS = re.compile(r"\s*\(.*\)")

_CODE_SYNONYMS = MappingProxyType(
    {
        **{"nb": "no", "nob": "no", "nno": "nn", "iw": "he", "in": "id", "ji": "yi", "jv": "jw", "fil": "tl"},
        **{"cmn": "zh", "zho": "zh", "chi": "zh", "eng": "en", "deu": "de", "ger": "de", "spa": "es", "rus": "ru"},
        **{"kor": "ko", "fra": "fr", "fre": "fr", "jpn": "ja", "por": "pt", "tur": "tr", "pol": "pl", "cat": "ca"},
        **{"nld": "nl", "dut": "nl", "ara": "ar", "swe": "sv", "ita": "it", "ind": "id", "hin": "hi", "fin": "fi"},
        **{"vie": "vi", "heb": "he", "ukr": "uk", "ell": "el", "gre": "el", "ces": "cs", "cze": "cs", "ron": "ro"},
        **{"rum": "ro", "dan": "da", "hun": "hu", "nor": "no", "tha": "th", "urd": "ur", "hrv": "hr", "bul": "bg"},
    }
)
"""Language code to the code that models use instead."""


class SpeechTask(enum.Enum):
    """The kind of transcript; values are the names in the JSON API."""

    TRANSCRIBE = "transcribe"
    TRANSLATE = "translate"
    """Into English, from any language."""

    @property
    def capability(self) -> Capability:
        """The capability that it requires."""
        return Capability.AUDIO if self is SpeechTask.TRANSCRIBE else Capability.AUDIO_TRANSLATE_EN


@attrs.frozen
class TranscriptionSettings:
    """How speech is transcribed."""

    task: SpeechTask = SpeechTask.TRANSCRIBE
    language: str | None = None
    """The spoken language, as a code such as ``de`` or ``pt-BR`` or a name such as ``german``; None lets the model
    detect it."""
    hint: str | None = None
    """Words that are likely to occur, or preceding text."""
    temperature: float = 0.0
    """0 always selects the likeliest token."""
    words: bool = False
    """Whether to return the times of words, where the model supports it."""

    def faults(self) -> dict[str, str]:
        """Return user-visible setting name to fault, for each setting out of range."""
        faults = {}
        if self.language is not None and not _LANGUAGE.fullmatch(self.language):
            faults["language"] = "must be a code such as 'de' or 'pt-BR', or a name in English such as 'german'"
        if self.hint is not None and len(self.hint) > MAX_HINT_CHARACTERS:
            faults["prompt"] = f"must have at most {MAX_HINT_CHARACTERS} characters (got {len(self.hint)})"
        if not 0 <= self.temperature <= 1:  # also false for NaN
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
    """One recording to transcribe."""

    model: ModelHandle
    path: str
    """The audio file, on this machine."""
    name: str
    """The user's name of the file, for error messages."""
    settings: TranscriptionSettings = TranscriptionSettings()


@attrs.frozen
class TimedWord:
    """One word and its time."""

    text: str
    start: float
    """Seconds from the start of the recording."""
    end: float
    """Seconds from the start of the recording."""
    probability: float | None = None
    """Confidence, 0 to 1; None when the model does not state it."""


@attrs.frozen
class Segment:
    """A segment of speech, about a sentence."""

    text: str
    start: float
    """Seconds from the start of the recording."""
    end: float
    """Seconds from the start of the recording."""
    words: tuple[TimedWord, ...] = ()
    speaker: str | None = None
    """Label of the speaker, from models with diarisation."""
    language: str | None = None
    """The detected language, from models that detect it for every segment."""
    tokens: tuple[int, ...] = ()
    offset: int = 0
    """Start of its audio window in the recording, hundredths of a second."""
    temperature: float | None = None
    """The sampling temperature."""
    mean_logprob: float | None = None
    """Mean log probability of its tokens; None when the model does not state it."""
    compression_ratio: float | None = None
    """Compression ratio of its text; high for repetitive text."""
    silence_probability: float | None = None
    """Probability that there is no speech."""


@attrs.frozen
class Transcript:
    """The transcript of one recording."""

    text: str
    seconds: float
    """Length of the recording."""
    language: str | None = None
    """The language, as a code where the model gives one; None when it does not state it."""
    segments: tuple[Segment, ...] = ()
    """In chronological order; empty when there is no speech."""

    @property
    def words(self) -> tuple[TimedWord, ...]:
        """Every timed word."""
        return tuple(word for segment in self.segments for word in segment.words)


@attrs.frozen
class TranscriptionProgress:
    """Progress of a transcription."""

    done_seconds: float
    """Transcribed part of the recording."""
    total_seconds: float
    """Length of the recording."""
    segments: tuple[Segment, ...] = ()
    """The segments since the previous event."""


TranscriptEvent = TranscriptionProgress | Transcript
"""The events of a transcription: any number of ``TranscriptionProgress``, then exactly one ``Transcript``."""


def language_code(language: str, names: Mapping[str, str]) -> str:
    """Return the code of a language in lower case, without region, script and encoding; an unknown name unchanged.

    Args:
        language: A code, a locale or a name, such as ``pt-BR``, ``de_DE.UTF-8`` or ``English (US)``.
        names: Name in lower case to code.
    """
    text = _PARENTHESIS.sub("", language.strip()).lower()
    if text in names:
        return names[text]
    locale = _LOCALE.fullmatch(text)
    text = locale[1] if locale else text
    return _CODE_SYNONYMS.get(text, text)


def finite(value: object) -> float | None:
    """Return a number as a finite float; None for anything else, since JSON has no infinity or NaN."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    number = float(value)
    return number if math.isfinite(number) else None


_SHORTEST = 0.001
"""Shortest duration of a cue, seconds; players skip cues without duration."""


def srt(transcript: Transcript) -> str:
    """Return a SubRip file: numbered cues, a comma before the milliseconds."""
    cues = (
        f"{number}\n{_clock(start, ',')} --> {_clock(end, ',')}\n{text}\n"
        for number, (start, end, text) in enumerate(_cues(transcript), start=1)
    )
    return "\n".join(cues)


def vtt(transcript: Transcript) -> str:
    """Return a WebVTT file, with markup characters escaped."""
    cues = (
        f"{_clock(start, '.')} --> {_clock(end, '.')}\n{_escaped(text)}\n" for start, end, text in _cues(transcript)
    )
    return "\n".join(["WEBVTT\n", *cues])


def segments_table(segments: Sequence[Segment]) -> str:
    """Return a collapsible table of segments, in Markdown, without a final line break."""
    count = f"{len(segments)} segment{'' if len(segments) == 1 else 's'}"
    rows = (f"| {segment.start:.2f}s | {segment.end:.2f}s | {_cell(segment)} |" for segment in segments)
    lines = ("<details>", f"<summary>Audio Segments ({count})</summary>", "", "| Start | End | Text |")
    return "\n".join([*lines, "|-------|-----|------|", *rows, "", "</details>"])


def _cues(transcript: Transcript) -> list[tuple[float, float, str]]:
    """Return start, end and text of each cue: the segments, or the complete text for models without times."""
    cues = [(segment.start, segment.end, _one_paragraph(segment.text)) for segment in transcript.segments]
    if not transcript.segments:
        cues = [(0.0, transcript.seconds, _one_paragraph(transcript.text))]
    return [(start, max(end, start + _SHORTEST), text) for start, end, text in cues if text]


def _one_paragraph(text: str) -> str:
    """Return a text without the blank lines that would end a cue."""
    return "\n".join(line.strip() for line in text.splitlines() if line.strip())


def _clock(seconds: float, decimal_mark: str) -> str:
    milliseconds = round(max(seconds, 0.0) * 1000)
    minutes, remainder = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{remainder // 1000:02d}{decimal_mark}{remainder % 1000:03d}"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _cell(segment: Segment) -> str:
    text = " ".join(segment.text.split()).replace("|", "\\|")
    return f"{segment.speaker}: {text}" if segment.speaker else text
