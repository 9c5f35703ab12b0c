"""A loaded speech model as the transcriber sees it, and what distinguishes the model families, as data."""

from abc import abstractmethod
from collections.abc import Generator, Mapping
from types import MappingProxyType
from typing import Protocol

import attrs

from mlxk.adapters.mlx.speech.audio_file import Sound
from mlxk.domain.models.model import ModelHandle
from mlxk.domain.transcription import TranscriptEvent, TranscriptionSettings


class SpeechDecoder(Protocol):
    """Hears recordings with one model. Used on the owner thread only."""

    @abstractmethod
    def listen(self, sound: Sound, settings: TranscriptionSettings) -> Generator[TranscriptEvent, None, None]:
        """Hear a recording; each step of the iterator is a piece of work of a second or so.

        Raises:
            CapabilityError: In the first step; names the setting that asks for what the model cannot do.
        """


@attrs.frozen(eq=False)
class SpeechModel:
    """A speech model in memory."""

    handle: ModelHandle
    weight_bytes: int
    listener: SpeechDecoder

    @property
    def name(self) -> str:
        """What people call it."""
        return self.handle.name


WHISPER = "whisper"

RATE = 16_000
"""Samples a second that speech models hear, ..."""

RATES: Mapping[str, int] = MappingProxyType(
    {"vibevoice": 24_000, "vibevoice_asr": 24_000, "mimo": 24_000, "mimo_v2_asr": 24_000, "mimo_audio": 24_000}
)
"""... and those that hear more."""

PIECE_SECONDS = 30.0
"""Sound that is heard in one go, ..."""

LONG_PIECES: Mapping[str, float] = MappingProxyType(
    {
        "cohere_asr": 300.0,
        "fun_asr_nano": 300.0,
        "glmasr": 300.0,
        "glm": 300.0,
        "mega_asr": 300.0,
        "nemotron_asr": 300.0,
        "nemotron_asr_streaming": 300.0,
        "parakeet": 120.0,
        "parakeet_tdt": 120.0,
        "phonon": 300.0,
        "phonon2": 300.0,
        "qwen3_asr": 300.0,
        "voxtral": 300.0,
        "voxtral_realtime": 300.0,
        # These tell speakers apart, who would get new names in every piece.
        "moss_transcribe_diarize": 3600.0,
        "vibevoice": 3600.0,
        "vibevoice_asr": 3600.0,
    }
)
"""... and by families that divide it better by themselves, or must not have it divided."""

LANGUAGE_KEYWORDS: Mapping[str, str] = MappingProxyType({"canary": "language", "granite_speech": "source_language"})
"""How ``generate`` calls the spoken language, where it is not ``language`` or hides it."""

WANTS_LANGUAGE_NAMES = frozenset({"mega_asr", "parakeet_tdt_five_value", "phonon", "phonon2", "qwen3_asr"})
"""Families that know languages by their English names, not by codes."""

WORDLESS = frozenset({"lasr_ctc"})
"""Families whose ``generate`` returns tokens and an empty text."""

HINT_KEYWORDS = ("initial_prompt", "context", "hotwords", "system_prompt")
"""How ``generate`` may call a hint, in the order of preference; ``prompt`` would replace the model's instruction."""

TOKENS_A_SECOND = 15
"""More than anybody says; limits are set from it, since the libraries' own would cut long recordings short."""

SPARE_TOKENS = 128


def rate_of(family: str) -> int:
    """Return the samples a second that a family hears."""
    return RATES.get(family, RATE)


def piece_seconds_of(family: str) -> float:
    """Return how much sound a family hears in one go, seconds."""
    return LONG_PIECES.get(family, PIECE_SECONDS)
