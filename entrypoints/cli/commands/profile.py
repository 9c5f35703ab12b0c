"""``mlxk profile NAME``: a name of the user's own with settings, in the settings file."""

import argparse
from typing import Any

from mlxk.domain.errors import UsageError
from mlxk.domain.models.reference import own_name
from mlxk.entrypoints.cli import generation_arguments
from mlxk.entrypoints.cli.command import CommandContext, complete_models, model_reference
from mlxk.entrypoints.cli.commands import alias
from mlxk.entrypoints.cli.exit_status import DONE
from mlxk.entrypoints.cli.output import Output
from mlxk.entrypoints.setting_kinds import JSON_TABLE, SWITCH, TEXTS
from mlxk.entrypoints.setting_table import ENTRY, Setting


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the name, and a flag for each setting of its table."""
    words = parser.add_argument(
        "words",
        nargs="*",
        default=[],
        metavar="NAME",
        help="the name to set up or, without flags, to show; or 'rm NAME'; or 'list' (default)",
    )
    complete_models(words)
    group = parser.add_argument_group("settings of the name", "What a command or a request says goes before them.")
    for setting in ENTRY:
        action = _add_flag(group, setting)
        if setting.key in ("model", "draft_model"):
            complete_models(action)
    group.add_argument(
        "--unset", action="append", default=[], choices=[each.key for each in ENTRY[1:]], help="take a setting away"
    )


def _add_flag(group: argparse._ArgumentGroup, setting: Setting) -> argparse.Action:
    flag, text, words = f"--{setting.key.replace('_', '-')}", _lowered(setting.meaning), setting.kind.words
    if setting.kind is SWITCH:
        return group.add_argument(flag, action=argparse.BooleanOptionalAction, help=text)
    if setting.kind in (TEXTS, JSON_TABLE):
        form = "TEXT" if setting.kind is TEXTS else "KEY=VALUE"
        return group.add_argument(flag, action="append", default=[], metavar=form, help=f"{text}; repeatable")
    if words.startswith("a whole number") or setting.key in ("kv_bits", "kv_group_size"):
        return group.add_argument(flag, type=int, metavar="N", help=text)
    if words.startswith("a number"):
        return group.add_argument(flag, type=float, metavar="F", help=text)
    kind = model_reference if setting.key in ("model", "draft_model") else str
    return group.add_argument(flag, type=kind, metavar="TEXT", help=text)


def _lowered(text: str) -> str:
    return (text[0].lower() + text[1:]).removesuffix(".")


def execute(arguments: argparse.Namespace, context: CommandContext, output: Output) -> int:
    """List the names, remove or show one, or set one up."""
    values = _values(arguments)
    if not values and alias.list_or_remove(arguments.words, context, output, "profile"):
        return DONE
    if len(arguments.words) != 1:
        raise UsageError("a profile needs one name", hint="Write: mlxk profile NAME --model MODEL --system TEXT")
    (name,), entries = arguments.words, context.settings.file.entries
    if values:
        alias.write(name, values, context, output, "profile")
        return DONE
    own = own_name(name, entries)
    if own is None:
        raise UsageError(f"there is no name '{name}'", hint=f"Set it up: mlxk profile {name} --model MODEL")
    alias.show_names(context.settings.file, {own: entries[own]}, output, "profile")
    return DONE


def _values(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that flags give, by key; None for those to take away."""
    given: dict[str, Any] = {setting.key: getattr(arguments, setting.key) for setting in ENTRY}
    given["template_option"] = generation_arguments.template_options(arguments)
    values = {key: value for key, value in given.items() if value not in (None, [], {})}
    if both := [key for key in arguments.unset if key in values]:
        flag = f"--{both[0].replace('_', '-')}"
        raise UsageError(f"{flag} and --unset {both[0]} exclude each other", hint="Leave one of the two out.")
    return {**values, **dict.fromkeys(arguments.unset)}
