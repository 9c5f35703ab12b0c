"""What settings file and variables say for one command line: values for flags not given, and what to do about faults.

A command that changes or computes something stops at a fault in what it uses: it would do something else than the user
has written down. One that only reads says it and goes on.
"""

import argparse
import json
from collections.abc import Iterable, Mapping

from mlxk.domain.errors import ValidationError
from mlxk.domain.models.reference import own_name
from mlxk.entrypoints.cli.command_line_parser import closest, did_you_mean
from mlxk.entrypoints.cli.output import Output
from mlxk.entrypoints.setting_table import MODELS, TABLES
from mlxk.entrypoints.settings import Settings
from mlxk.entrypoints.settings_file import SettingFault, SettingsFile, entry_name_fault, table_name

_READS = frozenset({"list", "show", "health", "search", "recommend", "outdated", "du", "ps", "stop", "logs"})
"""Commands that only read, and the one that stops what runs."""

_WITHOUT = frozenset({None, "alias", "profile", "config", "doctor", "schema", "completion"})
"""Commands that use no settings, or report the faults themselves."""

_USED: Mapping[str, tuple[str, ...]] = {"run": ("chat",)}
"""Tables that a command uses beside that of its own name."""


def hint(file: SettingsFile) -> str:
    """Return what to do about the faults of the file."""
    return "Correct it: mlxk config edit" if file.readable else f"Move it away: {file.path}"


def use_settings_file(arguments: argparse.Namespace, settings: Settings, output: Output) -> None:
    """Fill in the flags that are not given, and report what is wrong in the file.

    ``arguments.from_file`` becomes the attributes that were filled in.

    Raises:
        ValidationError: Something is wrong in what the command uses.
    """
    command, file = arguments.command, settings.file
    arguments.from_file = frozenset()
    if command in _WITHOUT:
        return
    used = file.faults_of(*tables_used(command)) if command not in _READS else ()
    used += _faults_of_models(arguments, file)
    if used:
        faults = "; ".join(map(str, used))
        raise ValidationError(f"{shown_path(file, settings)}: {faults}", hint=hint(file))
    if file.faults:
        report(file, settings, output)
    if command in ("pull", "clone") or getattr(arguments, "remote", False):
        own = own_name(arguments.model, file.entries)
        arguments.model = arguments.model if own is None else file.entries[own]["model"]
    arguments.from_file = frozenset(_filled_in(arguments, file))


def tables_used(command: str) -> tuple[str, ...]:
    """Return the tables that a command uses."""
    return ("", "hub", command, *_USED.get(command, ()))


def _faults_of_models(arguments: argparse.Namespace, file: SettingsFile) -> tuple[SettingFault, ...]:
    """Return the faults of the names that the command line uses; a name that cannot be one means what it means."""
    given = (getattr(arguments, name, None) for name in ("model", "named", "default_model", "draft_model"))
    names = [name for name in given if isinstance(name, str) and entry_name_fault(name) is None]
    written = [fault.table for fault in file.faults if fault.table]
    known = [*(table_name(MODELS, name) for name in file.entries), *written]
    tables = {own_name(table_name(MODELS, name), known) for name in names}
    return tuple(fault for fault in file.faults if fault.table and fault.table in tables)


def _filled_in(arguments: argparse.Namespace, file: SettingsFile) -> list[str]:
    found = []
    for setting in TABLES.get(arguments.command, ()):
        name, value = setting.argument, file.values(arguments.command).get(setting.key)
        if name is not None and value is not None and not is_given(getattr(arguments, name, None)):
            setattr(arguments, name, value)
            found.append(name)
    return found


def is_given(value: object) -> bool:
    """Whether the value of a flag was typed."""
    return value is not None and value != []


def report(file: SettingsFile, settings: Settings, output: Output) -> None:
    """Print the faults on standard error, each with its place."""
    path = shown_path(file, settings)
    output.note("\n".join(f"[{path}: {fault}]" for fault in file.faults) + f"\n{hint(file)}")


def shown_path(file: SettingsFile, settings: Settings) -> str:
    """Return the path of the file, with ``~`` for the home directory."""
    home = settings.home.rstrip("/")
    return f"~{file.path[len(home) :]}" if home and file.path.startswith(f"{home}/") else file.path


def shown_value(value: object) -> str:
    """Return a value of JSON as text."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


PREFIX = "MLXK2_"
"""Of the variables that only this program reads."""

VARIABLES = frozenset(
    {
        "MLXK2_API_KEY",
        "MLXK2_AUDIO_SEGMENTS",
        "MLXK2_BLAS",
        "MLXK2_CPU_DTYPE",
        "MLXK2_ENABLE_ALPHA_FEATURES",
        "MLXK2_ENABLE_PIPES",
        "MLXK2_EXIF_METADATA",
        "MLXK2_HOST",
        "MLXK2_LOG_JSON",
        "MLXK2_LOG_LEVEL",
        "MLXK2_MAX_TOKENS",
        "MLXK2_PORT",
        "MLXK2_PRELOAD_MODEL",
        "MLXK2_RELOAD",
        "MLXK2_USE_SERVER",
        "MLXK2_VISION_CHUNK_SIZE",
    }
)
"""The variables with our prefix; a variable with it that is none of them is a misspelt one."""


def unknown_variables(set_variables: Iterable[str]) -> list[str]:
    """Return a note for each variable that has our prefix and no effect."""
    notes = []
    for name in sorted(set_variables):
        if name.startswith(PREFIX) and name not in VARIABLES:
            near = closest(name.removeprefix(PREFIX), [each.removeprefix(PREFIX) for each in VARIABLES])
            notes.append(f"[{name} has no effect. {did_you_mean(PREFIX + each for each in near)}".rstrip() + "]")
    return notes
