"""Closed lists of what models call things: every member counts."""

from collections.abc import Callable

import pytest

from mlxk.domain.formats.reasoning import detect_reasoning
from mlxk.domain.models.detection import context_length, detect
from mlxk.domain.models.model import Capability, ModelType
from mlxk.domain.models.snapshot import ModelSnapshot

Snapshots = Callable[..., ModelSnapshot]


@pytest.mark.parametrize(
    "tokens",
    [
        ("<|channel|>", "<|message|>", "<|start|>"),
        ("<|channel>", "<channel|>"),
        ("<|open|>", "<|close|>", "<|sep|>"),
        ("<think>", "</think>"),
        ("<|think:start|>", "<|think:end|>"),
        ("<longcat_think>", "</longcat_think>"),
        ("<seed:think>", "</seed:think>"),
        ("[THINK]", "[/THINK]"),
        ("<|START_THINKING|>", "<|END_THINKING|>"),
        ("<thinking>", "</thinking>"),
    ],
)
def test_a_vocabulary_marks_reasoning_when_it_has_every_token_of_a_format(tokens: tuple[str, ...]) -> None:
    found = detect_reasoning(None, set(tokens))
    assert found is not None
    assert found.start.startswith(tokens[0])
    for missing in tokens:
        assert detect_reasoning(None, set(tokens) - {missing}) is None


@pytest.mark.parametrize("architecture", ["whisper", "vibevoice_asr", "voxtral", "Whisper"])
def test_every_architecture_of_speech_is_speech(architecture: str, make_snapshot: Snapshots) -> None:
    facts = detect(make_snapshot({"config.json": {"model_type": architecture}}, name="org/x"))
    assert facts.model_type is ModelType.AUDIO
    assert Capability.AUDIO in facts.capabilities


@pytest.mark.parametrize("architecture", ["gemma3n", "qwen2_audio", "some_audio_model"])
def test_every_architecture_that_takes_sound_beside_text_takes_sound(
    architecture: str, make_snapshot: Snapshots
) -> None:
    facts = detect(make_snapshot({"config.json": {"model_type": architecture}}, name="org/x"))
    assert set(facts.capabilities) >= {Capability.TEXT_GENERATION, Capability.AUDIO}


@pytest.mark.parametrize(
    "architecture",
    ["llava", "llava_next", "pixtral", "qwen2_vl", "phi3_v", "mllama", "paligemma", "idefics", "smolvlm"],
)
def test_every_architecture_that_reads_images_reads_images(architecture: str, make_snapshot: Snapshots) -> None:
    facts = detect(make_snapshot({"config.json": {"model_type": architecture}}, name="org/x"))
    assert facts.model_type is ModelType.CHAT
    assert Capability.VISION in facts.capabilities


@pytest.mark.parametrize("name", ["preprocessor_config.json", "processor_config.json", "image_processor_config.json"])
def test_every_file_of_an_image_processor_says_that_images_are_read(name: str, make_snapshot: Snapshots) -> None:
    facts = detect(make_snapshot({"config.json": {"model_type": "novel"}, name: 300}, name="org/x"))
    assert Capability.VISION in facts.capabilities


@pytest.mark.parametrize("architecture", ["bert", "xlm-roberta", "xlm_roberta", "modernbert", "nomic_bert"])
def test_every_encoder_makes_vectors(architecture: str, make_snapshot: Snapshots) -> None:
    facts = detect(make_snapshot({"config.json": {"model_type": architecture}}, name="org/x"))
    assert facts.capabilities == (Capability.EMBEDDINGS,)


@pytest.mark.parametrize("architecture", ["qwen3", "mistral"])
def test_a_decoder_makes_vectors_when_it_is_named_for_it(architecture: str, make_snapshot: Snapshots) -> None:
    config = {"config.json": {"model_type": architecture}}
    assert detect(make_snapshot(config, name="org/some-embedder")).model_type is ModelType.EMBEDDING
    assert detect(make_snapshot(config, name="org/some-writer")).model_type is not ModelType.EMBEDDING


@pytest.mark.parametrize(
    "key", ["max_position_embeddings", "n_positions", "context_length", "max_sequence_length", "seq_len"]
)
def test_every_key_for_the_context_window_is_read(key: str) -> None:
    assert context_length({key: 4096}) == 4096
    assert context_length({"text_config": {key: 4096}}) == 4096
