"""The policy of every entrypoint: which models may be loaded, and whether they have the capabilities of a request.

Holds the checks before loading (health, operation, backend, memory) and the table of refusals, one for each missing
capability. A new capability needs a row only where the general refusal says too little.
"""

from collections.abc import Callable, Collection

import attrs

from mlxk.application.ports.memory import MemoryProbe
from mlxk.application.ports.model_directories import ModelFiles
from mlxk.application.ports.system import EventLog
from mlxk.domain.errors import (
    Advice,
    CapabilityError,
    IncompatibleModelError,
    InsufficientMemoryError,
    Remedy,
    UnhealthyModelError,
    ValidationError,
)
from mlxk.domain.generation.settings import EngineOptions
from mlxk.domain.models.drafting import drafting_of, other_drafter
from mlxk.domain.models.footprint import (
    Matrices,
    MemoryFit,
    MemoryReading,
    MemoryVerdict,
    Widening,
    expected_context,
    judge_memory,
)
from mlxk.domain.models.model import (
    Capability,
    ModelDescription,
    ModelDetails,
    ModelHandle,
    ModelType,
    Origin,
    ToolsMissing,
    is_part_of_model,
)

Requirement = Callable[[ModelDescription], None]
"""Raises ``CapabilityError`` for a model that lacks a capability of a request."""


def require_loadable(description: ModelDescription, require_kind: Requirement) -> None:
    """Refuse a model that cannot be loaded here, or lacks a capability.

    Health is checked first, since capabilities cannot be detected from damaged files; the backend is checked last,
    since installing one does not help a model without the capability.

    Args:
        description: The model.
        require_kind: Checks the capabilities.

    Raises:
        UnhealthyModelError: Its files are damaged or incomplete.
        CapabilityError: It lacks a capability.
        IncompatibleModelError: No installed backend runs it.
    """
    handle, runtime = description.handle, description.runtime
    if not description.health.healthy:
        remedy = Advice(Remedy.CHECK_HEALTH, {"name": handle.name})
        if description.health.unfinished and handle.origin is Origin.CACHE:
            remedy = Advice(Remedy.COMPLETE_OR_REMOVE, {"reference": handle.name, "name": handle.name})
        raise UnhealthyModelError(
            f"'{handle.label}' is damaged or incomplete: {description.health.reason}",
            hint=remedy,
            fix=description.health.fix,
        )
    require_kind(description)
    if not runtime.compatible:
        fault = f"'{handle.label}' cannot run here: {runtime.reason}"
        raise IncompatibleModelError(fault, hint=runtime.remedy and Advice(runtime.remedy))


def estimate_memory(
    description: ModelDescription,
    memory: MemoryProbe,
    context_tokens: int | None = None,
    cache: EngineOptions | None = None,
) -> MemoryVerdict:
    """Judge whether a model fits into this machine's memory: its weights, the KV cache of a context, and a reserve.

    The verdict includes the form in which the weights are held.

    Args:
        description: The model.
        memory: Reads the machine's memory.
        context_tokens: Tokens of context; None means a long chat, or the model's context window when that is shorter.
        cache: The format of the KV cache; None means unquantized and unbounded.
    """
    tokens = expected_context(description.context_length) if context_tokens is None else context_tokens
    reading = memory.read()
    per_token = (cache or EngineOptions()).cache_bytes(description)
    matrices = memory.matrices()
    widening_pays = reading is not None and _widening_pays(description, reading, matrices)
    half_bytes = description.half_bytes if widening_pays else None
    plain_bytes = description.plain_bytes if matrices.are_fast else None
    verdict = judge_memory(reading, description.weight_bytes, per_token, tokens, half_bytes, plain_bytes)
    return attrs.evolve(verdict, matrices=matrices)


def _widening_pays(description: ModelDescription, reading: MemoryReading, matrices: Matrices) -> bool:
    """Whether to hold a model's 16-bit weights in 32 bits if they fit.

    Quantized layers and speech models are slow in 16 bits. For other layers 32 bits are faster only with a library that
    multiplies such matrices.
    """
    slow = description.quantized or description.operation in (Capability.AUDIO, Capability.TEXT_TO_SPEECH)
    return reading.widening is Widening.WITHIN_BUDGET or slow or matrices.are_fast


