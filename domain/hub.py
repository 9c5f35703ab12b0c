"""Models on the hub: search, recommendations, file listings, and the selection of files to download.

A download takes weights that cannot run code, tokenizers, JSON and documents.
"""

import enum
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Generic, TypeVar

import attrs

from mlxk.domain.errors import Advice, DownloadFailedError, IncompatibleModelError, Remedy, ValidationError
from mlxk.domain.models.footprint import MemoryFit
from mlxk.domain.models.snapshot import is_litter
from mlxk.domain.models.weights import stray_weights
from mlxk.domain.text import is_valid_unicode

_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/+-]{0,254}")
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHORT_COMMIT = re.compile(r"[0-9a-f]{7,40}")


@attrs.frozen
class RemoteFile:
    """One file of a model on the hub."""

    path: str
    """Relative to the repository, with ``/`` between parts."""
    size_bytes: int
    blob_id: str
    """git's sha1 of the content, or of the LFS pointer when ``sha256`` is given."""
    sha256: str | None = None
    """SHA-256 of the content; None for files outside LFS."""
    chunk_hash: str | None = None
    """Hash of the content in the hub's chunk store; recorded for other clients of the cache."""

    @property
    def digest(self) -> str:
        """Expected digest of the content: 64 digits of sha256, or 40 of git's sha1 of the blob."""
        return self.sha256 or self.blob_id


@attrs.frozen
class RemoteModel:
    """One revision of a model on the hub."""

    name: str
    """``org/name``."""
    commit: str
    """40 hexadecimal digits."""
    files: tuple[RemoteFile, ...]
    """All files, sorted by path."""
    revision: str | None = None
    """The requested branch or tag; None for the default branch or a commit."""
    made_for_mlx: bool = False
    """Whether its author declares the MLX format."""
    indexed: frozenset[str] = frozenset()
    """The weight files named by its index; empty without an index."""
    tensors: Mapping[str, Collection[str]] = attrs.field(factory=dict)
    """Weight file to the names of its tensors; empty when unknown."""

    @property
    def reference(self) -> str | None:
        """The branch or tag that points to the commit; None when a commit was requested."""
        return None if self.revision == self.commit else self.revision or "main"


def check_revision(revision: str) -> str:
    """Validate a branch, tag or commit and return it.

    Raises:
        ValidationError: git does not allow the name, or as a path it would leave its directory.
    """
    parts = revision.split("/")
    sound = _REVISION.fullmatch(revision) and not any(
        not part or part.startswith(".") or part.endswith((".", ".lock")) or ".." in part for part in parts
    )
    if not sound:
        raise ValidationError(f"revision '{revision}' is not the name of a branch, a tag or a commit")
    return revision


def check_commit(commit: str | None) -> str:
    """Validate a commit from the hub and return it.

    Raises:
        DownloadFailedError: It is not 40 hexadecimal digits.
    """
    if not commit or not _COMMIT.fullmatch(commit):
        raise DownloadFailedError("the hub gave no usable commit for the model")
    return commit


def check_file(file: RemoteFile) -> RemoteFile:
    """Validate a file of the hub's listing and return it.

    Raises:
        DownloadFailedError: The path leads out of the repository, or the digest is invalid.
    """
    parts = file.path.split("/")
    if not all(map(is_valid_unicode, (file.path, file.blob_id, file.sha256 or "", file.chunk_hash or ""))):
        raise DownloadFailedError("the hub lists a file whose name is no text")
    unsafe = {"", ".", ".."} & set(parts) or "\\" in file.path or ":" in parts[0][1:2]
    if unsafe or any(ord(character) < 32 for character in file.path) or len(file.path) > 1024:
        raise DownloadFailedError(f"the hub lists a file with an unusable path: {file.path[:80]!r}")
    if not _DIGEST.fullmatch(file.digest) or file.size_bytes < 0:
        raise DownloadFailedError(f"the hub gave no usable checksum for {file.path}")
    return file


def is_commit(text: str) -> bool:
    """Whether a text is a full commit hash."""
    return _COMMIT.fullmatch(text) is not None


