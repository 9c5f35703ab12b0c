"""WAV files whose writer could not go back to state their size, as of recorders that were stopped, or in pipes."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator

from mlxk.domain.errors import StorageError

_HEADER_BYTES = 64 * 1024


@contextlib.contextmanager
def finished(path: str) -> Iterator[str]:
    """Give the path of a copy that says how much sound there is, until the block is left; of other files, their own.

    Args:
        path: A WAV file.

    Raises:
        StorageError: It cannot be read, or there is no room for the copy.
    """
    with contextlib.ExitStack() as kept:
        try:
            place = _place_of_size(path)
            if place is not None:
                folder = kept.enter_context(tempfile.TemporaryDirectory(prefix="mlxk-wav-"))
                path = _with_size(path, place, os.path.join(folder, "sound"))
        except OSError as error:
            raise StorageError(f"The recording cannot be completed: {error.strerror}.") from error
        yield path


def _with_size(path: str, place: int, copy: str) -> str:
    shutil.copyfile(path, copy)
    with open(copy, "r+b") as file:
        file.seek(place)
        file.write((os.path.getsize(copy) - place - 4).to_bytes(4, "little"))
    return copy


def _place_of_size(path: str) -> int | None:
    """Return where the size of the sound stands that is said to be none; None where what the file says holds."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        head = file.read(_HEADER_BYTES)
    if head[:4] != b"RIFF" or int.from_bytes(head[4:8], "little") + 8 >= size:
        return None
    place = 12
    while place + 8 <= len(head):
        stated = int.from_bytes(head[place + 4 : place + 8], "little")
        if head[place : place + 4] == b"data":
            return place + 4 if stated == 0 and place + 8 < size else None
        place += 8 + stated + stated % 2
    return None
