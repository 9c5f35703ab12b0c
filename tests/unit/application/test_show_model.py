"""Showing: everything about one model."""

import json
import struct

import pytest
from doubles.backend_registry import InMemoryBackendRegistry
from doubles.model_cache import CachedModel, InMemoryModelCache
from doubles.model_files import InMemoryModelFiles
from doubles.model_source import InMemoryModelSource
from doubles.workspace_store import InMemoryWorkspaceStore

from mlxk.application.use_cases.describe_model import DescribeModel
from mlxk.application.use_cases.inspect_models import ShowModel
from mlxk.application.use_cases.resolve_model import ResolveModel
from mlxk.domain.errors import ModelNotFoundError, RevisionNotFoundError, ValidationError
from mlxk.domain.models.model import FileEntry, Quantization

OLD, NEW = "a" * 40, "b" * 40
TENSORS = {
    "layer.weight": {"dtype": "U32", "shape": [4, 2], "data_offsets": [0, 32]},
    "layer.scales": {"dtype": "F16", "shape": [4, 1], "data_offsets": [32, 40]},
    "norm.weight": {"dtype": "F16", "shape": [4], "data_offsets": [40, 48]},
}
HEADER = json.dumps(TENSORS).encode()
CONFIG = {"model_type": "llama", "quantization": {"bits": 4, "group_size": 32}, "limit": float("inf")}
TEMPLATE = "{% if tools %}{{ tools }}{% endif %}{% if enable_thinking %}<think>{% endif %}"
FILES = {
    "README.md": b"---\nlicense: mit\n---\n# A model\n",
    "chat_template.jinja": TEMPLATE.encode(),
    "config.json": json.dumps(CONFIG).encode(),
    "model.safetensors": struct.pack("<Q", len(HEADER)) + HEADER + bytes(48),
    "tokenizer.json": b"{}",
}


def show(files: dict[str, bytes], old_files: dict[str, bytes] | None = None) -> ShowModel:
    """Show models of a cache with one model in two revisions."""
    cache = InMemoryModelCache({"org/model": CachedModel((OLD, NEW), {"main": NEW})})
    model_files = InMemoryModelFiles({f"/cache/org/model/{NEW}": files, f"/cache/org/model/{OLD}": old_files or {}})
    workspaces = InMemoryWorkspaceStore()
    registry = InMemoryBackendRegistry({"mlx-lm": {"llama"}})
    return ShowModel(
        ResolveModel(cache, workspaces, InMemoryModelSource(), default_owner="mlx-community"),
        DescribeModel(model_files, workspaces, registry, cache, default_owner="mlx-community"),
        workspaces,
    )


def test_details_say_what_the_files_say() -> None:
    details = show(FILES)("org/model")
    assert details.files == tuple(FileEntry(path, len(data)) for path, data in sorted(FILES.items()))
    assert details.quantization == Quantization(4, 32)
    assert details.parameters == 4 * 2 * 8 + 4
    assert details.license == "mit"
    assert (details.chat_template, details.supports_tools, details.supports_reasoning) == (True, True, True)
    assert details.description.runnable


def test_the_config_can_be_written_as_strict_json() -> None:
    config = show(FILES)("org/model").config
    assert config is not None
    assert json.loads(json.dumps(config, allow_nan=False))["model_type"] == "llama"


@pytest.mark.parametrize("config", [b"[]", b"{", b"null"])
def test_a_config_that_is_no_object_is_shown_as_none(config: bytes) -> None:
    details = show(FILES | {"config.json": config})("org/model")
    assert details.config is None
    assert not details.description.health.healthy


def test_a_model_without_card_or_template_has_neither() -> None:
    bare = {path: data for path, data in FILES.items() if path not in {"README.md", "chat_template.jinja"}}
    details = show(bare)("org/model")
    assert details.license is None
    assert (details.chat_template, details.supports_tools, details.supports_reasoning) == (False, False, False)


def test_a_revision_is_shown_with_its_own_files_and_its_own_health() -> None:
    shown = show(FILES, {"config.json": b"{"})
    assert shown("org/model").description.health.healthy
    old = shown(f"org/model@{OLD[:7]}")
    assert old.description.handle.revision == OLD
    assert old.description.health.reason == "config.json contains invalid JSON"
    assert [entry.path for entry in old.files] == ["config.json"]


def test_what_is_not_here_is_refused() -> None:
    with pytest.raises(ModelNotFoundError):
        show(FILES)("org/other")
    with pytest.raises(RevisionNotFoundError):
        show(FILES)("org/model@v9")


def test_only_a_managed_workspace_has_a_hash_to_record() -> None:
    with pytest.raises(ValidationError, match="'org/model' is not a managed workspace"):
        show(FILES)("org/model", recalculate_hash=True)
