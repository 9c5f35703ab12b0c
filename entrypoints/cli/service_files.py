"""The file that starts a server as a service, for systemd or launchd, and what such a server has.

It has no working directory, and of the shell's variables those that its file has.
"""

import argparse
import functools
import math
import operator
import os
import plistlib
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from xml.parsers.expat import ExpatError

import attrs

from mlxk.domain.errors import ValidationError
from mlxk.domain.models.reference import is_path
from mlxk.domain.text import is_valid_unicode
from mlxk.entrypoints import private_files
from mlxk.entrypoints.cli.processes import PROGRAM
from mlxk.entrypoints.setting_table import TABLES
from mlxk.entrypoints.settings import Settings

SYSTEMD, LAUNCHD = "systemd", "launchd"
LABEL = "dev.mlxk.server"
UNIT = "mlxk.service"
MARK = "# Written by mlxk service install; mlxk service uninstall removes it."

_AFTER_DRAINING = 15.0
"""Seconds that a server may take to end after the time that it gives answers; launchd's own patience is 20 in all."""

Commands = tuple[tuple[str, ...], ...]


@attrs.frozen
class ServiceFile:
    """The file of one service manager."""

    manager: str
    """``systemd`` or ``launchd``."""
    path: str
    make: Callable[[], bytes]
    """Returns its content; raises ValidationError where a path, a flag or a variable cannot stand in it."""
    start: Commands
    """Commands that start the service now and with each session."""
    stop: Commands
    """Commands that stop it, and no longer start it."""
    secrets: str | None = None
    """A file of variables that the service reads, which need not exist."""
    before_start: Commands = ()
    """Commands that stop one that runs with other flags; they may fail."""
    after_removal: Commands = ()
    """Commands that have the service manager forget the file."""
    not_running: Collection[int] = ()
    """The statuses with which stopping says that nothing runs."""
    still_stopping: Collection[int] = ()
    """The statuses with which starting says that the one before has not ended yet."""

    def is_ours(self, content: bytes) -> bool:
        """Whether a file was written by this program."""
        if self.manager == SYSTEMD:
            return content.startswith(MARK.encode())
        try:
            known = plistlib.loads(content)
        except (ExpatError, ValueError, ArithmeticError, LookupError, TypeError, AttributeError, RecursionError):
            return False
        arguments = known.get("ProgramArguments") if isinstance(known, dict) else None
        return isinstance(arguments, list) and known.get("Label") == LABEL and "mlxk" in arguments


def service_file(
    manager: str | None, settings: Settings, flags: Sequence[str], log: str, drain_seconds: float
) -> ServiceFile:
    """Return the file for this machine.

    Args:
        manager: ``systemd`` or ``launchd``; None for the one of this system.
        settings: Name the folders, and the caches that the server is to use.
        flags: Of ``mlxk serve``.
        log: Path of the server's log.
        drain_seconds: How long answers may take to finish when it is stopped.
    """
    configuration = os.path.dirname(os.path.dirname(settings.file.path))
    command = (*PROGRAM, "serve", *flags)
    found = variables(settings)
    if settings.workspace_home is not None:
        found["MLXK_WORKSPACE_HOME"] = settings.workspace_home
    folders = {
        "XDG_CONFIG_HOME": (configuration, ".config"),
        "XDG_STATE_HOME": (os.path.dirname(settings.state_folder), ".local/state"),
    }
    found |= {name: path for name, (path, usual) in folders.items() if path != os.path.join(settings.home, usual)}
    patience = math.ceil(drain_seconds + _AFTER_DRAINING)
    if manager == LAUNCHD or (manager is None and sys.platform == "darwin"):
        path = os.path.join(settings.home, "Library", "LaunchAgents", f"{LABEL}.plist")
        domain = f"gui/{os.getuid()}"
        start: Commands = (("launchctl", "bootstrap", domain, path),)
        stop: Commands = (("launchctl", "bootout", f"{domain}/{LABEL}"),)
        content = functools.partial(_plist, command, _search_path(settings) | found, log, patience)
        return ServiceFile(
            LAUNCHD, path, content, start, stop, before_start=stop, not_running=(3, 113), still_stopping=(5, 37)
        )
    path = os.path.join(configuration, "systemd", "user", UNIT)
    systemctl = ("systemctl", "--user")
    reload = (*systemctl, "daemon-reload")
    start = (reload, (*systemctl, "enable", UNIT), (*systemctl, "restart", UNIT))
    stop = ((*systemctl, "disable", "--now", UNIT),)
    secrets = os.path.join(configuration, "mlxk", "service.env")
    content = functools.partial(_unit, command, found, log, secrets, patience)
    return ServiceFile(SYSTEMD, path, content, start, stop, secrets, after_removal=(reload,), not_running=(5,))


