"""Our catalogue of a fake cache against what mlx-knife 2.0.8 answered about the same tree.

The tree is data: a model is a dictionary of files. The recorded answers stand in ``data/``. Where we mean to differ, a
row of ``INTENDED_DIFFERENCES`` says so and why; a row that no longer differs fails the test.
"""

import datetime
import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
from doubles.model_source import InMemoryModelSource

from mlxk.adapters.filesystem.model_files import FilesystemModelFiles
from mlxk.adapters.filesystem.workspaces import FilesystemWorkspaceStore
from mlxk.adapters.huggingface.cache import HuggingFaceModelCache
from mlxk.adapters.mlx.registry import MlxBackendRegistry
from mlxk.application.use_cases.describe_model import DescribeModel
from mlxk.application.use_cases.inspect_models import ListModels
from mlxk.application.use_cases.resolve_model import ResolveModel
from mlxk.domain.models.model import ModelDescription, Origin

RECORDED = Path(__file__).parent / "data" / "mlx_knife_2_0_8_list.json"
Files = dict[str, Any]

LLAMA: Files = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 256,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
}
LLAVA = LLAMA | {"model_type": "llava", "vision_config": {"a": 1}}
HEADER = json.dumps({"w": {"dtype": "F32", "shape": [64], "data_offsets": [0, 256]}}).encode()
WEIGHTS = struct.pack("<Q", len(HEADER)) + HEADER + bytes(256)
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 12\n"
INDEX = "model.safetensors.index.json"
COMMIT = "a" * 40


def model(config: Any = LLAMA, files: Files | None = None, *, weights: str | None = "model.safetensors") -> Files:
    """A model with a tokenizer; files of ours replace its own, None takes one away."""
    own: Files = {"config.json": config, "tokenizer.json": {}, "tokenizer_config.json": {}}
    if weights:
        own[weights] = WEIGHTS
    return {path: content for path, content in (own | (files or {})).items() if content is not None}


def whisper(**more: Any) -> Files:
    return {"config.json": {"model_type": "whisper", **more}, "model.safetensors": WEIGHTS}


def shard(number: int, total: int) -> str:
    return f"model-{number:05d}-of-{total:05d}.safetensors"


def sharded(present: list[int], total: int, index: Any = "complete", **files: Any) -> Files:
    """A model in numbered files; its index lists the named shards, all of them unless told otherwise."""
    if index == "complete":
        index = [shard(number, total) for number in range(1, total + 1)]
    if isinstance(index, list):
        index = {"metadata": {}, "weight_map": {f"t{i}": name for i, name in enumerate(index)}}
    own = {shard(number, total): WEIGHTS for number in present}
    return model(files=own | {INDEX: index} | files, weights=None)