def abbreviates(text: str, commit: str | None) -> bool:
    """Whether a text is a prefix of a commit, of at least seven digits, as git prints them."""
    return commit is not None and _SHORT_COMMIT.fullmatch(text) is not None and commit.startswith(text)


class SkipReason(enum.Enum):
    """Reason not to download a file."""

    PICKLE = "a pickle could run code when it is loaded"
    CODE = "program code is never fetched"
    OTHER_WEIGHTS = "weights in a form that is not used here"
    UNUSED = "not needed to use the model"


@attrs.frozen
class SkippedFile:
    """A file that is not downloaded."""

    path: str
    reason: SkipReason


@attrs.frozen
class DownloadPlan:
    """The files of one revision that a pull downloads."""

    model: RemoteModel
    files: tuple[RemoteFile, ...]
    """Sorted by path."""
    skipped: tuple[SkippedFile, ...]
    """Sorted by path."""

    @property
    def size_bytes(self) -> int:
        """Size of the download; identical files count once."""
        return sum({file.digest: file.size_bytes for file in self.files}.values())


_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".mar")
_PROGRAMS = (".py", ".pyc", ".sh", ".so", ".dylib", ".dll", ".exe", ".js", ".whl", ".ipynb")
_OTHER_WEIGHTS = (".gguf", ".ggml", ".onnx", ".onnx_data", ".h5", ".msgpack", ".tflite", ".npz", ".npy", ".mlmodel")
_WANTED = (".safetensors", ".json", ".jsonl", ".jinja", ".model", ".model.v3", ".tiktoken", ".spm", ".txt")
_PAPERS = ("readme", "license", "licence", "notice", "use_policy")


def plan_download(model: RemoteModel) -> DownloadPlan:
    """Select the files of a model to download.

    Raises:
        IncompatibleModelError: The model has no weights in safetensors files.
    """
    strays = frozenset(stray_weights([file.path for file in model.files], model.indexed, model.tensors or None))
    reasons = {file.path: _reason_to_skip(file.path, file.path in strays) for file in model.files}
    files = tuple(file for file in model.files if reasons[file.path] is None)
    skipped = tuple(SkippedFile(path, reason) for path, reason in reasons.items() if reason)
    if not any(file.path.endswith(".safetensors") for file in files):
        raise _without_weights(model, skipped)
    return DownloadPlan(model, files, skipped)


def _reason_to_skip(path: str, stray: bool) -> SkipReason | None:
    name = path.rpartition("/")[2].lower()
    if name.endswith(_PICKLES):
        return SkipReason.PICKLE
    if name.endswith(_PROGRAMS):
        return SkipReason.CODE
    if is_litter(path):
        return SkipReason.UNUSED
    if stray or name.endswith(_OTHER_WEIGHTS):
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
        hint=Advice(Remedy.FIND_CONVERSION),
        detail={"weights": weights} if weights else None,
    )


MAX_TERMS = 200
"""Most characters of a search's terms."""
MAX_RESULTS = 100
"""Most results of a search."""


@attrs.frozen
class FoundModel:
    """One result of a search."""

    name: str
    """``org/name``."""
    made_for_mlx: bool
    """Whether its author declares the MLX format."""
    weight_bytes: int | None
    """Size of its safetensors, by element types and counts; None where the hub does not report these."""
    downloads: int
    """Downloads of the last month."""
    license: str | None
    gated: bool
    """Whether its author grants access to it."""


@attrs.frozen
class RemoteCard:
    """The details of one model on the hub."""

    model: RemoteModel
    """Its revision and files."""
    downloads: int
    """Downloads of the last month."""
    license: str | None
    library: str | None
    """The library declared by its author, such as ``mlx`` or ``transformers``."""
    task: str | None
    """The task declared by its author, such as ``text-generation``."""
    base_models: tuple[str, ...]
    """Names of the models that it derives from, sorted."""
    gated: bool
    """Whether its author grants access to it."""
    private: bool
    accessible: bool
    """Whether its files can be read with the token, or without one where there is none."""
    config: Mapping[str, object] | None = None
    """Its ``config.json``; None where that is missing, not accessible or not an object."""


