"""The files by which systemd and launchd start a server with the user's session."""

import os
import plistlib
import sys
from collections.abc import Mapping, Sequence

import attrs

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
    command = (sys.executable, "-P", "-m", "mlxk", "serve", *flags)
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
