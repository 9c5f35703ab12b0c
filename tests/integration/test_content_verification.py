"""Verifying content against the digests a real cache and a real workspace carry."""

import hashlib
import json
import os
import struct
from pathlib import Path

import pytest

from mlxk.adapters.filesystem.workspaces import FilesystemWorkspaceStore
from mlxk.adapters.huggingface.cache import HuggingFaceModelCache
from mlxk.adapters.huggingface.verification import HuggingFaceContentVerifier
from mlxk.application.ports.model_directories import VerificationResult
from mlxk.domain.models.model import SENTINEL_NAME, ModelHandle, Origin

COMMIT = "a" * 40
LARGE, SMALL = b"weights" * 400_000, b'{"model_type": "llama"}\n'


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0%s" % (len(content), content)).hexdigest()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model as the hub client stores it, without a manifest: the blobs' names are their digests."""
    folder = tmp_path / "models--org--m"
    (folder / "blobs").mkdir(parents=True)
    snapshot = folder / "snapshots" / COMMIT
    (snapshot / "sub").mkdir(parents=True)
    (folder / "blobs" / sha256(LARGE)).write_bytes(LARGE)
    (folder / "blobs" / git_sha1(SMALL)).write_bytes(SMALL)
    (snapshot / "model.safetensors").symlink_to(f"../../blobs/{sha256(LARGE)}")
    (snapshot / "sub/config.json").symlink_to(f"../../../blobs/{git_sha1(SMALL)}")
    return folder


def verify(folder: Path) -> VerificationResult:
    cache = HuggingFaceModelCache(str(folder.parent))
    handle = cache.find("org/m")
    assert handle is not None
    return HuggingFaceContentVerifier(cache).verify(handle, lambda done, total: None)


def write_manifest(folder: Path, files: dict[str, object]) -> None:
    (folder / "trees").mkdir()
    (folder / "trees" / f"{COMMIT}.json").write_text(json.dumps({"format_version": 1, "files": files}))


def test_the_name_of_a_blob_is_its_digest_in_either_form(folder: Path) -> None:
    assert verify(folder) == VerificationResult(2, (), ())


def test_git_itself_agrees_with_the_small_digest() -> None:
    assert git_sha1(b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"


@pytest.mark.parametrize(("path", "content"), [("model.safetensors", LARGE), ("sub/config.json", SMALL)])
def test_one_flipped_bit_is_found(folder: Path, path: str, content: bytes) -> None:
    blob = Path(os.path.realpath(folder / "snapshots" / COMMIT / path))
    blob.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert verify(folder) == VerificationResult(2, (), (path,))


@pytest.mark.parametrize("change", [-1, 1])
def test_a_file_cut_or_grown_is_found(folder: Path, change: int) -> None:
    with open(folder / "blobs" / sha256(LARGE), "r+b") as blob:
        blob.truncate(len(LARGE) + change)
    assert verify(folder).damaged == ("model.safetensors",)


def test_a_blob_in_the_store_models_share_is_verified_through_both_links(folder: Path) -> None:
    shared = folder.parent / "blobs" / "ab"
    shared.mkdir(parents=True)
    blob = folder / "blobs" / sha256(LARGE)
    blob.rename(shared / ("f" * 64))
    blob.symlink_to(f"../../blobs/ab/{'f' * 64}")
    assert verify(folder) == VerificationResult(2, (), ())
    (shared / ("f" * 64)).write_bytes(b"X" + LARGE[1:])
    assert verify(folder).damaged == ("model.safetensors",)
    (shared / ("f" * 64)).unlink()
    assert verify(folder).damaged == ("model.safetensors",)


def test_the_name_of_a_file_in_the_shared_store_is_no_digest(folder: Path) -> None:
    shared = folder.parent / "blobs" / "ab"
    shared.mkdir(parents=True)
    (shared / ("f" * 64)).write_bytes(SMALL)
    (folder / "snapshots" / COMMIT / "direct").symlink_to(shared / ("f" * 64))
    assert verify(folder) == VerificationResult(2, ("direct",), ())


def test_plain_files_are_verified_only_with_a_manifest(folder: Path) -> None:
    snapshot = folder / "snapshots" / COMMIT
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").write_bytes(LARGE)
    (snapshot / "notes.md").write_text("mine")
    assert verify(folder) == VerificationResult(1, ("model.safetensors", "notes.md"), ())
    write_manifest(
        folder,
        {
            "model.safetensors": {"size": len(LARGE), "blob_id": "1" * 40, "lfs_sha256": sha256(LARGE)},
            "sub/config.json": {"size": len(SMALL), "blob_id": git_sha1(SMALL)},
            "not-downloaded.bin": {"size": 5, "blob_id": "2" * 40},
        },
    )
    assert verify(folder) == VerificationResult(2, ("notes.md",), ())


def test_a_manifest_outweighs_the_name_of_a_blob(folder: Path) -> None:
    write_manifest(folder, {"sub/config.json": {"size": len(SMALL), "blob_id": "9" * 40}})
    assert verify(folder).damaged == ("sub/config.json",)


def test_a_pipe_is_never_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "snapshots" / COMMIT / "pipe")
    assert verify(folder) == VerificationResult(2, (), ())


def test_links_to_directories_are_not_entered(folder: Path) -> None:
    (folder / "snapshots" / COMMIT / "loop").symlink_to(".")
    assert verify(folder) == VerificationResult(2, (), ())


def test_a_workspace_is_verified_against_its_own_record(tmp_path: Path) -> None:
    header = b"{}"
    weights = struct.pack("<Q", len(header)) + header + b"tensors"
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(weights)
    (tmp_path / SENTINEL_NAME).write_text('{"managed": true}')
    store = FilesystemWorkspaceStore(None)
    verifier = HuggingFaceContentVerifier(HuggingFaceModelCache(str(tmp_path / "hub")), store)
    handle = store.at(str(tmp_path))
    assert handle is not None

    def result() -> VerificationResult:
        return verifier.verify(handle, lambda done, total: None)

    assert result() == VerificationResult(0, ("config.json", "model.safetensors"), ())
    store.recalculate(handle)
    assert result() == VerificationResult(1, ("model.safetensors",), ())
    store.recalculate(handle, deep=True)
    assert result() == VerificationResult(2, (), ())
    (tmp_path / "model.safetensors").write_bytes(weights[:-1] + b"!")
    assert result() == VerificationResult(2, (), ("model.safetensors",))


def test_a_built_in_model_has_no_digests(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    verifier = HuggingFaceContentVerifier(HuggingFaceModelCache(str(tmp_path / "hub")))
    handle = ModelHandle("demo", str(tmp_path), Origin.BUILT_IN)
    assert verifier.verify(handle, lambda done, total: None) == VerificationResult(0, ("config.json",), ())
