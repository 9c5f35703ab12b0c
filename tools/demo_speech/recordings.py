"""Recordings: utterances synthesized by espeak-ng, strung together with silence, and their spectrograms."""

from __future__ import annotations

import random
import subprocess
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_audio import audio_io
from mlx_audio.stt.models.whisper.audio import HOP_LENGTH, N_FFT, N_FRAMES, SAMPLE_RATE, log_mel_spectrogram
from phrases import Utterance

MEL_BANDS = 80
_LOWEST_PITCH, _HIGHEST_PITCH = 38, 62

Samples = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True, slots=True)
class Spoken:
    """A text and when it is said."""

    text: str
    start: float
    """Seconds."""
    end: float
    """Seconds."""


@dataclass(frozen=True, slots=True)
class Recording:
    """A stretch of sound and what is said in it."""

    samples: Samples
    """At 16 kHz, one channel."""
    spoken: tuple[Spoken, ...]

    @property
    def frames(self) -> int:
        """Frames of the spectrogram that hold sound."""
        return min(len(self.samples) // HOP_LENGTH, N_FRAMES)


def synthesize(utterance: Utterance, pitch: int = 50) -> Samples:
    """Have espeak-ng say something."""
    command = ["espeak-ng", "-v", utterance.voice, "-s", str(utterance.speed), "-p", str(pitch), "--stdout"]
    result = subprocess.run([*command, utterance.spoken], check=True, capture_output=True)
    sound, _ = audio_io.read(BytesIO(result.stdout), dtype="float32", sample_rate=SAMPLE_RATE, nchannels=1)
    return np.asarray(_trimmed(np.asarray(sound, dtype=np.float32).reshape(-1)), dtype=np.float32)


def voiced(utterances: list[Utterance], seed: int) -> dict[Utterance, Samples]:
    """Synthesize all, each at a pitch of its own."""
    chance = random.Random(seed)
    return {each: synthesize(each, chance.randint(_LOWEST_PITCH, _HIGHEST_PITCH)) for each in utterances}


def string_together(parts: list[tuple[Utterance, Samples]], pauses: list[float]) -> Recording:
    """Put utterances one after another.

    Args:
        parts: What is said.
        pauses: Seconds of silence, before each and at the end: one more than there are parts.
    """
    pieces, spoken, position = [_silence(pauses[0])], [], len(_silence(pauses[0]))
    for (utterance, sound), pause in zip(parts, pauses[1:], strict=True):
        end = position + len(sound)
        spoken.append(Spoken(utterance.text, position / SAMPLE_RATE, end / SAMPLE_RATE))
        pieces += [sound, _silence(pause)]
        position = end + len(pieces[-1])
    return Recording(np.concatenate(pieces), tuple(spoken))


def spectrogram(recording: Recording) -> Samples:
    """Return the spectrogram as Whisper's ``generate`` makes it.

    It computes the spectrogram of the sound followed by silence, keeps the frames of the sound, and fills the window
    with zeros: silence itself would not be zero.
    """
    sound = mx.array(np.pad(recording.samples, (0, N_FFT)))
    return np.array(log_mel_spectrogram(sound, n_mels=MEL_BANDS)[: recording.frames])


def _silence(seconds: float) -> Samples:
    return np.zeros(round(seconds * SAMPLE_RATE), dtype=np.float32)


def _trimmed(sound: Samples) -> Samples:
    """Return the sound without the silence around it."""
    loud = np.nonzero(np.abs(sound) > 0.01)[0]
    return sound[loud[0] : loud[-1] + 1]
