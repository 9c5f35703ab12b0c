"""``mlxk service install|uninstall|status``: a server that starts with the user's session, by systemd or launchd.

Their files are made here: a unit of systemd, an agent of launchd.
"""

import argparse
import contextlib
import os
import plistlib
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence

import attrs

from mlxk.domain.errors import ExecutionError, StorageError, UsageError, ValidationError
from mlxk.entrypoints import server_log
from mlxk.entrypoints.cli.command import CommandContext
from mlxk.entrypoints.cli.commands.serve_models import server_settings
from mlxk.entrypoints.cli.exit_status import DONE
from mlxk.entrypoints.cli.output import Output
from mlxk.entrypoints.cli.program import build_parser, parse
from mlxk.entrypoints.cli.server_processes import PROGRAM
from mlxk.entrypoints.cli.settings_of_command import use_settings_file
from mlxk.entrypoints.settings import Settings

SYSTEMD, LAUNCHD = "systemd", "launchd"
LABEL = "dev.mlxk.server"
UNIT = "mlxk.service"
MARK = "# Written by mlxk service install; mlxk service uninstall removes it."


Commands = tuple[tuple[str, ...], ...]


@attrs.frozen
class ServiceFile:
    """The file of one service manager."""

    manager: str
    """``systemd`` or ``launchd``."""
    path: str
    content: bytes
    start: Commands
    """Commands that start the service now and with each session."""
    stop: Commands
    """Commands that stop it, and no longer start it."""

    def is_ours(self, content: bytes) -> bool:
        """Whether a file was written by this program."""
        if self.manager == SYSTEMD:
            return content.startswith(MARK.encode())
        try:
            known = plistlib.loads(content)
        except (plistlib.InvalidFileException, ValueError, OverflowError, AttributeError):
            return False
        return isinstance(known, dict) and known.get("Label") == LABEL and "mlxk" in known.get("ProgramArguments", ())


def service_file(manager: str | None, settings: Settings, flags: Sequence[str], log: str) -> ServiceFile:
    """Return the file for this machine.

    Args:
        manager: ``systemd`` or ``launchd``; None for the one of this system.
        settings: Name the folders, and the caches that the server is to use.
        flags: Of ``mlxk serve``.
        log: Path of the server's log.
    """
    configuration = os.path.dirname(os.path.dirname(settings.file.path))
    command = (*PROGRAM, "serve", *flags)
    variables = {"HF_HUB_CACHE": settings.hub_cache}
    if settings.workspace_home is not None:
        variables["MLXK_WORKSPACE_HOME"] = settings.workspace_home
    folders = {
        "XDG_CONFIG_HOME": (configuration, ".config"),
        "XDG_STATE_HOME": (os.path.dirname(settings.state_folder), ".local/state"),
    }
    variables |= {name: path for name, (path, usual) in folders.items() if path != os.path.join(settings.home, usual)}
    if manager == LAUNCHD or (manager is None and sys.platform == "darwin"):
        path = os.path.join(settings.home, "Library", "LaunchAgents", f"{LABEL}.plist")
        domain = f"gui/{os.getuid()}"
        start: Commands = (("launchctl", "bootstrap", domain, path),)
        stop: Commands = (("launchctl", "bootout", f"{domain}/{LABEL}"),)
        return ServiceFile(LAUNCHD, path, _plist(command, variables, log), start, stop)
    path = os.path.join(configuration, "systemd", "user", UNIT)
    start = (("systemctl", "--user", "daemon-reload"), ("systemctl", "--user", "enable", "--now", UNIT))
    stop = (("systemctl", "--user", "disable", "--now", UNIT),)
    secrets = os.path.join(configuration, "mlxk", "service.env")
    return ServiceFile(SYSTEMD, path, _unit(command, variables, log, secrets), start, stop)


def _plist(command: Sequence[str], variables: Mapping[str, str], log: str) -> bytes:
    return plistlib.dumps(
        {
            "Label": LABEL,
            "ProgramArguments": list(command),
            "EnvironmentVariables": dict(variables),
            "RunAtLoad": True,
            "KeepAlive": {"SuccessfulExit": False},
            "ProcessType": "Interactive",
            "StandardOutPath": log,
            "StandardErrorPath": log,
            "Umask": 0o077,
        },
        sort_keys=False,
    )


def _unit(command: Sequence[str], variables: Mapping[str, str], log: str, secrets: str) -> bytes:
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
UMask=0077
StandardOutput=append:{_path(log)}
StandardError=append:{_path(log)}

[Install]
WantedBy=default.target
""".encode(errors="surrogateescape")


def _quoted(text: str) -> str:
    """Return a word in quotes, with what systemd reads as specifiers or escapes kept as it is."""
    return '"' + _path(text).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _argument(text: str) -> str:
    """Return a word of a command line, in which variables are not replaced either."""
    return _quoted(text.replace("$", "$$"))


def _path(text: str) -> str:
    return text.replace("%", "%%")


LOG_NAME = "service"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what to do, and the flags of the server."""
    parser.add_argument(
        "action",
        choices=("install", "uninstall", "status"),
        metavar="ACTION",
        help="install writes the file that starts a server with your session, uninstall removes it, status shows it",
    )
    parser.add_argument("words", nargs="*", default=[], metavar="FLAGS", help="of mlxk serve; they stand after --")
    parser.add_argument("--start", action="store_true", help="install: start it now, and with each session")
    parser.add_argument("--stop", action="store_true", help="uninstall: stop it first")
    parser.add_argument("--print", dest="shown", action="store_true", help="install: print the file, and write nothing")
    parser.add_argument(
        "--manager", choices=(SYSTEMD, LAUNCHD), help="of which service manager (launchd on macOS, else systemd)"
    )


