"""Signs that a file holds a secret: how it is called, and what its text looks like.

A finding says where and of what kind, never what. Owns the rules; reading files is the use case's.
"""

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase

import attrs

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