def check_terms(terms: str) -> str:
    """Validate the terms of a search and return them with single spaces between words.

    Raises:
        ValidationError: They are blank or too long.
    """
    stripped = " ".join(terms.split())
    if not stripped:
        raise ValidationError("a search needs at least one word", hint="For example: llama 3b")
    if len(stripped) > MAX_TERMS:
        raise ValidationError(f"the terms of a search must have at most {MAX_TERMS} characters")
    return stripped


def mlx_first(models: Iterable[FoundModel]) -> tuple[FoundModel, ...]:
    """Return the models without duplicates: those for MLX first, each group by downloads, descending."""
    unique = {model.name: model for model in models}.values()
    return tuple(sorted(unique, key=lambda model: (not model.made_for_mlx, -model.downloads, model.name)))


class Purpose(enum.Enum):
    """The purpose of a recommended model."""

    CHAT = "chat"
    CODE = "code"
    VISION = "vision"
    SPEECH = "speech"
    EMBED = "embed"


SCALE_BITS = 32
"""Bits of the scale and the bias of one group of quantized weights, 16 each."""


Value = TypeVar("Value", int, str)


@attrs.frozen
class Fact(Generic[Value]):
    """A value with its source."""

    value: Value
    source: str
    """URL of a page that states it."""
    date: str
    """Date when the page was read, as in 2026-11-29."""
    note: str | None = None
    """Where or how the page states it, if that is not obvious."""


@attrs.frozen
class RecommendedModel:
    """One model of the recommendations."""

    name: str
    """``org/name``."""
    purpose: Purpose
    why: str
    """One line, for a user who chooses."""
    bits: int
    """Bits per weight."""
    group_size: int | None
    """Weights that share a scale and a bias; None for weights that are not quantized."""
    parameters: Fact[int] | None
    """Number of parameters."""
    stated_bytes: Fact[int] | None
    """Size of the weights; None where no source states it."""
    context_length: Fact[int] | None
    """Context window, tokens."""
    license: Fact[str] | None

    @property
    def weight_bytes(self) -> int:
        """Size of the weights: as stated, else parameters times bits, scales and biases included; 0 when unknown."""
        if self.stated_bytes is not None:
            return self.stated_bytes.value
        if self.parameters is None:
            return 0
        bits = self.bits + (SCALE_BITS / self.group_size if self.group_size else 0)
        return round(self.parameters.value * bits / 8)

    @property
    def is_computed(self) -> bool:
        """Whether ``weight_bytes`` is computed from the number of parameters."""
        return self.stated_bytes is None


@attrs.frozen
class Recommendations:
    """The recommended models."""

    models: tuple[RecommendedModel, ...]
    searches: Mapping[Purpose, str]
    """Terms of a search on the hub for further models of each purpose."""


@attrs.frozen
class ModelPair:
    """The same model in two registries, at a similar number of bits."""

    here: str
    """Its name on the hub."""
    elsewhere: str
    """Its name in the other registry."""


@attrs.frozen
class Recommendation:
    """A recommended model, and whether it fits into this machine's memory."""

    model: RecommendedModel
    fit: MemoryFit


_FIT_ORDER = (MemoryFit.FITS, MemoryFit.TIGHT, MemoryFit.UNKNOWN, MemoryFit.EXCEEDS)


def best_first(recommendations: Iterable[Recommendation]) -> tuple[Recommendation, ...]:
    """Return recommendations by purpose, then by fit, then the largest first.

    Of those that do not fit, the smallest comes first: it lacks the least memory.
    """
    purposes = list(Purpose)

    def key(recommendation: Recommendation) -> tuple[int, int, int]:
        size, fit = recommendation.model.weight_bytes, recommendation.fit
        return (
            purposes.index(recommendation.model.purpose),
            _FIT_ORDER.index(fit),
            size if fit is MemoryFit.EXCEEDS else -size,
        )

    return tuple(sorted(recommendations, key=key))
