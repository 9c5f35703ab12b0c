"""Listing: models of every origin, described from their files."""

import json
import struct
from collections.abc import Callable

import pytest
from doubles.backend_registry import InMemoryBackendRegistry
from doubles.model_cache import CachedModel, InMemoryModelCache
from doubles.model_files import InMemoryModelFiles
from doubles.model_source import InMemoryModelSource
from doubles.workspace_store import InMemoryWorkspaceStore

from mlxk.application.ports.model_directories import FileListing, ModelFiles
from mlxk.application.use_cases.describe_model import DescribeModel, read_snapshot
from mlxk.application.use_cases.inspect_models import ListModels
from mlxk.application.use_cases.resolve_model import ResolveModel
from mlxk.domain.errors import ModelNotFoundError, StorageError
from mlxk.domain.models.model import Framework, ModelHandle, ModelType, Origin, Workspace

COMMIT = "a" * 40
HEADER = json.dumps({"__metadata__": {"format": "mlx"}, "w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}})
WEIGHTS = struct.pack("<Q", len(HEADER)) + HEADER.encode() + bytes(4)
FILES = {
    "config.json": json.dumps({"model_type": "llama", "max_position_embeddings": 64}).encode(),
    "tokenizer.json": b"{}",
    "model.safetensors": WEIGHTS,
}


class Disk:
    """A machine in memory: cached models, workspaces and the built-in one, all with the same files."""

    def __init__(self, cached: tuple[str, ...] = (), workspaces: tuple[str, ...] = (), home: str = "/ws") -> None:
        self.cache = InMemoryModelCache({name: CachedModel((COMMIT,)) for name in cached})
        directories = [*(f"/cache/{name}/{COMMIT}" for name in cached), *workspaces, "/built-in/demo"]
        self.files = InMemoryModelFiles(dict.fromkeys(directories, FILES))
        self.workspaces = InMemoryWorkspaceStore({path: Workspace(managed=True) for path in workspaces}, home=home)

    def listing(self, files: ModelFiles | None = None) -> ListModels:
        registry = InMemoryBackendRegistry({"mlx-lm": {"llama"}})
        describe = DescribeModel(
            files or self.files, self.workspaces, registry, self.cache, default_owner="mlx-community"
        )
        built_in = InMemoryModelSource({"demo": "/built-in/demo"})
        return ListModels(ResolveModel(self.cache, self.workspaces, built_in), describe)


def names(disk: Disk, pattern: str | None = None) -> list[str]:
    return [found.handle.name for found in disk.listing()(pattern)]


def test_models_of_every_origin_are_listed_by_name() -> None:
    disk = Disk(("org/b", "a/z"), ("/ws/mine",))
    assert names(disk) == ["/ws/mine", "a/z", "demo", "org/b"]


def test_a_pattern_is_a_part_of_the_name_in_any_case() -> None:
    disk = Disk(("org/Gemma-3", "gemmas/x", "org/llama"), ("/ws/my-gemma", "/ws/gemma/other"))
    assert names(disk, "gemMA") == ["/ws/my-gemma", "gemmas/x", "org/Gemma-3"]
    assert names(disk, "DEM") == ["demo"]
    assert names(disk, "nothing") == []


@pytest.mark.parametrize("pattern", ["", "  "])
def test_a_blank_pattern_selects_nothing(pattern: str) -> None:
    assert names(Disk(("org/a",)), pattern) == []


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (".", ["/home/me/gemma-3", "/home/me/gemma-4", "/home/me/llama"]),
        ("./gemma-", ["/home/me/gemma-3", "/home/me/gemma-4"]),
        ("./gemma-3", ["/home/me/gemma-3"]),
        ("/home/me", ["/home/me/gemma-3", "/home/me/gemma-4", "/home/me/llama"]),
        ("/ws/other", ["/ws/other"]),
        ("./nothing", []),
    ],
)
def test_an_explicit_path_selects_workspaces_and_never_the_cache(pattern: str, expected: list[str]) -> None:
    disk = Disk(("org/gemma-3",), ("/home/me/gemma-3", "/home/me/gemma-4", "/home/me/llama", "/ws/other"))
    assert names(disk, pattern) == expected


def test_a_description_says_what_the_files_say() -> None:
    (found,) = Disk(("org/a-chat",)).listing()("a-chat")
    assert found.handle.origin is Origin.CACHE
    assert found.handle.commit == COMMIT
    assert found.size_bytes == sum(map(len, FILES.values()))
    assert (found.framework, found.model_type, found.context_length) == (Framework.MLX, ModelType.CHAT, 64)
    assert found.runnable
    assert found.reason is None
    assert found.workspace is None


def test_a_workspace_carries_its_provenance_which_also_tells_its_framework() -> None:
    disk = Disk(workspaces=("/ws/mine",))
    plain = {path: data for path, data in FILES.items() if path != "model.safetensors"}
    header = b'{"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}'
    disk.files.directories["/ws/mine"] = plain | {
        "model.safetensors": struct.pack("<Q", len(header)) + header + bytes(4)
    }
    (found,) = disk.listing()("mine")
    assert found.framework is Framework.PYTORCH
    disk.workspaces.workspaces["/ws/mine"] = Workspace(managed=True, source_repo="mlx-community/x")
    (found,) = disk.listing()("mine")
    assert (found.framework, found.workspace) == (
        Framework.MLX,
        Workspace(managed=True, source_repo="mlx-community/x"),
    )


