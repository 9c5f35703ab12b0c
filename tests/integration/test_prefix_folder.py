"""The folder of kept prompts on disk and what writes to it by themselves: budgets, failures, several processes."""

import fcntl
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from doubles.event_log import InMemoryEventLog
from mlx_lm.models.cache import ArraysCache, KVCache
from process_limits import largest_file

from mlxk.adapters.mlx.engine.disk_tier import MIN_TOKENS, DiskTier, FetchedSnapshot
from mlxk.adapters.mlx.engine.prefix_cache import PrefixCache, PrefixIdentity
from mlxk.adapters.mlx.engine.snapshot_folder import FOLDER, PrefixFolder
from mlxk.adapters.mlx.engine.snapshots import Snapshot, Tensor, restored_cache, stored_layer
from mlxk.adapters.mlx.memory import DiskLimits
from mlxk.adapters.system import SystemClock
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
    with largest_file(2**16):
        assert not keep(folder, b"abcd", 2**20)
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


def with_header(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the header of a snapshot."""
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a header without end": lambda path: path.write_bytes(struct.pack("<Q", 2**62) + path.read_bytes()[8:]),
    "a part without end": lambda path: with_header(path, lambda header: header["0"].update(data_offsets=[0, 2**62])),
    "a part before the first": lambda path: with_header(path, lambda header: header["0"].update(data_offsets=[9, 0])),
    "no checksum": lambda path: with_header(path, lambda header: header["__metadata__"].pop("checksum")),
    "more than was written": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "no file": lambda path: (path.unlink(), path.symlink_to("secret")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_is_damaged_is_deleted_and_counted(tmp_path: Path, damage: str) -> None:
    folder = folder_at(tmp_path)
    label = folder.label("", {"model": "m"})
    name = folder.name(label, b"abcd")
    assert keep(folder, b"abcd", 2**10)
    DAMAGES[damage](tmp_path / FOLDER / name)
    assert folder.read(name, label) is None
    assert (folder.counters.faults, folder.longest(label, b"abcd")) == (1, None)
    assert sorted(path.name for path in (tmp_path / FOLDER).iterdir()) == ["lock", "secret"]


def test_a_file_that_was_evicted_meanwhile_is_no_damage(tmp_path: Path) -> None:
    folder = folder_at(tmp_path)
    label = folder.label("", {"model": "m"})
    name = folder.name(label, b"abcd")
    assert (folder.size_of(name), folder.read(name, label), folder.counters.faults) == (0, None, 0)


def test_what_exceeds_the_budget_evicts_nothing_and_is_said_once(tmp_path: Path) -> None:
    log = InMemoryEventLog()
    folder = PrefixFolder(str(tmp_path), 2**15, "1", log, 0.0)
    assert keep(folder, b"abcd", 2**10)
    assert [keep(folder, tokens, 2**15) for tokens in (b"efgh", b"ijkl")] == [False, False]
    assert folder.longest(folder.label("", {"model": "m"}), b"abcd") is not None
    assert (folder.counters.refusals, folder.counters.evictions) == (2, 0)
    assert [event.fields["lacking"] for event in log.named("prompts are not kept on disk for now")] == ["budget"]


IDENTITY = PrefixIdentity("m", "plain", "")
TOKENS = bytes(4 * MIN_TOKENS)


def tier_at(path: Path) -> tuple[DiskTier, InMemoryEventLog]:
    """Return what writes snapshots, and its log."""
    log = InMemoryEventLog()
    return DiskTier(DiskLimits(str(path), LARGE, 0.0), log, SystemClock(), LARGE), log


def filled() -> KVCache:
    """Return a layer with the keys and values of some tokens."""
    layer = KVCache()
    layer.update_and_fetch(mx.ones((1, 1, MIN_TOKENS, 4)), mx.ones((1, 1, MIN_TOKENS, 4)))
    return layer


def test_empty_arrays_and_missing_ones_come_back_as_they_were() -> None:
    layer = ArraysCache(size=2)
    layer[0] = mx.zeros((1, 0, 4), mx.float16)
    tensors: list[Tensor] = []
    snapshot = Snapshot({}, b"", [stored_layer(layer, tensors)], tuple(tensors))
    (restored,) = restored_cache(snapshot)
    assert (restored[0].shape, restored[0].dtype, restored[1]) == ((1, 0, 4), mx.float16, None)


def test_a_cache_of_an_unknown_kind_is_said_once_and_not_written(tmp_path: Path) -> None:
    tier, log = tier_at(tmp_path)
    for _ in range(2):
        tier.offer(IDENTITY, TOKENS, [filled(), object()])
    assert not tier.step(busy=False)
    tier.close()
    said = [event.fields for event in log.named("prompts of this model are kept in memory only")]
    assert said == [{"caches": "KVCache,object"}]
    assert tier.state(None).entries == 0


def test_a_snapshot_that_cannot_be_copied_is_said_and_the_next_one_is_written(tmp_path: Path) -> None:
    tier, log = tier_at(tmp_path)
    odd = ArraysCache(size=1)
    odd[0] = mx.Dtype
    tier.offer(IDENTITY, TOKENS, [odd])
    tier.offer(IDENTITY, TOKENS, [filled()])
    tier.close()
    assert [event.fields for event in log.named("a prompt could not be kept on disk")] == [{"error": "TypeError"}]
    assert tier.state(None).entries == 1


def test_a_snapshot_that_cannot_be_restored_is_deleted(tmp_path: Path) -> None:
    tier, _ = tier_at(tmp_path)
    folder = tier.folder
    label = folder.label("", {"model": "m"})
    name = folder.name(label, TOKENS)
    assert folder.write(name, Snapshot(label.facts, TOKENS, [{"class": "Popen", "state": []}], ()))
    snapshot = folder.read(name, label)
    assert snapshot is not None
    prefixes = PrefixCache(LARGE)
    tier.restore(FetchedSnapshot(name, IDENTITY, snapshot), prefixes)
    assert (len(prefixes), folder.longest(label, TOKENS)) == (0, None)
    state = tier.state(None)
    assert (state.entries, state.faults, state.hits) == (0, 1, 0)


def test_what_is_forgotten_while_it_is_written_is_gone_in_the_end(tmp_path: Path) -> None:
    tier, _ = tier_at(tmp_path)
    with (tmp_path / FOLDER / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another server writes
        tier.offer(IDENTITY, TOKENS, [filled()])
        assert tier.step(busy=False)
        tier.forget("another")
        tier.forget("")
    tier.close()
    assert list((tmp_path / FOLDER).glob("*.safetensors")) == []
