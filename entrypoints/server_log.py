"""The log files of servers without a terminal: made, found, and read by their owner only."""

import os
import re

from mlxk.domain.errors import StorageError

MOST_BYTES = 8 * 2**20
"""A file that is larger when its server starts is put aside, as the one before it."""

_NAME = re.compile(r"[A-Za-z0-9-]+\.log")


def path_of(state_folder: str, name: str) -> str:
    """Return the path of a log, such as ``server-8000``."""
    return os.path.join(_folder(state_folder), f"{name}.log")


def _folder(state_folder: str) -> str:
    return os.path.join(state_folder, "logs")


def make(state_folder: str, name: str) -> str:
    """Make a log file, unless it exists, for its owner only; return its path.

    Args:
        state_folder: See ``Settings.state_folder``.
        name: Such as ``server-8000``.

    Raises:
        StorageError: It cannot be written.
    """
    path = path_of(state_folder, name)
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        if os.path.isfile(path) and os.path.getsize(path) > MOST_BYTES:
            os.replace(path, f"{path}.1")
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


def newest(state_folder: str) -> str | None:
    """Return the path of the log that was written to last; None where there is none."""
    folder = _folder(state_folder)
    try:
        paths = [os.path.join(folder, name) for name in os.listdir(folder) if _NAME.fullmatch(name)]
        return max(paths, key=os.path.getmtime, default=None)
    except OSError:
        return None
