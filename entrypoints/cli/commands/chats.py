"""``mlxk chats [rm NAME…]``: lists and removes kept chats."""

import argparse
import datetime
from collections.abc import Sequence

from mlxk.domain.errors import RequiresConfirmationError, UsageError
from mlxk.entrypoints.cli.chat.kept_chats import KeptChats, complete_names
from mlxk.entrypoints.cli.command import CommandContext
from mlxk.entrypoints.cli.output import DONE, Output, confirmation
from mlxk.entrypoints.cli.render.formatting import age, counted, table
from mlxk.entrypoints.cli.render.model_json import timestamp


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the action and the chats."""
    parser.add_argument(
        "action", nargs="?", choices=("list", "rm"), default="list", help="list the chats (default), or remove some"
    )
    names = parser.add_argument(
        "names", nargs="*", default=[], metavar="NAME", help="a chat to remove, or the beginning of its name"
    )
    complete_names(names)
    parser.add_argument("-a", "--all", action="store_true", help="remove all of them")
    parser.add_argument("-y", "--yes", action="store_true", help="do not ask for confirmation")


def execute(arguments: argparse.Namespace, context: CommandContext, output: Output) -> int:
    """Print the kept chats, or remove some."""
    store = KeptChats.beside(context.settings.chat_history)
    if arguments.action == "list":
        if arguments.names or arguments.all or arguments.yes:
            raise UsageError("NAME, --all and --yes belong to rm", hint="For example: mlxk chats rm NAME")
        return _list(store, output)
    if bool(arguments.names) == arguments.all:
        raise UsageError("rm needs the names of chats, or --all", hint="See the names with: mlxk chats")
    names = store.names() if arguments.all else list(dict.fromkeys(map(store.find, arguments.names)))
    if names and (arguments.all or set(names) - set(arguments.names)):
        _confirm(names, arguments, output)
    store.remove(names)
    if output.as_json:
        output.document("chats", _json(store, names))
    for name in [] if output.as_json else names:
        output.line(f"removed {name}")
    if not names and not output.as_json:
        output.note("no chat is kept")
    return DONE


def _confirm(names: Sequence[str], arguments: argparse.Namespace, output: Output) -> None:
    """Ask before chats are removed that were not named exactly.

    Raises:
        RequiresConfirmationError: The answer is no, or there is no terminal.
    """
    question = f"Remove {counted(len(names), 'chat')}?"
    assent = confirmation(output, yes=arguments.yes).ask(tuple(names), question, default=False)
    if assent is None:
        raise RequiresConfirmationError(
            f"this removes {counted(len(names), 'chat')}: {', '.join(names[:3])}{'…' if len(names) > 3 else ''}",
            hint="Write the exact names, or confirm it with --yes.",
        )
    if not assent:
        raise RequiresConfirmationError("nothing was removed")


def _list(store: KeptChats, output: Output) -> int:
    if output.as_json:
        output.document("chats", _json(store, ()))
        return DONE
    chats, unreadable = store.listed()
    if chats:
        now = datetime.datetime.now(datetime.UTC)
        output.table(
            table(
                ("Name", "Modified", "Model", "Turns", "First words"),
                [(each.name, age(each.modified, now), each.model, str(each.turns), each.first_words) for each in chats],
                output.width,
            )
        )
    elif not unreadable:
        output.note("No chat is kept. Keep one with: mlxk run MODEL --keep")
    for name in unreadable:
        output.note(f"[{name} cannot be read; remove it with: mlxk chats rm {name}]")
    if chats and output.shows_progress:
        output.note("Go on with the first of these: mlxk run --continue; with another: mlxk run --continue NAME")
    return DONE


def _json(store: KeptChats, removed: Sequence[str]) -> dict[str, object]:
    chats, unreadable = store.listed()
    return {
        "chats": [
            {
                "name": each.name,
                "modified": timestamp(each.modified),
                "model": each.model,
                "turns": each.turns,
                "first_words": each.first_words,
            }
            for each in chats
        ],
        "unreadable": unreadable,
        "removed": list(removed),
    }
