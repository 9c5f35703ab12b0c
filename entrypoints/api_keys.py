"""The API keys of ``serve``: the key file, and the keys that hold at this moment.

A server follows its key file: a key that is added or removed counts from the next request on.
"""

import codecs
import hashlib
import hmac
import os
import stat
import threading
from collections.abc import Callable, Sequence

from mlxk.domain.errors import MlxkError, StorageError, UsageError, ValidationError

MAX_KEY_FILE_BYTES = 2**20


def read_key_file(path: str) -> tuple[str, ...]:
    """Return the keys of a file, one a line, without blank lines and comments.

    Raises:
        StorageError: It cannot be read.
        ValidationError: It is too large, is no text, or has no key.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_KEY_FILE_BYTES + 1)
    except OSError as error:
        raise StorageError(f"--api-key-file: '{path}' cannot be read: {error.strerror}") from error
    if len(data) > MAX_KEY_FILE_BYTES:
        raise ValidationError(
            f"--api-key-file: '{path}' is larger than {MAX_KEY_FILE_BYTES // 2**20} MiB",
            hint="Name a text file with one key a line.",
        )
    try:
        lines = _text(data).splitlines()
    except UnicodeDecodeError as error:
        raise ValidationError(
            f"--api-key-file: '{path}' is not UTF-8 text", hint="Name a text file with one key a line."
        ) from error
    keys = tuple(key for line in lines if (key := line.strip()) and not key.startswith("#"))
    if not keys:
        raise ValidationError(f"--api-key-file: '{path}' holds no key", hint="Write one key a line into it.")
    return keys


def is_followed(path: str) -> bool:
    """Whether a key file can be read again when it changes; a pipe cannot."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return False


def _text(data: bytes) -> str:
    """Decode a file; some editors and shells write UTF-16 or begin with a byte order mark."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16")
    return data.decode("utf-8-sig")


class KeyRing:
    """The keys that hold now. Safe to share between threads.

    Args:
        keys: Keys that hold for as long as the server runs.
        path: A file with further keys, read again when it changes; None for none.
        on_failure: Called when a changed file cannot be read; its former keys then remain.
        operators: The one of them that the operator keeps; None for none.

    Raises:
        MlxkError: The file cannot be read.
    """

    def __init__(
        self,
        keys: Sequence[str],
        path: str | None,
        on_failure: Callable[[MlxkError], None],
        operators: str | None = None,
    ) -> None:
        self._fixed = tuple(map(_digest, keys))
        self._operators = () if operators is None else (_digest(operators),)
        self._path = path
        self._on_failure = on_failure
        self._lock = threading.Lock()
        self._state: object = None
        self._of_file: tuple[bytes, ...] = ()
        if path is not None:
            self._state = _state_of(path)
            self._of_file = tuple(map(_digest, read_key_file(path)))

    def __bool__(self) -> bool:
        """Whether clients need a key."""
        return bool(self._fixed or self._path)

    def opens(self, key: str) -> bool:
        """Whether a key holds, in constant time."""
        return _is_among(key, (*self._fixed, *self._followed()))

    def is_operators(self, key: str) -> bool:
        """Whether a key is the one that the operator keeps."""
        return _is_among(key, self._operators)

    def _followed(self) -> tuple[bytes, ...]:
        if self._path is None:
            return ()
        with self._lock:
            state = _state_of(self._path)
            if state != self._state:
                self._state = state
                try:
                    self._of_file = tuple(map(_digest, read_key_file(self._path)))
                except MlxkError as error:
                    self._on_failure(error)
            return self._of_file


def tenant_of(key: str, division: str | None) -> str:
    """Return whose prompts those of a client are, opaque, without a way back to its key.

    Args:
        key: The client's; empty where clients need none.
        division: Divides what one key opens further, as the client names its parts; None does not.
    """
    own = _digest(key).hex() if key else ""
    return f"{own}/{_digest(division).hex()}" if division else own


def _is_among(key: str, known: Sequence[bytes]) -> bool:
    digest = _digest(key)
    return bool(sum(hmac.compare_digest(digest, each) for each in known))


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()


def _state_of(path: str) -> object:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def key_to_send(path: str) -> str:
    """Return the first key of a file, for a server that is asked.

    Raises:
        UsageError: It cannot be sent.
        StorageError, ValidationError: See ``read_key_file``.
    """
    key = read_key_file(path)[0]
    if not key.isascii() or not key.isprintable():
        raise UsageError(f"--api-key-file: the first key of '{path}' cannot be sent")
    return key
