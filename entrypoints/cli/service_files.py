"""The unit of systemd or agent of launchd that runs ``mlxk serve`` as a service, with its flags and variables.

A service has no working directory, and only the environment variables of its file.
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
from mlxk.domain.text import is_valid_unicode, lines_of
from mlxk.entrypoints import private_files
from mlxk.entrypoints.cli.processes import PROGRAM
from mlxk.entrypoints.setting_table import TABLES
from mlxk.entrypoints.settings import Settings

SYSTEMD, LAUNCHD = "systemd", "launchd"
LABEL = "dev.mlxk.server"
UNIT = "mlxk.service"
MARK = "# Written by mlxk service install; mlxk service uninstall removes it."

_AFTER_DRAINING = 15.0
"""Seconds that a server may take to exit after draining; launchd kills after 20 seconds in all by default."""

Commands = tuple[tuple[str, ...], ...]


@attrs.frozen
class ServiceFile:
    """The file of one service manager."""

    manager: str
    """``systemd`` or ``launchd``."""
    path: str
    make: Callable[[], bytes]
    """Returns the content; raises ValidationError where the format cannot hold a path, a flag or a variable."""
    start: Commands
    """Commands that start the service now and with each session."""
    stop: Commands
    """Commands that stop the service and disable it."""
    secrets: str | None = None
    """Path of an environment file that the service reads, which need not exist; None where there is no such file."""
    before_start: Commands = ()
    """Commands that stop a running service before the start; they may fail."""
    after_removal: Commands = ()
    """Commands that make the service manager forget a removed file."""
    not_running: Collection[int] = ()
    """Exit statuses of ``stop`` that mean that the service was not running."""
    still_stopping: Collection[int] = ()
    """Exit statuses of ``start`` that mean that the former service has not ended yet."""

    def is_ours(self, content: bytes) -> bool:
        """Whether a file was written by this program."""
        if self.manager == SYSTEMD:
            return content.startswith(MARK.encode())
        try:
            document = plistlib.loads(content)
        except (ExpatError, ValueError, ArithmeticError, LookupError, TypeError, AttributeError, RecursionError):
            return False
        arguments = document.get("ProgramArguments") if isinstance(document, dict) else None
        return isinstance(arguments, list) and document.get("Label") == LABEL and "mlxk" in arguments


def service_file(
    manager: str | None, settings: Settings, flags: Sequence[str], log: str, drain_seconds: float
) -> ServiceFile:
    """Return the file for this machine.

    Args:
        manager: ``systemd`` or ``launchd``; None for the one of this system.
        settings: The settings of the shell; the service gets the same folders and caches.
        flags: The flags of ``mlxk serve``.
        log: Path of the server's log.
        drain_seconds: Seconds that answers may take to finish when the service is stopped.
    """
    configuration = os.path.dirname(os.path.dirname(settings.file.path))
    command = (*PROGRAM, "serve", *flags)
    environment = variables(settings)
    if settings.workspace_home is not None:
        environment["MLXK_WORKSPACE_HOME"] = settings.workspace_home
    folders = {
        "XDG_CONFIG_HOME": (configuration, ".config"),
        "XDG_STATE_HOME": (os.path.dirname(settings.state_folder), ".local/state"),
    }
    for name, (folder, default) in folders.items():
        if folder != os.path.join(settings.home, default):
            environment[name] = folder
    stop_seconds = math.ceil(drain_seconds + _AFTER_DRAINING)
    if manager == LAUNCHD or (manager is None and sys.platform == "darwin"):
        path = os.path.join(settings.home, "Library", "LaunchAgents", f"{LABEL}.plist")
        domain = f"gui/{os.getuid()}"
        start: Commands = (("launchctl", "bootstrap", domain, path),)
        stop: Commands = (("launchctl", "bootout", f"{domain}/{LABEL}"),)
        content = functools.partial(_plist, command, _search_path(settings) | environment, log, stop_seconds)
        return ServiceFile(
            LAUNCHD, path, content, start, stop, before_start=stop, not_running=(3, 113), still_stopping=(5, 37)
        )
    path = os.path.join(configuration, "systemd", "user", UNIT)
    systemctl = ("systemctl", "--user")
    reload = (*systemctl, "daemon-reload")
    start = (reload, (*systemctl, "enable", UNIT), (*systemctl, "restart", UNIT))
    stop = ((*systemctl, "disable", "--now", UNIT),)
    secrets = os.path.join(configuration, "mlxk", "service.env")
    content = functools.partial(_unit, command, environment, log, secrets, stop_seconds)
    return ServiceFile(SYSTEMD, path, content, start, stop, secrets, after_removal=(reload,), not_running=(5,))


def _search_path(settings: Settings) -> dict[str, str]:
    """Return the variable PATH; that of launchd lacks Homebrew's folder, and with it ffmpeg."""
    folders = [folder for folder in settings.search_path.split(os.pathsep) if os.path.isabs(folder)]
    return {"PATH": os.pathsep.join(folders)} if folders else {}


