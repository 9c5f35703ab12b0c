"""In-memory double of the audio decoder: decoded recordings by path."""

from collections.abc import Mapping

from mlxk.application.ports.media import AudioDecoder
from mlxk.domain.errors import ValidationError
from mlxk.domain.generation.media import DecodedAudio


class InMemoryAudioDecoder(AudioDecoder):
    """Returns given recordings.

    Args:
        sounds: Decoded audio by path; any other file is missing.
    """

    def __init__(self, sounds: Mapping[str, DecodedAudio]) -> None:
        self._sounds = sounds

    def decode(self, path: str, name: str) -> DecodedAudio:
        if path not in self._sounds:
            raise ValidationError(f"Audio file not found: {name}")
        return self._sounds[path]