def execute(arguments: argparse.Namespace, context: CommandContext, output: Output) -> int:
    """Do one of the actions."""
    belonging = {"start": "install", "shown": "install", "stop": "uninstall"}
    flag = next(
        (name for name, action in belonging.items() if getattr(arguments, name) and action != arguments.action), None
    )
    if flag is not None:
        raise UsageError(f"--{'print' if flag == 'shown' else flag} belongs to {belonging[flag]}")
    if arguments.words and arguments.action != "install":
        raise UsageError("flags of the server belong to install")
    flags = _checked(arguments.words, context, output)
    log = server_log.path_of(context.settings.state_folder, LOG_NAME)
    file = service_file(arguments.manager, context.settings, flags, log)
    if arguments.shown:
        return _show(file, output)
    action = {"install": _install, "uninstall": _uninstall, "status": _status}[arguments.action]
    return action(file, arguments, context, output)


def _checked(flags: Sequence[str], context: CommandContext, output: Output) -> list[str]:
    """Return the flags, once the command that they are for has judged them."""
    parsed = parse(build_parser("serve"), ["serve", *flags])
    if parsed.background:
        raise UsageError("--background is for terminals; a service is in the background anyway")
    use_settings_file(parsed, context.settings, output)
    server_settings(parsed, context).validate()
    return list(flags)


def _show(file: ServiceFile, output: Output) -> int:
    content = file.content.decode(errors="replace")
    if output.as_json:
        output.document("service", {**_facts(file, "shown"), "content": content})
    else:
        output.text(content)
    return DONE


def _install(file: ServiceFile, arguments: argparse.Namespace, context: CommandContext, output: Output) -> int:
    known = _read(file)
    if known is not None and not file.is_ours(known):
        raise ValidationError(f"'{file.path}' exists, and mlxk did not write it", hint="Move it away first.")
    server_log.make(context.settings.state_folder, LOG_NAME, starts=arguments.start)
    try:
        os.makedirs(os.path.dirname(file.path), exist_ok=True)
        draft = f"{file.path}.{os.getpid()}"
        with open(draft, "xb", opener=lambda path, mode: os.open(path, mode, 0o600)) as stream:
            stream.write(file.content)
        os.replace(draft, file.path)
    except OSError as error:
        raise StorageError(f"'{file.path}' cannot be written: {error.strerror}") from error
    if arguments.start:
        _run(file.start)
    if output.as_json:
        output.document("service", _facts(file, "installed", started=arguments.start))
        return DONE
    output.line(f"Wrote {file.path}")
    if arguments.start:
        output.line("Started.")
        return DONE
    output.line("It is not started yet. Start it now, and with each session:")
    for command in file.start:
        output.line(f"  {shlex.join(command)}")
    return DONE


def _uninstall(file: ServiceFile, arguments: argparse.Namespace, context: CommandContext, output: Output) -> int:
    known = _read(file)
    if known is not None and not file.is_ours(known):
        raise ValidationError(f"'{file.path}' was not written by mlxk, and is left alone")
    if arguments.stop and known is not None:
        _run(file.stop)
    try:
        if known is not None:
            os.unlink(file.path)
    except OSError as error:
        raise StorageError(f"'{file.path}' cannot be removed: {error.strerror}") from error
    log = server_log.path_of(context.settings.state_folder, LOG_NAME)
    with contextlib.suppress(OSError):
        if os.path.getsize(log) == 0:  # as it was made; one with lines is the user's
            os.unlink(log)
    if output.as_json:
        output.document("service", _facts(file, "uninstalled" if known is not None else "absent"))
        return DONE
    output.line(f"Removed {file.path}" if known is not None else f"There is no {file.path}; nothing was removed.")
    if os.path.exists(log):
        output.line(f"Its log stays: {log}")
    if known is not None and not arguments.stop:
        output.line("If it was started, stop it:")
        for command in file.stop:
            output.line(f"  {shlex.join(command)}")
    return DONE


def _status(file: ServiceFile, arguments: argparse.Namespace, context: CommandContext, output: Output) -> int:
    known = _read(file)
    state = "absent" if known is None else "installed" if file.is_ours(known) else "foreign"
    if output.as_json:
        output.document("service", _facts(file, state))
        return DONE
    words = {"absent": "not installed", "installed": "installed", "foreign": "there, but not written by mlxk"}
    output.line(f"{file.manager}: {words[state]} ({file.path})")
    if state == "installed":
        query = "systemctl --user status mlxk" if file.manager == SYSTEMD else f"launchctl print {file.stop[0][-1]}"
        output.line(f"Whether it runs: mlxk ps, or: {query}")
    elif state == "absent":
        output.line("Install it: mlxk service install")
    return DONE


def _facts(file: ServiceFile, state: str, *, started: bool = False) -> dict[str, object]:
    return {
        "state": state,
        "manager": file.manager,
        "path": file.path,
        "started": started,
        "start_commands": [shlex.join(command) for command in file.start],
        "stop_commands": [shlex.join(command) for command in file.stop],
    }


def _read(file: ServiceFile) -> bytes | None:
    try:
        with open(file.path, "rb") as stream:
            return stream.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"'{file.path}' cannot be read: {error.strerror}") from error


def _run(commands: Sequence[Sequence[str]]) -> None:
    """Run commands of the service manager.

    Raises:
        ExecutionError: One is not installed, or fails.
    """
    for command in commands:
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        except OSError as error:
            raise ExecutionError(f"{command[0]} cannot be run: {error.strerror}") from error
        if done.returncode != 0:
            said = done.stderr.strip() or done.stdout.strip() or f"status {done.returncode}"
            raise ExecutionError(f"{shlex.join(command)} failed: {said}")