def _plist(command: Sequence[str], variables: Mapping[str, str], log: str, stop_seconds: int) -> bytes:
    document = {
        "Label": LABEL,
        "ProgramArguments": list(command),
        "EnvironmentVariables": dict(variables),
        "RunAtLoad": True,
        "KeepAlive": {"SuccessfulExit": False},
        "ProcessType": "Interactive",
        "ExitTimeOut": stop_seconds,
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


def _unit(command: Sequence[str], variables: Mapping[str, str], log: str, secrets: str, stop_seconds: int) -> bytes:
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
TimeoutStopSec={stop_seconds}
UMask=0077
StandardOutput=append:{_path(log)}
StandardError=append:{_path(log)}

[Install]
WantedBy=default.target
""".encode()


def _quoted(text: str) -> str:
    """Return a text in quotes for systemd, with its specifiers (%) and escapes taken literally."""
    return '"' + _path(text).replace("\\", "\\\\").replace('"', '\\"') + '"'


_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def _argument(text: str) -> str:
    """Return an argument for ExecStart: quoted, on one line, without substitution of variables."""
    parts = re.split("([\n\r\t])", text.replace("$", "$$"))
    return '"' + "".join(_ESCAPES.get(part) or _quoted(part)[1:-1] for part in parts) + '"'


def _path(text: str) -> str:
    """Return a text with systemd's specifiers (%) escaped.

    Raises:
        ValidationError: It is not valid Unicode, or has control characters.
    """
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
"""Largest file of secrets that is read; longer ones are read up to here."""


def variables(settings: Settings) -> dict[str, str]:
    """Return the variables with which a service behaves like a server started in this shell, without secrets."""
    environment = {"HF_HUB_CACHE": settings.hub_cache}
    if "XDG_CACHE_HOME" in settings.set_variables and "token_file" not in settings.file.values("hub"):
        environment["HF_TOKEN_PATH"] = settings.hub_token_file
    for setting in (each for table in _TABLES for each in TABLES[table]):
        if setting.secret or setting.field is None or not settings.set_variables & set(setting.variables):
            continue
        value = operator.attrgetter(setting.field)(settings)
        if value is not None:
            value = int(value is not setting.inverted) if isinstance(value, bool) else value
            environment[setting.variables[0]] = str(value)
    model = environment.get("MLXK2_PRELOAD_MODEL")
    if model is not None and is_path(model.strip()):
        environment["MLXK2_PRELOAD_MODEL"] = _absolute(model)
    if settings.serve.reload:
        environment["MLXK2_RELOAD"] = "1"
    return environment | dict(settings.engine_variables) | dict(settings.telemetry_variables)


def lacking_secrets(settings: Settings, path: str | None) -> tuple[str, ...]:
    """Return the shell's secret variables that the service will lack, in its environment file and settings file.

    Args:
        settings: The settings of the shell.
        path: The service's environment file, which need not exist; None for none.
    """
    names = frozenset[str]() if path is None else _names(path)
    lacking: list[str] = []
    for table in _TABLES:
        for setting in TABLES[table]:
            if setting.secret and not names & set(setting.variables) and setting.key not in settings.file.values(table):
                lacking += (name for name in setting.variables if name in settings.set_variables)
    telemetry = {name for name in settings.set_variables if name.startswith("OTEL_")}
    return (*lacking, *sorted(telemetry - names - dict(settings.telemetry_variables).keys()))


def _names(path: str) -> frozenset[str]:
    """Return the variables that an environment file sets to a value."""
    try:
        content = private_files.read(path, _MOST_BYTES) or b""
    except OSError:  # the service, which runs as this user, cannot read it either
        return frozenset()
    pairs = (line.strip().partition("=") for line in lines_of(content.decode(errors="replace")))
    return frozenset(name.strip() for name, _, value in pairs if value.strip() and not name.startswith(("#", ";")))


def relative_paths(given: argparse.Namespace) -> tuple[str, ...]:
    """Return the paths of a ``serve`` command line that depend on the working or home directory, as typed."""
    models = (given.model, given.default_model, given.draft_model)
    references = (*models, *(each.partition("=")[2] for each in given.alias))
    adapters = (each.partition("=")[2] for each in given.adapter)
    paths = (
        given.api_key_file,
        *given.allow_media_path,
        *adapters,
        *(each for each in references if each and is_path(each.strip())),
    )
    return tuple(each for each in paths if each and not each.strip().startswith("/"))


def with_whole_paths(flags: Sequence[str], given: argparse.Namespace) -> list[str]:
    """Return the words of a ``serve`` command line with its paths made absolute.

    Args:
        flags: The words.
        given: The words, parsed.
    """
    words = list(flags)
    for path in relative_paths(given):
        forms = (f"={path}", f"-m{path}")
        words = [
            word[: len(word) - len(path)] + _absolute(path) if word == path or word.endswith(forms) else word
            for word in words
        ]
    return words


def check_paths(given: argparse.Namespace, settings: Settings) -> None:
    """Check that no path depends on the working directory, such as a relative one in the settings file.

    Args:
        given: The ``serve`` command line, with the values of the settings file.
        settings: The settings of the shell; the service gets the paths of its variables as absolute ones.

    Raises:
        ValidationError: A path is relative.
    """
    model = None if given.model or "MLXK2_PRELOAD_MODEL" in settings.set_variables else settings.serve.model
    file_paths = (model,) if model is not None and is_path(model) and not model.startswith("/") else ()
    for path in (*relative_paths(given), *file_paths):
        if not path.strip().startswith("~/"):
            raise ValidationError(
                f"'{path.strip()}' depends on the directory of a command", hint="Write the whole path."
            )


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path.strip()))
