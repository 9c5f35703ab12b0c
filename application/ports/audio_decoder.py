"""Port: a file of sound as samples."""

from abc import abstractmethod
from typing import Protocol

from mlxk.domain.generation.media import DecodedAudio


class AudioDecoder(Protocol):
    """Turns files of sound into what is to be heard in a prompt. Safe to share between threads."""

    @abstractmethod
    def decode(self, path: str, name: str) -> DecodedAudio:
        """Decode a file, whatever its length.

        Args:
            path: The file, on this machine.
            name: What the user calls it; refusals name it so.

        Raises:
            ValidationError: It is missing, empty, too large, or no sound.
            StorageError: It cannot be read.
            BackendNotInstalledError: The package or program that its format needs is not installed.
        """
