"""``mlxk bench``: how fast a model is on this machine, or a server under load; and what earlier reports say."""

import argparse
import errno
import os
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

import attrs

from mlxk.application.ports.benchmarking import CompletionServer
from mlxk.application.use_cases.measure_speed import ModelSpeed, ServerSpeed
from mlxk.domain.benchmark import Load, Phase, Shape
from mlxk.domain.errors import StorageError, UsageError
from mlxk.entrypoints.api_keys import read_key_file
from mlxk.entrypoints.cli.command import (
    MODEL_HELP,
    CommandContext,
    add_cpu_argument,
    complete_models,
    computing_settings,
    model_reference,
)
from mlxk.entrypoints.cli.exit_status import DONE, FAILED
from mlxk.entrypoints.cli.output import Output
from mlxk.entrypoints.cli.progress import Spinner
from mlxk.entrypoints.cli.render import benchmark, benchmark_reports, comparison
from mlxk.entrypoints.setting_kinds import is_web_address

_MOST_STREAMS = 256
_MOST_REPEATS = 1000
_MOST_TOKENS = 10**7
REPORT = "report"
"""The word before the files of a report; a model of this name is ``-m report`` or ``./report``."""

APIS = ("openai", "ollama")
"""As the client of servers names them."""

_LOCAL_ONLY = ("depth", "cpu_dtype", "blas")
"""Flags about the model that is computed here."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what is measured, and how it is printed."""
    words = parser.add_argument(
        "words",
        nargs="*",
        default=[],
        type=model_reference,
        metavar="MODEL",
        help=f"{MODEL_HELP}; or 'report FILE', which prints what --report wrote",
    )
    complete_models(words)
    parser.add_argument("-m", "--model", dest="named", type=model_reference, metavar="MODEL", help="the same as MODEL")
    parser.add_argument("--url", metavar="URL", help="measure this server; MODEL is its name there")
    parser.add_argument("--api", choices=APIS, help="the API of the server (it is asked which one it has)")
    parser.add_argument("--api-key-file", metavar="FILE", help="a file whose first key is that of the server")
    sizes = _numbers(0, _MOST_TOKENS)
    parser.add_argument(
        "-p",
        "--prompt-tokens",
        type=sizes,
        metavar="N[,N]",
        help="tokens of the prompts, words with --url; 0 for no such row (512)",
    )
    parser.add_argument(
        "-n", "--generate", type=sizes, metavar="N[,N]", help="tokens to generate; 0 for no such row (128)"
    )
    parser.add_argument("-d", "--depth", type=sizes, metavar="N[,N]", help="tokens before what is generated (0)")
    parser.add_argument(
        "--streams", type=_numbers(1, _MOST_STREAMS), default=(1,), metavar="N[,N]", help="requests at once (1)"
    )
    parser.add_argument(
        "-r",
        "--repeats",
        type=_number(1, _MOST_REPEATS),
        default=5,
        metavar="N",
        help="runs of each row that count (5)",
    )
    parser.add_argument(
        "--report", metavar="FILE", help="append a JSON line for each row, in the report schema 0.2.2 of mlx-knife"
    )
    parser.add_argument("--compare", metavar="FILE", help="with 'report': a later report, and what changed up to it")
    parser.add_argument("--markdown", action="store_true", help="print the result in Markdown")
    add_cpu_argument(parser)


def execute(arguments: argparse.Namespace, context: CommandContext, output: Output) -> int:
    """Measure, and print the rows, or print reports.

    The exit status is 1 when a server answered no request that counts, or a line of a report could not be read.
    """
    if arguments.words[:1] == [REPORT]:
        return _show_reports(arguments, output)
    if arguments.compare is not None:
        raise UsageError("--compare needs a report", hint="Write: mlxk bench report FILE --compare FILE")
    model = _named_model(arguments)
    if arguments.report is not None:
        _require_writable(arguments.report)  # better known before minutes of measuring
    found: ModelSpeed | ServerSpeed
    with Spinner(output, "Preparing") as spinner:
        report = _Report(output, spinner)
        if arguments.url is None:
            found = _of_model(model, arguments, context, report)
        else:
            found = _of_server(model, arguments, context, report)
    if arguments.report is not None:
        _append(arguments.report, benchmark_reports.report_lines(found))
    if output.as_json:
        output.document("bench", benchmark.document(found, _shown(arguments.url)))
    elif arguments.markdown:
        output.text(benchmark.markdown(found, _shown(arguments.url)))
    else:
        output.text(benchmark.text(found, _shown(arguments.url), output.width))
    served = isinstance(found, ModelSpeed) or any(each.failed < each.requests for each in found.levels)
    return DONE if served else FAILED


def _named_model(arguments: argparse.Namespace) -> str | None:
    names = [*arguments.words, *filter(None, [arguments.named])]
    if len(set(names)) > 1:
        raise UsageError(f"two models are named: {names[0]} and {names[1]}")
    return names[0] if names else None


_MEASURING = (
    *("named", "url", "api", "api_key_file", "prompt_tokens", "generate", "depth", "streams", "repeats", "report"),
    *("cpu_dtype", "blas"),
)
"""Flags that have no meaning for reports."""


