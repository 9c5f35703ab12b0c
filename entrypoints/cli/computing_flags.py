"""The flags that say how to compute, and those whose value is a file; and the values they make."""

import argparse
import json
import os
from typing import TYPE_CHECKING

from mlxk.domain.errors import StorageError, ValidationError

if TYPE_CHECKING:
    from mlxk.domain.computation import Computation
    from mlxk.domain.grammar import Grammar

MAX_FILE_BYTES = 4 * 1024 * 1024
"""Schemas and tool definitions are far smaller."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    group = parser.add_argument_group("computing", "Most of these trade memory against speed.")
    group.add_argument("--draft-model", metavar="MODEL", help="a smaller model of the same family proposes tokens")
    group.add_argument("--adapter", metavar="DIR", help="apply a LoRA adapter")
    group.add_argument("--kv-bits", type=int, metavar="N", help="keep keys and values in 8, 4 or 2 bits")
    group.add_argument("--max-kv-size", type=int, metavar="N", help="remember only the last N tokens")
    group.add_argument("--strict-memory", action="store_true", help="refuse a model that exceeds the memory budget")


def computation(arguments: argparse.Namespace) -> "Computation":
    """Return how to compute.

    Raises:
        ValidationError: The adapter's path is empty.
    """
    from mlxk.domain.computation import Computation

    if arguments.adapter == "":
        raise ValidationError("--adapter: the path is empty", hint="Name the directory of a LoRA adapter.")
    adapter = None if arguments.adapter is None else os.path.abspath(os.path.expanduser(arguments.adapter))
    return Computation(adapter=adapter, kv_bits=arguments.kv_bits, max_kv_size=arguments.max_kv_size)


def grammar(arguments: argparse.Namespace) -> "Grammar | None":
    """Return what the answer must look like; None when nothing is asked for.

    Raises:
        StorageError, ValidationError: The schema's file cannot be read, or is not a JSON schema.
    """
    if arguments.json_schema is None:
        return None
    from mlxk.domain.grammar import Grammar

    wanted = Grammar.json_schema(_read(arguments.json_schema, "--json-schema"))
    wanted.validate()
    return wanted


def tools(arguments: argparse.Namespace) -> tuple[str, ...]:
    """Return the functions on offer, each as JSON text.

    Raises:
        StorageError, ValidationError: The file cannot be read, or is not a JSON array of function definitions.
    """
    if arguments.tools is None:
        return ()
    from mlxk.entrypoints.cli.tool_faults import tool_faults

    try:
        definitions = json.loads(_read(arguments.tools, "--tools"))
    except RecursionError as error:
        raise ValidationError(f"--tools: '{arguments.tools}' is nested too deeply") from error
    except ValueError as error:
        raise ValidationError(f"--tools: '{arguments.tools}' is not valid JSON") from error
    if faults := tool_faults(definitions):
        raise ValidationError(
            f"--tools: '{arguments.tools}': {'; '.join(faults)}",
            hint='Each entry looks like {"type": "function", "function": {"name": "…", "parameters": {…}}}.',
        )
    return tuple(json.dumps(each) for each in definitions)


def _read(path: str, flag: str) -> str:
    """Return a small text file."""
    try:
        with open(os.path.expanduser(path), "rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise StorageError(f"{flag}: '{path}' cannot be read: {error.strerror}") from error
    if len(content) > MAX_FILE_BYTES:
        raise ValidationError(f"{flag}: '{path}' is larger than {MAX_FILE_BYTES // 1024**2} MiB")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValidationError(f"{flag}: '{path}' is not UTF-8 text") from error
