"""Publication of a folder on the hub: selection of files, changes of a push, and detection of secrets."""

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

import attrs

from mlxk.domain.hub import RemoteFile
from mlxk.domain.models.model import SENTINEL_NAME

IGNORE_FILE = ".hfignore"
"""Ignore rules of the folder, in the syntax of ``.gitignore``."""

USUALLY_IGNORED = (
    ".DS_Store", "Thumbs.db", ".hfignore", ".gitignore", "__pycache__/", "*.pyc", ".venv/", "venv/",
    ".ipynb_checkpoints/",
)  # fmt: skip
"""Patterns ignored unless the folder's own rules include them."""

NEVER_PUBLISHED = (
    f"{SENTINEL_NAME}*",
    ".hf_cache/",
    ".git/",
    ".cache/huggingface/",
    "*.mlxk-draft/",
    ".mlxk_draft.lock",
)
"""Patterns of local records and temporary files; no rule can include them."""

KEPT_ON_THE_HUB = frozenset({".gitattributes"})
"""Files that the hub needs; a push with deletion keeps them."""


@attrs.frozen
class LocalFile:
    """One file of a folder to publish."""

    path: str
    """Relative to the folder, with ``/`` between parts."""
    size_bytes: int


@attrs.frozen
class FolderScan:
    """The files of a folder, after its ignore rules."""

    files: tuple[LocalFile, ...]
    """Files to publish, sorted by path."""
    outward_links: tuple[str, ...]
    """Links that leave the folder or dangle, and that no rule ignores, sorted."""

    @property
    def size_bytes(self) -> int:
        """Total size of the files."""
        return sum(file.size_bytes for file in self.files)


@attrs.frozen
class ContentDigests:
    """Digests of a file, by both algorithms of the hub."""

    sha256: str
    blob_id: str
    """git's sha1 of the content as a blob."""


@attrs.frozen
class RemoteState:
    """State of a repository and one of its branches before a push."""

    exists: bool = False
    private: bool = False
    branch_exists: bool = False
    commit: str | None = None
    """Head of the branch, or of the default branch when the branch does not exist."""
    files: tuple[RemoteFile, ...] = ()
    """At that commit, sorted by path."""


@attrs.frozen
class ChangeSet:
    """Changes of a push; every tuple is sorted."""

    added: tuple[str, ...] = ()
    modified: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.modified or self.deleted)

    @property
    def uploads(self) -> tuple[str, ...]:
        """Files to upload, sorted."""
        return tuple(sorted((*self.added, *self.modified)))


def compare(local: Mapping[str, ContentDigests | None], remote: tuple[RemoteFile, ...], *, delete: bool) -> ChangeSet:
    """Return the changes that make a branch equal to a folder.

    Args:
        local: Path to digests; None where the branch has no file of that path and size, so that none are needed.
        remote: The files of the branch.
        delete: Whether to delete files that the folder lacks.
    """
    by_path = {file.path: file for file in remote}
    modified = []
    for path, digests in local.items():
        known = by_path.get(path)
        if known and (digests is None or known.digest != (digests.sha256 if known.sha256 else digests.blob_id)):
            modified.append(path)
    deleted = sorted(by_path.keys() - local.keys() - KEPT_ON_THE_HUB) if delete else []
    return ChangeSet(tuple(sorted(local.keys() - by_path.keys())), tuple(sorted(modified)), tuple(deleted))


MAX_SCANNED_BYTES = 64 * 1024 * 1024
"""Size above which a file counts as data, so that only its name is checked."""


@attrs.frozen
class SecretFinding:
    """A possible secret."""

    path: str
    kind: str
    """Kind of secret, as shown to the user."""
    line: int | None = None
    """Counted from 1; None when the file name is the finding."""

    def __str__(self) -> str:
        where = f"{self.path}:{self.line}" if self.line else self.path
        return f"{where} ({self.kind})"


_NAMES = (
    ".env", ".env.*", "*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.kdbx", "*.ppk", "id_rsa*", "id_dsa*", "id_ecdsa*",
    "id_ed25519*", ".netrc", "_netrc", ".npmrc", ".pypirc", ".htpasswd", ".git-credentials", "credentials",
    "credentials.json", "client_secret*.json", "service_account*.json", "token", "stored_tokens", ".docker/config.json",
    ".aws/*", ".ssh/*", ".kube/config", ".*_history", ".histfile", ".history", ".lesshst", ".rhistory", ".viminfo",
    "chat_history*", "chat-history*", "bash_history*", "zsh_history*", "fish_history*", "shell_history*",
    "python_history*", "consolehost_history.txt",
)  # fmt: skip


