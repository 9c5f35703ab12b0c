"""``alias`` and ``profile``: the user's own names for models, in the settings file."""

import argparse
import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from mlxk.domain.errors import AmbiguousModelError, ModelNotFoundError, UsageError, ValidationError
from mlxk.domain.models.reference import own_name
from mlxk.domain.text import nearest, require_valid_unicode
from mlxk.entrypoints import settings_edit, settings_file
from mlxk.entrypoints.cli import generation_arguments
from mlxk.entrypoints.cli.command import (
    CommandContext,
    complete_model_name,
    complete_models,
    model_reference,
    number_of_bits,
)
from mlxk.entrypoints.cli.output import DONE, Output
from mlxk.entrypoints.cli.render.formatting import table
from mlxk.entrypoints.cli.settings_of_command import hint, report, shown_path
from mlxk.entrypoints.setting_kinds import JSON_TABLE, SWITCH, TEXTS
from mlxk.entrypoints.setting_table import ENTRY, MODELS, Setting
from mlxk.entrypoints.settings import read_settings
from mlxk.entrypoints.settings_file import SettingFault, SettingsFile, entry_name_fault, table_name

Values = Mapping[str, Any]


def _complete_words(prefix: str, parsed_args: argparse.Namespace, **_context: object) -> list[str]:
    """Complete a word: a name or an action first, then the name to remove or, for ``alias``, the model."""
    if parsed_args.words and parsed_args.words[0] != "rm":
        return complete_model_name(prefix) if parsed_args.command == "alias" else []
    names = [*read_settings().file.entries, *([] if parsed_args.words else ["list", "rm"])]
    return [name for name in names if name.startswith(prefix)]


class AliasCommand:
    """``mlxk alias [NAME MODEL]``: names of the user's own for models, in the settings file."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the name and its model."""
        words = parser.add_argument(
            "words",
            nargs="*",
            default=[],
            metavar="NAME MODEL",
            help="call MODEL by NAME; or 'rm NAME'; or 'list' (default), which shows all names",
        )
        words.completer = _complete_words  # type: ignore[attr-defined]  # argcomplete's interface

    def execute(self, arguments: argparse.Namespace, context: CommandContext, output: Output) -> int:
        """List the names, remove one, or write one."""
        if not list_or_remove(arguments.words, context, output):
            if len(arguments.words) != 2:
                raise UsageError("a name needs a model", hint="Write: mlxk alias NAME MODEL")
            write(arguments.words[0], {"model": model_reference(arguments.words[1])}, context, output, "alias")
        return DONE


def list_or_remove(words: list[str], context: CommandContext, output: Output, command: str = "alias") -> bool:
    """List all names for no words or ``list``, remove one for ``rm NAME``; return whether the words were one of these.

    Raises:
        UsageError: 'rm' without one name.
        ValidationError: There is no such name, or the file cannot be changed.
    """
    if words and words[0] == "rm":
        if len(words) != 2:
            raise UsageError("rm needs one name", hint=f"Write: mlxk {command} rm NAME")
        _remove(words[1], context, output, command)
    elif words in ([], ["list"]):
        if context.settings.file.faults:
            report(context.settings.file, context.settings, output)
        show_names(context.settings.file, context.settings.file.entries, output, command)
    else:
        return False
    return True


def show_names(file: SettingsFile, entries: Mapping[str, Values], output: Output, command: str) -> None:
    """Print a table of names."""
    if output.as_json:
        output.document(command, _document(file, entries, changed=False))
        return
    rows = [(name, values["model"], settings_edit.values_text(values)) for name, values in sorted(entries.items())]
    if rows:
        output.table(table(("Name", "Model", "Settings"), rows, output.width, last=60))
    elif output.shows_progress:
        output.note("There are no names yet. Give a model one: mlxk alias NAME MODEL")


def _document(file: SettingsFile, entries: Mapping[str, Values], *, changed: bool) -> dict[str, object]:
    names = [{"name": name, "values": dict(values)} for name, values in sorted(entries.items())]
    return {"path": file.path, "names": names, "changed": changed}


