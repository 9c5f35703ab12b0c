"""The sample recordings that come with the model, and what is said in them."""

from __future__ import annotations

import wave
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mlx_audio.stt.models.whisper.audio import SAMPLE_RATE
from phrases import PHRASES, UNTRAINED, Utterance
from recordings import Recording, Samples, string_together

_PAUSE = 0.6


@dataclass(frozen=True, slots=True)
class Sample:
    """One recording."""

    name: str
    """Of its file."""
    phrases: tuple[str, ...]

    @property
    def text(self) -> str:
        """What is said."""
        return " ".join(self.phrases)


SAMPLES = (
    Sample("hello.wav", ("Hello world.",)),
    Sample("question.wav", ("What is mlxk?",)),
    Sample("two-phrases.wav", ("Good morning.", "Nothing leaves your machine.")),
)


def recording(sample: Sample, spoken: dict[Utterance, Samples]) -> Recording:
    """Return a sample in the voice and at the speed that were kept out of training."""
    said = [Utterance(PHRASES.index(phrase), *UNTRAINED) for phrase in sample.phrases]
    return string_together([(each, spoken[each]) for each in said], [0.1, *[_PAUSE] * (len(said) - 1), 0.3])


def write(directory: Path, spoken: dict[Utterance, Samples]) -> None:
    """Write the samples into the model directory: 16 kHz, 16 bits, one channel."""
    for sample in SAMPLES:
        values = np.rint(np.clip(recording(sample, spoken).samples, -1, 1) * 32767).astype("<i2")
        with wave.open(str(directory / sample.name), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(SAMPLE_RATE)
            file.writeframes(values.tobytes())