@attrs.frozen
class _SecretPattern:
    """Pattern of one kind of secret."""

    kind: str
    prefixes: tuple[str, ...]
    """Literal strings, one of which every match contains: searching them first is a hundred times faster."""
    pattern: re.Pattern[str]


_SECRET_PATTERNS = (
    _SecretPattern("a Hugging Face token", ("hf_",), re.compile(r"\bhf_[A-Za-z0-9]{30,}\b")),
    _SecretPattern("a private key", ("-----BEGIN",), re.compile(r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----")),
    _SecretPattern("an AWS access key", ("AKIA", "ASIA"), re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b")),
    _SecretPattern(
        "a GitHub token",
        ("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"),
        re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{50,})\b"),
    ),
    _SecretPattern("a GitLab token", ("glpat-",), re.compile(r"\bglpat-[A-Za-z0-9_-]{20,}")),
    _SecretPattern("an API key", ("sk-",), re.compile(r"\bsk-[A-Za-z0-9_-]{32,}")),
    _SecretPattern("a Google API key", ("AIza",), re.compile(r"\bAIza[0-9A-Za-z_-]{35}\b")),
    _SecretPattern("a Slack token", ("xox",), re.compile(r"\bxox[abprs]-[A-Za-z0-9-]{20,}")),
    _SecretPattern("an API key", ("SG.",), re.compile(r"\bSG\.[A-Za-z0-9_-]{20,}\.[A-Za-z0-9_-]{40,}")),
    _SecretPattern("an API key", ("k_live_",), re.compile(r"\b[rs]k_live_[A-Za-z0-9]{20,}")),
    _SecretPattern("a Google access token", ("ya29.",), re.compile(r"\bya29\.[A-Za-z0-9_-]{30,}")),
    _SecretPattern("an Azure account key", ("AccountKey=",), re.compile(r"\bAccountKey=[A-Za-z0-9+/]{40,}={0,2}")),
    _SecretPattern(
        "a JSON web token",
        ("eyJ",),
        re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}"),
    ),
    _SecretPattern(
        "a bearer token",
        ("earer", "EARER"),
        re.compile(r"(?i)\bbearer[\s:'\"=]+(?=[A-Za-z._~+/-]*\d)(?=\S*[A-Za-z])[A-Za-z0-9._~+/-]{16,}=*"),
    ),
    _SecretPattern(
        "a password in an address",
        ("://",),
        re.compile(r"\b[A-Za-z][A-Za-z0-9+.-]*://[^\s/:@?#'\"<>{}$*]*:[^\s/@?#'\"<>{}$*]+@[A-Za-z0-9.\[-]"),
    ),
    _SecretPattern(
        "a package registry token",
        ("npm_", "pypi-"),
        re.compile(r"\b(?:npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_-]{50,})\b"),
    ),
)

_SHORTEST_LOCAL_PATH = 4
"""Characters; shorter directory names occur in any text."""


def judge_name(path: str) -> SecretFinding | None:
    """Return a finding when a file's name is typical of files with secrets."""
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
    """Return the findings in a text, one of each kind.

    Args:
        path: Path of the file.
        text: Its content.
        local_paths: Directories of this machine that must not be published.
    """
    findings = []
    for secret in (
        *_SECRET_PATTERNS,
        *(_path_pattern(directory) for directory in local_paths if _is_searchable(directory)),
    ):
        found = secret.pattern.search(text) if any(prefix in text for prefix in secret.prefixes) else None
        if found:
            findings.append(SecretFinding(path, secret.kind, text.count("\n", 0, found.start()) + 1))
    return list(dict.fromkeys(findings))


def _is_searchable(directory: str) -> bool:
    return len(directory) >= _SHORTEST_LOCAL_PATH and directory.startswith("/")


def _path_pattern(directory: str) -> _SecretPattern:
    """Return the pattern of a directory in plain text and JSON, not as the prefix of a longer name."""
    pattern = r"(?<![\w/.-])" + re.escape(directory).replace("/", r"\\?/") + r"(?![\w.-])"
    return _SecretPattern("a path of this machine", (directory.rpartition("/")[2],), re.compile(pattern))