def require_closed(source: ModelHandle, files: ModelFiles) -> None:
    """Refuse a workspace with links out of it, whose targets a copy would include as its own files.

    Raises:
        ValidationError: It has such a link; ``detail`` lists all of them.
    """
    links = files.outward_links(source.directory) if source.origin is Origin.WORKSPACE else ()
    links = tuple(link for link in links if is_part_of_model(link))
    if links:
        raise ValidationError(
            f"{links[0]} of '{source.label}' is a link out of the folder, or to nowhere",
            hint="Put the file itself there, or remove the link.",
            detail={"links": list(links)},
        )


def require_whole_model(description: ModelDescription) -> None:
    """Refuse an adapter, which is not a model by itself.

    Raises:
        CapabilityError: It is an adapter.
    """
    if description.model_type is ModelType.ADAPTER:
        name = description.handle.label
        hint = Advice(Remedy.FUSE_FIRST, {"name": name})
        raise CapabilityError(f"'{name}' is an adapter, not a whole model", hint=hint)


def require_memory(
    description: ModelDescription,
    memory: MemoryProbe,
    warn: EventLog | None = None,
    loaded: Callable[[], Collection[ModelHandle]] = tuple,
    cache: EngineOptions | None = None,
) -> None:
    """Refuse a model beyond this machine's memory budget, or only log a warning.

    Args:
        description: The model.
        memory: Reads the machine's memory.
        warn: Log that gets a warning instead of the error; None raises.
        loaded: Returns the models that are loaded already; those are not refused.
        cache: The format of the KV cache; None means unquantized and unbounded.

    Raises:
        InsufficientMemoryError: It is beyond the budget, and ``warn`` is None.
    """
    # Weights are widened only where they fit, so this verdict does not depend on ``memory.matrices()``.
    tokens = expected_context(description.context_length)
    per_token = (cache or EngineOptions()).cache_bytes(description)
    verdict = judge_memory(memory.read(), description.weight_bytes, per_token, tokens)
    if verdict.fit is not MemoryFit.EXCEEDS or description.handle in loaded():
        return
    numbers = {"needed_bytes": verdict.needed, "budget_bytes": verdict.budget}
    name = description.handle.name
    if warn is None:
        raise InsufficientMemoryError(f"'{name}' does not fit into this machine's memory budget", detail=numbers)
    warn.warning("the model exceeds this machine's memory budget; expect swapping", model=name, **numbers)


@attrs.frozen
class _Refusal:
    """The refusal of a model that cannot be used as requested."""

    message: str
    """May contain ``{name}``, ``{capability}`` (the missing one) and ``{abilities}`` (what the model can do)."""
    hint: str | Advice | None = None


def _listed(capability: Capability) -> Advice:
    return Advice(Remedy.LIST_CAPABLE_MODELS, {"capability": capability.value})


_LACKING = {
    Capability.TEXT_GENERATION: _Refusal("'{name}' does not generate text; it can do: {abilities}"),
    Capability.VISION: _Refusal("'{name}' is a text model and takes no images", _listed(Capability.VISION)),
    Capability.AUDIO: _Refusal(
        "Model '{name}' does not support audio inputs (no audio capability detected).",
        "Use a speech model, such as one of the Whisper family.",
    ),
    Capability.AUDIO_TRANSLATE_EN: _Refusal(
        "Model '{name}' does not support speech translation ({capability}).",
        Advice(Remedy.USE_TRANSLATING_MODEL),
    ),
    Capability.EMBEDDINGS: _Refusal("'{name}' is not an embedding model; it can do: {abilities}"),
    Capability.RERANK: _Refusal("'{name}' is not a reranker; it can do: {abilities}"),
    Capability.TEXT_TO_SPEECH: _Refusal("'{name}' does not speak; it can do: {abilities}"),
    Capability.VOICE_CLONING: _Refusal(
        "'{name}' does not imitate the voice of a recording; Qwen3-TTS Base and VoxCPM do",
        _listed(Capability.VOICE_CLONING),
    ),
}
"""Refusals by missing capability, where they differ from the general one."""

