"""Sound in a prompt, for models that write text and take a recording beside it.

Owns its limits, which are those of mlx-vlm's processors: they drop what comes after half a minute without a word, so a
longer recording is refused. Writing down whole recordings is ``speech``.
"""

import attrs

from mlxk.domain.errors import ValidationError

SOUND_RATE = 16_000
"""Samples a second that these models hear."""

MAX_SOUND_SECONDS = 30
"""Length of one recording in a prompt."""

MAX_AUDIO_BYTES = 50 * 1000 * 1000
"""Size of a file of sound, also of one whose words are written down."""

DEFAULT_SOUND_PROMPT = "Transcribe this audio."

_BYTES_PER_SAMPLE = 4


@attrs.frozen
class DecodedSound:
    """One recording as samples, the way it is to be heard."""

    samples: bytes = attrs.field(repr=False)
    """One channel, ``SOUND_RATE`` a second, from -1 to 1, each a 32-bit float, least significant byte first."""
    digest: str
    """SHA-256 of the samples, hexadecimal."""

    @property
    def seconds(self) -> float:
        """How long it is."""
        return len(self.samples) / _BYTES_PER_SAMPLE / SOUND_RATE


def check_sound_length(sound: DecodedSound, name: str) -> None:
    """Refuse a recording that a model would not hear to its end.

    Args:
        sound: The recording.
        name: What the user calls it.

    Raises:
        ValidationError: It is longer than ``MAX_SOUND_SECONDS``.
    """
    if sound.seconds > MAX_SOUND_SECONDS:
        raise ValidationError(
            f"{name} has {sound.seconds:.1f} s of sound; in a prompt a model hears at most {MAX_SOUND_SECONDS} s",
            hint="Cut it, or use a speech-to-text model, such as one of the Whisper family, which takes two hours.",
        )
