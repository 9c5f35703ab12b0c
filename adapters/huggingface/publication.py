"""Making fetched contents visible as a snapshot, all at once and only when all of them are whole.

A snapshot is made beside the others and renamed into place; the reference of its branch follows it. Other clients of
the cache never see a reference without a snapshot, nor half a snapshot.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Mapping

from mlxk.adapters.huggingface.layout import STAGING, ModelFolder
from mlxk.domain.download import DownloadPlan
from mlxk.domain.remote_model import RemoteFile, RemoteModel

TREE_FORMAT = 1
"""Version of the record that the hub client keeps of a revision's files."""


def publish(folder: ModelFolder, plan: DownloadPlan) -> None:
    """Make the files of a plan visible; all of their contents must be here.

    Raises:
        OSError: The disk refuses; what was visible before is unchanged, or complete.
    """
    model = plan.model
    _record_tree(folder, model)
    final = f"{folder.snapshots}/{model.commit}"
    if os.path.isdir(final):
        _link_all(folder, plan.files, final)
    else:
        staging = f"{folder.directory}/{STAGING}"
        shutil.rmtree(staging, ignore_errors=True)
        _link_all(folder, plan.files, f"{staging}/{model.commit}")
        try:
            os.rename(f"{staging}/{model.commit}", final)
        except OSError:
            if not os.path.isdir(final):
                raise
            _link_all(folder, plan.files, final)  # another client has begun it meanwhile
        shutil.rmtree(staging, ignore_errors=True)
    if model.reference:
        _write(f"{folder.directory}/refs/{model.reference}", model.commit.encode())


def _link_all(folder: ModelFolder, files: tuple[RemoteFile, ...], directory: str) -> None:
    for file in files:
        path, blob = f"{directory}/{file.path}", folder.blob(file.digest)
        parent = os.path.dirname(path)
        os.makedirs(parent, exist_ok=True)
        target = "../" * (file.path.count("/") + 2) + f"blobs/{file.digest}"
        if os.path.islink(path) and os.readlink(path) == target:
            continue
        temporary = f"{path}.mlxk-link"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        try:
            os.symlink(target, temporary)
        except OSError:
            shutil.copyfile(blob, temporary)  # a file system without links, such as exFAT
        os.replace(temporary, path)


def _record_tree(folder: ModelFolder, model: RemoteModel) -> None:
    """Keep what the hub listed, as its client does: later checks then need no network."""
    record = {"format_version": TREE_FORMAT, "files": {file.path: _entry(file) for file in model.files}}
    _write(f"{folder.directory}/trees/{model.commit}.json", json.dumps(record, indent=1).encode())


def _entry(file: RemoteFile) -> Mapping[str, object]:
    entry: dict[str, object] = {"size": file.size_bytes, "blob_id": file.blob_id}
    if file.sha256:
        entry |= {"lfs_sha256": file.sha256, "lfs_size": file.size_bytes}
    if file.chunk_hash:
        entry["xet_hash"] = file.chunk_hash
    return entry


def _write(path: str, content: bytes) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = f"{path}.{os.getpid()}.tmp"
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