_NO_TRANSCRIPTION = attrs.evolve(
    _LACKING[Capability.AUDIO],
    message="Model '{name}' does not support audio inputs (no audio capability detected);"
    " it is not a transcription model.",
)
"""The refusal to transcribe. Web clients send the audio to a chat when its message has "not a" and "transcription"."""

_NO_CLIPS = attrs.evolve(_LACKING[Capability.VISION], message="'{name}' is a text model and takes no video")

_LACKING_ANY_OTHER = _Refusal("'{name}' does not do {capability}; it can do: {abilities}")

_OTHER_OPERATION = {
    Capability.AUDIO: _Refusal(
        "'{name}' answers questions about sound; it is not a transcription model", Advice(Remedy.USE_CHAT)
    ),
}
"""Refusals by operation, of models that have its capability but are loaded for another operation."""

_INSTEAD_OF_TEXT = {
    Capability.AUDIO: Advice(Remedy.USE_TRANSCRIPTION),
    Capability.EMBEDDINGS: Advice(Remedy.USE_EMBEDDINGS),
    Capability.RERANK: Advice(Remedy.USE_RERANKING),
    Capability.TEXT_TO_SPEECH: Advice(Remedy.USE_SPEECH),
}
"""Advice for a model that does not generate text, by the operation that it is loaded for."""


def require(description: ModelDescription, *capabilities: Capability) -> None:
    """Refuse a model that lacks one of the capabilities; the first one that it lacks decides the message.

    Raises:
        CapabilityError: It lacks one.
    """
    for capability in capabilities:
        if not description.can(capability):
            hint = None
            if capability is Capability.TEXT_GENERATION and description.operation is not None:
                hint = _INSTEAD_OF_TEXT.get(description.operation)
            raise _refused(description, capability, _LACKING.get(capability, _LACKING_ANY_OTHER), hint)


def require_model(description: ModelDescription, operation: Capability, *further: Capability) -> None:
    """Refuse a model that cannot be loaded here for an operation.

    Args:
        description: The model.
        operation: One of ``OPERATIONS``.
        further: Other capabilities that the request needs.

    Raises:
        UnhealthyModelError: Its files are damaged or incomplete.
        CapabilityError: It is loaded for another operation, or lacks a capability that the request needs.
        IncompatibleModelError: No installed backend runs it.
    """

    def require_operation(described: ModelDescription) -> None:
        if operation is Capability.AUDIO and not described.can(operation):
            raise _refused(described, operation, _NO_TRANSCRIPTION)
        require(described, operation, *further)
        if described.operation is not operation:
            raise _refused(described, operation, _OTHER_OPERATION.get(operation, _LACKING_ANY_OTHER))

    require_loadable(description, require_operation)


def require_served_model(description: ModelDescription) -> None:
    """Refuse a model that cannot be loaded for any operation that a server offers; raises as ``require_model``."""
    require_model(description, description.operation or Capability.EMBEDDINGS)


def require_text_model(description: ModelDescription) -> None:
    """Refuse a model that cannot generate text here; raises as ``require_model``."""
    require_model(description, Capability.TEXT_GENERATION)


def require_draft_model(details: ModelDetails, kind: str | None = None) -> None:
    """Refuse a model that cannot propose tokens to another one.

    Args:
        details: The model.
        kind: The kind that the user stated, one of ``DRAFT_KINDS``; None for any.

    Raises:
        ValidationError: It is of another kind than stated.
        IncompatibleModelError: It is a drafter of an unsupported kind, which reads hidden states of another model.
        MlxkError: As ``require_text_model``, for a whole model. A drafter has no tokenizer, and is checked at loading.
    """
    config = details.config or {}
    drafting = drafting_of(config)
    unsupported = other_drafter(config) if drafting is None else None
    if unsupported is not None:
        raise IncompatibleModelError(
            f"draft_model: '{details.description.handle.label}' is a drafter of the kind {unsupported}, which computes"
            " on the hidden states of one model; such drafters are not supported.",
            hint="Name a whole, smaller model with the same tokenizer, or a drafter of another kind.",
        )
    stated = "model" if drafting is None else drafting.value
    if kind not in (None, stated):
        raise ValidationError(f"draft_kind: by its files '{details.description.handle.label}' is {stated}, not {kind}")
    if drafting is None:
        require_text_model(details.description)


