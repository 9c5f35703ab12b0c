"""The MODEL argument, the same for every command: its help, and completion with the names on this disk."""

import argparse

HELP = "a name, a unique part of one, NAME@REVISION, a path, or 'demo'"


def add_model_argument(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    """Declare MODEL as the next positional."""
    action = parser.add_argument("model", metavar="MODEL", nargs="?" if optional else None, help=HELP)
    action.completer = complete_model  # type: ignore[attr-defined]  # argcomplete's way to attach a completer


def complete_model(prefix: str, **_context: object) -> list[str]:
    """Return the models whose name starts with, or contains, what was typed; called by the shell's completion."""
    from mlxk.entrypoints.container import build
    from mlxk.entrypoints.settings import read_settings

    handles = build(read_settings()).use_cases.list_models().handles()
    names = [handle.display_name or handle.name for handle in handles]
    short = [name.rpartition("/")[2] for name in names]
    return [name for name in [*names, *short] if name.startswith(prefix)]
