"""What a server has as a service: no working directory, and of the shell's variables those that its file has."""

import argparse
import operator
import os
from collections.abc import Sequence

from mlxk.domain.errors import ValidationError
from mlxk.domain.models.reference import is_path
from mlxk.entrypoints import private_files
from mlxk.entrypoints.setting_table import TABLES
from mlxk.entrypoints.settings import Settings

_TABLES = ("", "hub", "serve")
"""The tables of settings that a server uses."""

_MOST_BYTES = 64 * 1024
"""Largest file of secrets that is read."""


def variables(settings: Settings) -> dict[str, str]:
    """Return the variables that a service needs to be the server that a shell would start; no secret is among them."""
    found = {"HF_HUB_CACHE": settings.hub_cache}
    if "XDG_CACHE_HOME" in settings.set_variables and "token_file" not in settings.file.values("hub"):
        found["HF_TOKEN_PATH"] = settings.hub_token_file
    for setting in (each for table in _TABLES for each in TABLES[table]):
        if setting.secret or setting.field is None or not settings.set_variables & set(setting.variables):
            continue
        value = operator.attrgetter(setting.field)(settings)
        if value is not None:
            written = int(value is not setting.inverted) if isinstance(value, bool) else value
            found[setting.variables[0]] = str(written)
    model = found.get("MLXK2_PRELOAD_MODEL")
    if model is not None and is_path(model.strip()):
        found["MLXK2_PRELOAD_MODEL"] = _whole(model)
    if settings.serve.reload:
        found["MLXK2_RELOAD"] = "1"
    return found | dict(settings.engine_variables)


def lacking_secrets(settings: Settings, path: str | None) -> tuple[str, ...]:
    """Return the variables of secrets that this shell has, and the service will not, nor another value for them.

    Args:
        settings: Those of the shell.
        path: The file of secrets that the service reads, which need not exist; None for none.
    """
    known = frozenset[str]() if path is None else _names(path)
    found: list[str] = []
    for table in _TABLES:
        for setting in TABLES[table]:
            if setting.secret and not known & set(setting.variables) and setting.key not in settings.file.values(table):
                found += (name for name in setting.variables if name in settings.set_variables)
    return tuple(found)


def _names(path: str) -> frozenset[str]:
    """Return the variables that a file of secrets sets."""
    try:
        content = private_files.read(path, _MOST_BYTES) or b""
    except OSError:  # it says nothing to this user, and so to no service
        return frozenset()
    pairs = (line.strip().partition("=") for line in content.decode(errors="replace").splitlines())
    return frozenset(name.strip() for name, _, value in pairs if value.strip() and not name.startswith(("#", ";")))


def relative_paths(given: argparse.Namespace) -> tuple[str, ...]:
    """Return the paths of a command line of the server that depend on a working directory or a home."""
    named = (given.model, given.default_model, given.draft_model)
    references = (*named, *(each.partition("=")[2].strip() for each in given.alias))
    adapters = (each.partition("=")[2].strip() for each in given.adapter)
    paths = (given.api_key_file, *adapters, *(each for each in references if each and is_path(each.strip())))
    return tuple(each for each in paths if each and not each.strip().startswith("/"))


def with_whole_paths(flags: Sequence[str], given: argparse.Namespace) -> list[str]:
    """Return the words of a command line of the server, with its paths from the root on.

    Args:
        flags: The words.
        given: The words, parsed.
    """
    words = list(flags)
    for path in relative_paths(given):
        forms = (f"={path}", f"-m{path}")
        words = [
            word[: len(word) - len(path)] + _whole(path) if word == path or word.endswith(forms) else word
            for word in words
        ]
    return words


def check_paths(given: argparse.Namespace, settings: Settings) -> None:
    """Refuse paths that depend on a working directory, such as those of the settings file.

    Args:
        given: The command line of the server, with what the settings file fills in.
        settings: Those of the shell; paths in its variables are whole in those of the service.

    Raises:
        ValidationError: A path does.
    """
    model = None if given.model or "MLXK2_PRELOAD_MODEL" in settings.set_variables else settings.serve.model
    of_file = (model,) if model is not None and is_path(model) and not model.startswith("/") else ()
    for path in (*relative_paths(given), *of_file):
        if not path.startswith("~/"):
            raise ValidationError(f"'{path}' depends on the directory of a command", hint="Write the whole path.")


def _whole(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path.strip()))
