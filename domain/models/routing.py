"""Routing: which library runs a model for a kind of request, and whether any installed one can.

    text              mlx-lm; mlx-vlm for models that look at images, so that text and images share one copy in memory
                      and one batch, and for models that take sound when only it knows them
    images            mlx-vlm, and so is sound for models that also write text
    speech to text    mlx-audio
    embeddings        mlx-vlm

Pure decisions on facts and on what the backend registry said. A model whose loading would execute code that came with
it is refused by the library that would do so: ``model_file`` by all, ``auto_map`` by mlx-vlm and mlx-audio, whose
processors follow it. mlx-lm ignores ``auto_map`` in ``config.json``, so it is harmless there.
"""

import enum

import attrs

from mlxk.domain.errors import CapabilityError
from mlxk.domain.models.detection import Facts
from mlxk.domain.models.model import Backend, Capability, Framework, HealthReport, ModelType, Runtime
from mlxk.domain.models.snapshot import CONFIG, PREPROCESSOR_CONFIG, PROCESSOR_CONFIG, TOKENIZER_CONFIG, ModelSnapshot

EMBEDDING_ARCHITECTURES = frozenset(
    {
        "bert",
        "embedding_gemma2",
        "gemma3_embedding",
        "gemma3_text",
        "lfm2",
        "lfm2_embedding",
        "llama_bidirec",
        "ministral3",
        "ministral3_embedding",
        "modernbert",
        "qwen3",
        "qwen3_embedding",
        "qwen3_vl_embedding",
        "xlm-roberta",
        "xlm_roberta",
    }
)
"""Architectures that mlx-vlm's embedding loader turns into vectors; it would load others as text generators."""

_LEGACY = ("weights.", "pytorch_model-")
_HARMLESS: tuple[object, ...] = (None, {}, [])
_COMPATIBLE = Runtime(compatible=True)


class Modality(enum.Enum):
    """What a request asks a model to take in or give out."""

    TEXT = "text"
    IMAGE = "image"
    SPEECH = "speech"
    EMBEDDING = "embedding"


@attrs.frozen
class BackendSupport:
    """What the registry says about one architecture."""

    installed: frozenset[Backend]
    """The backends that are installed."""
    loading: frozenset[Backend]
    """Those of them that know the architecture."""


def route(facts: Facts, modality: Modality, loading: frozenset[Backend] = frozenset()) -> Backend:
    """Return the backend that serves a kind of request.

    Args:
        facts: What the model is.
        modality: What is asked of it.
        loading: The installed backends that know its architecture.

    Raises:
        CapabilityError: The model cannot do that.
    """
    needed = _NEEDED[modality]
    if not any(facts.can(capability) for capability in needed):
        raise CapabilityError(
            f"the model does not do {needed[0].value}",
            hint=f"It does: {', '.join(capability.value for capability in facts.capabilities)}",
        )
    if facts.model_type is ModelType.AUDIO:
        return Backend.MLX_AUDIO
    return text_backends(facts, loading)[0] if modality is Modality.TEXT else Backend.MLX_VLM


def text_backends(facts: Facts, loading: frozenset[Backend]) -> tuple[Backend, ...]:
    """Return the backends that can write text with a model, the one to prefer first.

    Args:
        facts: What the model is.
        loading: The installed backends that know its architecture.
    """
    if not _takes_media(facts) or Backend.MLX_VLM not in loading:
        return (Backend.MLX_LM,)
    if Backend.MLX_LM not in loading:
        return (Backend.MLX_VLM,)
    looks = facts.can(Capability.VISION)
    return (Backend.MLX_VLM, Backend.MLX_LM) if looks else (Backend.MLX_LM, Backend.MLX_VLM)


def runtime(snapshot: ModelSnapshot, facts: Facts, health: HealthReport, support: BackendSupport) -> Runtime:
    """Decide whether an installed backend can run a model, with the first reason when none can."""
    reason = (
        (None if health.healthy else health.reason)
        or (None if facts.framework is Framework.MLX else f"Incompatible framework: {facts.framework.value}")
        or _own_code(snapshot, ("model_file",), (CONFIG,))
        or _backend_refusal(snapshot, facts, support)
    )
    return Runtime(compatible=False, reason=reason) if reason else _COMPATIBLE


def _backend_refusal(snapshot: ModelSnapshot, facts: Facts, support: BackendSupport) -> str | None:
    if facts.model_type is ModelType.AUDIO:
        return _speech_refusal(snapshot, facts, support)
    if facts.model_type is ModelType.EMBEDDING:
        return _embedding_refusal(snapshot, facts, support)
    if _takes_media(facts) and (Backend.MLX_VLM in support.loading or Backend.MLX_LM not in support.loading):
        return _media_refusal(snapshot, facts, support)
    return _text_refusal(snapshot, facts, support)


