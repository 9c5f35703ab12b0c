"""In-memory double of the speech synthesizer: one tone for each piece, its duration proportional to the characters.

synthesizer = InMemorySpeechSynthesizer(takes_instructions=True)
begun, *parts, ended = synthesizer.synthesize(SynthesisRequest(handle, "Hello there."))
"""

import math
import struct
from collections.abc import Generator
from pathlib import Path

from mlxk.application.ports.model_tasks import SpeechSynthesizer
from mlxk.domain.errors import MlxkError, ValidationError
from mlxk.domain.synthesis import (
    WAV_HEADER_BYTES,
    SpeechBegun,
    SpeechEnded,
    SpeechEvent,
    SpokenPart,
    SynthesisRequest,
    VoiceSample,
    pieces_of,
)

RATE = 22_050
SECONDS_PER_CHARACTER = 0.01
_HERTZ = 220.0


class InMemorySpeechSynthesizer(SpeechSynthesizer):
    """Synthesizes tones.

    Args:
        takes_instructions: Whether instructions have an effect.
        takes_sample_text: Whether the transcript of a cloned voice's recording has an effect.
    """

    def __init__(self, takes_instructions: bool = False, takes_sample_text: bool = True) -> None:
        self._takes_instructions = takes_instructions
        self._takes_sample_text = takes_sample_text
        self.recordings: list[bytes] = []
        """The files of recordings whose voices were cloned."""
        self.requests: list[SynthesisRequest] = []
        self.failure: MlxkError | None = None
        """Raised by every request before its first event."""
        self.late_failure: MlxkError | None = None
        """Raised by every request after its first part."""
        self.abandoned = 0
        """Number of generators that were closed early."""

    def synthesize(self, request: SynthesisRequest) -> Generator[SpeechEvent, None, None]:
        request.validate()
        self.requests.append(request)
        if self.failure is not None:
            raise self.failure
        if request.settings.sample is not None:
            self.recordings.append(_file_of(request.settings.sample))
        rate, pieces, samples = request.settings.sample_rate or RATE, pieces_of(request.text), 0
        try:
            yield SpeechBegun(rate, self._takes_instructions, self._takes_sample_text)
            for index, piece in enumerate(pieces):
                count = int(len(piece) * SECONDS_PER_CHARACTER * rate / request.settings.speed)
                samples += count
                yield SpokenPart(_tone(count, rate), index, len(pieces))
                if self.late_failure is not None:
                    raise self.late_failure
            yield SpeechEnded(samples / rate, len(request.text.split()), samples // 100)
        except GeneratorExit:
            self.abandoned += 1
            raise


def _file_of(sample: VoiceSample) -> bytes:
    """Return the file of a recording; a recording of zero bytes only is silent."""
    path = Path(sample.path)
    content = path.read_bytes() if path.is_file() else b""
    if not content:
        raise ValidationError(f"Audio file not found: {sample.name}")
    if not content.startswith(b"RIFF"):
        raise ValidationError(f"No known sound format: {sample.name}")
    if not any(content[WAV_HEADER_BYTES:]):
        raise ValidationError(f"The recording is silent: {sample.name}")
    return content


def _tone(count: int, rate: int) -> bytes:
    fades = (min(1.0, index / 100, (count - 1 - index) / 100) for index in range(count))
    wave = (math.sin(2 * math.pi * _HERTZ * index / rate) for index in range(count))
    return struct.pack(f"<{count}h", *(int(8000 * fade * each) for fade, each in zip(fades, wave, strict=True)))
