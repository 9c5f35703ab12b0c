"""Snapshots of models, whole and arbitrary, for the tests of the rules."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import strategies as st

from mlxk.domain.models.file_formats import Document, SafetensorsHeader, read_document, read_header
from mlxk.domain.models.model import Origin
from mlxk.domain.models.snapshot import ModelSnapshot, read_card

LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "max_position_embeddings": 2048}
WHOLE: dict[str, Any] = {"config.json": LLAMA, "tokenizer.json": 100, "model.safetensors": 400}

Snapshots = Callable[..., ModelSnapshot]

_PATHS = st.one_of(
    st.sampled_from(
        [
            "config.json",
            "tokenizer_config.json",
            "tokenizer.json",
            "preprocessor_config.json",
            "model.safetensors.index.json",
            "pytorch_model.bin.index.json",
            "model.safetensors",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00003.safetensors",
            "weights.00.safetensors",
            "pytorch_model.bin",
            "x.gguf",
            "sub/model.safetensors",
            "chat_template.json",
            "chat_template.jinja",
            "modules.json",
            "a.partial",
        ]
    ),
    st.text(max_size=8),
)
_KEYS = st.sampled_from(
    [
        "model_type",
        "architectures",
        "vision_config",
        "audio_config",
        "text_config",
        "quantization",
        "weight_map",
        "metadata",
        "total_size",
        "chat_template",
        "auto_map",
        "model_file",
        "max_position_embeddings",
        "preprocessor_config",
        "feature_extractor_type",
        "data_offsets",
        "target",
    ]
)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["llama", "bert"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS | st.text(max_size=3), inner, max_size=5),
    max_leaves=12,
)
_DOCUMENTS = _JSON.map(Document) | st.binary(max_size=20).map(read_document)
_HEADERS = st.tuples(st.binary(max_size=60), st.integers(0, 2000)).map(lambda pair: read_header(*pair))


def arbitrary_snapshots() -> st.SearchStrategy[ModelSnapshot]:
    """Snapshots no honest model has: any names, any JSON in every document, any headers."""
    sizes = st.dictionaries(_PATHS, st.integers(0, 500), max_size=10)
    return st.builds(
        ModelSnapshot,
        name=st.text(max_size=20),
        origin=st.sampled_from(Origin),
        incomplete=st.booleans(),
        files=sizes,
        dangling=st.lists(_PATHS, max_size=2).map(tuple),
        documents=st.dictionaries(_PATHS, _DOCUMENTS, max_size=6),
        headers=st.dictionaries(_PATHS, _HEADERS | st.just(SafetensorsHeader()), max_size=3),
        pointers=st.lists(_PATHS, max_size=1).map(tuple),
        card=st.binary(max_size=60).map(lambda data: read_card(b"---\n" + data)),
        template_files=st.dictionaries(_PATHS, st.text(max_size=10), max_size=3),
        expected=sizes,
        unfinished=st.integers(0, 2),
        published_for_mlx=st.booleans(),
    )


def _snapshot(files: Mapping[str, Any] | None = None, *, mlx: bool = True, **fields: Any) -> ModelSnapshot:
    everything = {path: content for path, content in (WHOLE | dict(files or {})).items() if content is not None}
    sizes = {path: content if isinstance(content, int) else 300 for path, content in everything.items()}
    documents = {path: _document(content) for path, content in everything.items() if not isinstance(content, int)}
    fields = {"name": "org/m", "published_for_mlx": mlx} | fields
    return ModelSnapshot(files=sizes, documents=documents, **fields)


def _document(content: Any) -> Document:
    return read_document(content if isinstance(content, bytes) else json.dumps(content).encode())


@pytest.fixture(scope="session")
def make_snapshot() -> Snapshots:
    """Build the snapshot of a whole text model.

    Arguments: files that replace its own: a JSON value or bytes for a document, a size for another file, None for
    one that is not there; keywords are fields of the snapshot.
    """
    return _snapshot


@pytest.fixture(scope="session")
def any_snapshot() -> st.SearchStrategy[ModelSnapshot]:
    """The strategy for arbitrary snapshots."""
    return arbitrary_snapshots()