def test_a_model_without_any_snapshot_is_listed_as_a_broken_download() -> None:
    disk = Disk()
    disk.cache.models["org/broken"] = CachedModel(unfinished=1)
    disk.files.directories["/cache/org/broken"] = {"refs/main": b"x"}
    (found,) = disk.listing()("broken")
    assert found.reason == "Partial download: no snapshots found"


def test_a_header_longer_than_the_first_read_is_read_whole() -> None:
    disk = Disk(("org/a",))
    tensors = {f"layer.{i}": {"dtype": "F32", "shape": [1], "data_offsets": [4 * i, 4 * i + 4]} for i in range(2000)}
    header = json.dumps({"__metadata__": {"format": "mlx"}} | tensors).encode()
    weights = struct.pack("<Q", len(header)) + header + bytes(8000)
    disk.files.directories[f"/cache/org/a/{COMMIT}"] = FILES | {"model.safetensors": weights}
    assert disk.listing()("org/a")[0].runnable
    disk.files.directories[f"/cache/org/a/{COMMIT}"] = FILES | {"model.safetensors": weights[:-3]}
    assert disk.listing()("org/a")[0].health.missing_bytes == 3


class DiskInMotion(ModelFiles):
    """Files that another process changes: it acts just before a path is read."""

    def __init__(self, files: InMemoryModelFiles, path: str, act: Callable[[], object]) -> None:
        self._files, self._path, self._act = files, path, act

    def list(self, directory: str) -> FileListing:
        return self._files.list(directory)

    def read(self, directory: str, path: str, limit: int) -> bytes | None:
        if path == self._path and "org/b" in directory:
            self._act()
        return self._files.read(directory, path, limit)

    def outward_links(self, directory: str) -> tuple[str, ...]:
        return self._files.outward_links(directory)

    def read_end(self, directory: str, path: str, limit: int) -> bytes | None:
        return self._files.read_end(directory, path, limit)

    def content_hash(self, directory: str) -> str | None:
        return self._files.content_hash(directory)


@pytest.mark.parametrize("path", ["config.json", "model.safetensors"])
def test_a_model_that_is_removed_while_it_is_read_is_left_out(path: str) -> None:
    disk = Disk(("org/a", "org/b", "org/c"))

    def remove() -> None:
        disk.files.directories.pop(f"/cache/org/b/{COMMIT}", None)
        disk.cache.models.pop("org/b", None)

    found = disk.listing(DiskInMotion(disk.files, path, remove))("org/")
    assert [entry.handle.name for entry in found] == ["org/a", "org/c"]
    assert all(entry.runnable for entry in found)


def test_a_model_that_changes_while_it_is_read_is_read_again() -> None:
    disk = Disk(("org/b",))
    directory = f"/cache/org/b/{COMMIT}"
    disk.files.directories[directory] = {"config.json": FILES["config.json"]}

    def arrive() -> None:
        disk.files.directories[directory] = dict(FILES)

    (found,) = disk.listing(DiskInMotion(disk.files, "config.json", arrive))("org/b")
    assert found.runnable


def test_a_tokenizer_that_is_replaced_while_it_is_read_is_read_again() -> None:
    disk = Disk(("org/b",))
    arriving = [b'{"model": ']

    class InExchange(DiskInMotion):
        def read_end(self, directory: str, path: str, limit: int) -> bytes | None:
            if not arriving:
                return super().read_end(directory, path, limit)
            disk.files.directories[directory] = FILES | {path: arriving.pop()}
            return None

    (found,) = disk.listing(InExchange(disk.files, "", lambda: None))("org/b")
    assert found.health.reason == "Cut short, no whole JSON object: tokenizer.json"


def test_a_tokenizer_that_may_not_be_read_counts_as_not_read() -> None:
    class Forbidding(InMemoryModelFiles):
        def read_end(self, directory: str, path: str, limit: int) -> bytes | None:
            return None

    files = Forbidding({"/m": FILES})
    handle = ModelHandle("m", "/m", Origin.WORKSPACE)
    snapshot = read_snapshot(files, InMemoryModelCache({}), handle, files.list("/m"))
    assert (snapshot.unread, snapshot.cut) == (("tokenizer.json",), ())


def test_a_model_whose_directory_cannot_be_read_is_listed_with_the_reason() -> None:
    disk = Disk(("org/a",))
    del disk.files.directories[f"/cache/org/a/{COMMIT}"]
    (found,) = disk.listing()("org/a")
    assert found.reason is not None
    assert found.reason.startswith("Directory cannot be read")
    assert found.size_bytes == 0


def test_describing_a_model_that_is_gone_is_refused() -> None:
    disk = Disk(("org/a",))
    (handle,) = disk.listing().resolve.matching("org/a")
    disk.cache.models.clear()
    disk.files.directories.clear()
    with pytest.raises(ModelNotFoundError):
        disk.listing().describe(handle)


def test_the_files_of_a_model_are_each_read_once() -> None:
    disk = Disk(("org/a",))
    reads: list[str] = []

    class Counting(DiskInMotion):
        def read(self, directory: str, path: str, limit: int) -> bytes | None:
            reads.append(path)
            return super().read(directory, path, limit)

    disk.listing(Counting(disk.files, "", lambda: None))("org/a")
    assert sorted(reads) == ["config.json", "model.safetensors"]


def test_a_cache_that_cannot_be_read_is_an_error() -> None:
    class Unreadable(InMemoryModelCache):
        def names(self) -> tuple[str, ...]:
            raise StorageError("the model cache cannot be read")

    disk = Disk()
    disk.cache = Unreadable()
    with pytest.raises(StorageError):
        disk.listing()()
