"""Disks of macOS, as its system calls show them, for what lies below a folder; elsewhere nothing changes.

APFS finds a name in any case of letters and normal form, and keeps it as it was made. exFAT and network drives keep
what they cannot express of a file in a companion ``._NAME``, which macOS removes with the file.
"""

import builtins
import contextlib
import errno
import fcntl
import io
import os
import stat
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

_ONE_PATH = ("stat", "lstat", "open", "scandir", "listdir", "mkdir", "rmdir", "unlink", "readlink", "access", "chmod")
_TWO_PATHS = ("rename", "replace", "link")


def as_apfs(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    """Have the calls that take paths find names as APFS does."""
    listdir, status = os.listdir, os.stat

    def names_in(place: str) -> list[str]:
        try:
            return listdir(place) if stat.S_ISDIR(status(place).st_mode) else []
        except OSError:
            return []

    def found(path: Any) -> Any:
        if not isinstance(path, (str, os.PathLike)) or not os.fspath(path).startswith(f"{root}/"):
            return path
        place = str(root)
        for part in os.fspath(path)[len(place) + 1 :].split("/"):
            names = names_in(place) if part not in {"", ".", ".."} else []
            place += "/" + next((each for each in names if part not in names and _same(each, part)), part)
        return place

    def looking(call: Callable[..., Any], paths: int) -> Callable[..., Any]:
        return lambda *given, **options: call(*map(found, given[:paths]), *given[paths:], **options)

    calls = [*((os, name, 1) for name in _ONE_PATH), *((os, name, 2) for name in _TWO_PATHS)]
    for module, name, paths in (*calls, (builtins, "open", 1), (io, "open", 1)):
        monkeypatch.setattr(module, name, looking(getattr(module, name), paths))

    if not hasattr(fcntl, "F_GETPATH"):

        def tell_path(descriptor: int, command: int, given: bytes) -> bytes:
            assert command == 50
            return os.readlink(f"/proc/self/fd/{descriptor}").encode().ljust(len(given), b"\0")

        monkeypatch.setattr(fcntl, "F_GETPATH", 50, raising=False)
        monkeypatch.setattr(fcntl, "fcntl", tell_path)


def _same(name: str, other: str) -> bool:
    return unicodedata.normalize("NFD", name).casefold() == unicodedata.normalize("NFD", other).casefold()


def with_companions(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    """Give each file below a folder its companion, and have the removal of a file take it along."""
    unlink = os.unlink

    def unlink_both(path: Any, *, dir_fd: int | None = None) -> None:
        unlink(path, dir_fd=dir_fd)
        folder, name = os.path.split(os.fspath(path))
        if not name.startswith("._"):
            with contextlib.suppress(FileNotFoundError):
                unlink(os.path.join(folder, f"._{name}"), dir_fd=dir_fd)

    for path in [each for each in root.rglob("*") if each.is_symlink() or each.is_file()]:
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7")
    monkeypatch.setattr(os, "unlink", unlink_both)
    monkeypatch.setattr(os, "remove", unlink_both)


def without_links(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse links of both kinds, as exFAT and most network drives do."""

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(os, "symlink", refuse)
    monkeypatch.setattr(os, "link", refuse)


def without_locks(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Refuse locks, with one of the numbers that mean so."""

    def refuse(*_: Any) -> None:
        raise OSError(number, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
