"""Text to speech: requests, the pieces into which a text is split, events, and WAV headers."""

import re
import struct
from collections.abc import Collection, Iterator

import attrs

from mlxk.domain.errors import CapabilityError, ValidationError
from mlxk.domain.models.model import ModelHandle

MAX_CHARACTERS = 200_000
"""Longest text, some three hours of speech."""

MAX_INSTRUCTION_CHARACTERS = 4096

MIN_SPEED, MAX_SPEED = 0.25, 4.0

MIN_SAMPLE_SECONDS, MAX_SAMPLE_SECONDS = 1, 60
"""Least sound in a voice sample, and its greatest length; 5 to 15 s are usual."""

MAX_SAMPLE_CHARACTERS = 2000
"""Longest transcript of a voice sample."""

PIECE_CHARACTERS = 300
"""Longest piece: models lose the thread of longer sentences, so these are split."""

SHORT_CHARACTERS = 30
"""Longest sentence that is joined to the next one: models speak very short texts badly."""


SAMPLE, SAMPLE_TEXT = "clone_voice", "clone_text"
"""Field names, in errors, of the voice sample and its transcript."""


@attrs.frozen
class VoiceSample:
    """A recording whose voice is imitated. Nothing of it is kept or logged."""

    path: str
    """The file, on this machine."""
    name: str
    """Its name in messages."""
    text: str | None = attrs.field(default=None, repr=False)
    """Its verbatim transcript."""


@attrs.frozen
class SynthesisSettings:
    """How a text is spoken."""

    voice: str | None = None
    """One of the model's voices; None takes its first."""
    speed: float = 1.0
    """1 is the model's normal speed; 2 takes half of the time."""
    instructions: str | None = None
    """How to speak, in words, for models that take instructions."""
    sample_rate: int | None = None
    """Hz; None keeps the model's."""
    sample: VoiceSample | None = None
    """The voice to imitate, for models that can; it excludes ``voice``."""

    def faults(self) -> dict[str, str]:
        """Return user-visible setting name to fault, for each setting out of range."""
        faults = {}
        if self.voice is not None and not self.voice.strip():
            faults["voice"] = "is empty"
        if not MIN_SPEED <= self.speed <= MAX_SPEED:  # also true for NaN
            faults["speed"] = f"must be at least {MIN_SPEED:g} and at most {MAX_SPEED:g} (got {self.speed:g})"
        if self.instructions is not None and len(self.instructions) > MAX_INSTRUCTION_CHARACTERS:
            most, got = MAX_INSTRUCTION_CHARACTERS, len(self.instructions)
            faults["instructions"] = f"must have at most {most} characters (got {got})"
        if self.sample is not None and self.voice is not None:
            faults["voice"] = "cannot be given with a recording whose voice is imitated"
        if self.sample is not None and self.sample.text is not None:
            if not _SPOKEN.search(self.sample.text):
                faults[SAMPLE_TEXT] = "has no letter or digit that could be said in the recording"
            elif len(self.sample.text) > MAX_SAMPLE_CHARACTERS:
                faults[SAMPLE_TEXT] = (
                    f"must have at most {MAX_SAMPLE_CHARACTERS} characters (got {len(self.sample.text)})"
                )
        return faults


@attrs.frozen
class SynthesisRequest:
    """One text to speak."""

    model: ModelHandle
    text: str
    settings: SynthesisSettings = SynthesisSettings()

    def validate(self) -> None:
        """Check every range.

        Raises:
            ValidationError: Names each field at fault, all at once.
        """
        faults = {} if _SPOKEN.search(self.text) else {"input": "has no letter or digit that could be spoken"}
        if len(self.text) > MAX_CHARACTERS:
            faults["input"] = f"must have at most {MAX_CHARACTERS} characters (got {len(self.text)})"
        faults |= self.settings.faults()
        if faults:
            wrong = "; ".join(f"{name} {fault}" for name, fault in faults.items())
            raise ValidationError(wrong, options=(SAMPLE_TEXT,))


@attrs.frozen
class SpeechBegun:
    """The first event, before any sound."""

    sample_rate: int
    """Sample rate of all parts, Hz."""
    takes_instructions: bool
    """Whether the model uses the instructions; otherwise it ignores them."""
    takes_sample_text: bool = True
    """Whether the model uses the transcript of the voice sample."""


@attrs.frozen
class SpokenPart:
    """The next sound, which continues the previous part without a gap."""

    pcm: bytes
    """Mono, signed 16-bit little-endian samples."""
    piece: int
    """Index of the piece of text that it belongs to, from 0."""
    pieces: int
    """Number of pieces of the text."""


@attrs.frozen
class SpeechEnded:
    """The last event."""

    seconds: float
    """Length of the speech."""
    text_tokens: int
    """Tokens of the text as the model reads it; characters for models without a tokenizer."""
    sound_tokens: int
    """Audio tokens or frames that the model generated."""


SpeechEvent = SpeechBegun | SpokenPart | SpeechEnded
"""The events of a speech: one ``SpeechBegun``, any number of ``SpokenPart``, one ``SpeechEnded``."""

