"""Locks on cached models: who waits is told once, and whatever happens meanwhile, nothing stays locked."""

import contextlib
import errno
import fcntl
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlxk.adapters.huggingface.cache import HuggingFaceModelCache
from mlxk.adapters.huggingface.locks import POLL_SECONDS
from mlxk.adapters.huggingface.transfer import PartialFile
from mlxk.application.ports.model_cache import LockHolder, in_use
from mlxk.domain.errors import LocksPresentError, StorageError
from mlxk.domain.hub import RemoteFile
from mlxk.domain.models.model import ModelHandle

A = "a" * 40
STRANGER = 4_000_000_000
"""A process that this machine has not."""
FOUND = os.getpid() if sys.platform == "linux" else None
"""The process that the system says holds a lock of this one."""


@pytest.fixture
def cache(tmp_path: Path) -> HuggingFaceModelCache:
    (tmp_path / "models--org--m" / "snapshots" / A).mkdir(parents=True)
    return HuggingFaceModelCache(str(tmp_path))


def handle(cache: HuggingFaceModelCache) -> ModelHandle:
    found = cache.find("org/m")
    assert found is not None
    return found


@contextlib.contextmanager
def held(root: Path, name: str, note: str = "") -> Iterator[Path]:
    """Hold a lock file of the model as another process would."""
    path = root / ".locks" / "models--org--m" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(note)
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield path


@pytest.mark.parametrize("name", ["org/m", "org/none"])
def test_who_waits_is_told_once_for_whom_and_goes_on_when_that_one_has_ended(
    cache: HuggingFaceModelCache, name: str
) -> None:
    told: list[LockHolder] = []
    order: list[str] = []

    def second() -> None:
        with cache.reserve(name, "removing it", told.append):
            order.append("second")

    waiting = threading.Thread(target=second)
    with cache.reserve(name, "pulling it"):
        waiting.start()
        deadline = time.monotonic() + 60
        while not told and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS / 10)
        time.sleep(3 * POLL_SECONDS)
        order.append("first")
    waiting.join(60)
    assert told == [LockHolder(os.getpid(), "pulling it")]
    assert order == ["first", "second"]


def test_who_does_not_wait_is_refused_and_the_holder_keeps_the_model(cache: HuggingFaceModelCache) -> None:
    with cache.reserve("org/m", "pulling it"):
        for _ in range(2):
            with pytest.raises(LocksPresentError, match=f"process {os.getpid()}, which is pulling it"):
                cache.reserve("org/m", "removing it").__enter__()
    with cache.reserve("org/m", "removing it"):
        pass


@pytest.mark.parametrize("name", ["org/m", "org/none"])
def test_work_that_fails_leaves_a_model_free(cache: HuggingFaceModelCache, tmp_path: Path, name: str) -> None:
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt), cache.reserve(name, "pulling it"):
            raise KeyboardInterrupt
    assert not (tmp_path / ".locks" / "models--org--none").exists()
    assert [path.read_text() for path in (tmp_path / ".locks").rglob("*") if path.is_file()] in ([], [""])


def test_a_use_that_fails_ends_and_others_of_the_same_process_go_on(
    cache: HuggingFaceModelCache, tmp_path: Path
) -> None:
    def files() -> list[Path]:
        return [path for path in (tmp_path / ".locks").rglob("*") if path.is_file()]

    with cache.use(handle(cache), "serving it"):
        with pytest.raises(KeyboardInterrupt), cache.use(handle(cache), "running it"):
            raise KeyboardInterrupt
        assert len(files()) == 1
    assert files() == []


@pytest.mark.parametrize(
    ("number", "taken"),
    [(errno.EROFS, True), (errno.EACCES, True), (errno.EPERM, True), (errno.ENOSPC, False), (errno.ENOTDIR, False)],
)
def test_a_cache_that_cannot_be_written_to_is_not_locked_and_any_other_failure_is_said(
    cache: HuggingFaceModelCache, monkeypatch: pytest.MonkeyPatch, number: int, taken: bool
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "makedirs", fail)
    if taken:
        with cache.reserve("org/m", "pulling it"):
            return
    with pytest.raises(StorageError, match=f"^the model cache cannot be written to: {os.strerror(number)}$"):
        cache.reserve("org/m", "pulling it").__enter__()