def _show_reports(arguments: argparse.Namespace, output: Output) -> int:
    from_file = getattr(arguments, "from_file", ())
    set_flags = [
        name
        for name in _MEASURING
        if name not in from_file and getattr(arguments, name) != arguments.parser.get_default(name)
    ]
    if set_flags:
        flag = "-m" if set_flags[0] == "named" else f"--{set_flags[0].replace('_', '-')}"
        raise UsageError(f"{flag} measures, and 'report' only prints", hint="Write: mlxk bench report FILE")
    if len(arguments.words) == 1:
        raise UsageError(
            "the following arguments are required: FILE",
            hint="Write: mlxk bench report FILE. A model of this name is measured by: mlxk bench -m report",
        )
    before = benchmark_reports.read_reports(*arguments.words[1:])
    after = None if arguments.compare is None else benchmark_reports.read_reports(arguments.compare)
    read = [before] if after is None else [before, after]
    if output.as_json:
        output.document("bench", comparison.reports_document(before, after))
    elif arguments.markdown:
        output.text(comparison.reports_markdown(before, after))
    else:
        output.text(comparison.reports_text(before, after, output.width))
    for note in [] if output.as_json else [note for each in read for note in comparison.fault_notes(each)]:
        output.note(note)
    return FAILED if any(each.faults for each in read) else DONE


@attrs.frozen
class _Report:
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


def _of_model(model: str | None, arguments: argparse.Namespace, context: CommandContext, report: _Report) -> ModelSpeed:
    if model is None:
        raise UsageError("the following arguments are required: MODEL", hint="Or name a server with --url.")
    for flag, value in (("--api", arguments.api), ("--api-key-file", arguments.api_key_file)):
        if value is not None:
            raise UsageError(f"{flag} goes with --url")
    shapes = _shapes(arguments)
    # What another process computes would tell neither load time nor memory.
    settings = attrs.evolve(computing_settings(arguments, context.settings), use_server=False)
    measure = context.build(settings).use_cases.measure_model()
    return measure(model, shapes, arguments.repeats, report)


def _shapes(arguments: argparse.Namespace) -> list[Shape]:
    prompts = _given(arguments.prompt_tokens, (512,))
    generated, depths = _given(arguments.generate, (128,)), arguments.depth or (0,)
    shapes = [Shape(Phase.PROMPT, size, streams) for size in prompts for streams in arguments.streams]
    shapes += [
        Shape(Phase.GENERATION, size, streams, depth)
        for size in generated
        for depth in depths
        for streams in arguments.streams
    ]
    if not shapes:
        raise UsageError("nothing to measure: --prompt-tokens and --generate are 0")
    if 1 in generated:
        raise UsageError("--generate takes 2 tokens at least: the first one ends the prompt")
    return shapes


def _of_server(
    model: str | None, arguments: argparse.Namespace, context: CommandContext, report: _Report
) -> ServerSpeed:
    useless = [f"--{name.replace('_', '-')}" for name in _LOCAL_ONLY if getattr(arguments, name) is not None]
    if useless:
        raise UsageError(f"{' and '.join(useless)} cannot be set for a server")
    prompts, generated = _given(arguments.prompt_tokens, (512,)), _given(arguments.generate, (128,))
    if not prompts or not generated:
        raise UsageError("a server needs a prompt and something to generate: --prompt-tokens and --generate from 1")
    loads = [Load(streams, words, tokens) for words in prompts for tokens in generated for streams in arguments.streams]
    key = None if arguments.api_key_file is None else _key(arguments.api_key_file)
    url, api = _address(arguments.url)
    server = CompletionServer(url, arguments.api or api, key)
    measure = context.build(context.settings).use_cases.measure_server()
    return measure(server, model, loads, arguments.repeats, report)


_API_PATHS = {
    **{"/v1/chat/completions": "openai", "/v1": "openai"},
    **{"/api/chat": "ollama", "/api/generate": "ollama", "/api": "ollama"},
}
"""Ends of addresses as people copy them, and the API that each of them means."""


def _address(url: str) -> tuple[str, str | None]:
    """Return the address below which the APIs of a server are, and the one that the URL means, if it says."""
    if not is_web_address(url) or (parts := urlsplit(url)).query or parts.fragment:
        raise UsageError("--url takes an address such as http://127.0.0.1:8000")
    if parts.username is not None or parts.password is not None:
        raise UsageError("--url takes no user name and password", hint="Give the key with --api-key-file FILE.")
    path = parts.path.rstrip("/")
    end, api = next(((end, api) for end, api in _API_PATHS.items() if path.endswith(end)), ("", None))
    return f"{parts.scheme}://{parts.netloc}{path.removesuffix(end)}", api


def _shown(url: str | None) -> str | None:
    return None if url is None else _address(url)[0]


def _key(path: str) -> str:
    key = read_key_file(path)[0]
    if not key.isascii() or not key.isprintable():
        raise UsageError(f"--api-key-file: the first key of '{path}' cannot be sent")
    return key


def _require_writable(path: str) -> None:
    """Refuse a report that could not be written, without making it yet.

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
    raise StorageError(f"--report: '{path}' cannot be written: {os.strerror(reason)}")


def _append(path: str, lines: Sequence[str]) -> None:
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)
    except OSError as error:
        raise StorageError(f"--report: '{path}' cannot be written: {error.strerror}") from error


def _given(sizes: tuple[int, ...] | None, usual: tuple[int, ...]) -> tuple[int, ...]:
    """Return the sizes without zeros."""
    return tuple(each for each in (usual if sizes is None else sizes) if each)


def _number(least: int, most: int) -> Callable[[str], int]:
    """Return a reader of a whole number in a range."""

    def read(text: str) -> int:
        if not (text.isascii() and text.isdecimal() and least <= int(text) <= most):
            raise argparse.ArgumentTypeError(f"'{text}' is no whole number from {least} to {most}")
        return int(text)

    return read


def _numbers(least: int, most: int) -> Callable[[str], tuple[int, ...]]:
    """Return a reader of whole numbers between commas, each once."""
    number = _number(least, most)
    return lambda text: tuple(dict.fromkeys(number(each.strip()) for each in text.split(",")))
