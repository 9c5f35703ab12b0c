"""What a prompt may hold for an architecture: how many images and sounds, at which rate these, and tasks for a text."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mlx_vlm import prompt_utils

from mlxk.adapters.mlx.vision.network import VisionTemplate
from mlxk.domain.errors import CapabilityError, ValidationError
from mlxk.domain.generation.conversation import Conversation, Message
from mlxk.domain.generation.media import AUDIO_RATE, DecodedAudio

_SHOWN_ONE = frozenset(
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
"""Architectures of which mlx-vlm fails at several images in a prompt, or looks at one of them only."""

_OPENINGS = {"nemotron_parse": "</s><s>"}
"""What stands before a task, of architectures whose last message is all of the prompt and has no other form."""


def require_few_images(conversation: Conversation, architecture: str) -> None:
    """Refuse several images of a model that takes one.

    Raises:
        CapabilityError: It accepts fewer.
    """
    most = max((len(message.images) for message in conversation.messages), default=0)
    shown = len(conversation.images) if architecture in _SHOWN_ONE else most
    if shown > 1 and architecture.lower() in {*_SHOWN_ONE, *prompt_utils.SINGLE_IMAGE_ONLY_MODELS}:
        fault = f"this model ({architecture}) takes one image at a time, not at {shown}"
        raise CapabilityError.in_field("messages", fault, hint="Show one in a message.")


def as_task(messages: Sequence[Mapping[str, Any]], architecture: str) -> str | None:
    """Return the text of a conversation that is a task; None where mlx-vlm or a template writes it."""
    opening = _OPENINGS.get(architecture)
    return None if opening is None else opening + prompt_utils.extract_text_from_content(messages[-1]["content"])


def require_whole_task(text: str, processor: Any) -> None:  # noqa: ANN401 - untyped
    """Refuse a prompt with more than a task of a processor that writes some tasks out, which then is all of it.

    Raises:
        ValidationError: Something stands beside the task.
    """
    tasks: Mapping[str, str] = getattr(processor, "task_prompts_without_inputs", {})
    task = next((task for task in tasks if task in text and task != text), None)
    if task is not None:
        raise ValidationError.in_field("messages", f"{task} must be all of the prompt", hint="Leave out the rest.")


_MERGING = frozenset({"phi4mm"})
"""Architectures that hear the first of several recordings that follow one another."""


def require_few_sounds(messages: Sequence[Message], model: VisionTemplate) -> None:
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
