"""Checking health: quickly from headers, or deeply by comparing every byte."""

import hashlib
import json
import struct

import attrs
import pytest
from doubles.backend_registry import InMemoryBackendRegistry
from doubles.content_verifier import InMemoryContentVerifier
from doubles.model_cache import CachedModel, InMemoryModelCache
from doubles.model_files import InMemoryModelFiles
from doubles.model_source import InMemoryModelSource
from doubles.workspace_store import InMemoryWorkspaceStore

from mlxk.application.ports.model_directories import VerificationResult
from mlxk.application.use_cases.describe_model import DescribeModel
from mlxk.application.use_cases.inspect_models import CheckHealth, HealthEntry
from mlxk.application.use_cases.resolve_model import ResolveModel
from mlxk.domain.errors import AmbiguousModelError, ModelNotFoundError, StorageError
from mlxk.domain.models.model import ModelHandle, Workspace

COMMIT, OLD = "a" * 40, "b" * 40
HEADER = json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": struct.pack("<Q", len(HEADER)) + HEADER + bytes(16),
    "tokenizer.json": b"{}",
}
DIGESTS = {path: hashlib.sha256(data).hexdigest() for path, data in FILES.items()}
FLIPPED = FILES | {"model.safetensors": FILES["model.safetensors"][:-1] + b"\x01"}
TRUNCATED = FILES | {"model.safetensors": FILES["model.safetensors"][:-6]}


def checker(files: dict[str, dict[str, bytes]], digests: dict[str, dict[str, str]] | None = None) -> CheckHealth:
    """Check the models of a cache given by name, and one workspace."""
    cache = InMemoryModelCache({name: CachedModel((OLD, COMMIT)) for name in files})
    directories = {f"/cache/{name}/{COMMIT}": data for name, data in files.items()}
    directories |= {"/ws/mine": FILES} | {f"/cache/{name}/{OLD}": {} for name in files}
    model_files = InMemoryModelFiles(directories)
    workspaces = InMemoryWorkspaceStore({"/ws/mine": Workspace(managed=True, clean=True)}, home="/ws")
    describe = DescribeModel(model_files, workspaces, InMemoryBackendRegistry(), cache, default_owner="mlx-community")
    known = {f"/cache/{name}/{COMMIT}": entries for name, entries in (digests or {}).items()}
    return CheckHealth(
        ResolveModel(cache, workspaces, InMemoryModelSource(), default_owner="mlx-community"),
        describe,
        workspaces,
        InMemoryContentVerifier(model_files, known),
    )


def only(entries: tuple[HealthEntry, ...]) -> HealthEntry:
    (entry,) = entries
    return entry


def test_all_models_are_checked_by_name() -> None:
    entries = checker({"org/b": FILES, "org/a": TRUNCATED})()
    assert [(entry.handle.name, entry.report.healthy) for entry in entries] == [
        ("/ws/mine", True),
        ("org/a", False),
        ("org/b", True),
    ]


def test_a_model_that_was_removed_since_it_was_listed_is_left_out() -> None:
    check = checker({"org/a": FILES, "org/b": FILES})
    files = check.describe.files
    assert isinstance(files, InMemoryModelFiles)
    del files.directories[f"/cache/org/a/{COMMIT}"]
    cache = check.describe.cache
    assert isinstance(cache, InMemoryModelCache)

    class Listed(InMemoryModelCache):
        def find(self, name: str, revision: str | None = None) -> ModelHandle | None:
            found = super().find(name, revision)
            self.models.pop("org/a", None)
            return found

    gone = Listed(cache.models)
    late = attrs.evolve(
        check, resolve=attrs.evolve(check.resolve, cache=gone), describe=attrs.evolve(check.describe, cache=gone)
    )
    assert [entry.handle.name for entry in late()] == ["/ws/mine", "org/b"]


def test_a_workspace_is_reported_with_its_state() -> None:
    entries = {entry.handle.name: entry.workspace for entry in checker({"org/a": FILES})()}
    assert entries == {"/ws/mine": Workspace(managed=True, clean=True), "org/a": None}


def test_one_model_is_checked_by_any_reference_to_it() -> None:
    assert only(checker({"org/a": FILES, "org/b": FILES})("a")).handle.name == "org/a"


