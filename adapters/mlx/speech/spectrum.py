"""The spectrogram that Whisper hears, computed in blocks so that memory stays bounded for long recordings.

The same numbers as mlx-audio's ``log_mel_spectrogram``, frame by frame. What a frame becomes depends on the loudest one
of the whole recording, so the logarithms are kept and finished window by window. Used on the owner thread only.
"""

from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np
from mlx_audio.stt.models.whisper.audio import HOP_LENGTH, N_FFT, N_FRAMES, N_SAMPLES, SAMPLE_RATE
from mlx_audio.utils import hanning, mel_filters, stft

if TYPE_CHECKING:
    from mlxk.adapters.mlx.speech.sound import Samples

_HALF = N_FFT // 2
_QUIETEST = 1e-10
_RANGE = 8.0


class Spectrum:
    """The spectrogram of one recording.

    Args:
        samples: At 16 kHz.
        bands: Mel bands of the model.
    """

    def __init__(self, samples: "Samples", bands: int) -> None:
        self.frames = len(samples) // HOP_LENGTH
        """Frames of the recording itself, hundredths of a second."""
        # A model finds out the language from the first window, silence behind a short recording included.
        count = max(self.frames, N_FRAMES)
        sound = _padded(samples, count)
        filters = mel_filters(SAMPLE_RATE, N_FFT, bands, norm="slaney", mel_scale=None).T
        blocks = [
            _logarithms(sound[first * HOP_LENGTH : (min(first + N_FRAMES, count) - 1) * HOP_LENGTH + N_FFT], filters)
            for first in range(0, count, N_FRAMES)
        ]
        self._values = np.concatenate(blocks)
        self._floor = float(self._values.max()) - _RANGE

    def window(self, first: int, frames: int, kind: mx.Dtype) -> mx.array:
        """Return some frames, followed by zeros up to a whole window.

        Args:
            first: The first frame.
            frames: How many, at most those of a window.
            kind: The number type of the model.
        """
        values = np.maximum(self._values[first : first + frames], np.float32(self._floor))
        padded = np.zeros((N_FRAMES, values.shape[1]), np.float32)
        padded[: len(values)] = (values + np.float32(4.0)) / np.float32(4.0)
        return mx.array(padded).astype(kind)


def _padded(samples: "Samples", frames: int) -> "Samples":
    """Return the sound as the transform wants it: mirrored before the beginning, silent behind the end."""
    sound = np.zeros(_HALF + max(len(samples), frames * HOP_LENGTH) + N_SAMPLES, np.float32)
    sound[_HALF : _HALF + len(samples)] = samples
    sound[:_HALF] = sound[_HALF + 1 : N_FFT + 1][::-1]
    return sound


def _logarithms(sound: "Samples", filters: mx.array) -> "Samples":
    spectrum = stft(
        mx.array(sound), window=hanning(N_FFT, periodic=True), n_fft=N_FFT, hop_length=HOP_LENGTH, center=False
    )
    powers = spectrum.abs().square() @ filters
    return np.array(mx.maximum(powers, _QUIETEST).log10())
