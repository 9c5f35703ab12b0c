"""Damage in the cache, found and named by the installed program."""

import hashlib
import json
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Program = Callable[..., "subprocess.CompletedProcess[str]"]
pytestmark = pytest.mark.e2e
COMMIT = "0123456789abcdef0123456789abcdef01234567"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def shard(tensor: str) -> bytes:
    """Return a safetensors file of one tensor of 1024 bytes."""
    header = json.dumps({tensor: {"dtype": "F16", "shape": [512], "data_offsets": [0, 1024]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(range(256)) * 4


class CachedModel:
    """A whole model of two shards in a hub cache, blobs named by their digest as the hub client names them."""

    def __init__(self, hub: Path) -> None:
        self.snapshot = hub / "models--org--model" / "snapshots" / COMMIT
        self._blobs = hub / "models--org--model" / "blobs"
        self.snapshot.mkdir(parents=True)
        self._blobs.mkdir()
        refs = hub / "models--org--model" / "refs"
        refs.mkdir()
        (refs / "main").write_text(COMMIT)
        index = {"metadata": {"total_size": 2048}, "weight_map": {"a": SHARDS[0], "b": SHARDS[1]}}
        self.write("config.json", json.dumps({"model_type": "llama", "quantization": {"bits": 4}}).encode())
        self.write("tokenizer.json", b"{}")
        self.write("model.safetensors.index.json", json.dumps(index).encode())
        self.write(SHARDS[0], shard("a"))
        self.write(SHARDS[1], shard("b"))

    def write(self, name: str, content: bytes) -> None:
        """Store a file: large ones by sha256, small ones by git's digest."""
        git = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
        digest = hashlib.sha256(content).hexdigest() if name.endswith(".safetensors") else git
        (self._blobs / digest).write_bytes(content)
        (self.snapshot / name).unlink(missing_ok=True)
        (self.snapshot / name).symlink_to(f"../../blobs/{digest}")

    def blob(self, name: str) -> Path:
        """Return the file a name leads to."""
        return (self.snapshot / name).resolve()


@pytest.fixture
def model(program_environment: dict[str, str]) -> CachedModel:
    return CachedModel(Path(program_environment["HF_HOME"]) / "hub")


def check(mlxk: Program, *flags: str) -> dict[str, object]:
    """Return what health says of the model."""
    data = json.loads(mlxk("health", "org/model", "--json", *flags).stdout)["data"]
    (entry,) = [*data["healthy"], *data["unhealthy"]]
    assert isinstance(entry, dict)
    return entry


def test_a_whole_model_is_healthy_quickly_and_deeply(mlxk: Program, model: CachedModel) -> None:
    assert check(mlxk)["status"] == "healthy"
    entry = check(mlxk, "--deep")
    assert entry["status"] == "healthy"
    assert "5 files verified" in str(entry["reason"])


def test_a_flipped_byte_is_found_by_the_deep_check_and_not_claimed_by_the_quick_one(
    mlxk_here: Program, model: CachedModel
) -> None:
    content = bytearray(model.blob(SHARDS[1]).read_bytes())
    content[-1] ^= 1
    model.blob(SHARDS[1]).write_bytes(content)
    quick, deep = check(mlxk_here), check(mlxk_here, "--deep")
    assert quick["status"] == "healthy"
    assert "verified" not in str(quick["reason"])
    assert (deep["status"], deep["files"]) == ("unhealthy", [SHARDS[1]])


def test_a_truncated_shard_is_named_with_the_bytes_it_lacks(mlxk_here: Program, model: CachedModel) -> None:
    blob = model.blob(SHARDS[0])
    blob.write_bytes(blob.read_bytes()[:-100])
    entry = check(mlxk_here)
    assert (entry["status"], entry["files"], entry["missing_bytes"]) == ("unhealthy", [SHARDS[0]], 100)


def test_a_missing_shard_is_named(mlxk_here: Program, model: CachedModel) -> None:
    (model.snapshot / SHARDS[1]).unlink()
    entry = check(mlxk_here)
    assert entry["status"] == "unhealthy"
    assert SHARDS[1] in entry["files"]  # type: ignore[operator]


def test_a_link_to_nowhere_is_named(mlxk_here: Program, model: CachedModel) -> None:
    model.blob(SHARDS[1]).unlink()
    entry = check(mlxk_here)
    assert entry["status"] == "unhealthy"
    assert SHARDS[1] in entry["files"]  # type: ignore[operator]


def test_a_pointer_in_place_of_a_file_is_named(mlxk_here: Program, model: CachedModel) -> None:
    model.write(SHARDS[0], b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 12\n")
    entry = check(mlxk_here)
    assert (entry["status"], entry["files"]) == ("unhealthy", [SHARDS[0]])
    assert "LFS" in str(entry["reason"])


def test_a_wrong_index_is_named(mlxk_here: Program, model: CachedModel) -> None:
    model.write("model.safetensors.index.json", json.dumps({"weight_map": {"a": "nosuch.safetensors"}}).encode())
    entry = check(mlxk_here)
    assert entry["status"] == "unhealthy"
    assert "nosuch.safetensors" in json.dumps(entry)


def test_a_config_nested_fifty_thousand_deep_is_a_finding_and_not_a_crash(
    mlxk_here: Program, model: CachedModel
) -> None:
    model.write("config.json", b"[" * 50_000)
    for command in (["health"], ["list", "--all"], ["show", "org/model"], ["run", "org/model", "hi"]):
        done = mlxk_here(*command)
        assert "Traceback" not in done.stderr
    assert check(mlxk_here)["status"] == "unhealthy"


def test_one_revision_is_checked_by_its_name(mlxk_here: Program, model: CachedModel) -> None:
    done = mlxk_here("health", f"org/model@{COMMIT[:6]}", "--json")
    assert json.loads(done.stdout)["data"]["summary"]["healthy_count"] == 1
    missing = mlxk_here("health", "org/model@ffffff", "--json")
    assert (missing.returncode, json.loads(missing.stdout)["error"]["type"]) == (1, "hash_not_found")
