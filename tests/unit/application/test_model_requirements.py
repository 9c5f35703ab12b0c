"""Which models are taken for what, and what the refusals of the others say."""

import datetime
import re
from collections.abc import Callable

import attrs
import pytest

from mlxk.application import policy as requirements
from mlxk.domain.errors import Advice, CapabilityError, Remedy, UnhealthyModelError
from mlxk.domain.models.model import (
    Capability,
    Framework,
    ModelDescription,
    ModelDetails,
    ModelHandle,
    ModelType,
    Origin,
    Runtime,
    ToolsMissing,
    healthy,
    unhealthy,
)

TEXT, VISION, AUDIO = Capability.TEXT_GENERATION, Capability.VISION, Capability.AUDIO
TRANSLATES, VECTORS = Capability.AUDIO_TRANSLATE_EN, Capability.EMBEDDINGS

KINDS = {
    "text": (TEXT, Capability.CHAT),
    "vision": (TEXT, Capability.CHAT, VISION),
    "whisper": (AUDIO, TRANSLATES),
    "turbo": (AUDIO,),
    "omni": (TEXT, Capability.CHAT, VISION, AUDIO),
    "vectors": (VECTORS,),
    "unknown": (),
}


def described(kind: str) -> ModelDescription:
    """Return a model of a kind, whole and runnable."""
    return ModelDescription(
        handle=ModelHandle(kind, f"/cache/{kind}", Origin.CACHE, "a" * 40),
        size_bytes=1,
        modified=datetime.datetime.fromtimestamp(0, datetime.UTC),
        framework=Framework.MLX,
        model_type=ModelType.CHAT,
        capabilities=KINDS[kind],
        context_length=None,
        health=healthy(),
        runtime=Runtime(True),
    )


def details(*, read: bool = True, able: bool = False) -> ModelDetails:
    """Return a model whose template was read or not, and has room for tools and reasoning or not."""
    return ModelDetails(
        description=described("text"),
        files=(),
        config=None,
        quantization=None,
        parameters=None,
        license=None,
        chat_template=True,
        template_read=read,
        tools_missing=None if able else ToolsMissing.TEMPLATE,
        supports_reasoning=able,
    )


def translating(description: ModelDescription) -> None:
    """Want a model that translates speech."""
    requirements.require_speech_model(description, TRANSLATES)


Requirement = Callable[[ModelDescription], None]

TAKEN: tuple[tuple[Requirement, set[str]], ...] = (
    (requirements.require_text_model, {"text", "vision", "omni"}),
    (requirements.require_vision, {"vision", "omni"}),
    (requirements.require_audio_input, {"whisper", "turbo", "omni"}),
    (requirements.require_speech_model, {"whisper", "turbo"}),
    (translating, {"whisper"}),
    (requirements.require_embedding_model, {"vectors"}),
    (requirements.require_served_model, KINDS.keys() - {"unknown"}),
)


@pytest.mark.parametrize(("require", "taken"), TAKEN, ids=lambda value: getattr(value, "__name__", ""))
def test_every_kind_is_taken_for_what_it_can_do_and_for_nothing_else(require: Requirement, taken: set[str]) -> None:
    passed = set()
    for kind in KINDS:
        try:
            require(described(kind))
        except CapabilityError as refused:
            assert f"'{kind}'" in refused.message
        else:
            passed.add(kind)
    assert passed == taken


@pytest.mark.parametrize(
    ("require", "kind", "said"),
    [
        (requirements.require_text_model, "vectors", "can do: embeddings .*USE_EMBEDDINGS"),
        (requirements.require_text_model, "turbo", "can do: audio .*USE_TRANSCRIPTION"),
        (requirements.require_embedding_model, "text", "can do: text-generation, chat"),
        (requirements.require_embedding_model, "unknown", "can do: nothing known"),
        (requirements.require_speech_model, "omni", "USE_CHAT"),
        (requirements.require_audio_input, "text", "does not support audio inputs"),
        (translating, "turbo", r"\(audio-translate-en\)"),
        (requirements.require_vision, "text", "takes no images"),
    ],
)
def test_a_refusal_says_what_to_do_instead(require: Requirement, kind: str, said: str) -> None:
    with pytest.raises(CapabilityError) as refused:
        require(described(kind))
    assert re.search(said, f"{refused.value.message} {refused.value.hint}")


@pytest.mark.parametrize(
    "require",
    [
        requirements.require_text_model,
        requirements.require_speech_model,
        requirements.require_embedding_model,
        requirements.require_served_model,
    ],
)
def test_damage_is_told_before_what_a_model_can_do(require: Requirement) -> None:
    damaged = attrs.evolve(described("unknown"), health=unhealthy("Weights are missing"))
    with pytest.raises(UnhealthyModelError):
        require(damaged)


def test_tools_and_reasoning_are_refused_only_where_a_template_was_read_that_leaves_them_out() -> None:
    for taken in (details(able=True), details(read=False)):
        requirements.require_tools(taken)
        requirements.require_reasoning(taken, "thinking")
    with pytest.raises(CapabilityError, match="tools: the chat template of 'text' does not read tools") as refused:
        requirements.require_tools(details())
    assert refused.value.hint == Advice(Remedy.LEAVE_OUT_TOOLS)
    with pytest.raises(CapabilityError, match="thinking: 'text' cannot be told to reason") as refused:
        requirements.require_reasoning(details(), "thinking")
    assert refused.value.hint == Advice(Remedy.LEAVE_OUT_REASONING)


def test_a_capability_without_a_row_of_its_own_gets_the_general_refusal() -> None:
    with pytest.raises(CapabilityError) as refused:
        requirements.require(described("vectors"), Capability.CHAT)
    assert refused.value.message == "'vectors' does not do chat; it can do: embeddings"


@pytest.mark.parametrize(
    ("kind", "operation"),
    [("text", TEXT), ("omni", TEXT), ("whisper", AUDIO), ("vectors", VECTORS), ("unknown", None)],
)
def test_a_model_is_loaded_for_the_first_operation_that_it_can_do(kind: str, operation: Capability | None) -> None:
    assert described(kind).operation is operation