COMMUNITY: dict[str, Files] = {
    "Alpha-1B-Instruct-4bit": model(
        LLAMA | {"quantization": {"bits": 4, "group_size": 64}}, {"tokenizer_config.json": {"chat_template": "{{x}}"}}
    ),
    "Alpha-1B-base": model(),
    "bad-noconfig": model(files={"config.json": None}),
    "bad-emptyconfig": model({}),
    "bad-jsonconfig": model("{nope"),
    "bad-noweights": model(weights=None),
    "bad-lfs": model(files={"model.safetensors": POINTER}),
    "bad-lfs-aux": model(files={"vocab.txt": POINTER}),
    "bad-empty": model(files={"model.safetensors": ""}),
    "bad-partial": model(files={"foo.partial": "x"}),
    "bad-partialname": model(files={"my_partial_notes.txt": "hi"}),
    "bad-tmp": model(files={"x.tmp": "hi"}),
    "bad-tokjson": model(files={"tokenizer_config.json": "{bad"}),
    "bad-tokmissing": model(files={"tokenizer.json": None}),
    "bad-toklist": model(files={"tokenizer_config.json": []}),
    "shard-ok": sharded([1, 2], 2),
    "shard-missing": sharded([1], 2),
    "shard-noshards": sharded([], 2),
    "shard-mismatch": sharded([1, 2], 2, [shard(1, 5)]),
    "shard-noindex": sharded([1, 2], 2, None),
    "shard-noindex-missing": sharded([1], 3, None),
    "shard-empty": sharded([1, 2], 2) | {shard(2, 2): ""},
    "shard-emptymap": sharded([1, 2], 2, '{"weight_map":{}}'),
    "shard-badindex": sharded([1, 2], 2, "{oops"),
    "shard-extra": sharded([1, 2], 2) | {"extra.safetensors": WEIGHTS},
    "shard-partialmark": sharded([1, 2], 2) | {"a.partial": "x"},
    "inconsistent": model(files={shard(1, 2): WEIGHTS, shard(1, 3): WEIGHTS}, weights=None),
    "legacy-weights": model(weights="weights.00.safetensors"),
    "legacy-pt": model(weights="pytorch_model-00001.safetensors"),
    "oddname": model(weights="foo.safetensors"),
    "npz-only": model(files={"weights.npz": "x" * 300}, weights=None),
    "weird-type": model(LLAMA | {"model_type": "nosuchtype"}),
    "no-model-type": model({key: value for key, value in LLAMA.items() if key != "model_type"}),
    "model-file": model(LLAMA | {"model_file": "evil.py"}),
    "vis-llava": model(LLAVA, {"preprocessor_config.json": '{"processor_class":"X"}'}),
    "vis-nopre": model(LLAVA),
    "vis-procconf": model(LLAVA, {"processor_config.json": {}}),
    "vis-badpre": model(LLAVA, {"preprocessor_config.json": "{bad"}),
    "vis-prelist": model(LLAVA, {"preprocessor_config.json": []}),
    "vis-qwen25vl": model(
        LLAVA | {"model_type": "qwen2_5_vl"}, {"preprocessor_config.json": '{"temporal_patch_size":2}'}
    ),
    "vis-pixtral": model(
        {"model_type": "pixtral", "vision_config": {"a": 1}, "text_config": LLAMA}, {"preprocessor_config.json": {}}
    ),
    "vis-mllama": model(
        {"model_type": "mllama", "text_config": LLAMA, "vision_config": {"x": 1}}, {"preprocessor_config.json": {}}
    ),
    "video-llama": model(files={"preprocessor_config.json": '{"processor_class":"AutoVideoProcessor"}'}),
    "video-preproc": model(files={"video_preprocessor_config.json": {}, "preprocessor_config.json": {}}),
    "whisper-large-v3-4bit": whisper(n_mels=80),
    "whisper-large-v3-turbo-4bit": whisper(),
    "whisper-tiny.en-mlx": whisper(),
    "VibeVoice-ASR-4bit": model({"model_type": "vibevoice_asr"}),
    "Voxtral-Mini": {
        "config.json": {"model_type": "voxtral", "audio_config": {"x": 1}},
        "tekken.json": {},
        "model.safetensors": WEIGHTS,
    },
    "gemma-3n-E2B": model(
        {
            "model_type": "gemma3n",
            "audio_config": {"x": 1},
            "vision_config": {"x": 1},
            "text_config": LLAMA | {"model_type": "gemma3n_text"},
        },
        {"preprocessor_config.json": {}},
    ),
    "gemma4-audio-null": model(LLAMA | {"audio_config": None}),
    "omni-wfe": model(
        {"model_type": "qwen3_omni_moe", "audio_config": {"a": 1}},
        {"preprocessor_config.json": '{"feature_extractor_type":"WhisperFeatureExtractor"}'},
    ),
    "bge-small-en-v1.5": model({"model_type": "bert", "hidden_size": 384, "max_position_embeddings": 512}),
    "bge-m3": model({"model_type": "xlm-roberta", "hidden_size": 1024}),
    "Qwen3-Embedding-0.6B": model({"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}),
}
OTHERS: dict[str, Files] = {
    "acme/Beta-2B-chat": model(LLAMA | {"quantization": {"bits": 8, "group_size": 32}}),
    "acme/MyEmbedder": model(
        {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "quantization": {"bits": 4}}
    ),
    "meta/Gamma-3B": model(),
    "meta/Gamma-bin": model(files={"pytorch_model.bin": "xx" * 200}, weights=None),
    "TheBloke/Delta-GGUF": {"config.json": LLAMA, "delta.Q4.gguf": "GGUF" * 100},
    "TheBloke/Delta2-GGUF": {"delta.Q4.gguf": "GGUF" * 100},
    "fm/LibName": model(files={"README.md": "---\nlibrary_name: mlx\ntags:\n- foo\n---\n# x\n"}),
    "fm/TagsInline": model(files={"README.md": "---\ntags: [mlx, chat]\n---\n"}),
    "fm/TagsBlock": model(files={"README.md": "---\nlicense: mit\ntags:\n  - MLX\n  - chat\nx: y\n---\n"}),
}

INTENDED_DIFFERENCES: dict[str, dict[str, tuple[object, str]]] = {
    "acme/MyEmbedder": {
        "runtime_compatible": (False, "mlx-vlm has no embedding form of llama and would load a text generator")
    },
    "mlx-community/bad-partialname": {
        "health": ("healthy", "a note whose name contains 'partial' is not a partial download"),
        "runtime_compatible": (True, "a whole model runs"),
    },
    "meta/Gamma-3B": {"runtime_compatible": (True, "mlx-lm loads safetensors as they are published for PyTorch")},
    "mlx-community/bge-m3": {"runtime_compatible": (True, "mlx-vlm loads xlm-roberta as an embedding model")},
    "mlx-community/oddname": {"runtime_compatible": (False, "mlx-lm looks for model*.safetensors only")},
    "mlx-community/shard-extra": {"size_bytes": (1057, "a file that the index does not name is not the model's")},
    "mlx-community/omni-wfe": {
        "runtime_compatible": (True, "a model that writes text and hears goes to mlx-vlm, which knows it")
    },
    "mlx-community/shortrev": {
        "runtime_compatible": (True, "a snapshot is one whatever its directory is called, in list as in health")
    },
    "mlx-community/vis-mllama": {
        "runtime_compatible": (True, "mlx-vlm runs it, text included; mlx-lm is not needed for that")
    },
}


def write_model(hub: Path, name: str, files: Files, revision: str = COMMIT) -> Path:
    """Write one snapshot; what is neither text nor bytes is written as JSON."""
    snapshot = hub / f"models--{name.replace('/', '--')}" / "snapshots" / revision
    snapshot.mkdir(parents=True)
    for path, content in files.items():
        text = content if isinstance(content, (str, bytes)) else json.dumps(content)
        (snapshot / path).write_bytes(text.encode() if isinstance(text, str) else text)
    return snapshot


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fake cache, with everything in it that is not a model."""
    root = tmp_path_factory.mktemp("hub")
    for name, files in COMMUNITY.items():
        write_model(root, f"mlx-community/{name}", files)
    for name, files in OTHERS.items():
        write_model(root, name, files)
    os.utime(write_model(root, "mlx-community/Multi", model(), "1" * 40), (1_700_000_000, 1_700_000_000))
    older = write_model(root, "mlx-community/Multi", model(LLAMA | {"hidden_size": 128}), "2" * 40)
    os.utime(older, (1_600_000_000, 1_600_000_000))
    write_model(root, "mlx-community/shortrev", model(), "main")
    write_model(root, "double/dash/name", {}, "c" * 40)
    write_model(root, "TEST-CACHE-SENTINEL/x", {}, "b" * 40)
    (root / "models--empty--nosnaps").mkdir()
    (root / "models--empty--emptysnaps" / "snapshots").mkdir(parents=True)
    (root / "datasets--foo--bar").mkdir()
    (root / "models--afile").write_text("x")
    return root


@pytest.fixture(scope="module")
def ours(hub: Path) -> dict[str, ModelDescription]:
    """Our description of every model of the fake cache, by name."""
    cache, workspaces = HuggingFaceModelCache(str(hub)), FilesystemWorkspaceStore(None)
    describe = DescribeModel(
        FilesystemModelFiles(), workspaces, MlxBackendRegistry(), cache, default_owner="mlx-community"
    )
    models = ListModels(ResolveModel(cache, workspaces, InMemoryModelSource()), describe)()
    return {found.handle.name: found for found in models}


def recorded() -> dict[str, dict[str, object]]:
    return {row["name"]: row for row in json.loads(RECORDED.read_text())["models"]}


def as_row(found: ModelDescription) -> dict[str, object]:
    return {
        "name": found.handle.name,
        "hash": found.handle.commit,
        "size_bytes": found.size_bytes,
        "framework": found.framework.value,
        "model_type": found.model_type.value,
        "capabilities": [capability.value for capability in found.capabilities],
        "health": found.health.status.value,
        "runtime_compatible": found.runtime.compatible,
        "cached": found.handle.origin is Origin.CACHE,
    }


def test_the_same_models_are_found_in_the_same_order(ours: dict[str, ModelDescription]) -> None:
    assert list(ours) == list(recorded())


@pytest.mark.parametrize("name", sorted(recorded()))
def test_a_model_is_described_as_recorded_but_for_what_we_mean_to_do_better(
    name: str, ours: dict[str, ModelDescription]
) -> None:
    theirs, mine = recorded()[name], as_row(ours[name])
    differing = {field: mine[field] for field in mine if mine[field] != theirs[field]}
    assert differing == {field: value for field, (value, _) in INTENDED_DIFFERENCES.get(name, {}).items()}


def test_every_intended_difference_concerns_a_recorded_model_and_gives_its_reason() -> None:
    assert set(INTENDED_DIFFERENCES) <= set(recorded())
    assert all(reason for fields in INTENDED_DIFFERENCES.values() for _, reason in fields.values())


def test_times_are_the_directory_times_in_utc(ours: dict[str, ModelDescription]) -> None:
    expected = datetime.datetime.fromtimestamp(1_700_000_000, datetime.UTC)
    assert ours["mlx-community/Multi"].modified == expected
    assert ours["mlx-community/Multi"].modified.tzinfo is datetime.UTC


@pytest.mark.parametrize(
    ("name", "reason", "files"),
    [
        ("bad-noconfig", "config.json missing", ("config.json",)),
        ("bad-emptyconfig", "config.json is empty or invalid", ("config.json",)),
        ("bad-jsonconfig", "config.json contains invalid JSON", ("config.json",)),
        ("bad-noweights", "No model weights found", ()),
        ("bad-lfs", "LFS pointers instead of files: model.safetensors", ("model.safetensors",)),
        ("bad-lfs-aux", "LFS pointers instead of files: vocab.txt", ("vocab.txt",)),
        ("bad-empty", "Empty weight files: model.safetensors", ("model.safetensors",)),
        ("bad-partial", "Partial download marker detected", ("foo.partial",)),
        ("bad-tokjson", "tokenizer_config.json contains invalid JSON", ("tokenizer_config.json",)),
        ("bad-toklist", "tokenizer_config.json exists but invalid", ("tokenizer_config.json",)),
        ("bad-tokmissing", "tokenizer_config.json present but tokenizer.json missing", ()),
        ("shard-emptymap", "Empty or invalid weight_map in index", (INDEX,)),
        ("shard-badindex", "Invalid index file", (INDEX,)),
        ("shard-empty", f"Empty weight shards: {shard(2, 2)}", (shard(2, 2),)),
        ("shard-missing", f"Partial download: missing weight shards: {shard(2, 2)}", (shard(2, 2),)),
        ("shard-noindex", "Safetensors index missing for sharded model", (INDEX,)),
        ("inconsistent", "Inconsistent shard totals detected", (shard(1, 2), shard(1, 3))),
        ("vis-badpre", "preprocessor_config.json invalid JSON", ("preprocessor_config.json",)),
        ("vis-prelist", "preprocessor_config.json invalid", ("preprocessor_config.json",)),
        ("shard-ok", "Multi-file model complete", ()),
        ("Alpha-1B-base", "Model is healthy", ()),
    ],
)
def test_a_finding_is_worded_as_consumers_know_it_and_names_the_files(
    name: str, reason: str, files: tuple[str, ...], ours: dict[str, ModelDescription]
) -> None:
    health = ours[f"mlx-community/{name}"].health
    assert (health.reason, health.files) == (reason, files)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("TheBloke/Delta-GGUF", "Incompatible framework: GGUF"),
        ("meta/Gamma-bin", "Incompatible framework: PyTorch"),
        ("mlx-community/legacy-weights", "Legacy format not supported by mlx-lm"),
        ("mlx-community/model-file", "requires executing model-supplied code (config.json: model_file)"),
        ("mlx-community/no-model-type", "config.json missing model_type field"),
        ("mlx-community/weird-type", "Model type nosuchtype not supported."),
        ("mlx-community/Voxtral-Mini", "Voxtral tekken.json tokenizer not supported by mlx-audio"),
        ("mlx-community/shard-missing", f"Partial download: missing weight shards: {shard(2, 2)}"),
    ],
)
def test_a_model_that_cannot_run_says_why(name: str, reason: str, ours: dict[str, ModelDescription]) -> None:
    assert ours[name].runtime.reason == reason
