"""Long recordings in pieces that end where it is quiet."""

import itertools

import attrs
import numpy as np

from mlxk.adapters.mlx.speech.sound import Sound

_SEARCHED = 0.2
"""The share at the end of a piece in which a quiet place is looked for."""
_QUIET_SECONDS = 0.1


@attrs.frozen(eq=False)
class Piece:
    """A part of a recording."""

    sound: Sound
    start: float
    """Seconds from the beginning of the recording."""

    @property
    def end(self) -> float:
        """Seconds from the beginning of the recording."""
        return self.start + self.sound.seconds


def divided(sound: Sound, most_seconds: float) -> list[Piece]:
    """Divide a recording into pieces of at most so many seconds, without losing or repeating a sample."""
    most, total, rate = int(most_seconds * sound.rate), len(sound.samples), sound.rate
    borders = [0]
    while total - borders[-1] > most:
        borders.append(_quietest(sound, borders[-1] + int(most * (1 - _SEARCHED)), borders[-1] + most))
    borders.append(total)
    return [Piece(Sound(sound.samples[start:end], rate), start / rate) for start, end in itertools.pairwise(borders)]


def _quietest(sound: Sound, first: int, last: int) -> int:
    """Return the middle of the quietest moment between two samples."""
    width = max(int(_QUIET_SECONDS * sound.rate), 1)
    count = (last - first) // width
    if count < 1:
        return last
    loudness = np.square(sound.samples[first : first + count * width]).reshape(count, width).sum(axis=1)
    # The last of several equally quiet moments, so that silence makes no more pieces than needed.
    quietest = count - 1 - int(np.argmin(loudness[::-1]))
    return first + quietest * width + width // 2
