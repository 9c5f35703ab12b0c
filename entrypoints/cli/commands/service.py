"""``mlxk service install|uninstall|status``: a server that starts with the user's session, by systemd or launchd."""

import argparse
import contextlib
import os
import shlex
import subprocess
import time
from collections.abc import Collection, Sequence

from mlxk.domain.errors import ExecutionError, StorageError, UsageError, ValidationError
from mlxk.entrypoints import private_files, server_log
from mlxk.entrypoints.cli.command import CommandContext
from mlxk.entrypoints.cli.output import DONE, Output
from mlxk.entrypoints.cli.program import build_parser, parse
from mlxk.entrypoints.cli.server_settings import server_settings
from mlxk.entrypoints.cli.service_files import (
    LAUNCHD,
    SYSTEMD,
    ServiceFile,
    check_paths,
    lacking_secrets,
    service_file,
    with_whole_paths,
)
from mlxk.entrypoints.cli.settings_of_command import use_settings_file
from mlxk.entrypoints.settings import ServerSettings, Settings
from mlxk.entrypoints.start_checks import is_loopback

_MOST_BYTES = 1024 * 1024
"""Largest file that can be one of ours."""
_STOPPING_SECONDS, _PAUSE_SECONDS = 60.0, 0.5
"""How long a start is retried while launchd still stops the previous service, and the pause between tries."""

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
    """Install, uninstall, or show the status."""
    actions = {"start": "install", "shown": "install", "stop": "uninstall"}
    flag = next(
        (name for name, action in actions.items() if getattr(arguments, name) and action != arguments.action), None
    )
    if flag is not None:
        raise UsageError(f"--{'print' if flag == 'shown' else flag} belongs to {actions[flag]}")
    if arguments.words and arguments.action != "install":
        raise UsageError("flags of the server belong to install")
    flags, server = tuple(arguments.words), ServerSettings()
    if arguments.action == "install":
        flags, server = _validate_flags(flags, context, output)
    log = server_log.path_of(context.settings.state_folder, LOG_NAME)
    file = service_file(arguments.manager, context.settings, flags, log, server.drain_seconds)
    if arguments.action == "install":
        _check_secrets(server, file, context.settings, output)
    if arguments.shown:
        return _show(file, output)
    action = {"install": _install, "uninstall": _uninstall, "status": _status}[arguments.action]
    return action(file, arguments, context, output)


def _validate_flags(
    flags: Sequence[str], context: CommandContext, output: Output
) -> tuple[tuple[str, ...], ServerSettings]:
    """Validate flags of ``mlxk serve``; return them with absolute paths, and the server settings that they give."""
    typed = parse(build_parser("serve"), ["serve", *flags])
    for name, is_set in (("background", typed.background), ("until-eof", typed.until_eof)):
        if is_set:
            raise UsageError(f"--{name} is for terminals and programs; a service runs without either")
    flags = with_whole_paths(flags, typed)
    parsed = parse(build_parser("serve"), ["serve", *flags])
    use_settings_file(parsed, context.settings, output)
    server = server_settings(parsed, context)
    server.validate()
    check_paths(parsed, context.settings)
    if parsed.api_key_file is not None and server.api_key_file is None:
        raise ValidationError(f"--api-key-file: '{parsed.api_key_file}' is not a file that a service can read again")
    return tuple(flags), server


def _check_secrets(server: ServerSettings, file: ServiceFile, settings: Settings, output: Output) -> None:
    """Note which secrets of the shell the service will lack; refuse a server that others could use without a key."""
    lacking = lacking_secrets(settings, file.secrets)
    if not lacking:
        return
    where = "the settings file (mlxk config edit)" + ("" if file.secrets is None else f" or {file.secrets} (mode 0600)")
    message = f"the service does not get {' and '.join(lacking)} of this shell, since its file holds no secrets"
    if "MLXK2_API_KEY" in lacking and server.api_key_file is None and not is_loopback(server.host):
        raise ValidationError(
            f"{message}; at {server.host} it would serve without a key", hint=f"Write the key into {where}."
        )
    output.note(f"[{message}; write them into {where}]")


