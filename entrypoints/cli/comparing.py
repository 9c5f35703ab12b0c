"""``mlxk bench --against``: choose the two sides of a comparison, fetch missing models, write the results."""

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import attrs

from mlxk.application.ports.measuring import CompletionServer
from mlxk.application.use_cases.measure_servers import QUESTIONS, ServerSide, Side
from mlxk.domain.comparison import LEAST_ROUNDS
from mlxk.domain.errors import ModelNotFoundError, StorageError, UsageError
from mlxk.entrypoints import private_files
from mlxk.entrypoints.api_keys import key_to_send
from mlxk.entrypoints.cli.command import fetch_absent, suggesting_pull
from mlxk.entrypoints.cli.output import DONE, Output, TerminalConfirmation, require_writable
from mlxk.entrypoints.cli.progress import Spinner
from mlxk.entrypoints.cli.render import comparison
from mlxk.entrypoints.cli.render.formatting import decimal_size
from mlxk.entrypoints.server_address import client_address

if TYPE_CHECKING:
    from mlxk.entrypoints.container import Container

_TOKENS = 128
_OLLAMA = "ollama"
_OLLAMA_ADDRESS = "http://127.0.0.1:11434"
_ROW_FLAGS = ("prompt_tokens", "depth", "streams", "image_size", "audio", "report")
"""Flags of the rows of a plain ``mlxk bench``, by attribute."""


def compare(model: str | None, arguments: argparse.Namespace, container: "Container", output: Output) -> int:
    """Compare two sides, print the result, and write it to the file of ``--results``.

    Args:
        model: The model of the first side; None to derive it from that of the second.
        arguments: The command line.
        container: The container of this process, which computes a local model.
        output: Where to print, show progress and ask.

    Raises:
        UsageError, StorageError: A flag does not apply, or the file cannot be written.
        MlxkError: A model is missing, or a side fails; see ``CompareSpeed``.
    """
    refuse(_ROW_FLAGS, arguments, "has no meaning with --against")
    tokens = [each for each in arguments.generate or (_TOKENS,) if each]
    if len(tokens) != 1:
        raise UsageError("--against takes one number for --generate, from 1: the most tokens of an answer")
    require_writable(arguments.results, "--results")
    first, second = _sides(model, arguments, container, output)
    questions, rounds = arguments.prompt or QUESTIONS, arguments.repeats or LEAST_ROUNDS
    with Spinner(output, "Preparing") as spinner:
        result = container.use_cases.compare_speed()(
            first, second, questions, tokens[0], rounds, MeasurementProgress(output, spinner)
        )
    document = comparison.comparison_document(result)
    try:
        private_files.write(arguments.results, json.dumps(document, indent=2).encode() + b"\n")
    except OSError as error:
        raise StorageError(f"--results: '{arguments.results}' cannot be written: {error.strerror}") from error
    if output.as_json:
        output.document("bench", document)
    elif arguments.markdown:
        output.text(comparison.comparison_markdown(result))
    else:
        output.text(comparison.comparison_text(result, output.width))
    if not output.as_json:
        output.note(f"The results are in {arguments.results}")
    return DONE


def _sides(
    model: str | None, arguments: argparse.Namespace, container: "Container", output: Output
) -> tuple[Side, Side]:
    """Return both sides of a comparison; missing models are fetched if the user agrees."""
    compare, settings = container.use_cases.compare_speed(), container.adapters.settings
    program, _, name = arguments.against.partition(":")
    if program == _OLLAMA:
        server = attrs.evolve(named_server(_OLLAMA_ADDRESS, "--against", arguments), api=_OLLAMA)
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
        with suggesting_pull(settings):
            first = compare.local(here)
    second = compare.remote(server, elsewhere)
    for side in (first, second):
        if isinstance(side, ServerSide) and compare.could_fetch(side):
            _pull_on_server(side, arguments, output)
    return first, second


def _pull_on_server(side: ServerSide, arguments: argparse.Namespace, output: Output) -> None:
    """Have a server fetch a model, if a flag or the user says so.

    Raises:
        ModelNotFoundError: The user does not want it, or cannot be asked.
        NetworkError: The server cannot fetch it.
    """
    fault = f"the server {side.server} has no model '{side.model}'"
    agreed = arguments.pull
    if not (agreed or arguments.skip_pull):
        fact = f"{fault[0].upper()}{fault[1:]}."
        agreed = TerminalConfirmation(output).ask((fact,), "Have it fetch the model?", default=False)
    if not agreed:
        raise ModelNotFoundError(fault, hint="Have it fetch the model: add --pull, without --skip-pull.")
    with Spinner(output, f"Fetching {side.model}") as spinner:
        side.client.pull(
            side.address,
            side.name,
            lambda done, total: spinner.show(f"Fetching {side.model} ({decimal_size(done)} of {decimal_size(total)})"),
        )


def refuse(names: Sequence[str], arguments: argparse.Namespace, why: str, hint: str | None = None) -> None:
    """Raise UsageError for typed flags that do not apply; values from the settings file are ignored."""
    for name in names:
        if getattr(arguments, name) != arguments.parser.get_default(name) and name not in arguments.from_file:
            flag = "-m" if name == "named" else f"--{name.replace('_', '-')}"
            raise UsageError(f"{flag} {why}", hint=hint)


def named_server(url: str, flag: str, arguments: argparse.Namespace) -> CompletionServer:
    """Return the server at a URL; where ``--url`` is given, ``--api-key-file`` and ``--api`` belong to its server."""
    address, api = client_address(url, flag)
    if flag != "--url" and arguments.url is not None:
        return CompletionServer(address, api)
    key = None if arguments.api_key_file is None else key_to_send(arguments.api_key_file)
    return CompletionServer(address, arguments.api or api, key)


@attrs.frozen
class MeasurementProgress:
    """Progress callback that shows what is measured: in the spinner on a terminal, else as a line for each change."""

    output: Output
    spinner: Spinner
    printed: list[str] = attrs.field(factory=list)

    def __call__(self, subject: str, done: int, steps: int) -> None:
        text = f"Measuring {subject} ({100 * done // steps} %)"
        if self.output.shows_progress:
            self.spinner.show(text)
        elif not self.output.as_json and subject not in self.printed[-1:]:
            self.printed.append(subject)
            self.output.note(text)
