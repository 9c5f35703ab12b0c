"""A loaded speech model, and the properties of model families as data."""

from abc import abstractmethod
from collections.abc import Generator, Mapping
from types import MappingProxyType
from typing import Protocol

import attrs

from mlxk.adapters.mlx.audio_file import AudioSamples
from mlxk.domain.models.model import ModelHandle
from mlxk.domain.transcription import TranscriptEvent, TranscriptionSettings


class SpeechDecoder(Protocol):
    """Transcribes audio with one model; used on the owner thread only."""

    @abstractmethod
    def decode(self, audio: AudioSamples, settings: TranscriptionSettings) -> Generator[TranscriptEvent, None, None]:
        """Transcribe a recording; each step of the iterator takes a second or so.

        Raises:
            CapabilityError: In the first step: the model does not support a setting, which is named.
        """


@attrs.frozen(eq=False)
class SpeechModel:
    """A speech model in memory."""

    handle: ModelHandle
    weight_bytes: int
    decoder: SpeechDecoder

    @property
    def name(self) -> str:
        """The model's name."""
        return self.handle.name


WHISPER = "whisper"

SAMPLE_RATE = 16_000
"""Of most speech models, Hz."""

SAMPLE_RATES: Mapping[str, int] = MappingProxyType(
    {"vibevoice": 24_000, "vibevoice_asr": 24_000, "mimo": 24_000, "mimo_v2_asr": 24_000, "mimo_audio": 24_000}
)
"""Of families with a higher one, Hz."""

CHUNK_SECONDS = 30.0
"""Audio decoded at a time by most families."""

LONG_CHUNK_SECONDS: Mapping[str, float] = MappingProxyType(
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
        # These distinguish speakers, who would get new names in every chunk.
        "moss_transcribe_diarize": 3600.0,
        "vibevoice": 3600.0,
        "vibevoice_asr": 3600.0,
    }
)
"""Of families that split audio better themselves, or need it in one chunk."""

LANGUAGE_KEYWORDS: Mapping[str, str] = MappingProxyType({"canary": "language", "granite_speech": "source_language"})
"""The keyword of ``generate`` for the spoken language, where it is not ``language`` or not in the signature."""

WANTS_LANGUAGE_NAMES = frozenset({"mega_asr", "parakeet_tdt_five_value", "phonon", "phonon2", "qwen3_asr"})
"""Families that take languages by their English names instead of codes."""

TOKENS_ONLY = frozenset({"lasr_ctc"})
"""Families whose ``generate`` returns tokens and an empty text."""

HINT_KEYWORDS = ("initial_prompt", "context", "hotwords", "system_prompt")
"""Keywords of ``generate`` for a hint, in order of preference; ``prompt`` would replace the model's instruction."""

MAX_TOKENS_PER_SECOND = 15
"""Upper bound for fast speech; limits derive from it, since the libraries' defaults truncate long recordings."""

EXTRA_TOKENS = 128


def sample_rate_of(family: str) -> int:
    """Return the sample rate of a family, Hz."""
    return SAMPLE_RATES.get(family, SAMPLE_RATE)


def chunk_seconds_of(family: str) -> float:
    """Return the length of the audio that a family decodes at a time, seconds."""
    return LONG_CHUNK_SECONDS.get(family, CHUNK_SECONDS)
