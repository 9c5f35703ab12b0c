"""Models to put on the loopback hub: whole as far as their files tell, with weights that are only noise."""

import json
import random
import struct
from collections.abc import Mapping
from pathlib import Path

CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "max_position_embeddings": 2048}


def safetensors(name: str, size: int, seed: int = 0, metadata: Mapping[str, str] | None = None) -> bytes:
    """Return a safetensors file with one tensor of so many bytes."""
    entry = {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}
    header = json.dumps({"__metadata__": {"format": "mlx", **(metadata or {})}, name: entry}).encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + random.Random(seed).randbytes(size)


def small_model(size: int = 1000, seed: int = 0) -> dict[str, bytes]:
    """Return the files of a model with one weight file."""
    return {
        "config.json": json.dumps(CONFIG).encode(),
        "tokenizer.json": b"{}",
        "README.md": b"---\nlibrary_name: mlx\n---\n",
        "model.safetensors": safetensors("weight", size, seed),
    }


def sharded_model(sizes: tuple[int, ...], seed: int = 0) -> dict[str, bytes]:
    """Return the files of a model with one shard of each size, bytes, and their index."""
    count = len(sizes)
    names = [f"model-{number + 1:05d}-of-{count:05d}.safetensors" for number in range(count)]
    shards = {
        name: safetensors(f"layer.{number}", size, seed + number)
        for number, (name, size) in enumerate(zip(names, sizes, strict=True))
    }
    weight_map = {f"layer.{number}": name for number, name in enumerate(names)}
    index = {"metadata": {"total_size": sum(sizes)}, "weight_map": weight_map}
    return {
        "config.json": json.dumps(CONFIG).encode(),
        "tokenizer.json": b"{}",
        "model.safetensors.index.json": json.dumps(index).encode(),
        **shards,
    }


def share_content(cache: Path, content: bytes) -> Path:
    """Write two models that share one content in the cache's common store, as the hub client does; return its file."""
    store = cache / "blobs" / "ab" / ("ab" + "0" * 62)
    store.parent.mkdir(parents=True)
    (cache / "blobs" / ".huggingface-shared-blobs").write_text("1\n")
    store.write_bytes(content)
    references = []
    for name in ("org--a", "org--b"):
        folder = cache / f"models--{name}"
        (folder / "blobs").mkdir(parents=True)
        (folder / "blobs" / ("c" * 64)).symlink_to(f"../../blobs/ab/{store.name}")
        (folder / "snapshots" / ("d" * 40)).mkdir(parents=True)
        (folder / "snapshots" / ("d" * 40) / "model.safetensors").symlink_to(f"../../blobs/{'c' * 64}")
        references.append(f"models--{name}/blobs/{'c' * 64}\n")
    store.with_name(store.name + ".refs").write_text("".join(references))
    return store
