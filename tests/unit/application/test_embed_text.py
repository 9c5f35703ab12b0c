"""Embedding: the model is judged, and the vectors say what they are of."""

import json
import struct

import pytest
from doubles.backend_registry import InMemoryBackendRegistry
from doubles.image_reader import InMemoryImageReader
from doubles.memory_probe import InMemoryMemoryProbe
from doubles.model_cache import CachedModel, InMemoryModelCache
from doubles.model_files import InMemoryModelFiles
from doubles.model_source import InMemoryModelSource
from doubles.text_embedder import InMemoryTextEmbedder
from doubles.workspace_store import InMemoryWorkspaceStore

from mlxk.application.use_cases.describe_model import DescribeModel
from mlxk.application.use_cases.model_tasks import EmbeddingResult, EmbedText
from mlxk.application.use_cases.resolve_model import ResolveModel
from mlxk.domain.embedding import EmbeddingSettings, Input
from mlxk.domain.errors import (
    CapabilityError,
    IncompatibleModelError,
    InsufficientMemoryError,
    UnhealthyModelError,
    ValidationError,
)
from mlxk.domain.models.footprint import MemoryReading
from mlxk.domain.models.model import Workspace

COMMIT = "0123456789" * 4
HEADER = json.dumps({"weight": {"dtype": "F16", "shape": [4], "data_offsets": [0, 8]}}).encode()
WEIGHTS = struct.pack("<Q", len(HEADER)) + HEADER + bytes(8)
USUAL = EmbeddingSettings()


def files(**config: object) -> dict[str, bytes]:
    """Return the files of an encoder, with entries of its config that differ."""
    document = {"model_type": "bert", "quantization": {"bits": 4}, **config}
    return {"config.json": json.dumps(document).encode(), "model.safetensors": WEIGHTS}


MODELS = {
    "org/encoder": files(),
    "org/encoder-with-code": files(model_file="code.py"),
    "org/chat": files(model_type="llama"),
    "org/broken-encoder": {"config.json": b'{"model_type": "bert"}'},
}
MINE = "/home/ada/mine"
HASH = "sha256:" + "f" * 64


class Parts:
    """The use case and its embedder."""

    def __init__(self, budget: int = 2**40, workspace: Workspace | None = None) -> None:
        self.embedder = InMemoryTextEmbedder(dimensions=4)
        cache = InMemoryModelCache({name: CachedModel((COMMIT,)) for name in MODELS})
        directories = {f"/cache/{name}/{COMMIT}": each for name, each in MODELS.items()}
        workspaces = InMemoryWorkspaceStore({MINE: workspace} if workspace else {})
        self._describe = DescribeModel(
            InMemoryModelFiles({**directories, MINE: files()}),
            workspaces,
            InMemoryBackendRegistry({"mlx-lm": {"llama"}, "mlx-vlm": {"bert"}}),
            cache,
            default_owner="mlx-community",
        )
        self._resolve = ResolveModel(cache, workspaces, InMemoryModelSource(), default_owner="mlx-community")
        memory = InMemoryMemoryProbe(MemoryReading(budget, budget))
        self._embed = EmbedText(self.embedder, memory, InMemoryImageReader())

    def embed(self, model: str, inputs: tuple[Input, ...], settings: EmbeddingSettings) -> EmbeddingResult:
        return self._embed(self._describe(self._resolve(model)), inputs, settings)


def test_texts_become_vectors_of_the_model_that_was_named() -> None:
    result = Parts().embed("encoder", ("one", "two"), USUAL)
    assert (result.model, result.content_hash) == ("org/encoder", COMMIT)
    assert (len(result.embeddings.vectors), result.embeddings.dimensions) == (2, 4)


def test_the_fingerprint_names_weights_and_device() -> None:
    assert Parts().embed("encoder", ("one",), USUAL).fingerprint == "01234567.cpu"


def test_vectors_of_a_workspace_name_where_it_came_from_and_its_recorded_hash() -> None:
    parts = Parts(workspace=Workspace(managed=True, source_repo="org/origin", content_hash=HASH))
    result = parts.embed(MINE, ("one",), USUAL)
    assert (result.model, result.content_hash, result.fingerprint) == ("org/origin", HASH, "ffffffff.cpu")


def test_vectors_of_a_workspace_without_a_record_do_not_show_its_directory() -> None:
    result = Parts(workspace=Workspace(managed=False)).embed(MINE, ("one",), USUAL)
    assert (result.model, result.content_hash, result.fingerprint) == ("mine", None, "nohash.cpu")


@pytest.mark.parametrize(
    ("model", "refusal"),
    [
        ("org/chat", CapabilityError),
        ("org/broken-encoder", UnhealthyModelError),
        ("org/encoder-with-code", IncompatibleModelError),
    ],
)
def test_a_model_that_cannot_do_it_is_refused(model: str, refusal: type[Exception]) -> None:
    parts = Parts()
    with pytest.raises(refusal):
        parts.embed(model, ("one",), USUAL)
    assert parts.embedder.requests == []


def test_an_empty_text_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"input\[1\] is empty"):
        Parts().embed("encoder", ("one", ""), USUAL)


def test_a_model_beyond_the_memory_budget_is_refused() -> None:
    with pytest.raises(InsufficientMemoryError):
        Parts(budget=1024).embed("encoder", ("one",), USUAL)
