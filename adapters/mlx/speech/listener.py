"""What a loaded speech model looks like to the transcriber, whatever its family."""

from abc import abstractmethod
from collections.abc import Generator
from typing import Protocol

import attrs

from mlxk.adapters.mlx.speech.sound import Sound
from mlxk.domain.model import ModelHandle
from mlxk.domain.speech import TranscriptEvent, TranscriptionSettings


class Listener(Protocol):
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
    listener: Listener

    @property
    def name(self) -> str:
        """What people call it."""
        return self.handle.name
