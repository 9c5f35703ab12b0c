"""``mlxk bench --against``: which two sides are compared, what is fetched for it, and where the results go."""

import argparse
import errno
import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import attrs

from mlxk.application.ports.measuring import CompletionServer
from mlxk.application.use_cases.measure_servers import QUESTIONS, ServerSide, Side
from mlxk.domain.comparison import LEAST_ROUNDS
from mlxk.domain.errors import ModelNotFoundError, StorageError, UsageError
from mlxk.entrypoints import private_files
from mlxk.entrypoints.api_keys import key_to_send
from mlxk.entrypoints.cli.command import fetch_absent, naming_the_flag
from mlxk.entrypoints.cli.output import DONE, Output, TerminalConfirmation
from mlxk.entrypoints.cli.progress import Spinner
from mlxk.entrypoints.cli.render import comparison
from mlxk.entrypoints.cli.render.formatting import decimal_size
from mlxk.entrypoints.server_address import client_address

if TYPE_CHECKING:
    from mlxk.entrypoints.container import Container

_TOKENS = 128
_OLLAMA = "ollama"
_USUAL_OLLAMA = "http://127.0.0.1:11434"
_ROUNDS_ONLY = ("prompt_tokens", "depth", "streams", "image_size", "audio", "report")
"""Flags about rows."""


def compare(model: str | None, arguments: argparse.Namespace, container: "Container", output: Output) -> int:
    """Compare two sides, print the result, and write it to a file.

    Args:
        model: The model of the first side; None where it is to be found by that of the second.
        arguments: The command line.
        container: Of this process, in which a model of this machine is computed.
        output: Where to print, show progress and ask.

    Raises:
        UsageError, StorageError: A flag has no meaning here, or the file cannot be written.
        MlxkError: A model is not here, or a side fails; see ``CompareSpeed``.
    """
    refuse(_ROUNDS_ONLY, arguments, "has no meaning with --against")
    tokens = [each for each in arguments.generate or (_TOKENS,) if each]
    if len(tokens) != 1:
        raise UsageError("--against takes one number for --generate, from 1: the most tokens of an answer")
    require_writable(arguments.results, "--results")
    first, second = _sides(model, arguments, container, output)
    questions, rounds = arguments.prompt or QUESTIONS, arguments.repeats or LEAST_ROUNDS
    with Spinner(output, "Preparing") as spinner:
        found = container.use_cases.compare_speed()(
            first, second, questions, tokens[0], rounds, ShownProgress(output, spinner)
        )
    document = comparison.comparison_document(found)
    try:
        private_files.write(arguments.results, json.dumps(document, indent=2).encode() + b"\n")
    except OSError as error:
        raise StorageError(f"--results: '{arguments.results}' cannot be written: {error.strerror}") from error
    if output.as_json:
        output.document("bench", document)
    elif arguments.markdown:
        output.text(comparison.comparison_markdown(found))
    else:
        output.text(comparison.comparison_text(found, output.width))
    if not output.as_json:
        output.note(f"The results are in {arguments.results}")
    return DONE


def _sides(
    model: str | None, arguments: argparse.Namespace, container: "Container", output: Output
) -> tuple[Side, Side]:
    """Return the sides of a comparison, whose models are here, or have been fetched as the user wants."""
    compare, settings = container.use_cases.compare_speed(), container.adapters.settings
    program, _, name = arguments.against.partition(":")
    if program == _OLLAMA:
        server = attrs.evolve(named_server(_USUAL_OLLAMA, "--against", arguments), api=_OLLAMA)
    else:
        url, _, name = arguments.against.partition("#")
        server = named_server(url, "--against", arguments)
    here, elsewhere = compare.paired(model, name or None, must_name=program == _OLLAMA)
    first: Side
    if arguments.url is not None:
        first = compare.remote(named_server(arguments.url, "--url", arguments), here)
    else:
        if not arguments.skip_pull:
            fetch_absent([here], lambda: container, output, pull=arguments.pull)
        with naming_the_flag(settings):
            first = compare.local(here)
    second = compare.remote(server, elsewhere)
    for side in (first, second):
        if isinstance(side, ServerSide) and compare.could_fetch(side):
            _have_fetched(side, arguments, output)
    return first, second


def _have_fetched(side: ServerSide, arguments: argparse.Namespace, output: Output) -> None:
    """Have a server fetch a model, if the user wants it.

    Raises:
        ModelNotFoundError: The user does not, or cannot be asked.
        NetworkError: The server cannot fetch it.
    """
    said = f"the server {side.server} has no model '{side.model}'"
    wanted = arguments.pull
    if not (wanted or arguments.skip_pull):
        fact = f"{said[0].upper()}{said[1:]}."
        wanted = TerminalConfirmation(output).ask((fact,), "Have it fetch the model?", default=False)
    if not wanted:
        raise ModelNotFoundError(said, hint="Have it fetch the model: add --pull, without --skip-pull.")
    with Spinner(output, f"Fetching {side.model}") as spinner:
        side.client.pull(
            side.address,
            side.name,
            lambda done, total: spinner.show(f"Fetching {side.model} ({decimal_size(done)} of {decimal_size(total)})"),
        )


def refuse(names: Sequence[str], arguments: argparse.Namespace, why: str, hint: str | None = None) -> None:
    """Refuse flags of the command line that have no meaning beside others; what the settings file has is no flag."""
    for name in names:
        if getattr(arguments, name) != arguments.parser.get_default(name) and name not in arguments.from_file:
            flag = "-m" if name == "named" else f"--{name.replace('_', '-')}"
            raise UsageError(f"{flag} {why}", hint=hint)


def named_server(url: str, flag: str, arguments: argparse.Namespace) -> CompletionServer:
    """Return the server of an address; the key and the API that are named are those of ``--url`` where it is given."""
    address, api = client_address(url, flag)
    if flag != "--url" and arguments.url is not None:
        return CompletionServer(address, api)
    key = None if arguments.api_key_file is None else key_to_send(arguments.api_key_file)
    return CompletionServer(address, arguments.api or api, key)


def require_writable(path: str, flag: str) -> None:
    """Refuse a file that could not be written, without making it yet.

    Raises:
        StorageError: It is a folder, there is no folder for it, or this user may not write it.
    """
    place = path if os.path.exists(path) else os.path.dirname(path) or "."
    if os.path.isdir(path):
        reason = errno.EISDIR
    elif not os.path.exists(place):
        reason = errno.ENOENT
    elif not os.access(place, os.W_OK):
        reason = errno.EACCES
    else:
        return
    raise StorageError(f"{flag}: '{path}' cannot be written: {os.strerror(reason)}")


@attrs.frozen
class ShownProgress:
    """Says on standard error what is measured: in the spinner on a terminal, else a line each time that changes."""

    output: Output
    spinner: Spinner
    said: list[str] = attrs.field(factory=list)

    def __call__(self, what: str, done: int, steps: int) -> None:
        text = f"Measuring {what} ({100 * done // steps} %)"
        if self.output.shows_progress:
            self.spinner.show(text)
        elif not self.output.as_json and what not in self.said[-1:]:
            self.said.append(what)
            self.output.note(text)
