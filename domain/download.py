"""What of a model is fetched: weights that cannot run code, tokenizers, JSON and the papers that come with them.

Owns the choice and its reasons. A pickle or a program is never fetched, because loading it would run it.
"""

import enum

import attrs

from mlxk.domain.errors import IncompatibleModelError
from mlxk.domain.remote_model import RemoteFile, RemoteModel


class SkipReason(enum.Enum):
    """Why a file is left on the hub."""

    PICKLE = "a pickle could run code when it is loaded"
    CODE = "program code is never fetched"
    OTHER_WEIGHTS = "weights in a form that is not used here"
    UNUSED = "not needed to use the model"


@attrs.frozen
class SkippedFile:
    """A file that is left on the hub."""

    path: str
    reason: SkipReason


@attrs.frozen
class DownloadPlan:
    """What a pull fetches of one revision."""

    model: RemoteModel
    files: tuple[RemoteFile, ...]
    """Sorted by path."""
    skipped: tuple[SkippedFile, ...]
    """Sorted by path."""

    @property
    def size_bytes(self) -> int:
        """The sizes of all files to fetch; a content that several files share counts once."""
        return sum({file.digest: file.size_bytes for file in self.files}.values())


_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".mar")
_PROGRAMS = (".py", ".pyc", ".sh", ".so", ".dylib", ".dll", ".exe", ".js", ".whl", ".ipynb")
_OTHER_WEIGHTS = (".gguf", ".ggml", ".onnx", ".onnx_data", ".h5", ".msgpack", ".tflite", ".npz", ".npy", ".mlmodel")
_WANTED = (".safetensors", ".json", ".jsonl", ".jinja", ".model", ".model.v3", ".tiktoken", ".spm", ".txt")
_PAPERS = ("readme", "license", "licence", "notice", "use_policy")


def plan_download(model: RemoteModel) -> DownloadPlan:
    """Choose the files of a model that are fetched.

    Raises:
        IncompatibleModelError: The model has no weights in safetensors files.
    """
    twice = any(file.path.startswith("model") and file.path.endswith(".safetensors") for file in model.files)
    reasons = {file.path: _reason_to_skip(file.path, twice) for file in model.files}
    files = tuple(file for file in model.files if reasons[file.path] is None)
    skipped = tuple(SkippedFile(path, reason) for path, reason in reasons.items() if reason)
    if not any(file.path.endswith(".safetensors") for file in files):
        raise _without_weights(model, skipped)
    return DownloadPlan(model, files, skipped)


def _reason_to_skip(path: str, has_model_files: bool) -> SkipReason | None:
    name = path.rpartition("/")[2].lower()
    if name.endswith(_PICKLES):
        return SkipReason.PICKLE
    if name.endswith(_PROGRAMS):
        return SkipReason.CODE
    if name.endswith(_OTHER_WEIGHTS) or (has_model_files and name.startswith("consolidated") and "/" not in path):
        return SkipReason.OTHER_WEIGHTS
    wanted = name.endswith(_WANTED) or name.startswith(_PAPERS)
    return None if wanted and not path.startswith(".") else SkipReason.UNUSED


def _without_weights(model: RemoteModel, skipped: tuple[SkippedFile, ...]) -> IncompatibleModelError:
    unusable = (SkipReason.PICKLE, SkipReason.OTHER_WEIGHTS)
    weights = [file.path for file in skipped if file.reason in unusable]
    has = (
        f"it has {', '.join(weights[:3])}{' and more' if len(weights) > 3 else ''}" if weights else "it has none at all"
    )
    return IncompatibleModelError(
        f"'{model.name}' has no weights in safetensors files: {has}",
        hint="Look for a conversion of the model, for example in mlx-community on the hub.",
        detail={"weights": weights} if weights else None,
    )
