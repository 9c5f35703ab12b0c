"""The contract of content verification, held by every adapter."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from doubles.content_verifier import InMemoryContentVerifier
from doubles.model_files import InMemoryModelFiles

from mlxk.adapters.huggingface.cache import HuggingFaceModelCache
from mlxk.adapters.huggingface.verification import HuggingFaceContentVerifier
from mlxk.application.ports.model_directories import ContentVerifier, VerificationResult
from mlxk.domain.errors import StorageError
from mlxk.domain.models.model import ModelHandle, Origin

COMMIT = "a" * 40
Build = Callable[..., tuple[ContentVerifier, ModelHandle]]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture(params=["huggingface", "in_memory"])
def build(request: pytest.FixtureRequest, tmp_path: Path) -> Build:
    """Build a model of files with their content, of which some have a recorded digest, and some links dangle."""

    def on_disk(
        files: Mapping[str, bytes], digests: Mapping[str, str], dangling: tuple[str, ...] = ()
    ) -> tuple[ContentVerifier, ModelHandle]:
        snapshot = tmp_path / "models--org--m" / "snapshots" / COMMIT
        snapshot.mkdir(parents=True)
        for path, content in files.items():
            (snapshot / path).parent.mkdir(exist_ok=True)
            (snapshot / path).write_bytes(content)
        for path in dangling:
            (snapshot / path).symlink_to("../../blobs/" + "1" * 64)
        listed = {
            path: {"size": len(files[path]), "blob_id": "2" * 40, "lfs_sha256": digest}
            for path, digest in digests.items()
        }
        trees = tmp_path / "models--org--m" / "trees"
        trees.mkdir()
        (trees / f"{COMMIT}.json").write_text(json.dumps({"files": listed}))
        cache = HuggingFaceModelCache(str(tmp_path))
        handle = cache.find("org/m")
        assert handle is not None
        return HuggingFaceContentVerifier(cache), handle

    def in_memory(
        files: Mapping[str, bytes], digests: Mapping[str, str], dangling: tuple[str, ...] = ()
    ) -> tuple[ContentVerifier, ModelHandle]:
        handle = ModelHandle("org/m", "/model", Origin.CACHE, COMMIT)
        content = InMemoryModelFiles({"/model": files}, {"/model": dangling})
        return InMemoryContentVerifier(content, {"/model": digests}), handle

    return on_disk if request.param == "huggingface" else in_memory


def quiet(done: int, total: int) -> None:
    pass


class TestContentVerifier:
    def test_intact_files_are_counted(self, build: Build) -> None:
        files = {"a": b"1", "sub/b": b"2" * 3_000_000, "empty": b""}
        verifier, handle = build(files, {path: sha256(content) for path, content in files.items()})
        assert verifier.verify(handle, quiet) == VerificationResult(3, (), ())

    def test_one_wrong_byte_is_found_and_named(self, build: Build) -> None:
        verifier, handle = build({"z": b"12", "b": b"13", "a": b"12"}, dict.fromkeys("zba", sha256(b"12")))
        assert verifier.verify(handle, quiet) == VerificationResult(3, (), ("b",))

    def test_a_file_without_digest_is_named_but_not_damaged(self, build: Build) -> None:
        verifier, handle = build({"a": b"1", "z": b"2", "b": b"3"}, {"a": sha256(b"1")})
        assert verifier.verify(handle, quiet) == VerificationResult(1, ("b", "z"), ())

    def test_a_link_that_leads_nowhere_is_damaged(self, build: Build) -> None:
        verifier, handle = build({"a": b"1"}, {"a": sha256(b"1")}, ("gone",))
        assert verifier.verify(handle, quiet).damaged == ("gone",)

    def test_progress_runs_from_nothing_to_everything(self, build: Build) -> None:
        files = {"a": b"1" * 2_500_000, "b": b"2" * 10, "unrecorded": b"3" * 100}
        verifier, handle = build(files, {path: sha256(files[path]) for path in "ab"})
        told: list[tuple[int, int]] = []
        verifier.verify(handle, lambda done, total: told.append((done, total)))
        assert told[0] == (0, 2_500_010)
        assert told[-1] == (2_500_010, 2_500_010)
        assert told == sorted(told)

    def test_an_empty_model_is_verified_at_once(self, build: Build) -> None:
        verifier, handle = build({}, {})
        assert verifier.verify(handle, quiet) == VerificationResult(0, (), ())

    def test_a_model_that_has_gone_is_a_storage_error(self, build: Build) -> None:
        verifier, _ = build({}, {})
        with pytest.raises(StorageError):
            verifier.verify(ModelHandle("org/gone", "/nowhere/gone", Origin.CACHE, COMMIT), quiet)
