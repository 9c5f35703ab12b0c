"""The files of the sockets: their folders and names, and how one appears and goes."""

import contextlib
import hashlib
import os
import socket
import stat

from mlxk.domain.errors import StorageError

SUFFIX = ".sock"

_LONGEST_PATH = 100
"""Bytes of a socket's path, of which systems take 103 to 107."""

_TRIES = 3
"""How often to make a folder that the last server in it removes at the same moment."""


def socket_folders(wanted: str) -> tuple[str, ...]:
    """Return where sockets may lie: the wanted folder, unless paths in it are too long, then a short one in ``/tmp``.

    The second one serves where the wanted folder takes no sockets, as on some network drives; a server uses the first
    that works, and its clients look into both.
    """
    digest = hashlib.sha256(os.fsencode(wanted)).hexdigest()[:12]
    short = f"/tmp/mlxk-{os.geteuid()}-{digest}"
    fits = len(os.fsencode(os.path.join(wanted, socket_name(2**22)))) <= _LONGEST_PATH
    return (wanted, short) if fits else (short,)


def socket_name(process: int) -> str:
    """Return the name of the socket of a process of this machine; others may have theirs in the same network folder."""
    return f"{process}-{hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]}{SUFFIX}"


def require_own_folder(path: str) -> None:
    """Check that a folder belongs to this user, and that nobody else may enter it.

    Raises:
        FileNotFoundError: It does not exist.
        StorageError: Another user could have put a socket there.
    """
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise StorageError(f"'{path}' is not a folder of this user alone", hint=f"Remove it, or: chmod 700 '{path}'")


def listen(folder: str, places: int) -> tuple[socket.socket, str]:
    """Make the socket of this process in a folder, which is made as well; return it and its path.

    Args:
        folder: For sockets.
        places: How many connections may wait.

    Raises:
        OSError: The folder cannot be made, or takes no sockets.
        StorageError: The folder is not one of this user alone.
    """
    for _ in range(_TRIES - 1):
        with contextlib.suppress(FileNotFoundError):
            return _listen(folder, places)
    return _listen(folder, places)


def _listen(folder: str, places: int) -> tuple[socket.socket, str]:
    os.makedirs(os.path.dirname(folder), mode=0o700, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, mode=0o700)
    require_own_folder(folder)
    _remove_stale(folder)
    path = os.path.join(folder, socket_name(os.getpid()))
    # Until it listens, it would look like the socket of a server that has died, which others remove.
    unseen = path.removesuffix(SUFFIX)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(unseen)  # of a former process with this number
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listening.bind(unseen)
        os.chmod(unseen, 0o600)
        listening.listen(places)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.connect(unseen)  # which some file systems refuse though they let sockets be made
            listening.accept()[0].close()
        os.rename(unseen, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(unseen)
        listening.close()
        raise
    return listening, path


def _remove_stale(folder: str) -> None:
    """Remove the sockets of servers of this machine that have died."""
    ours = socket_name(0).removeprefix("0")
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        if not name.endswith(ours):
            continue
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                os.unlink(path)
