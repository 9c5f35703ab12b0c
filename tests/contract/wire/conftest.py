"""A disk with models of every kind."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def populated_disk(tmp_path: Path) -> dict[str, str]:
    """Fill a cache and a workspace home with models of every kind; return the variables that point to them."""
    hub, workspaces = tmp_path / "hub", tmp_path / "workspaces"
    llama = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "max_position_embeddings": 2048}
    quantized = {**llama, "quantization": {"group_size": 64, "bits": 4}}
    nonsense = {"model_type": 7, "architectures": [None], "hidden_size": "wide", "vocab_size": [1], "quantization": 4}
    template = json.dumps({"chat_template": "{{ messages }}{% if tools %}{{ tools }}{% endif %}"})
    text_model = {"model.safetensors": tensors(), "tokenizer.json": b"{}", "tokenizer_config.json": template.encode()}
    write(snapshot(hub, "mlx-community/Chat-4bit"), quantized, text_model)
    write(snapshot(hub, "mlx-community/Nonsense"), nonsense, {"model.safetensors": tensors()})
    write(snapshot(hub, "acme/Plain"), llama, {"model.safetensors": tensors()})
    write(snapshot(hub, "acme/Delta-GGUF"), llama, {"delta.gguf": b"GGUF"})
    write(snapshot(hub, "acme/Truncated"), llama, {"model.safetensors": tensors()[:-8]})
    write(snapshot(hub, "acme/NoConfig"), None, {"model.safetensors": tensors()})
    snapshot(hub, "acme/Twin-A")
    snapshot(hub, "acme/Twin-B")
    (hub / "models--acme--NoSnapshots").mkdir()
    write(workspaces / "unmanaged", quantized, text_model)
    write(workspaces / "managed", quantized, {**text_model, ".mlxk_workspace.json": json.dumps(RECORD).encode()})
    return {"HF_HUB_CACHE": str(hub), "MLXK_WORKSPACE_HOME": str(workspaces)}


RECORD = {
    "mlxk_version": "0.2.0",
    "created_at": "2026-11-20T18:00:00Z",
    "source_repo": "mlx-community/Chat-4bit",
    "source_revision": None,
    "managed": True,
    "operation": "clone",
    "hash_modified": "2026-11-20T18:04:09Z",
    "hash_algorithm": "v2",
    "content_hash": "sha256:" + "9c1e" * 16,
    "exclude_patterns": [],
    "file_index": [],
}


def tensors() -> bytes:
    """Return a whole safetensors file with one tensor of four numbers."""
    header = json.dumps({"weight": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(16)


def snapshot(hub: Path, name: str) -> Path:
    """Make the folders of a cached model and return its snapshot's directory."""
    model = hub / f"models--{name.replace('/', '--')}"
    directory = model / "snapshots" / ("a8f3" * 10)
    directory.mkdir(parents=True)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("a8f3" * 10)
    return directory


def write(directory: Path, config: dict[str, Any] | None, files: dict[str, bytes]) -> None:
    """Write the files of a model."""
    directory.mkdir(parents=True, exist_ok=True)
    if config is not None:
        (directory / "config.json").write_text(json.dumps(config))
    for name, content in files.items():
        (directory / name).write_bytes(content)
