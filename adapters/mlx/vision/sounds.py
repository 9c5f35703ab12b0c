"""Sounds in prompts: what a model takes of them, and at which rate."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mlxk.adapters.mlx.vision.network import VisionTemplate
from mlxk.domain.errors import CapabilityError
from mlxk.domain.generation.conversation import Message
from mlxk.domain.generation.media import AUDIO_RATE, DecodedAudio

_MERGING = frozenset({"phi4mm"})
"""Architectures that hear the first of several recordings that follow one another."""


def require_support(messages: Sequence[Message], model: VisionTemplate) -> None:
    """Refuse sounds that mlx-vlm would silently drop.

    Raises:
        CapabilityError: There are more than the model takes.
    """
    recordings = [audio for message in messages for audio in message.audio]
    if len(recordings) > 1 and not getattr(model.processor, "supports_multiple_audio", False):
        fault = f"this model ({model.type}) takes one recording in a conversation, not {len(recordings)}"
        raise CapabilityError.in_field("messages", fault, hint="Play one.")
    together = max((len(message.audio) for message in messages), default=0)
    if together > 1 and model.type in _MERGING:
        fault = f"this model ({model.type}) takes one recording in a message, not {together}"
        raise CapabilityError.in_field("messages", fault, hint="Play them in a message each.")


def samples(recordings: Sequence[DecodedAudio], processor: Any) -> list[Any]:  # noqa: ANN401 - numpy's arrays
    """Return the samples of each sound at the rate that a processor takes, in 32 bits."""
    rate = getattr(getattr(processor, "feature_extractor", None), "sampling_rate", AUDIO_RATE)
    given = [np.frombuffer(audio.samples, "<f4").astype(np.float32) for audio in recordings]
    if rate == AUDIO_RATE or not given:
        return given
    # Not at the top: it imports SciPy, which most models do without.
    from mlx_audio.resample import resample_audio_array

    return [resample_audio_array(each, AUDIO_RATE, rate) for each in given]