def _show(file: ServiceFile, output: Output) -> int:
    content = file.make().decode()
    if output.as_json:
        output.document("service", {**_facts(file, "shown"), "content": content})
    else:
        output.text(content)
    return DONE


def _install(file: ServiceFile, arguments: argparse.Namespace, context: CommandContext, output: Output) -> int:
    existing = _read(file)
    if existing is not None and not file.is_ours(existing):
        raise ValidationError(f"'{file.path}' exists, and mlxk did not write it", hint="Move it away first.")
    content = file.make()
    server_log.make(context.settings.state_folder, LOG_NAME, starts=arguments.start)
    try:
        private_files.write(file.path, content)
    except OSError as error:
        raise StorageError(f"'{file.path}' cannot be written: {error.strerror}") from error
    if arguments.start:
        _start(file)
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
    existing = _read(file)
    if existing is not None and not file.is_ours(existing):
        raise ValidationError(f"'{file.path}' was not written by mlxk, and is left alone")
    if existing is not None:
        _remove(file, stop=arguments.stop)
    log = server_log.path_of(context.settings.state_folder, LOG_NAME)
    with contextlib.suppress(OSError):
        if os.path.getsize(log) == 0:  # a log with lines is kept for the user
            os.unlink(log)
    if output.as_json:
        output.document("service", _facts(file, "uninstalled" if existing is not None else "absent"))
        return DONE
    output.line(f"Removed {file.path}" if existing is not None else f"There is no {file.path}; nothing was removed.")
    if os.path.exists(log):
        output.line(f"Its log stays: {log}")
    if existing is not None and not arguments.stop:
        output.line("If it was started, stop it:")
        for command in (*file.stop, *file.after_removal):
            output.line(f"  {shlex.join(command)}")
    return DONE


def _remove(file: ServiceFile, *, stop: bool) -> None:
    """Remove the file. With ``stop``, stop the service first; that it does not run is no error."""
    for command in file.stop if stop else ():
        _run(command, file.not_running)
    try:
        os.unlink(file.path)
    except OSError as error:
        raise StorageError(f"'{file.path}' cannot be removed: {error.strerror}") from error
    for command in file.after_removal if stop else ():
        _run(command)


def _status(file: ServiceFile, arguments: argparse.Namespace, context: CommandContext, output: Output) -> int:
    existing = _read(file)
    state = "absent" if existing is None else "installed" if file.is_ours(existing) else "foreign"
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
        "stop_commands": [shlex.join(command) for command in (*file.stop, *file.after_removal)],
    }


def _read(file: ServiceFile) -> bytes | None:
    """Return the file's content, at most one byte over ``_MOST_BYTES``; None when it does not exist."""
    try:
        return private_files.read(file.path, _MOST_BYTES)
    except OSError as error:
        raise StorageError(f"'{file.path}' cannot be read: {error.strerror}") from error


def _start(file: ServiceFile) -> None:
    """Start the service, replacing a running one. launchd returns before that one has ended, so retry meanwhile."""
    statuses = [_run(command, allowed=None) for command in file.before_start]
    deadline = time.monotonic() + (0 if set(statuses) <= set(file.not_running) else _STOPPING_SECONDS)
    for command in file.start:
        while _run(command, file.still_stopping if time.monotonic() < deadline else ()) != 0:
            time.sleep(_PAUSE_SECONDS)


def _run(command: Sequence[str], allowed: Collection[int] | None = ()) -> int:
    """Run a command of the service manager, and return its exit status.

    Args:
        command: The command.
        allowed: Exit statuses besides 0 that are no failure; None allows all.

    Raises:
        ExecutionError: The command cannot be run, or fails.
    """
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    except OSError as error:
        raise ExecutionError(f"{command[0]} cannot be run: {error.strerror}") from error
    if done.returncode != 0 and allowed is not None and done.returncode not in allowed:
        message = done.stderr.strip() or done.stdout.strip() or f"status {done.returncode}"
        raise ExecutionError(f"{shlex.join(command)} failed: {message}")
    return done.returncode
