"""The log files of servers without a terminal: made, found, and read by their owner only."""

import os
import re

from mlxk.domain.errors import StorageError

MOST_BYTES = 8 * 2**20
"""The log of a service that is larger when the service is started is put aside, as the one before it."""

FAILED = "server-failed"
"""The log of the server that could not be started last."""

_NAME = re.compile(r"[A-Za-z0-9-]+\.log")


def path_of(state_folder: str, name: str) -> str:
    """Return the path of a log, such as ``server-8000``."""
    return os.path.join(_folder(state_folder), f"{name}.log")


def _folder(state_folder: str) -> str:
    return os.path.join(state_folder, "logs")


def make(state_folder: str, name: str, *, starts: bool = False) -> str:
    """Make a log file, unless it exists, for its owner only; return its path.

    Args:
        state_folder: See ``Settings.state_folder``.
        name: Such as ``server-8000``.
        starts: Whether its server is started now, so that none is writing to a file that is put aside.

    Raises:
        StorageError: It cannot be written.
    """
    path = path_of(state_folder, name)
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        if starts and os.path.isfile(path) and os.path.getsize(path) > MOST_BYTES:
            _put_aside(path)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.fchmod(descriptor, 0o600)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise StorageError(
            f"the log '{path}' cannot be written: {error.strerror}", hint="XDG_STATE_HOME says where logs are kept."
        ) from error
    return path


def make_for_start(state_folder: str) -> str:
    """Make the log of a server that is about to start, and whose port is not known; return its path.

    Raises:
        StorageError: It cannot be written.
    """
    return make(state_folder, f"server-starting-{os.getpid()}")


def rename(path: str, state_folder: str, name: str) -> str:
    """Give a log its name, and put the one before it aside; return its path, the present one if that fails."""
    target = path_of(state_folder, name)
    try:
        if os.path.isfile(target):
            _put_aside(target)
        os.replace(path, target)
    except OSError:
        return path
    return target


def keep_failed(path: str, state_folder: str) -> None:
    """Name the log of a server that could not be started ``FAILED``, or remove it where it says nothing."""
    try:
        says_nothing = os.path.getsize(path) == 0
        if says_nothing:
            os.unlink(path)
    except OSError:
        return
    if not says_nothing:
        rename(path, state_folder, FAILED)


def _put_aside(path: str) -> None:
    os.replace(path, f"{path}.1")


def newest(state_folder: str) -> str | None:
    """Return the path of the log that was written to last; None where there is none."""
    folder = _folder(state_folder)
    try:
        paths = [os.path.join(folder, name) for name in os.listdir(folder) if _NAME.fullmatch(name)]
        return max(paths, key=os.path.getmtime, default=None)
    except OSError:
        return None
