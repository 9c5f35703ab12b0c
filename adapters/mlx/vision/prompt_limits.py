"""Limits of prompts by architecture: the number of images and recordings, sample rates, and prompts that are tasks."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mlx_vlm import prompt_utils

from mlxk.adapters.mlx.vision.network import VisionTemplate
from mlxk.domain.errors import CapabilityError, ValidationError
from mlxk.domain.generation.conversation import Conversation, Message
from mlxk.domain.generation.media import AUDIO_RATE, DecodedAudio

_SINGLE_IMAGE = frozenset(
    {
        "deepseekocr",
        "deepseekocr_2",
        "falcon_ocr",
        "florence2",
        "moondream3",
        "nemotron_parse",
        "step3p7",
    }
)
"""Architectures for which mlx-vlm fails with several images in a prompt, or uses only one of them."""

_OPENINGS = {"nemotron_parse": "</s><s>"}
"""Text before the task, for architectures whose prompt consists of the last message only."""


def require_few_images(conversation: Conversation, architecture: str) -> None:
    """Refuse several images for a model that takes one.

    Raises:
        CapabilityError: There are more than the model takes.
    """
    most = max((len(message.images) for message in conversation.messages), default=0)
    count = len(conversation.images) if architecture in _SINGLE_IMAGE else most
    if count > 1 and architecture.lower() in {*_SINGLE_IMAGE, *prompt_utils.SINGLE_IMAGE_ONLY_MODELS}:
        fault = f"this model ({architecture}) takes one image at a time, not at {count}"
        raise CapabilityError.in_field("messages", fault, hint="Show one in a message.")


def as_task(messages: Sequence[Mapping[str, Any]], architecture: str) -> str | None:
    """Return the prompt of an architecture whose prompts are tasks; None for other architectures."""
    opening = _OPENINGS.get(architecture)
    return None if opening is None else opening + prompt_utils.extract_text_from_content(messages[-1]["content"])


def require_whole_task(text: str, processor: Any) -> None:  # noqa: ANN401 - untyped
    """Refuse a prompt with a task token and other text: the processor replaces a task token by a prompt of its own.

    Raises:
        ValidationError: There is text besides the task token.
    """
    tasks: Mapping[str, str] = getattr(processor, "task_prompts_without_inputs", {})
    task = next((task for task in tasks if task in text and task != text), None)
    if task is not None:
        raise ValidationError.in_field("messages", f"{task} must be all of the prompt", hint="Leave out the rest.")


_MERGING = frozenset({"phi4mm"})
"""Architectures that use only the first of several consecutive recordings."""


def require_few_sounds(messages: Sequence[Message], model: VisionTemplate) -> None:
    """Refuse recordings that mlx-vlm would silently drop.

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
    """Return the samples of each recording at the processor's sample rate, in 32 bits."""
    rate = getattr(getattr(processor, "feature_extractor", None), "sampling_rate", AUDIO_RATE)
    arrays = [np.frombuffer(audio.samples, "<f4").astype(np.float32) for audio in recordings]
    if rate == AUDIO_RATE or not arrays:
        return arrays
    # Not at the top: it imports SciPy, which most models do not need.
    from mlx_audio.resample import resample_audio_array

    return [resample_audio_array(array, AUDIO_RATE, rate) for array in arrays]
