"""Applies the settings file to one command line: fills in flags, and reports faults of the file.

A command that changes or computes something stops at a fault in a table that it uses, rather than run with other
settings than the user wrote. A command that only reads prints the faults and goes on.
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
"""Commands that go on in spite of faults: those that only read, and ``stop``."""

_WITHOUT = frozenset({None, "alias", "profile", "config", "doctor", "schema", "completion"})
"""Commands that use no settings, or report the faults themselves."""

_FURTHER_TABLES: Mapping[str, tuple[str, ...]] = {"run": ("chat",)}
"""Tables that a command uses besides that of its name."""


def hint(file: SettingsFile) -> str:
    """Return the hint of an error about faults of the file."""
    return "Correct it: mlxk config edit" if file.readable else f"Move it away: {file.path}"


def use_settings_file(arguments: argparse.Namespace, settings: Settings, output: Output) -> None:
    """Fill in the flags that were not typed, and report the faults of the file.

    Sets ``arguments.from_file`` to the names of the attributes that were filled in.

    Raises:
        ValidationError: A table or name that the command uses has a fault.
    """
    command, file = arguments.command, settings.file
    arguments.from_file = frozenset()
    if command in _WITHOUT:
        return
    faults_in_use = file.faults_of(*tables_used(command)) if command not in _READS else ()
    faults_in_use += _faults_of_models(arguments, file)
    if faults_in_use:
        faults = "; ".join(map(str, faults_in_use))
        raise ValidationError(f"{shown_path(file, settings)}: {faults}", hint=hint(file))
    if file.faults:
        report(file, settings, output)
    if command in ("pull", "clone") or getattr(arguments, "remote", False):
        own = own_name(arguments.model, file.entries)
        arguments.model = arguments.model if own is None else file.entries[own]["model"]
    arguments.from_file = frozenset(_filled_in(arguments, file))


def tables_used(command: str) -> tuple[str, ...]:
    """Return the tables that a command uses."""
    return ("", "hub", command, *_FURTHER_TABLES.get(command, ()))


def _faults_of_models(arguments: argparse.Namespace, file: SettingsFile) -> tuple[SettingFault, ...]:
    """Return the faults of those names of the settings file that the command line uses as models."""
    references = (getattr(arguments, name, None) for name in ("model", "named", "default_model", "draft_model"))
    names = [name for name in references if isinstance(name, str) and entry_name_fault(name) is None]
    faulty = [fault.table for fault in file.faults if fault.table]
    known = [*(table_name(MODELS, name) for name in file.entries), *faulty]
    tables = {own_name(table_name(MODELS, name), known) for name in names}
    return tuple(fault for fault in file.faults if fault.table and fault.table in tables)


def _filled_in(arguments: argparse.Namespace, file: SettingsFile) -> list[str]:
    filled = []
    for setting in TABLES.get(arguments.command, ()):
        name, value = setting.argument, file.values(arguments.command).get(setting.key)
        if name is not None and value is not None and not is_given(getattr(arguments, name, None)):
            setattr(arguments, name, value)
            filled.append(name)
    return filled


def is_given(value: object) -> bool:
    """Whether the value of a flag was typed."""
    return value is not None and value != []


def report(file: SettingsFile, settings: Settings, output: Output) -> None:
    """Print the faults on standard error, each with its line and table."""
    path = shown_path(file, settings)
    output.note("\n".join(f"[{path}: {fault}]" for fault in file.faults) + f"\n{hint(file)}")


def shown_path(file: SettingsFile, settings: Settings) -> str:
    """Return the path of the file, with ``~`` for the home directory."""
    home = settings.home.rstrip("/")
    return f"~{file.path[len(home) :]}" if home and file.path.startswith(f"{home}/") else file.path


def shown_value(value: object) -> str:
    """Return a JSON value as text; a string is not quoted."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


PREFIX = "MLXK2_"
"""Prefix of the variables that only this program reads."""

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
"""All variables with this prefix; another one is misspelt."""


def unknown_variables(set_variables: Iterable[str]) -> list[str]:
    """Return a note for each variable that has the prefix and no effect."""
    notes = []
    for name in sorted(set_variables):
        if name.startswith(PREFIX) and name not in VARIABLES:
            near = closest(name.removeprefix(PREFIX), [each.removeprefix(PREFIX) for each in VARIABLES])
            notes.append(f"[{name} has no effect. {did_you_mean(PREFIX + each for each in near)}".rstrip() + "]")
    return notes
