r"""In-memory double of the files of training data.

files = InMemoryTrainingFiles({"facts.jsonl": b'{"text": "a"}\n', "data/train.jsonl": b"..."})
files.find("data")                          # {"train": "data/train.jsonl"}
"""

import io
from collections.abc import Iterator, Mapping

from mlxk.application.ports.tuning import TrainingFiles
from mlxk.domain.errors import StorageError, ValidationError
from mlxk.domain.tuning.data import SPLITS, TRAIN


class InMemoryTrainingFiles(TrainingFiles):
    """Files held in a dictionary.

    Args:
        files: Content by path.
    """

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = dict(files)

    def find(self, path: str) -> Mapping[str, str]:
        if path in self.files:
            return {TRAIN: path}
        found = {split: f"{path}/{split}.jsonl" for split in SPLITS}
        found = {split: file for split, file in found.items() if file in self.files}
        if not found:
            raise ValidationError(f"data: there is no file '{path}'")
        return found

    def lines(self, path: str, limit: int) -> Iterator[bytes]:
        if path not in self.files:
            raise StorageError(f"data: '{path}' cannot be read")
        for line in io.BytesIO(self.files[path]):
            yield line[: limit + 1]

    def image(self, path: str, limit: int) -> bytes:
        if path not in self.files:
            raise ValidationError("there is no such file")
        return self.files[path][: limit + 1]
