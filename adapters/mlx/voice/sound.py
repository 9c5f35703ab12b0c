"""Sound between a model and a listener: faster or slower at the same pitch, another sample rate, quiet ends.

And before a model: the recording whose voice it is to imitate.
"""

import numpy as np
from mlx_audio.resample import resample_audio_array
from numpy.typing import NDArray

from mlxk.adapters.mlx.audio_file import read_audio
from mlxk.domain.errors import ValidationError
from mlxk.domain.synthesis import MAX_SAMPLE_SECONDS, MIN_SAMPLE_SECONDS, VoiceSample

Sound = NDArray[np.float32]
"""Mono, samples from -1 to 1."""

_FADE_SECONDS = 0.005
_FRAME_SECONDS = 0.04
_SEARCH_SECONDS = 0.01


def faded(sound: Sound, rate: int, *, begins: bool = True, ends: bool = True) -> Sound:
    """Return sound that begins and ends at zero, so that it can follow and be followed by any other.

    Args:
        sound: The samples.
        rate: Hz.
        begins: Whether to fade in.
        ends: Whether to fade out.
    """
    count = min(int(_FADE_SECONDS * rate), len(sound) // 2)
    if count == 0:
        return sound
    slope = np.linspace(0.0, 1.0, count, dtype=np.float32)
    result = sound.copy()
    if begins:
        result[:count] *= slope
    if ends:
        result[-count:] *= slope[::-1]
    return result


def stretched(sound: Sound, rate: int, speed: float) -> Sound:
    """Return sound that is faster or slower at the same pitch: overlapping frames, each where it fits the one before.

    Args:
        sound: The samples.
        rate: Hz.
        speed: 2 takes half of the time.
    """
    step = int(_FRAME_SECONDS * rate / 2)
    reach = int(_SEARCH_SECONDS * rate)
    if speed == 1.0 or len(sound) < 4 * step:
        return sound
    padded = np.concatenate([np.zeros(reach, np.float32), sound, np.zeros(2 * step + 2 * reach, np.float32)])
    window = np.hanning(2 * step).astype(np.float32)
    count = int(len(sound) / speed / step)
    result, weight = np.zeros((count + 1) * step, np.float32), np.zeros((count + 1) * step, np.float32)
    wanted = padded[reach : reach + 2 * step]
    for index in range(count):
        place = int(index * step * speed)  # of the first sample of the searched span, in the padded sound
        span = padded[place : place + 2 * step + 2 * reach]
        if len(span) < 2 * step:
            break
        offset = int(np.argmax(np.correlate(span, wanted[: len(span)], "valid"))) if index else reach
        frame = span[offset : offset + 2 * step]
        begin = index * step
        result[begin : begin + len(frame)] += frame * window[: len(frame)]
        weight[begin : begin + len(frame)] += window[: len(frame)]
        following = place + offset + step
        wanted = padded[following : following + 2 * step]
    return np.asarray(result / np.maximum(weight, 0.1), np.float32)[: int(len(sound) / speed)]


def resampled(sound: Sound, rate: int, wanted: int) -> Sound:
    """Return sound at another sample rate, Hz."""
    return np.asarray(resample_audio_array(sound, rate, wanted), np.float32)


SAMPLE_RATE = 48_000
"""Hz, at which recordings are read whose voices are imitated: no model takes more."""

_QUIET = 0.003
"""Root of the mean square, up to which sound counts as silence: -50 dB."""

_PART_SECONDS = 0.05
_SAMPLE_PART = int(_PART_SECONDS * SAMPLE_RATE)


def read_sample(sample: VoiceSample) -> Sound:
    """Return a recording whose voice is to be imitated, at ``SAMPLE_RATE``.

    Raises:
        ValidationError: It is silent, too short or too long; and as ``read_audio``.
        StorageError, BackendNotInstalledError: As ``read_audio``.
    """
    sound: Sound = read_audio(sample.path, sample.name, SAMPLE_RATE, MAX_SAMPLE_SECONDS).samples
    whole = sound[: len(sound) // _SAMPLE_PART * _SAMPLE_PART].reshape(-1, _SAMPLE_PART)
    loud = whole.std(axis=1) > _QUIET  # without the mean: a constant is silent
    seconds = np.count_nonzero(loud) * _PART_SECONDS
    if seconds == 0:
        raise ValidationError(f"The recording is silent: {sample.name}")
    if seconds < MIN_SAMPLE_SECONDS:
        least = f"a voice is imitated from {MIN_SAMPLE_SECONDS} s on, and well from 5 s on"
        raise ValidationError(f"The recording has {seconds:.1f} s of sound; {least}: {sample.name}")
    return sound


def pcm_of(sound: Sound) -> bytes:
    """Return samples as signed numbers of 16 bits, the lower byte first."""
    return bytes(np.clip(np.rint(sound * 32767.0), -32768, 32767).astype("<i2").tobytes())