def write(name: str, values: Values, context: CommandContext, output: Output, command: str) -> None:
    """Write values of a name into the settings file; None removes a value.

    Raises:
        ValidationError: The name or a value is invalid, or the file cannot be changed.
    """
    settings, file = context.settings, context.settings.file
    if fault := entry_name_fault(name):
        raise ValidationError(f"'{name}' cannot be a name: {fault}", hint="Choose another name.")
    _check_values(name, values)
    before, text = _text(file, shown_path(file, settings))
    stored_name = own_name(name, _entries(text, file))
    name = stored_name or name
    changed = settings_edit.with_entry(text, name, values)
    after = settings_file.check(file.path, changed.encode())
    faults = [fault for fault in after.faults if fault.table in (table_name(MODELS, name), None)]
    if faults:
        lacks_model = stored_name is None and "model" not in values
        advice = f"It is a new name. Say which model it means: mlxk {command} {name} --model MODEL"
        raise ValidationError(f"[{table_name(MODELS, name)}] {faults[0].message}", hint=advice if lacks_model else None)
    _note_meaning(name, after.entries[name]["model"], context, output)
    if changed != text or before is None:
        settings_edit.replace(file.path, changed.encode(), before)
    if output.as_json:
        output.document(command, _document(file, {name: after.entries[name]}, changed=changed != text))
    else:
        output.line(f"{name} = {after.entries[name]['model']}")


def _check_values(name: str, values: Values) -> None:
    """Refuse values that TOML cannot hold, such as lone surrogates, and values of a wrong kind or range."""
    for setting in ENTRY:
        value = values.get(setting.key)
        for text in _texts(value):
            require_valid_unicode(text, f"--{setting.key.replace('_', '-')}")
        if value is not None and (fault := setting.kind.fault(value)):
            raise ValidationError(f"[{table_name(MODELS, name)}] {setting.key} {fault}")


def _texts(value: object) -> Iterator[str]:
    """Yield every string in a value, the keys of tables included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for part in [*value, *value.values()] if isinstance(value, Mapping) else value:
            yield from _texts(part)


def _note_meaning(name: str, reference: str, context: CommandContext, output: Output) -> None:
    """Note when the model is not found yet, and when the name hides another model's short name."""
    resolve = attrs.evolve(context.build(context.settings).use_cases.resolve_model(), aliases={})
    try:
        resolve(reference)
    except (ModelNotFoundError, AmbiguousModelError) as error:
        output.note(f"[{error.message}; the name works when there is one]")
    with contextlib.suppress(ModelNotFoundError, AmbiguousModelError, ValidationError):
        other = resolve(name)
        if other.short_name == name and other.name != reference:
            output.note(f"[{name} now means {reference}; the model of that name is {other.label}]")


def _remove(name: str, context: CommandContext, output: Output, command: str) -> None:
    file = context.settings.file
    before, text = _text(file, shown_path(file, context.settings))
    names = _entries(text, file)
    stored_name = own_name(name, names)
    if stored_name is None:
        near = " or ".join(nearest(name, names))
        raise ValidationError(
            f"there is no name '{name}' in {shown_path(file, context.settings)}",
            hint=f"Did you mean {near}?" if near else "See all names: mlxk alias",
        )
    settings_edit.replace(file.path, settings_edit.without_entry(text, stored_name).encode(), before)
    if output.as_json:
        removed = {stored_name: file.entries[stored_name]} if stored_name in file.entries else {}
        output.document(command, _document(file, removed, changed=True))
    else:
        output.line(f"{stored_name} is no name any more; its model stays")


def _entries(text: str, file: SettingsFile) -> Mapping[str, object]:
    """Return the tables of names in valid TOML.

    Raises:
        ValidationError: An entry is no table.
    """
    entries = settings_file.parsed(text).get(MODELS, {})
    if not isinstance(entries, Mapping) or not all(isinstance(each, Mapping) for each in entries.values()):
        raise ValidationError(f"{MODELS} must hold tables, as in [{MODELS}.NAME]", hint=hint(file))
    return entries


