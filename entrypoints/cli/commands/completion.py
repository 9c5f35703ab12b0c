"""``mlxk completion SHELL``: prints the script that completes commands, flags and model names in a shell."""

import argparse

from argcomplete.shell_integration import shellcode

from mlxk.entrypoints.cli.command import CommandContext
from mlxk.entrypoints.cli.output import DONE, Output

SHELLS = ("bash", "zsh", "fish")
PROGRAMS = ["mlxk", "mlx-run"]
COMPINIT = "(( $+functions[compdef] )) || { autoload -Uz compinit && compinit; }"
"""Loads zsh's completion where the user's settings do not; without it there is no ``compdef``."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the shell."""
    parser.add_argument("shell", choices=SHELLS, help="the shell; the examples show how to load the script")


def execute(arguments: argparse.Namespace, context: CommandContext, output: Output) -> int:
    """Print the script."""
    script = shellcode(PROGRAMS, shell=arguments.shell)
    if arguments.shell == "zsh":
        script = f"{COMPINIT}\n{script}"
    if output.as_json:
        output.document("completion", {"shell": arguments.shell, "script": script})
    else:
        output.text(script + "\n")
    return DONE
