"""Sound processing: fades, time stretching, resampling and conversion of output, and reading of voice samples."""

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
    """Return sound that begins and ends at zero, so that it can be joined with other sound without a click.

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
    """Return sound that is faster or slower at the same pitch.

    It is made of overlapping frames (WSOLA); each is taken where it best continues the one before.

    Args:
        sound: The samples.
        rate: Hz.
        speed: Factor; 2 halves the duration.
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
        start = int(index * step * speed)  # of the searched span in the padded sound
        span = padded[start : start + 2 * step + 2 * reach]
        if len(span) < 2 * step:
            break
        offset = int(np.argmax(np.correlate(span, wanted[: len(span)], "valid"))) if index else reach
        frame = span[offset : offset + 2 * step]
        begin = index * step
        result[begin : begin + len(frame)] += frame * window[: len(frame)]
        weight[begin : begin + len(frame)] += window[: len(frame)]
        following = start + offset + step
        wanted = padded[following : following + 2 * step]
    return np.asarray(result / np.maximum(weight, 0.1), np.float32)[: int(len(sound) / speed)]


def resampled(sound: Sound, rate: int, wanted: int) -> Sound:
    """Return sound at another sample rate, Hz."""
    return np.asarray(resample_audio_array(sound, rate, wanted), np.float32)


SAMPLE_RATE = 48_000
"""Sample rate at which voice samples are read, Hz; no model takes a higher one."""

_QUIET = 0.003
"""RMS level up to which sound counts as silence: -50 dB."""

_PART_SECONDS = 0.05
_SAMPLE_PART = int(_PART_SECONDS * SAMPLE_RATE)


def read_sample(sample: VoiceSample) -> Sound:
    """Return the recording of a voice to imitate, at ``SAMPLE_RATE``.

    Raises:
        ValidationError: The recording is silent, too short or too long; and as ``read_audio``.
        StorageError, BackendNotInstalledError: As ``read_audio``.
    """
    sound: Sound = read_audio(sample.path, sample.name, SAMPLE_RATE, MAX_SAMPLE_SECONDS).samples
    parts = sound[: len(sound) // _SAMPLE_PART * _SAMPLE_PART].reshape(-1, _SAMPLE_PART)
    loud = parts.std(axis=1) > _QUIET  # the deviation ignores a constant offset
    seconds = np.count_nonzero(loud) * _PART_SECONDS
    if seconds == 0:
        raise ValidationError(f"The recording is silent: {sample.name}")
    if seconds < MIN_SAMPLE_SECONDS:
        least = f"a voice is imitated from {MIN_SAMPLE_SECONDS} s on, and well from 5 s on"
        raise ValidationError(f"The recording has {seconds:.1f} s of sound; {least}: {sample.name}")
    return sound


def pcm_of(sound: Sound) -> bytes:
    """Return samples as signed 16-bit little-endian PCM."""
    return bytes(np.clip(np.rint(sound * 32767.0), -32768, 32767).astype("<i2").tobytes())
