"""Prompts that are tasks: how many images they are about, and what surrounds them."""

from collections.abc import Mapping, Sequence
from typing import Any

from mlx_vlm import prompt_utils

from mlxk.domain.errors import CapabilityError, ValidationError
from mlxk.domain.generation.conversation import Conversation

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