def require_speech_model(description: ModelDescription, needed: Capability = Capability.AUDIO) -> None:
    """Refuse a model that cannot transcribe here, or lacks the capability of a ``SpeechTask``; as ``require_model``."""
    require_model(description, Capability.AUDIO, needed)


def require_embedding_model(description: ModelDescription, *, images: bool = False) -> None:
    """Refuse a model that cannot compute embeddings here, with ``images`` also of images; as ``require_model``."""
    require_model(description, Capability.EMBEDDINGS, *([Capability.VISION] if images else []))


def require_reranker(description: ModelDescription, *, images: bool = False) -> None:
    """Refuse a model that cannot rerank documents here, with ``images`` also images; raises as ``require_model``."""
    require_model(description, Capability.RERANK, *([Capability.VISION] if images else []))


def require_voice(description: ModelDescription, *, cloning: bool = False) -> None:
    """Refuse a model that cannot speak here, with ``cloning`` in the voice of a recording; as ``require_model``."""
    require_model(description, Capability.TEXT_TO_SPEECH, *([Capability.VOICE_CLONING] if cloning else []))


def answers_about_audio(description: ModelDescription) -> bool:
    """Whether a model takes audio in a conversation, instead of only transcribing it."""
    return description.can(Capability.TEXT_GENERATION) and description.can(Capability.AUDIO)


def require_chat(description: ModelDescription) -> None:
    """Refuse a model without a chat template.

    Raises:
        CapabilityError: It has none.
    """
    if not description.can(Capability.CHAT):
        raise CapabilityError(f"'{description.handle.name}' has no chat template", hint=Advice(Remedy.USE_COMPLETIONS))


def require_vision(description: ModelDescription, *, clips: bool = False) -> None:
    """Refuse a model that takes no images; ``clips`` words the error for video. Raises as ``require``."""
    if clips and not description.can(Capability.VISION):
        raise _refused(description, Capability.VISION, _NO_CLIPS)
    require(description, Capability.VISION)


def require_audio_input(description: ModelDescription) -> None:
    """Refuse a model that takes no audio; raises as ``require``."""
    require(description, Capability.AUDIO)


_TOOLS_MISSING = {
    ToolsMissing.TEMPLATE: "the chat template of '{}' does not read tools",
    ToolsMissing.FORMAT: "'{}' writes tool calls in a format that is not known",
}


def require_tools(details: ModelDetails) -> None:
    """Refuse tools for a model that cannot use them.

    Raises:
        CapabilityError: Its chat template does not render tools, or the format of its tool calls is unknown.
    """
    if details.template_read and details.tools_missing is not None:
        message = _TOOLS_MISSING[details.tools_missing].format(details.description.handle.label)
        raise CapabilityError.in_field("tools", message, hint=Advice(Remedy.LEAVE_OUT_TOOLS))


def require_reasoning(details: ModelDetails, field: str) -> None:
    """Refuse reasoning where the model's chat template does not support it.

    Args:
        details: The model.
        field: The field of the request, for the error.

    Raises:
        CapabilityError: The template does not support it.
    """
    if not details.may_reason:
        fault = f"'{details.description.handle.label}' cannot be told to reason"
        raise CapabilityError.in_field(field, fault, hint=Advice(Remedy.LEAVE_OUT_REASONING))


def _refused(
    description: ModelDescription, capability: Capability, refusal: _Refusal, hint: Advice | None = None
) -> CapabilityError:
    abilities = ", ".join(each.value for each in description.capabilities) or "nothing known"
    message = refusal.message.format(name=description.handle.name, capability=capability.value, abilities=abilities)
    return CapabilityError(message, hint=hint or refusal.hint)
