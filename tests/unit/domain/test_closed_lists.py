"""Closed lists of what models call things: every member counts."""

import json
import struct
from collections.abc import Callable

import pytest

from mlxk.domain.formats.reasoning import detect_reasoning
from mlxk.domain.models.detection import context_length, detect
from mlxk.domain.models.file_formats import Damage, read_header
from mlxk.domain.models.integrity import has_tokenizer
from mlxk.domain.models.model import Capability, ModelType
from mlxk.domain.models.snapshot import ModelSnapshot, is_litter

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
    for section in ("text_config", "llm_config", "language_config", "thinker_config", "decoder_config"):
        assert context_length({section: {key: 4096}}) == 4096
        assert context_length({section: {"text_config": {key: 4096}}}) == 4096
    assert context_length({"other_config": {key: 4096}}) is None


@pytest.mark.parametrize(
    ("dtype", "bits"),
    [
        ("F4", 4), ("F6_E2M3", 6), ("F6_E3M2", 6), ("BOOL", 8), ("U8", 8), ("I8", 8), ("F8_E5M2", 8), ("F8_E4M3", 8),
        ("F8_E8M0", 8), ("U16", 16), ("I16", 16), ("F16", 16), ("BF16", 16), ("U32", 32), ("I32", 32), ("F32", 32),
        ("U64", 64), ("I64", 64), ("F64", 64), ("C64", 64),
    ],
)  # fmt: skip
def test_a_tensor_of_every_type_has_the_bytes_of_its_shape(dtype: str, bits: int) -> None:
    def damage(size: int) -> Damage | None:
        header = json.dumps({"w": {"dtype": dtype, "shape": [4, 2], "data_offsets": [0, size]}}).encode()
        return read_header(struct.pack("<Q", len(header)) + header, 8 + len(header) + size).damage

    assert damage(bits) is None
    assert damage(bits + 1) is damage(bits - 1) is Damage.MISSHAPEN


@pytest.mark.parametrize(
    "names",
    [("tokenizer.json",), ("tekken.json",), ("a.model",), ("a.model.v3",), ("a.spm",), ("a.tiktoken",), ("vocab.txt",),
     ("vocab.json", "merges.txt")],
)  # fmt: skip
def test_every_form_of_a_tokenizer_is_one(names: tuple[str, ...], make_snapshot: Snapshots) -> None:
    others = {"tokenizer.json": None}
    assert has_tokenizer(make_snapshot({**others, **dict.fromkeys(names, 100)}))
    assert not has_tokenizer(make_snapshot({**others, **dict.fromkeys(names[1:], 100)}))


@pytest.mark.parametrize(
    "name",
    [
        ".DS_Store", "._config.json", ".localized", ".apdisk", ".VolumeIcon.icns", "Icon\r", "Thumbs.db", "ehthumbs.db",
        "ehthumbs_vista.db", "Desktop.ini", ".directory", "Thumbs.db:encryptable", ".nfs00ab12", ".smbdeleteAAA1",
        ".fuse_hidden0001", ".afpDeleted01", "~$model.json", "config.json:Zone.Identifier",
        "config.json:AFP_AfpInfo", "config.json:AFP_Resource", "config.json:com.apple.quarantine",
    ],
)  # fmt: skip
def test_what_systems_leave_beside_files_is_litter_wherever_it_is(name: str) -> None:
    assert is_litter(name)
    assert is_litter(f"sub/{name}")
    assert not is_litter(f"{name.strip('._~$:')}x/model.safetensors")


@pytest.mark.parametrize(
    "folder",
    [
        "__MACOSX", ".AppleDouble", ".Spotlight-V100", ".Trashes", ".Trash", ".fseventsd", ".TemporaryItems",
        ".DocumentRevisions-V100", "Temporary Items", "Network Trash Folder", "$RECYCLE.BIN",
        "System Volume Information", "lost+found", "@eaDir", "#recycle", "@Recycle", ".@__thumb", "._folder",
    ],
)  # fmt: skip
def test_all_in_a_folder_of_the_system_is_litter(folder: str) -> None:
    assert is_litter(f"{folder}/model.safetensors")
    assert is_litter(f"sub/{folder}/deep/model.safetensors")
    assert not is_litter(f"{folder.strip('._@#$')}-mine/model.safetensors")