def test_a_revision_is_checked_and_not_the_current_one() -> None:
    check = checker({"org/a": FILES})
    assert only(check("org/a")).report.healthy
    assert only(check(f"org/a@{OLD}")).report.reason == "config.json missing"


def test_an_unknown_or_ambiguous_name_is_an_error() -> None:
    check = checker({"org/a-one": FILES, "org/a-two": FILES})
    with pytest.raises(ModelNotFoundError):
        check("nothing")
    with pytest.raises(AmbiguousModelError):
        check("a-")


def test_a_truncated_file_is_named_with_the_bytes_it_lacks() -> None:
    report = only(checker({"org/a": TRUNCATED})("org/a")).report
    assert (report.files, report.missing_bytes) == (("model.safetensors",), 6)


def test_a_flipped_byte_is_found_by_the_deep_check_and_not_claimed_by_the_quick_one() -> None:
    check = checker({"org/a": FLIPPED}, {"org/a": DIGESTS})
    quick = only(check("org/a")).report
    assert (quick.healthy, quick.reason) == (True, "Model is healthy")
    deep = only(check("org/a", deep=True)).report
    assert (deep.healthy, deep.files) == (False, ("model.safetensors",))
    assert "model.safetensors" in deep.reason


def test_a_deep_check_of_whole_content_says_how_much_was_compared() -> None:
    partly = {path: digest for path, digest in DIGESTS.items() if path != "tokenizer.json"}
    check = checker(
        {"org/all": FILES, "org/partly": FILES, "org/none": FILES}, {"org/all": DIGESTS, "org/partly": partly}
    )
    reasons = {entry.handle.name: entry.report.reason for entry in check(deep=True) if entry.report.healthy}
    assert reasons["org/all"] == "Model is healthy; content of 3 files verified"
    assert reasons["org/partly"] == "Model is healthy; content of 2 files verified, 1 without a digest"
    assert reasons["org/none"] == "Model is healthy; no digests recorded, content not compared"


def test_what_the_quick_check_finds_comes_first_in_a_deep_one() -> None:
    report = only(checker({"org/a": TRUNCATED}, {"org/a": DIGESTS})("org/a", deep=True)).report
    assert report.reason.startswith("Damaged safetensors, truncated")
    assert report.reason.endswith("Content differs from its digest: model.safetensors")
    assert (report.files, report.missing_bytes) == (("model.safetensors",), 6)


def test_a_damaged_model_whose_content_is_as_recorded_keeps_what_the_quick_check_found() -> None:
    digest = hashlib.sha256(TRUNCATED["model.safetensors"]).hexdigest()
    check = checker({"org/a": TRUNCATED}, {"org/a": DIGESTS | {"model.safetensors": digest}})
    assert only(check("org/a", deep=True)).report == only(check("org/a")).report


def test_progress_is_told_for_each_model_until_all_its_bytes_are_read() -> None:
    told: list[tuple[str, int, int]] = []

    def progress(handle: ModelHandle, done: int, total: int) -> None:
        told.append((handle.name, done, total))

    checker({"org/a": FILES}, {"org/a": DIGESTS})("org/a", deep=True, progress=progress)
    total = sum(map(len, FILES.values()))
    assert told[0] == ("org/a", 0, total)
    assert told[-1] == ("org/a", total, total)


class Unreadable(InMemoryContentVerifier):
    """Reads nothing, as from a disk that fails."""

    def verify(self, handle: ModelHandle, progress: object = None) -> VerificationResult:
        """Fail."""
        raise StorageError("model.safetensors cannot be read: Input/output error")


def test_content_that_cannot_be_read_is_a_fault_of_one_model_and_what_was_found_before_stays() -> None:
    check = checker({"org/a": FILES, "org/b": TRUNCATED})
    deep = attrs.evolve(check, verifier=Unreadable(InMemoryModelFiles({}), {}))(deep=True)
    reports = {entry.handle.name: entry.report for entry in deep}
    said = "Content cannot be read: model.safetensors cannot be read: Input/output error"
    assert (reports["org/a"].healthy, reports["org/a"].reason) == (False, said)
    assert reports["org/b"] == only(check("org/b")).report
