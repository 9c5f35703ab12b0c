"""The interface of a loaded speech model, and tables of the model families' properties."""

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
        """Transcribe a recording; each step of the generator takes about a second.

        Raises:
            CapabilityError: In the first step; names a setting that the model does not support.
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
"""Sample rate of most families, Hz."""

SAMPLE_RATES: Mapping[str, int] = MappingProxyType(
    {"vibevoice": 24_000, "vibevoice_asr": 24_000, "mimo": 24_000, "mimo_v2_asr": 24_000, "mimo_audio": 24_000}
)
"""Sample rates of other families, Hz."""

CHUNK_SECONDS = 30.0
"""Length of the chunks in which most families decode audio."""

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
        # Speakers would be numbered anew in every chunk.
        "moss_transcribe_diarize": 3600.0,
        "vibevoice": 3600.0,
        "vibevoice_asr": 3600.0,
    }
)
"""Chunk lengths of families that split audio better themselves, or need it in one chunk."""

LANGUAGE_KEYWORDS: Mapping[str, str] = MappingProxyType({"canary": "language", "granite_speech": "source_language"})
"""Keyword of ``generate`` for the spoken language, if it is not ``language`` or is missing in the signature."""

WANTS_LANGUAGE_NAMES = frozenset({"mega_asr", "parakeet_tdt_five_value", "phonon", "phonon2", "qwen3_asr"})
"""Families that take languages by their English names instead of codes."""

TOKENS_ONLY = frozenset({"lasr_ctc"})
"""Families whose ``generate`` returns tokens and an empty text."""

HINT_KEYWORDS = ("initial_prompt", "context", "hotwords", "system_prompt")
"""Keywords of ``generate`` for a hint, in order of preference; not ``prompt``, which replaces the instruction."""

MAX_TOKENS_PER_SECOND = 15
"""Upper bound for fast speech, for the limit of tokens: the libraries' defaults truncate long recordings."""

EXTRA_TOKENS = 128
"""Added to the limit of tokens of a chunk."""


def sample_rate_of(family: str) -> int:
    """Return the sample rate of a family, Hz."""
    return SAMPLE_RATES.get(family, SAMPLE_RATE)


def chunk_seconds_of(family: str) -> float:
    """Return the length of the chunks in which a family decodes audio, seconds."""
    return LONG_CHUNK_SECONDS.get(family, CHUNK_SECONDS)
