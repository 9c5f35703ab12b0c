"""The policy of every entrypoint: which model may be loaded, and whether it can do what a request asks for.

Owns one refusal for each missing capability, and the checks before loading: health, format, memory.
"""

import functools
from collections.abc import Callable

from mlxk.application.ports.event_log import EventLog
from mlxk.application.ports.memory_probe import MemoryProbe
from mlxk.domain.errors import (
    Advice,
    CapabilityError,
    IncompatibleModelError,
    InsufficientMemoryError,
    Remedy,
    UnhealthyModelError,
)
from mlxk.domain.models.memory import MemoryFit, judge_memory
from mlxk.domain.models.model import Capability, ModelDescription, ModelDetails

Requirement = Callable[[ModelDescription], None]
"""Raises the refusal of a model that cannot do what it is wanted for."""


def require_loadable(description: ModelDescription, require_kind: Requirement) -> None:
    """Refuse a model that cannot be loaded here, or is of another kind, and say why.

    Damage comes first, since damaged files do not tell what a model can do; the machine comes last, since no backend
    makes a model of another kind the right one.

    Args:
        description: The model.
        require_kind: Refuses a model that is made for something else.

    Raises:
        UnhealthyModelError: Its files are damaged or incomplete.
        CapabilityError: It is made for something else.
        IncompatibleModelError: No installed backend runs it.
    """
    name = description.handle.name
    if not description.health.healthy:
        raise UnhealthyModelError(
            f"'{name}' is damaged or incomplete: {description.health.reason}",
            hint=Advice(Remedy.CHECK_HEALTH, {"name": name}),
            fix=description.health.fix,
        )
    require_kind(description)
    if not description.runtime.compatible:
        raise IncompatibleModelError(f"'{name}' cannot run here: {description.runtime.reason}")


def require_memory(description: ModelDescription, memory: MemoryProbe, warn: EventLog | None = None) -> None:
    """Refuse a model beyond this machine's memory budget, or only warn of it.

    Args:
        description: The model.
        memory: Reads what the machine has.
        warn: Gets a warning in place of the refusal; None refuses.

    Raises:
        InsufficientMemoryError: It is beyond the budget, and nobody is to be warned instead.
    """
    verdict = judge_memory(memory.read(), description.size_bytes)
    if verdict.fit is not MemoryFit.EXCEEDS:
        return
    numbers = {"needed_bytes": verdict.needed, "budget_bytes": verdict.budget}
    name = description.handle.name
    if warn is None:
        raise InsufficientMemoryError(f"'{name}' does not fit into this machine's memory budget", detail=numbers)
    warn.warning("the model exceeds this machine's memory budget; expect swapping", model=name, **numbers)


_OTHER_WAYS = (
    (Capability.AUDIO, Advice(Remedy.USE_TRANSCRIPTION)),
    (Capability.EMBEDDINGS, Advice(Remedy.USE_EMBEDDINGS)),
)
"""What to do with models that do something else."""


def require_served_model(description: ModelDescription) -> None:
    """Refuse a model that can do nothing that a server offers: text, speech as text, or vectors.

    Raises:
        UnhealthyModelError, IncompatibleModelError, CapabilityError: Says why.
    """
    if description.can(Capability.TEXT_GENERATION):
        require_text_model(description)
    elif description.can(Capability.AUDIO):
        require_speech_model(description)
    else:
        require_embedding_model(description)


def require_text_model(description: ModelDescription) -> None:
    """Refuse a model that cannot generate text here, and say why.

    Raises:
        UnhealthyModelError: Its files are damaged or incomplete.
        CapabilityError: It is made for something else.
        IncompatibleModelError: No installed backend runs it.
    """
    require_loadable(description, _require_text)


