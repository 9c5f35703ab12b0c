"""A message as a client sent it: its text, with the images and sounds that stand in it."""

import attrs

from mlxk.domain.generation.conversation import Message
from mlxk.domain.generation.media import DEFAULT_AUDIO_PROMPT, DecodedAudio, EncodedImage


@attrs.frozen
class IncomingMessage:
    """One message of a client."""

    message: Message
    """Without its images and sounds."""
    parts: tuple[str | EncodedImage | DecodedAudio, ...] = ()
    """What it says, shows and plays, in order, when it is more than text."""

    @property
    def images(self) -> tuple[EncodedImage, ...]:
        """What it shows, in order."""
        return tuple(part for part in self.parts if isinstance(part, EncodedImage))

    @property
    def played(self) -> Message:
        """The message with its sounds, and without its images."""
        parts = tuple(part for part in self.parts if not isinstance(part, EncodedImage))
        if not any(isinstance(part, DecodedAudio) for part in parts):
            return self.message
        if not self.message.content:
            parts = (*parts, DEFAULT_AUDIO_PROMPT)
        return attrs.evolve(self.message, parts=parts)