_SPOKEN = re.compile(r"\w")
_ABBREVIATED = re.compile(r"(?:^|[\s(])(?:[A-Z]|(?i:mr|mrs|ms|dr|prof|st|no|vs|e\.g|i\.e|z\.b|bzw|ca|nr|str))\.$")
_END = re.compile(r"(?<=[.!?…])[\"'\u201d\u2019»)\]]*\s+|(?<=[。\uff01\uff1f])|\n\s*")
_INNER = re.compile(r"(?<=[,;:،\uff0c、\uff1b\uff1a])\s*|\s+[\u2013\u2014-]+\s+")


def pieces_of(text: str) -> tuple[str, ...]:
    """Return the pieces in which a text is spoken: its sentences, short ones joined and long ones split.

    No letter or digit is lost; parts without any are left out.
    """
    sentences = [part for sentence in _split(text, _END, joined=True) for part in _divided(sentence)]
    pieces: list[str] = []
    for sentence in sentences:
        if pieces and len(pieces[-1]) <= SHORT_CHARACTERS and len(pieces[-1]) + len(sentence) < PIECE_CHARACTERS:
            pieces[-1] = f"{pieces[-1]} {sentence}"
        else:
            pieces.append(sentence)
    if len(pieces) > 1 and len(pieces[-1]) <= SHORT_CHARACTERS and len(pieces[-2]) + len(pieces[-1]) < PIECE_CHARACTERS:
        pieces[-2:] = [" ".join(pieces[-2:])]
    return tuple(pieces)


def _split(text: str, border: re.Pattern[str], *, joined: bool = False) -> Iterator[str]:
    """Yield the parts of a text between borders, each with at least one letter or digit.

    Args:
        text: Any text.
        border: Matches the end of a part; the match belongs to that part, except white space.
        joined: Whether a part continues after an abbreviation, or before a lower-case letter, on the same line.
    """
    start = 0
    for match in [*border.finditer(text), None]:
        end = len(text) if match is None else match.end()
        part = text[start:end].strip()
        same_line = joined and match is not None and "\n" not in match[0]
        continues = same_line and (_ABBREVIATED.search(part) or text[end : end + 1].islower())
        if continues or (match is not None and not _SPOKEN.search(part)):
            continue
        start = end
        if _SPOKEN.search(part):
            yield " ".join(part.split())


def _divided(sentence: str) -> Iterator[str]:
    """Yield the parts of a sentence, none longer than a piece: split at commas, else at spaces, else anywhere."""
    if len(sentence) <= PIECE_CHARACTERS:
        yield sentence
        return
    part = ""
    for clause in _split(sentence, _INNER):
        for words in _short_enough(clause):
            if part and len(part) + 1 + len(words) > PIECE_CHARACTERS:
                yield part
                part = words
            else:
                part = f"{part} {words}".strip()
    if part:
        yield part


def _short_enough(clause: str) -> Iterator[str]:
    while len(clause) > PIECE_CHARACTERS:
        cut = clause.rfind(" ", 1, PIECE_CHARACTERS + 1)
        cut = cut if cut > 0 else PIECE_CHARACTERS
        yield clause[:cut]
        clause = clause[cut:].strip()
    if clause:
        yield clause


DEFAULT_VOICE = "default"
"""A name for the first voice of any model."""


def chosen_voice(requested: str | None, voices: Collection[str], label: str) -> str | None:
    """Return the model's voice of a requested name, in any case; None for a model without named voices.

    Args:
        requested: As the user wrote it; None means the first voice.
        voices: Names of the model's voices.
        label: The model's name in messages.

    Raises:
        CapabilityError: The model has no such voice; the message lists its voices.
    """
    if requested is None or (name := requested.strip().casefold()) == DEFAULT_VOICE:
        return next(iter(voices), None)
    known = {voice.casefold(): voice for voice in voices}
    found = known.get(name)
    if found is None:
        has = f"its voices are {', '.join(voices)}" if voices else "it has one voice, without a name"
        raise CapabilityError.in_field("voice", f"'{label}' has no voice '{requested[:64]}'; {has}")
    return found


WAV_HEADER_BYTES = 44
_UNKNOWN_SIZE = 0xFFFFFFFF


def wav_header(sample_rate: int, pcm_bytes: int | None = None) -> bytes:
    """Return the header of a WAV file of mono 16-bit sound.

    Args:
        sample_rate: Hz.
        pcm_bytes: Size of the sound that follows; None when unknown, which programs read as "to the end of the file".
    """
    known = pcm_bytes is not None and pcm_bytes <= _UNKNOWN_SIZE - WAV_HEADER_BYTES
    data_size = pcm_bytes if known and pcm_bytes is not None else _UNKNOWN_SIZE
    riff_size = data_size + WAV_HEADER_BYTES - 8 if known else _UNKNOWN_SIZE
    form = struct.pack("<IHHIIHH", 16, 1, 1, sample_rate, sample_rate * 2, 2, 16)
    return b"RIFF" + struct.pack("<I", riff_size) + b"WAVEfmt " + form + b"data" + struct.pack("<I", data_size)
