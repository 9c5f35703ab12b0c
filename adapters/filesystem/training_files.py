"""Files of training data on the local disk."""

import os
import stat
from collections.abc import Iterator, Mapping

from mlxk.application.ports.tuning import TrainingFiles
from mlxk.domain.errors import StorageError, ValidationError
from mlxk.domain.tuning.data import SPLITS, TRAIN

_ENDING = ".jsonl"
_JSON_ENDINGS = (_ENDING, ".ndjson", ".json")
_FORMAT_HINT = "Name a file of JSON lines, or a folder with train.jsonl, and perhaps valid.jsonl and test.jsonl."


class FilesystemTrainingFiles(TrainingFiles):
    """Reads regular files; links are followed."""

    def find(self, path: str) -> Mapping[str, str]:
        if not path.strip() or "\0" in path:
            raise ValidationError("data: the path is empty", hint=_FORMAT_HINT)
        location = os.path.abspath(os.path.expanduser(path))
        if os.path.isdir(location):
            files = {split: os.path.join(location, split + _ENDING) for split in SPLITS}
            files = {split: file for split, file in files.items() if os.path.lexists(file)}
            if not files:
                raise ValidationError(f"data: there is no {TRAIN}{_ENDING} in '{path}'", hint=_FORMAT_HINT)
        else:
            files = {TRAIN: location}
        for file in files.values():
            _require_json_lines(file, path)
        return files

    def lines(self, path: str, limit: int) -> Iterator[bytes]:
        try:
            with open(path, "rb") as file:
                while line := file.readline(limit + 1):
                    yield line
                    while len(line) > limit and not line.endswith(b"\n"):
                        line = file.readline(limit + 1)
        except OSError as error:
            raise _unreadable(path, error) from error

    def image(self, path: str, limit: int) -> bytes:
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):
                raise ValidationError("is no regular file")
            with open(path, "rb") as file:
                return file.read(limit + 1)
        except FileNotFoundError as error:
            raise ValidationError("there is no such file") from error
        except OSError as error:
            raise ValidationError(f"cannot be read: {error.strerror}") from error


def _require_json_lines(file: str, typed: str) -> None:
    """Refuse a path that is no regular file, or has the ending of another file type."""
    name = os.path.basename(file)
    try:
        mode = os.stat(file).st_mode
    except FileNotFoundError as error:
        raise ValidationError(f"data: there is no file '{typed}'", hint=_FORMAT_HINT) from error
    except OSError as error:
        raise _unreadable(file, error) from error
    if not stat.S_ISREG(mode):
        raise ValidationError(f"data: '{name}' is no regular file", hint=_FORMAT_HINT)
    ending = os.path.splitext(name)[1].lower()
    if ending and ending not in _JSON_ENDINGS and ending != ".txt":
        raise ValidationError(f"data: '{name}' is no file of JSON lines ({_ENDING})", hint=_FORMAT_HINT)


def _unreadable(path: str, error: OSError) -> StorageError:
    return StorageError(f"data: '{os.path.basename(path)}' cannot be read: {error.strerror}")
