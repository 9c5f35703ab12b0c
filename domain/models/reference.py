"""Parsing of model references: ``org/name``, ``name``, ``@revision``, explicit paths, built-in names.

The use case ``ResolveModel`` finds the model of a reference on this machine.
"""

import enum
import re
import unicodedata
from collections.abc import Iterable
from fnmatch import fnmatchcase

import attrs

from mlxk.domain.errors import Advice, AmbiguousModelError, Remedy, ValidationError

BUILT_IN_NAMES = ("demo", "demo-speech", "demo-vision")
"""Names of the models that ship with the program; they take precedence over all other models."""

MAX_REFERENCE_LENGTH = 4096
"""Most characters of a reference; longer ones are refused before any file system call (PATH_MAX on Linux)."""


MAX_OWN_NAME = 200
"""Most characters of a user's own name for a model."""


MAX_NAME_LENGTH = 96
"""Most characters of a repository's name; the hub's limit."""

_NAME_PART = re.compile(r"[A-Za-z0-9]|[A-Za-z0-9_][A-Za-z0-9._-]*[A-Za-z0-9_]")


class ReferenceKind(enum.Enum):
    """The form of a reference."""

    BUILT_IN = "built-in"
    PATH = "path"
    NAME = "name"


@attrs.frozen
class ModelRef:
    """A parsed model reference."""

    text: str
    """Exactly as typed."""
    kind: ReferenceKind
    name: str
    """The name without revision; for a path, the path as typed."""
    revision: str | None = None
    """A commit, a prefix of one, a branch or a tag; None for paths and built-in names."""

    @classmethod
    def parse(cls, text: str) -> "ModelRef":
        """Parse a reference as typed.

        A path starts with ``/``, ``./``, ``../`` or ``~/``, or is ``.``, ``..`` or ``~``: a bare name never means a
        directory in the working directory. Everything after the last ``@`` of a name is its revision.

        Raises:
            ValidationError: It is blank or too long, has a control character, or has an empty name or revision.
        """
        reference = text.strip()
        if not reference:
            raise ValidationError.in_field("model", "the name is empty", hint="Name a model, for example: demo")
        if len(reference) > MAX_REFERENCE_LENGTH:
            raise ValidationError.in_field("model", f"the name is longer than {MAX_REFERENCE_LENGTH} characters")
        if any(ord(character) < 32 for character in reference):
            raise ValidationError.in_field("model", "the name contains a control character")
        if is_path(reference):
            return cls(text, ReferenceKind.PATH, reference)
        name, at, revision = reference.rpartition("@")
        if not at:
            kind = ReferenceKind.BUILT_IN if reference in BUILT_IN_NAMES else ReferenceKind.NAME
            return cls(text, kind, reference)
        if not name or not revision:
            raise ValidationError.in_field(
                "model",
                f"'{reference}' has an empty {'name' if not name else 'revision'}",
                hint="Write NAME@REVISION, for example: org/model@main",
            )
        return cls(text, ReferenceKind.NAME, name, revision)

    @property
    def is_path(self) -> bool:
        """Whether it is an explicit path."""
        return self.kind is ReferenceKind.PATH

    def __str__(self) -> str:
        return f"{self.name}@{self.revision}" if self.revision else self.name


def is_path(text: str) -> bool:
    """Whether a text is written as an explicit path."""
    return text in {".", "..", "~"} or text.startswith(("/", "./", "../", "~/"))


def own_name_fault(name: str) -> str | None:
    """Return why a name is not allowed as a user's own name for a model; None when it is.

    A name may not hide a built-in model or a path, nor look like a pattern, a revision or a definition.
    """
    if not name or name != name.strip():
        return "it must be a name without spaces around it"
    if not name.isprintable():
        return "it has a control character"
    if len(name) > MAX_OWN_NAME:
        return f"it is longer than {MAX_OWN_NAME} characters"
    if is_path(name):
        return "it is a path"
    if name.lower() in BUILT_IN_NAMES:
        return "it is a built-in model"
    if is_pattern(name) or "@" in name or "=" in name:
        return "it must not have any of * ? [ @ ="
    return None


def own_name(typed: str, names: Iterable[str]) -> str | None:
    """Return the user's own name that equals the typed one, else one that differs only in case, else None."""
    known = tuple(names)
    same = (name for name in known if folded(name) == folded(typed))
    return typed if typed in known else next(same, None)


def folded(name: str) -> str:
    """Return a name for comparison: in lower case and NFC, since Finder and some file systems decompose names."""
    return unicodedata.normalize("NFC", name).lower()


def is_pattern(text: str) -> bool:
    """Whether a text is a glob pattern, with ``*``, ``?`` or ``[…]``."""
    return any(character in text for character in "*?[")


def fits_pattern(name: str, pattern: str) -> bool:
    """Whether a name, or the part after its owner for a pattern without ``/``, matches a pattern in any case."""
    name, pattern = folded(name), folded(pattern)
    return fnmatchcase(name, pattern) or ("/" not in pattern and fnmatchcase(name.rpartition("/")[2], pattern))


def only_match(wanted: str, known: Iterable[str]) -> str | None:
    """Return the known name that equals the wanted one, else whose last part does, else that contains it.

    Case does not matter. Return None for an empty name, or without a match.

    Raises:
        AmbiguousModelError: Several names match equally well.
    """
    part = folded(wanted)
    lowered = {name: folded(name) for name in known if part}
    matches = [name for name, lower in lowered.items() if lower == part]
    matches = matches or [name for name, lower in lowered.items() if lower.rpartition("/")[2] == part]
    matches = sorted(matches or (name for name, lower in lowered.items() if part in lower))
    if len(matches) > 1:
        raise AmbiguousModelError(
            f"'{wanted}' fits {len(matches)} models",
            hint="Write more of the name, or all of it.",
            matches=tuple(matches),
        )
    return matches[0] if matches else None


def check_name(name: str) -> str:
    """Validate the name of a repository, ``org/name``, and return it.

    Raises:
        ValidationError: The name is too long, or not two parts of letters, digits, ``.``, ``_`` and ``-``.
    """
    if "://" in name:
        raise ValidationError(f"Invalid model name: '{name}' is an address", hint="Write only ORG/NAME.")
    if len(name) > MAX_NAME_LENGTH or name.startswith("/") or name.endswith("/") or "//" in name:
        raise ValidationError(
            f"Invalid model name: must be <= {MAX_NAME_LENGTH} chars and not contain leading/trailing or double slashes"
        )
    parts = name.split("/")
    sound = len(parts) == 2 and all(_NAME_PART.fullmatch(part) for part in parts)
    if name.endswith(".git"):
        raise ValidationError(f"Invalid model name: '{name}' ends in .git", hint="Write only ORG/NAME, without .git.")
    if not sound or "--" in name or ".." in name:
        raise ValidationError(
            f"Invalid model name: '{name}'",
            hint=Advice(Remedy.NAME_WITH_OWNER),
        )
    return name
