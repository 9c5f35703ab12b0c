"""Port: decoding of audio files."""

from abc import abstractmethod
from typing import Protocol

from mlxk.domain.generation.media import DecodedAudio


class AudioDecoder(Protocol):
    """Decodes audio files into samples for prompts. Thread-safe."""

    @abstractmethod
    def decode(self, path: str, name: str) -> DecodedAudio:
        """Decode a file of any length.

        Args:
            path: Path of the file.
            name: The name used in error messages, as the user wrote it.

        Raises:
            ValidationError: The file is missing, empty, too large, or not audio.
            StorageError: The file cannot be read.
            BackendNotInstalledError: The format needs a package or program that is not installed.
        """