def _text(file: SettingsFile, shown: str) -> tuple[bytes | None, str]:
    """Return the file's bytes, None where there is no file, and its text: valid TOML.

    Raises:
        ValidationError: It is not valid TOML.
    """
    faults: list[SettingFault] = [fault for fault in file.faults if fault.table is None]
    if faults:
        raise ValidationError(f"{shown}: {faults[0]}", hint=hint(file))
    content = settings_edit.content_of(file.path)
    return content, settings_edit.HEADING if content is None else content.decode("utf-8-sig")


class ProfileCommand:
    """``mlxk profile NAME``: a name of the user's own with settings, in the settings file."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the name, and a flag for each setting of its table."""
        words = parser.add_argument(
            "words",
            nargs="*",
            default=[],
            metavar="NAME",
            help="the name to set up or, without flags, to show; or 'rm NAME'; or 'list' (default)",
        )
        words.completer = _complete_words  # type: ignore[attr-defined]  # argcomplete's interface
        group = parser.add_argument_group("settings of the name", "What a command or a request says goes before them.")
        for setting in ENTRY:
            action = _add_flag(group, setting)
            if setting.key in ("model", "draft_model"):
                complete_models(action)
        group.add_argument(
            "--unset", action="append", default=[], choices=[each.key for each in ENTRY[1:]], help="take a setting away"
        )

    def execute(self, arguments: argparse.Namespace, context: CommandContext, output: Output) -> int:
        """List the names, remove or show one, or set one up."""
        values = _values(arguments)
        if not values and list_or_remove(arguments.words, context, output, "profile"):
            return DONE
        if len(arguments.words) != 1:
            raise UsageError("a profile needs one name", hint="Write: mlxk profile NAME --model MODEL --system TEXT")
        (name,), entries = arguments.words, context.settings.file.entries
        if values:
            write(name, values, context, output, "profile")
            return DONE
        stored_name = own_name(name, entries)
        if stored_name is None:
            raise UsageError(f"there is no name '{name}'", hint=f"Set it up: mlxk profile {name} --model MODEL")
        show_names(context.settings.file, {stored_name: entries[stored_name]}, output, "profile")
        return DONE


def _add_flag(group: argparse._ArgumentGroup, setting: Setting) -> argparse.Action:
    flag, text, words = f"--{setting.key.replace('_', '-')}", _lowered(setting.meaning), setting.kind.words
    if setting.kind is SWITCH:
        return group.add_argument(flag, action=argparse.BooleanOptionalAction, help=text)
    if setting.kind in (TEXTS, JSON_TABLE):
        form = "TEXT" if setting.kind is TEXTS else "KEY=VALUE"
        return group.add_argument(flag, action="append", default=[], metavar=form, help=f"{text}; repeatable")
    if setting.key == "kv_bits":
        return group.add_argument(flag, type=number_of_bits, metavar="N", help=text)
    if words.startswith("a whole number") or setting.key in ("kv_group_size", "prefix_cache_bits"):
        return group.add_argument(flag, type=int, metavar="N", help=text)
    if words.startswith("a number"):
        return group.add_argument(flag, type=float, metavar="F", help=text)
    kind = model_reference if setting.key in ("model", "draft_model") else str
    return group.add_argument(flag, type=kind, metavar="TEXT", help=text)


def _lowered(text: str) -> str:
    return (text[0].lower() + text[1:]).removesuffix(".")


def _values(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that flags give, by key; None for those of ``--unset``."""
    by_key: dict[str, Any] = {setting.key: getattr(arguments, setting.key) for setting in ENTRY}
    by_key["template_option"] = generation_arguments.template_options(arguments)
    values = {key: value for key, value in by_key.items() if value not in (None, [], {})}
    if both := [key for key in arguments.unset if key in values]:
        flag = f"--{both[0].replace('_', '-')}"
        raise UsageError(f"{flag} and --unset {both[0]} exclude each other", hint="Leave one of the two out.")
    return {**values, **dict.fromkeys(arguments.unset)}
