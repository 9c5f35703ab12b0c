"""The speech synthesizer port on mlx-audio: the text is spoken in pieces, between which other work gets its turn."""

import contextlib
import functools
import importlib.util
from collections.abc import Generator, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from mlxk.adapters.mlx.engine.model_pool import WantedModel
from mlxk.adapters.mlx.text_generator import ModelLease, ModelLeases
from mlxk.application.ports.model_tasks import SpeechSynthesizer
from mlxk.domain.errors import BackendNotInstalledError, ExecutionError, MlxkError
from mlxk.domain.models.model import ModelHandle
from mlxk.domain.synthesis import (
    SpeechBegun,
    SpeechEnded,
    SpeechEvent,
    SpokenPart,
    SynthesisRequest,
    VoiceSample,
    pieces_of,
)

if TYPE_CHECKING:
    from mlxk.adapters.mlx.voice.loader import Fragment, Voice
    from mlxk.adapters.mlx.voice.sound import Sound


class MlxSpeechSynthesizer(SpeechSynthesizer):
    """Runs the speech synthesis models that mlx-audio supports.

    Args:
        leases: Leases the models.
    """

    def __init__(self, leases: ModelLeases) -> None:
        self._leases = leases

    def synthesize(self, request: SynthesisRequest) -> Generator[SpeechEvent, None, None]:
        request.validate()
        if importlib.util.find_spec("mlx_audio") is None:
            raise BackendNotInstalledError("Text to speech needs mlx-audio.", hint="Install it: pip install mlx-audio")
        # Not at the top: mlx-audio may be absent, and takes long to import.
        from mlxk.adapters.mlx.voice.loader import Voice, load_voice

        recording = None if request.settings.sample is None else _read(request.model, request.settings.sample)
        with self._leases.lease(WantedModel(request.model, load=load_voice), Voice) as lease:
            try:
                yield from self._spoken(lease, request, recording)
            finally:
                if recording is not None:
                    with contextlib.suppress(MlxkError):
                        lease.call(lease.model.forget_recordings)

    def _spoken(
        self, lease: "ModelLease[Voice]", request: SynthesisRequest, recording: "Sound | None"
    ) -> Iterator[SpeechEvent]:
        from mlxk.adapters.mlx.voice import sound as sounds

        pieces, sample = pieces_of(request.text), request.settings.sample
        rate, text_tokens = lease.call(lambda: (lease.model.sample_rate, lease.model.count(request.text)))
        produced = _Produced(rate, request.settings.sample_rate or rate)
        imitated: Mapping[str, Any] = {}  # arguments for the voice to imitate
        if recording is not None and sample is not None:
            recording = sounds.resampled(recording, sounds.SAMPLE_RATE, rate)
            imitated = lease.call(functools.partial(lease.model.imitating, recording, sample.text))
        takes_text = recording is None or lease.model.takes_sample_text
        yield SpeechBegun(produced.wanted, lease.model.family.instructions, takes_text)
        for index, piece in enumerate(pieces):
            for pcm in filter(None, self._piece(lease, request, piece, produced, imitated)):
                produced.samples += len(pcm) // 2
                yield SpokenPart(pcm, index, len(pieces))
        if not produced.samples:
            raise ExecutionError("The model made no sound of this text.")
        yield SpeechEnded(produced.samples / produced.wanted, text_tokens, produced.tokens)

    def _piece(
        self,
        lease: "ModelLease[Voice]",
        request: SynthesisRequest,
        piece: str,
        produced: "_Produced",
        imitated: "Mapping[str, Any]",
    ) -> Iterator[bytes]:
        """Yield the sound of a piece of text as PCM, in parts; it begins and ends at zero."""
        from mlxk.adapters.mlx.voice import sound as sounds

        settings, model, family = request.settings, lease.model, lease.model.family
        rate, wanted = produced.rate, produced.wanted
        speed = 1.0 if family.own_speed else settings.speed
        speak = functools.partial(model.speak, piece, settings.voice, settings.instructions, settings.speed, imitated)
        fragments = lease.call(speak)
        try:
            parts = self._fragments(lease, fragments, produced)
            if speed != 1.0 or wanted != rate:
                # Applied to the whole piece: filtered separately, parts would click where they are joined.
                sound = np.concatenate([np.zeros(0, np.float32), *parts])
                sound = sounds.stretched(sound, rate, speed)
                parts = iter([sound if wanted == rate else sounds.resampled(sound, rate, wanted)])
            previous: sounds.Sound | None = None  # one part behind: only the last one fades out
            begins = True
            for part in parts:
                if previous is not None:
                    yield sounds.pcm_of(sounds.faded(previous, wanted, begins=begins, ends=False))
                    begins = False
                previous = part
            if previous is not None:
                yield sounds.pcm_of(sounds.faded(previous, wanted, begins=begins))
        finally:
            # Closing releases the generator's arrays, which belong to the owner thread.
            with contextlib.suppress(MlxkError):
                lease.call(fragments.close)

    def _fragments(
        self, lease: "ModelLease[Voice]", fragments: "Generator[Fragment, None, None]", produced: "_Produced"
    ) -> "Iterator[Sound]":
        while (fragment := lease.call_in_turn(lambda: next(fragments, None))) is not None:
            if not np.isfinite(fragment.sound).all():
                raise ExecutionError("The model's output was not a number, so there is no sound.")
            produced.tokens += fragment.tokens
            yield fragment.sound


def _read(model: ModelHandle, sample: VoiceSample) -> "Sound":
    """Return the recording of a voice to imitate, and refuse a model that cannot imitate it."""
    from mlxk.adapters.mlx.voice import loader, sound

    loader.require_cloning(model, text_known=sample.text is not None)
    return sound.read_sample(sample)


@attrs.define
class _Produced:
    """Sample rates, and the output of a request so far."""

    rate: int
    """Sample rate of the model's sound, Hz."""
    wanted: int
    """Sample rate of the returned sound, Hz."""
    samples: int = 0
    """Number of samples returned."""
    tokens: int = 0
    """Number of tokens generated."""