def _search_path(settings: Settings) -> dict[str, str]:
    """Return the variable with where programs are found: launchd's own has no folder of Homebrew, nor ffmpeg."""
    folders = [each for each in settings.search_path.split(os.pathsep) if os.path.isabs(each)]
    return {"PATH": os.pathsep.join(folders)} if folders else {}


def _plist(command: Sequence[str], variables: Mapping[str, str], log: str, patience: int) -> bytes:
    document = {
        "Label": LABEL,
        "ProgramArguments": list(command),
        "EnvironmentVariables": dict(variables),
        "RunAtLoad": True,
        "KeepAlive": {"SuccessfulExit": False},
        "ProcessType": "Interactive",
        "ExitTimeOut": patience,
        "StandardOutPath": log,
        "StandardErrorPath": log,
        "Umask": 0o077,
    }
    for text in (*command, *variables.values(), log):
        try:
            if plistlib.loads(plistlib.dumps(text)) == text:
                continue
        except (ValueError, ExpatError):
            pass
        raise _unwritable(text)
    return plistlib.dumps(document, sort_keys=False)


def _unit(command: Sequence[str], variables: Mapping[str, str], log: str, secrets: str, patience: int) -> bytes:
    environment = "\n".join(f"Environment={_quoted(f'{name}={value}')}" for name, value in variables.items())
    return f"""{MARK}
[Unit]
Description=mlxk, the server for local models

[Service]
Type=exec
ExecStart={" ".join(map(_argument, command))}
{environment}
# Secrets, such as MLXK2_API_KEY=..., belong into this file (mode 0600), which need not exist.
EnvironmentFile=-{_path(secrets)}
Restart=on-failure
RestartSec=5
TimeoutStopSec={patience}
UMask=0077
StandardOutput=append:{_path(log)}
StandardError=append:{_path(log)}

[Install]
WantedBy=default.target
""".encode()


def _quoted(text: str) -> str:
    """Return a word in quotes, with what systemd reads as specifiers or escapes kept as it is."""
    return '"' + _path(text).replace("\\", "\\\\").replace('"', '\\"') + '"'


_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def _argument(text: str) -> str:
    """Return a word of a command line on one line, in which variables are not replaced either."""
    escaped, rest = "", text.replace("$", "$$")
    for part in re.split("([\n\r\t])", rest):
        escaped += _ESCAPES.get(part) or _quoted(part)[1:-1]
    return f'"{escaped}"'


def _path(text: str) -> str:
    if not is_valid_unicode(text) or any(ord(each) < ord(" ") or each == "\x7f" for each in text):
        raise _unwritable(text)
    return text.replace("%", "%%")


def _unwritable(text: str) -> ValidationError:
    return ValidationError(
        f"{text!a} cannot stand in the file of a service",
        hint="Use paths and texts in UTF-8 without control characters.",
    )


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
    return found | dict(settings.engine_variables) | dict(settings.telemetry_variables)


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
    of_telemetry = {name for name in settings.set_variables if name.startswith("OTEL_")}
    return (*found, *sorted(of_telemetry - known - dict(settings.telemetry_variables).keys()))


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
    paths = (
        given.api_key_file,
        *given.allow_media_path,
        *adapters,
        *(each for each in references if each and is_path(each.strip())),
    )
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
