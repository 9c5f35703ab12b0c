"""What a model is and can do, from its files alone."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxk.domain.models.detection import context_length, detect, framework, has_chat_template, quantization, voices
from mlxk.domain.models.file_formats import SafetensorsHeader
from mlxk.domain.models.model import Capability, Framework, ModelType
from mlxk.domain.models.snapshot import ModelCard, ModelSnapshot

Snapshots = Callable[..., ModelSnapshot]
TEXT = (Capability.TEXT_GENERATION,)
CHAT = (*TEXT, Capability.CHAT)


@given(data=st.data())
def test_any_snapshot_can_be_described(data: st.DataObject, any_snapshot: st.SearchStrategy[ModelSnapshot]) -> None:
    drawn = data.draw(any_snapshot)
    facts = detect(drawn, data.draw(st.sampled_from([None, *Capability])))
    assert facts.capabilities
    assert len(set(facts.capabilities)) == len(facts.capabilities)
    quantization(drawn.config)


@pytest.mark.parametrize(
    "fields",
    [
        {"published_for_mlx": True},
        {"card": ModelCard({"library_name": "mlx"})},
        {"card": ModelCard({"tags": ("chat", "MLX")})},
        {"files": {"config.json": {"quantization": {"bits": 4}}}},
        {"headers": {"model.safetensors": SafetensorsHeader(metadata={"format": "mlx"})}},
    ],
)
def test_every_sign_of_mlx_counts(fields: dict[str, Any], make_snapshot: Snapshots) -> None:
    assert framework(make_snapshot(**{"published_for_mlx": False} | fields)) is Framework.MLX


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, Framework.PYTORCH),
        ({"model.safetensors": None, "x.gguf": 300}, Framework.GGUF),
        ({"x.gguf": 300}, Framework.PYTORCH),
        ({"model.safetensors": None, "sub/pytorch_model.bin": 300}, Framework.PYTORCH),
        ({"model.safetensors": None}, Framework.UNKNOWN),
    ],
)
def test_without_a_sign_of_mlx_the_files_decide(
    files: dict[str, Any], expected: Framework, make_snapshot: Snapshots
) -> None:
    unmarked = {"model.safetensors": SafetensorsHeader(metadata={"format": "pt"})}
    assert framework(make_snapshot(files, mlx=False, headers=unmarked)) is expected


@pytest.mark.parametrize(
    ("files", "name", "expected"),
    [
        ({}, "org/base", ModelType.BASE),
        ({}, "org/Base-Instruct", ModelType.CHAT),
        ({}, "chatty/base", ModelType.BASE),
        ({"tokenizer_config.json": {"chat_template": "{{x}}"}}, "org/x", ModelType.CHAT),
        ({"tokenizer_config.json": {"chat_template": "  "}}, "org/x", ModelType.BASE),
        ({"tokenizer_config.json": {"chat_template": [{"name": "a", "template": "x"}]}}, "org/x", ModelType.CHAT),
        ({"chat_template.json": {"chat_template": "x"}}, "org/x", ModelType.CHAT),
        ({"tokenizer_config.json": {"chat_template_type": "deepseek_v32"}}, "org/x", ModelType.CHAT),
        ({"config.json": {"model_type": "kimi_k3"}}, "org/x", ModelType.CHAT),
        ({"config.json": {"model_type": "llava"}}, "org/x", ModelType.CHAT),
        ({"config.json": {"model_type": "whisper"}}, "org/x", ModelType.AUDIO),
        ({"config.json": {"model_type": "bert"}}, "org/x", ModelType.EMBEDDING),
        ({"config.json": {"model_type": "qwen3"}}, "org/Qwen3-Embedding", ModelType.EMBEDDING),
        ({"config.json": {"model_type": "gemma3_text"}, "modules.json": 300}, "org/x", ModelType.EMBEDDING),
        (
            {"config.json": {"model_type": "bert", "architectures": ["BertForSequenceClassification"]}},
            "org/x",
            ModelType.BASE,
        ),
    ],
)
def test_the_model_type_says_what_a_model_is_for(
    files: dict[str, Any], name: str, expected: ModelType, make_snapshot: Snapshots
) -> None:
    assert detect(make_snapshot(files, name=name)).model_type is expected


def test_an_architecture_that_backends_know_for_speech_alone_is_speech(make_snapshot: Snapshots) -> None:
    found = make_snapshot({"config.json": {"model_type": "parakeet"}})
    assert detect(found, Capability.AUDIO).model_type is ModelType.AUDIO
    assert detect(found).model_type is ModelType.BASE


def test_an_architecture_that_backends_know_for_speaking_alone_is_a_voice(make_snapshot: Snapshots) -> None:
    for architecture in ("qwen3_tts", "voxtral_tts"):  # a name of speech to text, too
        found = make_snapshot({"config.json": {"model_type": architecture}})
        facts = detect(found, Capability.TEXT_TO_SPEECH)
        assert (facts.model_type, facts.capabilities[0]) == (ModelType.VOICE, Capability.TEXT_TO_SPEECH)


@pytest.mark.parametrize(
    ("config", "clones"),
    [
        ({"model_type": "qwen3_tts"}, True),
        ({"model_type": "qwen3_tts", "tts_model_type": "base"}, True),
        ({"model_type": "qwen3_tts", "tts_model_type": "custom_voice"}, False),
        ({"model_type": "qwen3_tts", "tts_model_type": ["base"]}, False),
        ({"model_type": "voxcpm"}, True),
        ({"model_type": "voxcpm2"}, True),
        ({"model_type": "soprano"}, False),
        ({"model_type": "csm"}, False),
    ],
)
def test_a_voice_that_imitates_recordings_has_a_capability_for_it(
    config: dict[str, object], clones: bool, make_snapshot: Snapshots
) -> None:
    found = detect(make_snapshot({"config.json": config}), Capability.TEXT_TO_SPEECH).capabilities
    assert found == (Capability.TEXT_TO_SPEECH, *([Capability.VOICE_CLONING] if clones else []))


def test_kokoro_has_an_architecture_although_its_config_names_none(make_snapshot: Snapshots) -> None:
    config = {"istftnet": {"a": 1}, "plbert": {"a": 1}}
    assert detect(make_snapshot({"config.json": config})).architecture == "kokoro"


@pytest.mark.parametrize(
    ("files", "names"),
    [
        ({}, ()),
        ({"voices/bm_george.safetensors": 300, "voices/af_heart.safetensors": 300}, ("af_heart", "bm_george")),
        ({"voice_embedding/b.safetensors": 300, "voice_embedding/casual_male.safetensors": 300}, ("casual_male", "b")),
        ({"voices/a/b.safetensors": 300, "other/a.safetensors": 300, "voices/a.pt": 300}, ()),
        ({"config.json": {"talker_config": {"spk_id": {"vivian": 1, "ryan": [2]}}}}, ("ryan", "vivian")),
        ({"config.json": {"voice_aliases": {"Bella": "expr-voice-2-f"}}}, ("Bella",)),
        ({"config.json": {"talker_config": [1], "voice_aliases": "x"}}, ()),
    ],
)
def test_voices_are_those_of_the_files_and_of_the_config(
    files: dict[str, Any], names: tuple[str, ...], make_snapshot: Snapshots
) -> None:
    assert voices(make_snapshot(files)) == names


def test_a_nemo_checkpoint_has_an_architecture_although_its_config_names_none(make_snapshot: Snapshots) -> None:
    target = "nemo.collections.asr.models.rnnt_bpe_models.EncDecRNNTBPEModel"
    assert detect(make_snapshot({"config.json": {"target": target}})).architecture == "parakeet"


@pytest.mark.parametrize(
    ("files", "name", "expected"),
    [
        ({}, "org/x", TEXT),
        ({}, "org/x-chat", CHAT),
        (
            {"config.json": {"model_type": "llava", "vision_config": {"a": 1}}},
            "org/x",
            (*CHAT, Capability.VISION),
        ),
        (
            {"config.json": {"model_type": "gemma3n", "vision_config": {"a": 1}, "audio_config": {"a": 1}}},
            "org/x",
            (*TEXT, Capability.VISION, Capability.AUDIO),
        ),
        ({"config.json": {"model_type": "gemma4", "audio_config": None}}, "org/x", TEXT),
        (
            {
                "config.json": {
                    "model_type": "qwen3_omni_moe",
                    "thinker_config": {"audio_config": {"a": 1}, "vision_config": {"a": 1}},
                },
                "preprocessor_config.json": {"temporal_patch_size": 2},
            },
            "org/x",
            (*TEXT, Capability.VISION, Capability.AUDIO),
        ),
        (
            {
                "config.json": {"model_type": "phi4mm", "audio_processor": {"a": 1}},
                "preprocessor_config.json": {"image_processor_type": "Phi4MMImageProcessor"},
            },
            "org/x",
            (*TEXT, Capability.VISION, Capability.AUDIO),
        ),
        (
            {"config.json": {"model_type": "x_omni", "sound_config": {"a": 1}, "thinker_config": []}},
            "org/x",
            (*TEXT, Capability.AUDIO),
        ),
        ({"config.json": {"model_type": "bert"}}, "org/x", (Capability.EMBEDDINGS,)),
        (
            {"config.json": {"model_type": "whisper"}},
            "org/whisper-large-v3",
            (Capability.AUDIO, Capability.AUDIO_TRANSLATE_EN),
        ),
        ({"config.json": {"model_type": "whisper"}}, "org/whisper-large-v3-turbo-4bit", (Capability.AUDIO,)),
        ({"config.json": {"model_type": "whisper"}}, "org/whisper-tiny.en-mlx", (Capability.AUDIO,)),
        ({"preprocessor_config.json": {}}, "org/x", (*TEXT, Capability.VISION)),
        ({"config.json": {"model_type": "x", "vision_n_layers": 2}}, "org/x", (*TEXT, Capability.VISION)),
        ({"config.json": {"model_type": "x", "vision_n_layers": 0}}, "org/x", TEXT),
        ({"config.json": {"model_type": "x", "spatial_patch_size": 16}}, "org/x", (*TEXT, Capability.VISION)),
        ({"preprocessor_config.json": {"temporal_patch_size": 2}}, "org/x", TEXT),
        (
            {"config.json": {"model_type": "x", "preprocessor_config": {"size": 16}}},
            "org/x",
            (*TEXT, Capability.VISION),
        ),
        ({"config.json": {"model_type": "x", "preprocessor_config": {"temporal_patch_size": 2}}}, "org/x", TEXT),
        ({"config.json": {"model_type": "x", "preprocessor_config": 3}}, "org/x", TEXT),
        ({"preprocessor_config.json": {}, "video_preprocessor_config.json": 300}, "org/x", TEXT),
    ],
)
def test_capabilities_are_listed_in_their_fixed_order(
    files: dict[str, Any], name: str, expected: tuple[Capability, ...], make_snapshot: Snapshots
) -> None:
    assert detect(make_snapshot(files, name=name)).capabilities == expected


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"max_position_embeddings": 4096}, 4096),
        ({"n_positions": "1024"}, 1024),
        ({"text_config": {"max_position_embeddings": 8192}}, 8192),
        ({"max_position_embeddings": 0, "seq_len": 512}, 512),
        ({"max_position_embeddings": True}, None),
        ({"max_position_embeddings": -1}, None),
        ({"max_position_embeddings": "9" * 5000}, None),
        ({"max_position_embeddings": 10**100}, None),
        ({"text_config": []}, None),
        ({}, None),
    ],
)
def test_the_context_length_is_the_first_sensible_number(config: dict[str, object], expected: int | None) -> None:
    assert context_length(config) == expected


def test_quantization_is_read_when_it_is_stated_properly() -> None:
    stated = quantization({"quantization": {"bits": 4, "group_size": 32, "mode": "mxfp4"}})
    assert stated is not None
    assert (stated.bits, stated.group_size, stated.mode) == (4, 32, "mxfp4")
    assert quantization({"quantization": {"bits": "4"}}) is None
    assert quantization({}) is None


def test_a_model_without_any_template_has_none(make_snapshot: Snapshots) -> None:
    assert not has_chat_template(make_snapshot())