def _speech_refusal(snapshot: ModelSnapshot, facts: Facts, support: BackendSupport) -> str | None:
    tekken_only = "tekken.json" in snapshot.files and "tokenizer.json" not in snapshot.files
    return (
        _unavailable(Backend.MLX_AUDIO, facts, support)
        or ("Voxtral tekken.json tokenizer not supported by mlx-audio" if _is_voxtral(facts) and tekken_only else None)
        or _weights_refusal(snapshot, Backend.MLX_AUDIO)
        or _processor_code(snapshot)
    )


def _embedding_refusal(snapshot: ModelSnapshot, facts: Facts, support: BackendSupport) -> str | None:
    if facts.architecture and facts.architecture.lower() not in EMBEDDING_ARCHITECTURES:
        return f"Embedding architecture not supported: {facts.architecture}"
    return (
        _unavailable(Backend.MLX_VLM, facts, support)
        or _weights_refusal(snapshot, Backend.MLX_VLM)
        or _processor_code(snapshot)
    )


def _media_refusal(snapshot: ModelSnapshot, facts: Facts, support: BackendSupport) -> str | None:
    return (
        _unavailable(Backend.MLX_VLM, facts, support)
        or _weights_refusal(snapshot, Backend.MLX_VLM)
        or _processor_code(snapshot)
    )


def _text_refusal(snapshot: ModelSnapshot, facts: Facts, support: BackendSupport) -> str | None:
    return (
        _weights_refusal(snapshot, Backend.MLX_LM)
        or _unavailable(Backend.MLX_LM, facts, support)
        or (None if "tokenizer.json" in snapshot.files else _own_code(snapshot, ("auto_map",), (TOKENIZER_CONFIG,)))
    )


def _unavailable(backend: Backend, facts: Facts, support: BackendSupport) -> str | None:
    """Say why a backend cannot load the architecture; None when it can."""
    if backend not in support.installed:
        return f"{backend.value} not installed"
    if facts.architecture is None:
        return f"{CONFIG} missing model_type field"
    if backend in support.loading:
        return None
    if backend is Backend.MLX_AUDIO:
        return f"Model type '{facts.architecture}' not supported by {backend.value}"
    return f"Model type {facts.architecture} not supported."


def _weights_refusal(snapshot: ModelSnapshot, backend: Backend) -> str | None:
    """Say why a backend would not find the weights under their names; None when it would."""
    names = snapshot.top_level(".safetensors")
    if backend is not Backend.MLX_LM:
        found = any(not name.endswith("consolidated.safetensors") for name in names)
        return None if found else f"No *.safetensors that {backend.value} would load"
    if any(name.startswith("model") for name in names):
        return None
    if any(name.startswith(_LEGACY) for name in names):
        return "Legacy format not supported by mlx-lm"
    return "No weights named model*.safetensors, the only ones mlx-lm loads"


def _processor_code(snapshot: ModelSnapshot) -> str | None:
    paths = (CONFIG, TOKENIZER_CONFIG, PREPROCESSOR_CONFIG, PROCESSOR_CONFIG)
    return _own_code(snapshot, ("auto_map",), paths)


def _own_code(snapshot: ModelSnapshot, keys: tuple[str, ...], paths: tuple[str, ...]) -> str | None:
    """Say that a document asks for code of the model to be executed, wherever in it the key stands."""
    for path in paths:
        pending: list[object] = [snapshot.document(path).value]
        while pending:
            value = pending.pop()
            if isinstance(value, dict):
                found = next((key for key in keys if value.get(key) not in _HARMLESS), None)
                if found:
                    return f"requires executing model-supplied code ({path}: {found})"
                pending.extend(child for child in value.values() if isinstance(child, (dict, list)))
            elif isinstance(value, list):
                pending.extend(child for child in value if isinstance(child, (dict, list)))
    return None


def _takes_media(facts: Facts) -> bool:
    return facts.can(Capability.VISION) or facts.can(Capability.AUDIO)


def _is_voxtral(facts: Facts) -> bool:
    return (facts.architecture or "").lower() == "voxtral"


_NEEDED = {
    Modality.TEXT: (Capability.TEXT_GENERATION,),
    Modality.IMAGE: (Capability.VISION,),
    Modality.SPEECH: (Capability.AUDIO, Capability.AUDIO_TRANSLATE_EN),
    Modality.EMBEDDING: (Capability.EMBEDDINGS,),
}
