"""Text to speech: settings, the pieces in which a text is spoken, and sound as WAV."""

import re
import struct
from collections.abc import Collection, Iterator

import attrs

from mlxk.domain.errors import CapabilityError, ValidationError
from mlxk.domain.models.model import ModelHandle

MAX_CHARACTERS = 200_000
"""Length of a text, some three hours of speech."""

MAX_INSTRUCTION_CHARACTERS = 4096

MIN_SPEED, MAX_SPEED = 0.25, 4.0

MIN_SAMPLE_SECONDS, MAX_SAMPLE_SECONDS = 1, 60
"""Sound that a recording has to have, and its length at most, for its voice to be imitated; 5 to 15 s are usual."""

MAX_SAMPLE_CHARACTERS = 2000
"""Length of what is said in such a recording."""

PIECE_CHARACTERS = 300
"""Length from which a sentence is divided: models lose the thread of longer ones."""

SHORT_CHARACTERS = 30
"""Length up to which a sentence is spoken with the next one: models speak very short texts badly."""


SAMPLE, SAMPLE_TEXT = "clone_voice", "clone_text"
"""What errors call the recording whose voice is imitated, and what is said in it."""


@attrs.frozen
class VoiceSample:
    """A recording whose voice is imitated. Nothing of it is kept or logged."""

    path: str
    """The file, on this machine."""
    name: str
    """Its name in messages."""
    text: str | None = attrs.field(default=None, repr=False)
    """What is said in it, word for word."""


@attrs.frozen
class SynthesisSettings:
    """How a text is spoken."""

    voice: str | None = None
    """One of the model's voices; None takes its first."""
    speed: float = 1.0
    """1 is the model's own; 2 takes half of the time."""
    instructions: str | None = None
    """How to speak, in words, for models that take them."""
    sample_rate: int | None = None
    """Hz; None keeps the model's."""
    sample: VoiceSample | None = None
    """Whose voice to imitate, for models with the capability; then there is no ``voice``."""

    def faults(self) -> dict[str, str]:
        """Return the fault of each setting out of range, by the setting's name for users."""
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
    """Known before the first sound."""

    sample_rate: int
    """Of all that follows, Hz."""
    takes_instructions: bool
    """Whether the instructions have an effect; a model that takes none ignores them."""
    takes_sample_text: bool = True
    """Whether it matters to it what is said in the recording whose voice it imitates."""


@attrs.frozen
class SpokenPart:
    """The sound that follows what came before, without a gap."""

    pcm: bytes
    """Mono, as signed numbers of 16 bits, the lower byte first."""
    piece: int
    """Which piece of the text it belongs to, from 0."""
    pieces: int
    """How many pieces the text has."""


@attrs.frozen
class SpeechEnded:
    """What the speech took."""

    seconds: float
    """Its length."""
    text_tokens: int
    """Of the text as the model reads it: tokens, or characters for models without a tokenizer."""
    sound_tokens: int
    """What the model generated for the sound, in its own units."""


SpeechEvent = SpeechBegun | SpokenPart | SpeechEnded

_SPOKEN = re.compile(r"\w")
_ABBREVIATED = re.compile(r"(?:^|[\s(])(?:[A-Z]|(?i:mr|mrs|ms|dr|prof|st|no|vs|e\.g|i\.e|z\.b|bzw|ca|nr|str))\.$")
_END = re.compile(r"(?<=[.!?…])[\"'\u201d\u2019»)\]]*\s+|(?<=[。\uff01\uff1f])|\n\s*")
_INNER = re.compile(r"(?<=[,;:،\uff0c、\uff1b\uff1a])\s*|\s+[\u2013\u2014-]+\s+")


def pieces_of(text: str) -> tuple[str, ...]:
    """Return the pieces in which a text is spoken: its sentences, short ones together and long ones divided.

    No letter or digit is lost; what has none of them is left out.
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
    """Yield the parts of a text between borders, with something to say in each.

    Args:
        text: Any text.
        border: Matches where a part ends; all but white space of it belongs to the part before.
        joined: Whether a part goes on that ends with an abbreviation, or before a small letter.
    """
    start = 0
    for match in [*border.finditer(text), None]:
        end = len(text) if match is None else match.end()
        part = text[start:end].strip()
        same_line = joined and match is not None and "\n" not in match[0]
        goes_on = same_line and (_ABBREVIATED.search(part) or text[end : end + 1].islower())
        if goes_on or (match is not None and not _SPOKEN.search(part)):
            continue
        start = end
        if _SPOKEN.search(part):
            yield " ".join(part.split())


def _divided(sentence: str) -> Iterator[str]:
    """Yield the parts of a sentence, none longer than a piece: at commas, else at spaces, else anywhere."""
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


def chosen_voice(asked: str | None, voices: Collection[str], label: str) -> str | None:
    """Return the voice that is meant; None for a model that has only one.

    Args:
        asked: As the user wrote it; None means the first.
        voices: Those of the model.
        label: The model's name in messages.

    Raises:
        CapabilityError: The model has no such voice; the message lists those that it has.
    """
    if asked is None or asked.casefold() == DEFAULT_VOICE:
        return next(iter(voices), None)
    known = {voice.casefold(): voice for voice in voices}
    found = known.get(asked.strip().casefold())
    if found is None:
        has = f"its voices are {', '.join(voices)}" if voices else "it has one voice, without a name"
        raise CapabilityError.in_field("voice", f"'{label}' has no voice '{asked[:64]}'; {has}")
    return found


WAV_HEADER_BYTES = 44
_UNKNOWN_SIZE = 0xFFFFFFFF


def wav_header(sample_rate: int, pcm_bytes: int | None = None) -> bytes:
    """Return the header of a WAV file of mono sound in numbers of 16 bits.

    Args:
        sample_rate: Hz.
        pcm_bytes: Of the sound that follows; None when it is not known yet, which programs read as "to the end".
    """
    known = pcm_bytes is not None and pcm_bytes <= _UNKNOWN_SIZE - WAV_HEADER_BYTES
    size = pcm_bytes if known and pcm_bytes is not None else _UNKNOWN_SIZE
    whole = size + WAV_HEADER_BYTES - 8 if known else _UNKNOWN_SIZE
    form = struct.pack("<IHHIIHH", 16, 1, 1, sample_rate, sample_rate * 2, 2, 16)
    return b"RIFF" + struct.pack("<I", whole) + b"WAVEfmt " + form + b"data" + struct.pack("<I", size)
