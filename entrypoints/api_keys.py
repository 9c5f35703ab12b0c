"""The API keys of ``serve``: the key file, and the keys that are valid now.

A server rereads its key file when it changes: a key added or removed counts from the next request on.
"""

import codecs
import hashlib
import hmac
import os
import stat
import threading
from collections.abc import Callable, Sequence

from mlxk.domain.errors import MlxkError, StorageError, UsageError, ValidationError
from mlxk.domain.text import lines_of

MAX_KEY_FILE_BYTES = 2**20


def read_key_file(path: str) -> tuple[str, ...]:
    """Return the keys of a file, one a line; blank lines and lines that begin with # are skipped.

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
        lines = lines_of(_text(data))
    except UnicodeDecodeError as error:
        raise ValidationError(
            f"--api-key-file: '{path}' is not UTF-8 text", hint="Name a text file with one key a line."
        ) from error
    keys = tuple(key for line in lines if (key := line.strip()) and not key.startswith("#"))
    if not keys:
        raise ValidationError(f"--api-key-file: '{path}' holds no key", hint="Write one key a line into it.")
    return keys


def is_followed(path: str) -> bool:
    """Whether a key file can be reread when it changes: it is a regular file, and no pipe."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return False


def _text(data: bytes) -> str:
    """Decode UTF-8, or UTF-16 with a byte order mark, which some editors and shells write."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16")
    return data.decode("utf-8-sig")


class KeyRing:
    """The valid API keys, as SHA-256 digests. Thread-safe.

    Args:
        keys: Keys that are valid as long as the server runs.
        path: A file with further keys, reread when it changes; None for none.
        on_failure: Called when a changed file cannot be read; its former keys stay valid.
        operators: The operator's key, which is also one of ``keys``; None for none.

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
        self._file_state: object = None
        self._file_keys: tuple[bytes, ...] = ()
        if path is not None:
            self._file_state = _state_of(path)
            self._file_keys = tuple(map(_digest, read_key_file(path)))

    def __bool__(self) -> bool:
        """Whether clients need a key."""
        return bool(self._fixed or self._path)

    def opens(self, key: str) -> bool:
        """Whether a key is valid; compared in constant time."""
        return _is_among(key, (*self._fixed, *self._current_file_keys()))

    def is_operators(self, key: str) -> bool:
        """Whether a key is the operator's; compared in constant time."""
        return _is_among(key, self._operators)

    def _current_file_keys(self) -> tuple[bytes, ...]:
        if self._path is None:
            return ()
        with self._lock:
            state = _state_of(self._path)
            if state != self._file_state:
                self._file_state = state
                try:
                    self._file_keys = tuple(map(_digest, read_key_file(self._path)))
                except MlxkError as error:
                    self._on_failure(error)
            return self._file_keys


def tenant_of(key: str, division: str | None) -> str:
    """Return the opaque id of the tenant whose cached prompts a client shares; it does not reveal the key.

    Args:
        key: The client's key; empty where clients need none.
        division: A part of the key's tenant, as the client names it; None for the whole.
    """
    own = _digest(key).hex() if key else ""
    return f"{own}/{_digest(division).hex()}" if division else own


def _is_among(key: str, known: Sequence[bytes]) -> bool:
    digest = _digest(key)
    return bool(sum(hmac.compare_digest(digest, each) for each in known))


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()


def _state_of(path: str) -> object:
    """Return a value that changes when the file does; None where there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def key_to_send(path: str) -> str:
    """Return the first key of a file, for requests to another server.

    Raises:
        UsageError: It has characters that an HTTP header cannot hold.
        StorageError, ValidationError: See ``read_key_file``.
    """
    key = read_key_file(path)[0]
    if not key.isascii() or not key.isprintable():
        raise UsageError(f"--api-key-file: the first key of '{path}' cannot be sent")
    return key
