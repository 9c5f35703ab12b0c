"""Publishing a folder: which files are uploaded, what changes on the hub, and the signs that a file holds a secret."""

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

import attrs

from mlxk.domain.download import RemoteFile
from mlxk.domain.models.model import SENTINEL_NAME

IGNORE_FILE = ".hfignore"
"""Rules of the folder, in the language of ``.gitignore``."""

USUALLY_IGNORED = (
    ".DS_Store", "Thumbs.db", ".hfignore", ".gitignore", "__pycache__/", "*.pyc", ".venv/", "venv/",
    ".ipynb_checkpoints/",
)  # fmt: skip
"""Left out unless the folder's own rules say otherwise."""

NEVER_PUBLISHED = (
    f"{SENTINEL_NAME}*",
    ".hf_cache/",
    ".git/",
    ".cache/huggingface/",
    "*.mlxk-draft/",
    ".mlxk_draft.lock",
)
"""Facts and leftovers of this machine."""

KEPT_ON_THE_HUB = frozenset({".gitattributes"})
"""What the hub itself needs; a push that deletes what the folder lacks spares these."""


@attrs.frozen
class LocalFile:
    """One file of a folder that may be published."""

    path: str
    """Relative to the folder, with ``/`` between parts."""
    size_bytes: int


@attrs.frozen
class FolderScan:
    """What a folder holds, by its rules."""

    files: tuple[LocalFile, ...]
    """To be published, sorted by path."""
    outward_links: tuple[str, ...]
    """Links that lead out of the folder, or nowhere, and that no rule leaves out, sorted."""

    @property
    def size_bytes(self) -> int:
        """The sizes of all files together."""
        return sum(file.size_bytes for file in self.files)


@attrs.frozen
class ContentDigests:
    """What a file hashes to in the two ways the hub knows."""

    sha256: str
    blob_id: str
    """git's sha1 of it as a blob."""


@attrs.frozen
class RemoteState:
    """A repository at one of its branches, as a push finds it."""

    exists: bool = False
    private: bool = False
    branch_exists: bool = False
    commit: str | None = None
    """The head of the branch; of the default branch when that branch does not exist."""
    files: tuple[RemoteFile, ...] = ()
    """At that commit, sorted by path."""


@attrs.frozen
class ChangeSet:
    """What a push changes; every tuple is sorted."""

    added: tuple[str, ...] = ()
    modified: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.modified or self.deleted)

    @property
    def uploads(self) -> tuple[str, ...]:
        """The files whose content goes up, sorted."""
        return tuple(sorted((*self.added, *self.modified)))


def compare(local: Mapping[str, ContentDigests | None], remote: tuple[RemoteFile, ...], *, delete: bool) -> ChangeSet:
    """Return what makes a branch hold what a folder holds.

    Args:
        local: Path to digests; they may be None where the branch has no file of that name.
        remote: The files of the branch.
        delete: Whether files that the folder lacks are deleted.
    """
    there = {file.path: file for file in remote}
    modified = []
    for path, digests in local.items():
        known = there.get(path)
        if known and (digests is None or known.digest != (digests.sha256 if known.sha256 else digests.blob_id)):
            modified.append(path)
    deleted = sorted(there.keys() - local.keys() - KEPT_ON_THE_HUB) if delete else []
    return ChangeSet(tuple(sorted(local.keys() - there.keys())), tuple(sorted(modified)), tuple(deleted))


MAX_SCANNED_BYTES = 64 * 1024 * 1024
"""Longer texts are data, not settings; of those only the name is judged."""


@attrs.frozen
class SecretFinding:
    """One place that looks like a secret."""

    path: str
    kind: str
    """What it looks like, in words."""
    line: int | None = None
    """Counted from 1; None when it is the name."""

    def __str__(self) -> str:
        where = f"{self.path}:{self.line}" if self.line else self.path
        return f"{where} ({self.kind})"


_NAMES = (
    ".env", ".env.*", "*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.kdbx", "*.ppk", "id_rsa*", "id_dsa*", "id_ecdsa*",
    "id_ed25519*", ".netrc", "_netrc", ".npmrc", ".pypirc", ".htpasswd", ".git-credentials", "credentials",
    "credentials.json", "client_secret*.json", "service_account*.json", "token", "stored_tokens", ".docker/config.json",
    ".aws/*", ".ssh/*", ".kube/config",
)  # fmt: skip


@attrs.frozen
class _Shape:
    """What one kind of secret looks like."""

    kind: str
    beginnings: tuple[str, ...]
    """Every secret of this kind has one of them; looking for them first is a hundred times faster than matching."""
    pattern: re.Pattern[str]


_SHAPES = (
    _Shape("a Hugging Face token", ("hf_",), re.compile(r"\bhf_[A-Za-z0-9]{30,}\b")),
    _Shape("a private key", ("-----BEGIN",), re.compile(r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----")),
    _Shape("an AWS access key", ("AKIA", "ASIA"), re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b")),
    _Shape(
        "a GitHub token",
        ("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"),
        re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{50,})\b"),
    ),
    _Shape("a GitLab token", ("glpat-",), re.compile(r"\bglpat-[A-Za-z0-9_-]{20,}")),
    _Shape("an API key", ("sk-",), re.compile(r"\bsk-[A-Za-z0-9_-]{32,}")),
    _Shape("a Google API key", ("AIza",), re.compile(r"\bAIza[0-9A-Za-z_-]{35}\b")),
    _Shape("a Slack token", ("xox",), re.compile(r"\bxox[abprs]-[A-Za-z0-9-]{20,}")),
    _Shape(
        "a package registry token",
        ("npm_", "pypi-"),
        re.compile(r"\b(?:npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_-]{50,})\b"),
    ),
)

_SHORTEST_LOCAL_PATH = 4
"""Characters; shorter directories occur in any text."""


def judge_name(path: str) -> SecretFinding | None:
    """Return a finding when files of that name are made to hold secrets."""
    lower = path.lower()
    name = lower.rpartition("/")[2]
    for pattern in _NAMES:
        fits = (
            fnmatchcase(lower, pattern) or fnmatchcase(lower, f"*/{pattern}")
            if "/" in pattern
            else fnmatchcase(name, pattern)
        )
        if fits:
            return SecretFinding(path, "a file that holds secrets, by its name")
    return None


def judge_text(path: str, text: str, local_paths: Iterable[str]) -> list[SecretFinding]:
    """Return the findings in a text, one of a kind.

    Args:
        path: Whose text it is.
        text: The whole of it.
        local_paths: Directories of this machine whose names are nobody's business.
    """
    findings = []
    for shape in (*_SHAPES, *(_shape_of(directory) for directory in local_paths if _tells(directory))):
        found = shape.pattern.search(text) if any(beginning in text for beginning in shape.beginnings) else None
        if found:
            findings.append(SecretFinding(path, shape.kind, text.count("\n", 0, found.start()) + 1))
    return list(dict.fromkeys(findings))


def _tells(directory: str) -> bool:
    return len(directory) >= _SHORTEST_LOCAL_PATH and directory.startswith("/")


def _shape_of(directory: str) -> _Shape:
    """Match a directory as JSON and other text write it, and not as the beginning of a longer name."""
    pattern = r"(?<![\w/.-])" + re.escape(directory).replace("/", r"\\?/") + r"(?![\w.-])"
    return _Shape("a path of this machine", (directory.rpartition("/")[2],), re.compile(pattern))
