"""The catalogue on a real disk: arbitrary trees, and another process that adds and removes models meanwhile."""

import json
import os
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from doubles.backend_registry import InMemoryBackendRegistry
from doubles.model_source import InMemoryModelSource
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxk.adapters.filesystem.model_files import FilesystemModelFiles
from mlxk.adapters.filesystem.workspaces import FilesystemWorkspaceStore
from mlxk.adapters.huggingface.cache import HuggingFaceModelCache
from mlxk.application.use_cases.describe_model import DescribeModel
from mlxk.application.use_cases.inspect_models import ListModels
from mlxk.application.use_cases.resolve_model import ResolveModel

HEADER = json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
FILES = {
    "config.json": b'{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "quantization": {"bits": 4}}',
    "tokenizer.json": b"{}",
    "model.safetensors": struct.pack("<Q", len(HEADER)) + HEADER + bytes(16),
}
CHURN = """
import os, shutil, sys
hub, files = sys.argv[1], eval(sys.argv[2])
turn = 0
while True:
    turn += 1
    folder = f"{hub}/models--org--m{turn % 5}"
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(f"{folder}/blobs"); os.makedirs(f"{folder}/refs")
    snapshot = f"{folder}/snapshots/{turn:040x}"
    os.makedirs(snapshot)
    for path, content in files.items():
        with open(f"{folder}/blobs/{path}", "wb") as file:
            file.write(content)
        os.symlink(f"../../blobs/{path}", f"{snapshot}/{path}")
    with open(f"{folder}/refs/main", "w") as file:
        file.write(f"{turn:040x}")
"""


def listing(hub: str) -> ListModels:
    cache, workspaces = HuggingFaceModelCache(hub), FilesystemWorkspaceStore(None)
    registry = InMemoryBackendRegistry({"mlx-lm": {"llama"}})
    describe = DescribeModel(FilesystemModelFiles(), workspaces, registry, cache, default_owner="mlx-community")
    return ListModels(ResolveModel(cache, workspaces, InMemoryModelSource()), describe)


def test_models_come_and_go_while_they_are_listed(tmp_path: Path) -> None:
    churn = subprocess.Popen([sys.executable, "-c", CHURN, str(tmp_path), repr(FILES)])
    whole = sum(map(len, FILES.values()))
    seen = 0
    try:
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline or (not seen and time.monotonic() < deadline + 60):
            for found in listing(str(tmp_path))():
                seen += 1
                if found.health.healthy:
                    assert (found.size_bytes, found.runtime.compatible) == (whole, True)
                else:
                    assert found.reason
        assert churn.poll() is None
    finally:
        churn.kill()
        churn.wait()
    assert seen


NAMES = st.sampled_from(
    ["config.json", "tokenizer.json", "model.safetensors", "model.safetensors.index.json", "README.md", "sub", "x.gguf"]
)
LENGTHS = st.integers(0, 2**64 - 1).map(lambda length: struct.pack("<Q", length))
CONTENT = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([b"", b"{}", b"[" * 50_000, FILES["config.json"], FILES["model.safetensors"][:-3]]),
    st.builds(lambda length, rest: length + rest, LENGTHS, st.binary(max_size=20)),
)
KINDS = st.one_of(CONTENT, st.sampled_from(["loop", "dangling", "directory", "outside", "pipe"]))


def plant(path: Path, kind: bytes | str) -> None:
    """Put something at a path: a file with content, or what no model should hold."""
    if isinstance(kind, bytes):
        path.write_bytes(kind)
    elif kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to({"loop": path.name, "dangling": "gone", "outside": "/"}[kind])


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(NAMES, KINDS, max_size=6))
def test_any_tree_of_files_is_listed(tree: dict[str, bytes | str]) -> None:
    with tempfile.TemporaryDirectory() as hub:
        snapshot = Path(hub, "models--org--m", "snapshots", "a" * 40)
        snapshot.mkdir(parents=True)
        for name, kind in tree.items():
            plant(snapshot / name, kind)
        (found,) = listing(hub)()
        assert found.health.reason
        listing(hub).describe.details(found.handle)


def test_a_folder_that_may_not_be_read_is_listed_with_the_reason(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("the superuser may read everything")
    snapshot = tmp_path / "models--org--m" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    snapshot.chmod(0)
    try:
        (found,) = listing(str(tmp_path))()
    finally:
        snapshot.chmod(0o700)
    assert found.reason is not None
    assert found.reason.startswith("Directory cannot be read")