def require_speech_model(description: ModelDescription, needed: Capability = Capability.AUDIO) -> None:
    """Refuse a model that cannot write down speech here, and say why.

    Args:
        description: The model.
        needed: See ``SpeechTask.capability``.

    Raises:
        UnhealthyModelError: Its files are damaged or incomplete.
        CapabilityError: It is made for something else, or lacks what is needed.
        IncompatibleModelError: No installed backend runs it.
    """
    require_loadable(description, functools.partial(_require_transcripts, needed))


def require_embedding_model(description: ModelDescription) -> None:
    """Refuse a model that cannot turn text into vectors here, and say why.

    Raises:
        UnhealthyModelError: Its files are damaged or incomplete.
        CapabilityError: It is made for something else.
        IncompatibleModelError: No installed backend runs it.
    """
    require_loadable(description, _require_vectors)


def require_vision(description: ModelDescription) -> None:
    """Refuse a model that cannot look at images, and say so.

    Raises:
        CapabilityError: It cannot.
    """
    if not description.can(Capability.VISION):
        raise CapabilityError(
            f"'{description.handle.name}' is a text model and cannot look at images",
            hint=Advice(Remedy.LIST_VISION_MODELS),
        )


def require_audio_input(description: ModelDescription, needed: Capability = Capability.AUDIO) -> None:
    """Refuse a model that cannot listen, or cannot translate what it hears.

    Args:
        description: The model.
        needed: See ``SpeechTask.capability``.

    Raises:
        CapabilityError: Says what it lacks and which models have it.
    """
    name = description.handle.name
    if not description.can(Capability.AUDIO):
        raise CapabilityError(
            f"Model '{name}' does not support audio inputs (no audio capability detected).",
            hint="Use a speech model, such as one of the Whisper family.",
        )
    if not description.can(needed):
        raise CapabilityError(
            f"Model '{name}' does not support speech translation ({Capability.AUDIO_TRANSLATE_EN.value}).",
            hint="Try a multilingual Whisper that is not a turbo variant, such as mlx-community/whisper-large-v3-4bit; "
            "the reduced decoder of the turbo variants does not translate reliably.",
        )


def require_tools(details: ModelDetails) -> None:
    """Refuse tools to choose from where the model's chat template leaves them out.

    Args:
        details: Of the model.

    Raises:
        CapabilityError: It does.
    """
    if details.template_read and not details.supports_tools:
        name = details.description.handle.label
        raise CapabilityError.in_field(
            "tools", f"'{name}' cannot be told about tools", hint=Advice(Remedy.LEAVE_OUT_TOOLS)
        )


def require_reasoning(details: ModelDetails, field: str) -> None:
    """Refuse to have a model reason whose chat template cannot have it so; not to have it reason asks for nothing.

    Args:
        details: Of the model.
        field: How the request asks for it.

    Raises:
        CapabilityError: It cannot.
    """
    if details.template_read and not details.supports_reasoning:
        name = details.description.handle.label
        raise CapabilityError.in_field(
            field, f"'{name}' cannot be told to reason", hint=Advice(Remedy.LEAVE_OUT_REASONING)
        )


def _require_text(description: ModelDescription) -> None:
    if not description.can(Capability.TEXT_GENERATION):
        raise CapabilityError(
            f"'{description.handle.name}' does not generate text; it can do: {_abilities(description)}",
            hint=next((hint for capability, hint in _OTHER_WAYS if description.can(capability)), None),
        )


def _require_transcripts(needed: Capability, description: ModelDescription) -> None:
    require_audio_input(description, needed)
    if description.can(Capability.TEXT_GENERATION):
        raise CapabilityError(
            f"'{description.handle.name}' answers questions about sound; it does not write transcripts",
            hint=Advice(Remedy.USE_CHAT),
        )


def _require_vectors(description: ModelDescription) -> None:
    if not description.can(Capability.EMBEDDINGS):
        name = description.handle.name
        raise CapabilityError(f"'{name}' is not an embedding model; it can do: {_abilities(description)}")


def _abilities(description: ModelDescription) -> str:
    """Return what a model can do, for the refusal that says what it cannot."""
    return ", ".join(capability.value for capability in description.capabilities) or "nothing known"
