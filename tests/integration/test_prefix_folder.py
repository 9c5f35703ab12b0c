"""The folder of kept prompts on disk by itself: budgets, failures, several processes, a folder that is replaced."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from doubles.event_log import InMemoryEventLog

from mlxk.adapters.mlx.engine.snapshot_folder import FOLDER, PrefixFolder
from mlxk.adapters.mlx.engine.snapshots import Snapshot, Tensor
from mlxk.domain.errors import StorageError

pytestmark = pytest.mark.mlx
LARGE = 2**30


def snapshot_of(tokens: bytes, size: int) -> Snapshot:
    """Return a snapshot of some size."""
    return Snapshot({"model": "m"}, tokens, [], (Tensor("U8", (size,), bytes(size)),))


def folder_at(path: Path, max_bytes: int = LARGE, versions: str = "1") -> PrefixFolder:
    """Return a folder as a server has it."""
    return PrefixFolder(str(path), max_bytes, versions, InMemoryEventLog(), 0.0)


def keep(folder: PrefixFolder, tokens: bytes, size: int) -> bool:
    """Write a snapshot."""
    label = folder.label("", {"model": "m"})
    return folder.write(folder.name(label, tokens), snapshot_of(tokens, size))


def test_a_write_that_the_system_refuses_leaves_nothing(tmp_path: Path) -> None:
    folder = folder_at(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, hard))
    try:
        assert not keep(folder, b"abcd", 2**20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(path.name for path in (tmp_path / FOLDER).iterdir()) == ["lock", "secret"]
    assert keep(folder, b"abcd", 2**20)
    assert (folder.counters.refusals, folder.counters.writes) == (1, 1)


@pytest.mark.parametrize("remade", [True, False], ids=["by-another-server", "by-none"])
def test_a_folder_that_was_deleted_is_used_again(tmp_path: Path, remade: bool) -> None:
    folders = [folder_at(tmp_path) for _ in range(2)]
    assert keep(folders[0], b"abcd", 2**10)
    shutil.rmtree(tmp_path / FOLDER)
    assert folders[0].usage(None) == (0, 0)
    if remade:
        folders.append(folder_at(tmp_path))
        assert keep(folders[2], b"abcd", 2**10)
        assert not keep(folders[0], b"efgh", 2**10), "the name is one of the former folder"
    for folder, tokens in zip(folders, (b"abcd", b"efgh", b"ijkl"), strict=False):
        assert keep(folder, tokens, 2**10) or keep(folder, tokens, 2**10)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / FOLDER).iterdir()} == {0o600}
    for folder in (*folders, folder_at(tmp_path)):
        label = folder.label("", {"model": "m"})
        found = [folder.longest(label, tokens) is not None for tokens in (b"abcd", b"efgh", b"ijkl")]
        assert found == [True, True, remade]
        assert folder.usage(None)[0] == 2 + remade


DYING = """
import os, signal, sys
from doubles.event_log import InMemoryEventLog
from mlxk.adapters.mlx.engine.snapshot_folder import PrefixFolder
from mlxk.adapters.mlx.engine.snapshots import Snapshot, Tensor

class Dying(Snapshot):
    times = 0

    @property
    def data(self):
        Dying.times += 1
        whole = Snapshot(self.facts, self.tokens, self.layout, self.tensors).data
        return whole if Dying.times == 1 else self.dying(whole)

    def dying(self, whole):
        yield from whole
        os.kill(os.getpid(), signal.SIGKILL)

folder = PrefixFolder(sys.argv[1], 2**30, "1", InMemoryEventLog(), 0.0)
label = folder.label("", {"model": "m"})
folder.write(folder.name(label, b"abcd"), Dying({"model": "m"}, b"abcd", [], (Tensor("U8", (2**20,), bytes(2**20)),)))
"""


def test_a_writer_that_is_killed_leaves_nothing_that_counts(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", DYING, str(tmp_path)], env={**os.environ, "PYTHONPATH": "tests"})
    assert done.returncode == -signal.SIGKILL
    left = [path for path in (tmp_path / FOLDER).iterdir() if path.name.endswith(".tmp")]
    assert len(left) == 1
    folder = folder_at(tmp_path)
    assert not left[0].exists()
    label = folder.label("", {"model": "m"})
    assert folder.longest(label, b"abcd") is None
    assert keep(folder, b"abcd", 2**10), "its lock has ended with it"
    assert folder.read(folder.name(label, b"abcd"), label) == snapshot_of(b"abcd", 2**10)


def test_two_servers_share_a_folder_within_one_budget(tmp_path: Path) -> None:
    budget, sizes = 10 * 2**16, []
    folders = [folder_at(tmp_path, budget) for _ in range(2)]

    def write(folder: PrefixFolder, first: int) -> None:
        for number in range(first, first + 20):
            keep(folder, number.to_bytes(4, "little"), 2**16 - 2048)
            sizes.append(folder_at(tmp_path, budget).usage(None)[1])

    threads = [threading.Thread(target=write, args=(folder, 100 * index)) for index, folder in enumerate(folders)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(sizes) == 40
    assert 0 < max(sizes) <= budget
    assert sum(folder.counters.writes for folder in folders) == 40
    last = folders[0].label("", {"model": "m"})
    assert folders[0].longest(last, (119).to_bytes(4, "little")) is not None, "each finds what the other wrote"


def test_files_of_another_version_go_first(tmp_path: Path) -> None:
    old, new = folder_at(tmp_path, versions="0"), folder_at(tmp_path, 3 * 2**16)
    assert keep(new, b"new1", 2**15)
    assert keep(old, b"old1", 2**16)
    assert new.longest(new.label("", {"model": "m"}), b"old1") is None
    assert keep(new, b"new2", 2**16)
    assert keep(new, b"new3", 2**16)
    label = new.label("", {"model": "m"})
    assert [new.longest(label, tokens) is not None for tokens in (b"new1", b"new2", b"new3")] == [True, True, True]
    assert new.usage(None)[0] == 3


def test_a_folder_of_somebody_else_is_not_used(tmp_path: Path) -> None:
    (tmp_path / FOLDER).write_text("a file")
    with pytest.raises(StorageError, match="prefix_cache_dir"):
        folder_at(tmp_path)
    with pytest.raises(StorageError, match="Not a directory"):
        folder_at(tmp_path / FOLDER)
    (tmp_path / FOLDER).unlink()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / FOLDER).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="prefix_cache_dir"):
        folder_at(tmp_path)
