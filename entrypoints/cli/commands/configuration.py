"""``mlxk config [show|path|edit]``: the settings file, and where each setting comes from."""

import argparse
import contextlib
import functools
import operator
import os
import shlex
import stat
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from mlxk.domain.errors import UsageError, ValidationError
from mlxk.domain.models.reference import own_name
from mlxk.entrypoints import settings_edit, settings_file
from mlxk.entrypoints.cli.command import CommandContext
from mlxk.entrypoints.cli.input_files import edited
from mlxk.entrypoints.cli.output import DONE, Output, TerminalConfirmation
from mlxk.entrypoints.cli.render.formatting import table
from mlxk.entrypoints.cli.settings_of_command import report, shown_path, shown_value, tables_used
from mlxk.entrypoints.setting_table import MODELS, TABLES, Setting
from mlxk.entrypoints.settings import Settings
from mlxk.entrypoints.settings_file import SettingsFile

HIDDEN = "<hidden>"
_WIDEST_VALUE = 60


@attrs.frozen
class EffectiveSetting:
    """A setting with its effective value, and the source of the value."""

    table: str
    setting: Setting
    value: Any
    """None where no value is set."""
    source: str
    """``flag``, ``environment``, ``file`` or ``default``."""
    variable: str | None = None
    """Name of the environment variable that is the source."""

    @property
    def shown(self) -> object:
        """The value, unless it is secret."""
        return HIDDEN if self.setting.secret and self.value is not None else self.value


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what to do with the file."""
    parser.add_argument(
        "action",
        nargs="?",
        choices=("show", "path", "edit"),
        default="show",
        help="show every setting and its source (default), print the file's path, or open it in your editor",
    )
    parser.add_argument(
        "--for",
        dest="line",
        metavar="'COMMAND …'",
        help="show what this command line would use, such as 'serve -m demo'",
    )


def execute(arguments: argparse.Namespace, context: CommandContext, output: Output) -> int:
    """Show the settings, print the path, or edit the file."""
    settings = context.settings
    if arguments.line is not None and arguments.action != "show":
        raise UsageError("--for belongs to 'config show'")
    if arguments.action == "edit":
        _edit(settings, output)
    elif arguments.action == "show":
        _show(settings, output, arguments.line)
    elif output.as_json:
        output.document("config", _place(settings.file))
    else:
        output.line(settings.file.path)
    return DONE


def _place(file: SettingsFile) -> dict[str, Any]:
    return {"path": file.path, "exists": file.exists}


def _show(settings: Settings, output: Output, line: str | None) -> None:
    file = settings.file
    effective = list(_effective(settings, line))
    if output.as_json:
        rows = [
            {"table": each.table, "key": each.setting.key, "value": each.shown, "source": each.source}
            | {"variable": each.variable}
            for each in effective
        ]
        names = [{"name": name, "values": dict(values)} for name, values in sorted(file.entries.items())]
        faults = [{"line": each.line, "table": each.table, "message": each.message} for each in file.faults]
        output.document("config", {**_place(file), "settings": rows, "models": names, "faults": faults})
        return
    cells = [
        (
            f"{each.table}.{each.setting.key}".lstrip("."),
            "-" if each.value is None else shown_value(each.shown)[:_WIDEST_VALUE],
            f"{each.source} ({each.variable})" if each.variable else each.source,
        )
        for each in effective
    ]
    output.table(table(("Setting", "Value", "Source"), cells, output.width, last=40))
    for name, values in file.entries.items():
        output.line(f"\n[{settings_file.table_name(MODELS, name)}]")
        output.text("".join(f"{key} = {settings_edit.toml(value)}\n" for key, value in values.items()))
    if _shows_secrets_to_others(file):
        output.note(f"[other users of this machine can read the secrets in {shown_path(file, settings)}: chmod 600 it]")
    if file.faults:
        report(file, settings, output)
    elif not file.exists:
        output.note(f"There is no {shown_path(file, settings)}; make it with: mlxk config edit")


def _shows_secrets_to_others(file: SettingsFile) -> bool:
    return file.has_secrets and bool(os.stat(file.path).st_mode & (stat.S_IRGRP | stat.S_IROTH))


def _effective(settings: Settings, line: str | None) -> Iterator[EffectiveSetting]:
    """Yield every setting, or only those that a command line uses."""
    given, command, model = ({}, None, None) if line is None else _parse_line(line)
    for name, listed in TABLES.items():
        if command is not None and name not in tables_used(command):
            continue
        values = settings.file.values(name)
        if name == "run" and model is not None:
            stored_name = own_name(model, settings.file.entries)
            values = {**values, **(settings.file.entries[stored_name] if stored_name else {})}
        for setting in listed:
            if setting.flag in given:
                value = given[setting.flag]
                inverted = setting.flag is not None and setting.flag.startswith("--no-")
                yield EffectiveSetting(name, setting, not value if inverted else value, "flag")
            else:
                yield _without_flag(settings, name, setting, values)


def _without_flag(settings: Settings, table: str, setting: Setting, values: Mapping[str, Any]) -> EffectiveSetting:
    value = values.get(setting.key, setting.default)
    variable = next((each for each in setting.variables if each in settings.set_variables), None)
    if setting.variables and setting.field:
        effective = operator.attrgetter(setting.field)(settings)
        value = setting.default if effective is None else effective
    if setting.key == "color" and not value and variable is None and values.get("color") is not False:
        variable = "TERM"
    source = "environment" if variable else "file" if setting.key in values else "default"
    return EffectiveSetting(table, setting, value, source, variable)


def _parse_line(line: str) -> tuple[dict[str | None, Any], str, str | None]:
    """Parse a command line; return the values of its flags, by flag, its command, and its model.

    Raises:
        UsageError: It cannot be parsed, or does not begin with a command.
    """
    from mlxk.entrypoints.cli.program import build_parser, command_of, parse  # noqa: PLC0415 - which loads this module

    try:
        words = shlex.split(line)
    except ValueError as error:
        raise UsageError(f"--for: {error}") from error
    words = words[1:] if words[:1] == ["mlxk"] else words
    command = command_of(words)
    if command is None:
        raise UsageError(
            f"--for: '{line}' does not begin with a command", hint="For example: --for 'serve --port 9000'"
        )
    parser = build_parser(command)
    parsed = parse(parser, words)
    actions = parsed.parser._option_string_actions
    flags = {flag: (getattr(parsed, action.dest, action.default), action.default) for flag, action in actions.items()}
    model = getattr(parsed, "named", None) or getattr(parsed, "model", None)
    return {flag: value for flag, (value, default) in flags.items() if value != default}, command, model


def _edit(settings: Settings, output: Output) -> None:
    """Open a draft of the file in the user's editor, and replace the file when the draft is valid.

    Raises:
        StorageError: The file cannot be read or written.
        ValidationError: There is no editor, it fails, or the user leaves a draft with faults.
    """
    path = settings.file.path
    before = settings_edit.content_of(path)
    draft = settings_edit.draft_beside(path, settings_edit.template().encode() if before is None else before)
    keep = False
    stdout = sys.stderr if output.as_json else None
    edit = functools.partial(edited, draft, settings.editor, "the settings file is as it was", stdout)
    try:
        content = edit()
        while faults := settings_file.check(path, content).faults:
            keep = True
            for fault in faults:
                output.note(f"[{fault}]")
            again = TerminalConfirmation(output).ask((), "Edit it again?", default=True)
            if not again:
                raise ValidationError(
                    f"the settings file is as it was: {'; '.join(map(str, faults))}",
                    hint=f"What you wrote is in {draft}",
                )
            content = edit()
        changed = content != before
        if changed:
            settings_edit.replace(path, content, before)
        keep = False
    finally:
        if not keep:
            with contextlib.suppress(FileNotFoundError):  # the editor removed it
                os.unlink(draft)
    if output.as_json:
        output.document("config", {"path": path, "exists": True, "changed": changed})
    else:
        output.line(f"{shown_path(settings.file, settings)} {'is written' if changed else 'is as it was'}")