def test_a_partial_file_that_cannot_be_begun_anew_is_closed() -> None:
    opened = os.listdir("/dev/fd")
    longer_than_wanted = RemoteFile("model.safetensors", -1, A)
    with pytest.raises(StorageError, match="cannot be written to"):
        PartialFile(os.devnull, longer_than_wanted)  # a device has no length to change
    assert os.listdir("/dev/fd") == opened


def test_who_is_asked_to_give_a_model_back_learns_it_until_the_other_no_longer_waits(
    cache: HuggingFaceModelCache, tmp_path: Path
) -> None:
    model, request = handle(cache), tmp_path / ".locks" / "models--org--m" / "mlxk.return"
    asking = threading.Thread(target=cache.ask_back, args=("org/m", 60))
    with cache.use(model, "serving it"), cache.use(model, "running it"):
        assert cache.asked_back() == ()
        with held(tmp_path, f"{STRANGER}.mlxk.use", f"{STRANGER} serving it"):
            asking.start()
            deadline = time.monotonic() + 60
            while not cache.asked_back() and time.monotonic() < deadline:
                pass
            assert cache.asked_back() == (model,)
            assert cache.users("org/m") == (LockHolder(STRANGER, "serving it"),)
        asking.join(60)
        assert (cache.asked_back(), request.exists()) == ((), False)
    assert cache.asked_back() == ()


def test_who_has_no_answer_stops_asking_when_its_time_is_up(cache: HuggingFaceModelCache, tmp_path: Path) -> None:
    with held(tmp_path, f"{STRANGER}.mlxk.use", f"{STRANGER} serving it"):
        cache.ask_back("org/m", 0)
        assert cache.users("org/m") == (LockHolder(STRANGER, "serving it"),)
    assert list((tmp_path / ".locks").rglob("mlxk.return")) == []


def test_a_request_of_an_ended_process_asks_for_nothing_and_goes(cache: HuggingFaceModelCache, tmp_path: Path) -> None:
    with held(tmp_path, "mlxk.return") as request:
        pass
    with cache.use(handle(cache), "serving it"):
        assert (cache.asked_back(), request.exists()) == ((), False)


@pytest.mark.parametrize(
    ("note", "holder"),
    [
        (f"{STRANGER} pulling it\n", LockHolder(STRANGER, "pulling it")),
        (f"{STRANGER}\n", LockHolder(STRANGER, "working on it")),
        (f"{STRANGER} \x1b[2J\n", LockHolder(STRANGER, "working on it")),
        ("", LockHolder(FOUND, "working on it")),
        ("² pulling it", LockHolder(FOUND, "pulling it")),
    ],
)
def test_a_holder_is_named_by_its_note_and_without_one_by_the_system(
    cache: HuggingFaceModelCache, tmp_path: Path, note: str, holder: LockHolder
) -> None:
    with held(tmp_path, "mlxk.lock", note), pytest.raises(LocksPresentError) as caught:
        cache.reserve("org/m", "removing it").__enter__()
    assert caught.value.message == in_use("org/m", (holder,)).message
    assert caught.value.message.endswith(f"which is {holder.activity}")


def test_a_lock_folder_that_leads_elsewhere_is_left_as_it_is(cache: HuggingFaceModelCache, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("9.mlxk.use", f"{A}.lock"):
        (elsewhere / name).write_text("")
    (tmp_path / ".locks").mkdir()
    (tmp_path / ".locks" / "models--org--m").symlink_to(elsewhere)
    assert (cache.users("org/m"), cache.holders("org/m")) == ((), ())
    removal = cache.plan_removal("org/m")
    assert removal is not None
    cache.remove(removal)
    assert sorted(path.name for path in elsewhere.iterdir()) == ["9.mlxk.use", f"{A}.lock"]
