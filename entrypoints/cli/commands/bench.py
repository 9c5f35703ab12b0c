"""``mlxk bench``: the speed of a model on this machine, or of a server under load; prints earlier reports, too."""

import argparse
import contextlib
import itertools
import os
import tempfile
import wave
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import attrs

from mlxk.application.generation_input import Recording
from mlxk.domain.benchmark import Load, Phase, Shape
from mlxk.domain.errors import FeatureGateError, StorageError, UsageError
from mlxk.domain.models.model import Capability
from mlxk.domain.speed import ModelSpeed, ServerSpeed
from mlxk.entrypoints.cli import comparing
from mlxk.entrypoints.cli.command import (
    MODEL_HELP,
    CommandContext,
    add_cpu_argument,
    add_pull_argument,
    complete_models,
    computing_settings,
    fetch_absent,
    model_reference,
    suggesting_pull,
    whole_number,
)
from mlxk.entrypoints.cli.comparing import MeasurementProgress, named_server, refuse
from mlxk.entrypoints.cli.output import DONE, FAILED, Output, require_writable
from mlxk.entrypoints.cli.progress import Spinner
from mlxk.entrypoints.cli.render import benchmark, benchmark_reports, comparison
from mlxk.entrypoints.server_address import client_address
from mlxk.entrypoints.settings import Settings

if TYPE_CHECKING:
    from mlxk.entrypoints.container import Container

_MOST_STREAMS = 256
_MOST_REPEATS = 1000
_MOST_TOKENS = 10**7
_REPEATS = 5
_TOKENS = 128
_IMAGE = 448
_SPEECH_MODEL = "demo-speech"
"""The built-in model whose directory has recordings."""

_RECORDING_SECONDS = 30
_TEXT_FLAGS = ("generate", "depth", "image_size")
"""Flags about generated text."""

REPORT = "report"
"""The word before the files of a report; a model of this name is ``-m report`` or ``./report``."""

APIS = ("openai", "ollama")
"""Names of the completion client's APIs."""

_LOCAL_FLAGS = ("depth", "image_size", "audio", "pull", "skip_pull", "cpu_dtype", "blas")
"""Flags that only apply to a model computed in this process."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the model or server, the sizes to measure, and the form of the result."""
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
    parser.add_argument(
        "--image-size",
        type=sizes,
        metavar="N[,N]",
        help="sides of the images, for a model that takes some; 0: none (448)",
    )
    parser.add_argument(
        "--audio", metavar="FILE", help="the recording, for a model for speech (30 s of the built-in ones)"
    )
    parser.add_argument("-d", "--depth", type=sizes, metavar="N[,N]", help="tokens before what is generated (0)")
    parser.add_argument(
        "--streams", type=_numbers(1, _MOST_STREAMS), metavar="N[,N]", help="requests at once (1), or texts in one"
    )
    parser.add_argument(
        "-r",
        "--repeats",
        type=whole_number(1, _MOST_REPEATS),
        metavar="N",
        help="runs of each row that count (5), or rounds of --against (6)",
    )
    parser.add_argument(
        "--report", metavar="FILE", help="append a JSON line for each row, in the report schema 0.2.2 of mlx-knife"
    )
    parser.add_argument("--compare", metavar="FILE", help="with 'report': a later report, and what changed up to it")
    parser.add_argument("--markdown", action="store_true", help="print the result in Markdown")
    _add_comparison(parser)
    add_cpu_argument(parser)


def _add_comparison(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of a comparison with another model or server."""
    parser.add_argument(
        "--against",
        metavar="SIDE",
        help="compare with 'ollama:NAME' or, of a server, 'URL#NAME'; a known pair needs one name only",
    )
    parser.add_argument(
        "--prompt", action="append", metavar="TEXT", help="with --against: what both sides are asked; may be repeated"
    )
    add_pull_argument(parser)
    parser.add_argument("--skip-pull", action="store_true", help="never fetch a model, and do not ask")
    parser.add_argument(
        "--results", default="benchmark_results.json", metavar="FILE", help="where --against writes its results"
    )


def execute(arguments: argparse.Namespace, context: CommandContext, output: Output) -> int:
    """Measure, and print the rows, or print reports.

    The exit status is 1 when a server answered no request that counts, or a line of a report could not be read.
    """
    if arguments.words[:1] == [REPORT]:
        return _show_reports(arguments, output)
    if arguments.compare is not None:
        raise UsageError("--compare needs a report", hint="Write: mlxk bench report FILE --compare FILE")
    if arguments.pull and arguments.skip_pull:
        raise UsageError("--pull and --skip-pull exclude each other")
    model = _named_model(arguments)
    if arguments.against is not None:
        return comparing.compare(model, arguments, context.build(_settings(arguments, context)), output)
    refuse(("prompt", "results"), arguments, "goes with --against")
    if arguments.report is not None:
        require_writable(arguments.report, "--report")  # fail before minutes of measuring
    speed: ModelSpeed | ServerSpeed
    with Spinner(output, "Preparing") as spinner:
        progress = MeasurementProgress(output, spinner)
        if arguments.url is None:
            speed = _measure_model(model, arguments, context, progress)
        else:
            speed = _measure_server(model, arguments, context, progress)
    if arguments.report is not None:
        _append(arguments.report, benchmark_reports.report_lines(speed))
    if output.as_json:
        output.document("bench", benchmark.document(speed, _shown_address(arguments.url)))
    elif arguments.markdown:
        output.text(benchmark.markdown(speed, _shown_address(arguments.url)))
    else:
        output.text(benchmark.text(speed, _shown_address(arguments.url), output.width))
    served = isinstance(speed, ModelSpeed) or any(each.failed < each.requests for each in speed.levels)
    return DONE if served else FAILED


def _named_model(arguments: argparse.Namespace) -> str | None:
    names = [*arguments.words, *filter(None, [arguments.named])]
    if len(set(names)) > 1:
        raise UsageError(f"two models are named: {names[0]} and {names[1]}")
    return names[0] if names else None


_MEASURING_FLAGS = (
    *("named", "url", "api", "api_key_file", "prompt_tokens", "generate", "depth", "streams", "repeats", "report"),
    *("image_size", "audio"),
    *("against", "prompt", "pull", "skip_pull", "results", "cpu_dtype", "blas"),
)
"""Flags that have no meaning for reports."""


def _show_reports(arguments: argparse.Namespace, output: Output) -> int:
    refuse(_MEASURING_FLAGS, arguments, "measures, and 'report' only prints", "Write: mlxk bench report FILE")
    if len(arguments.words) == 1:
        raise UsageError(
            "the following arguments are required: FILE",
            hint="Write: mlxk bench report FILE. A model of this name is measured by: mlxk bench -m report",
        )
    before = benchmark_reports.read_reports(*arguments.words[1:])
    after = None if arguments.compare is None else benchmark_reports.read_reports(arguments.compare)
    reports = [before] if after is None else [before, after]
    if output.as_json:
        output.document("bench", comparison.reports_document(before, after))
    elif arguments.markdown:
        output.text(comparison.reports_markdown(before, after))
    else:
        output.text(comparison.reports_text(before, after, output.width))
    for note in [] if output.as_json else [note for each in reports for note in comparison.fault_notes(each)]:
        output.note(note)
    return FAILED if any(each.faults for each in reports) else DONE


def _measure_model(
    model: str | None, arguments: argparse.Namespace, context: CommandContext, progress: MeasurementProgress
) -> ModelSpeed:
    if model is None:
        raise UsageError("the following arguments are required: MODEL", hint="Or name a server with --url.")
    refuse(("api", "api_key_file"), arguments, "goes with --url")
    container = context.build(_settings(arguments, context))
    if not arguments.skip_pull:
        fetch_absent([model], lambda: container, progress.output, pull=arguments.pull)
    use_cases, repeats = container.use_cases, arguments.repeats or _REPEATS
    with suggesting_pull(context.settings):
        details = use_cases.describe_model().details(use_cases.resolve_model()(model))
    described = details.description
    if described.operation is Capability.AUDIO:
        refuse(("prompt_tokens", *_TEXT_FLAGS, "streams"), arguments, f"has no meaning: '{model}' is for speech")
        with _recording(arguments.audio, container) as recording:
            return use_cases.measure_speech()(described, recording, repeats, progress)
    refuse(("audio",), arguments, f"has no meaning: '{model}' is not for speech")
    if described.operation is Capability.EMBEDDINGS:
        refuse(_TEXT_FLAGS, arguments, f"has no meaning: '{model}' is for embeddings")
        if not context.settings.enable_alpha:
            hint = "Set the variable; embeddings may still change."
            raise FeatureGateError("bench of embeddings requires MLXK2_ENABLE_ALPHA_FEATURES=1", hint=hint)
        tokens, counts = _sizes(arguments.prompt_tokens, (_TOKENS,)), arguments.streams or (1, 32)
        if not tokens:
            raise UsageError("nothing to measure: --prompt-tokens is 0")
        return use_cases.measure_embeddings()(described, tokens, counts, repeats, progress)
    takes_images = described.can(Capability.VISION)
    if not takes_images:
        refuse(("image_size",), arguments, f"has no meaning: '{model}' takes no images")
    images = _sizes(arguments.image_size, (_IMAGE,)) if takes_images else ()
    return use_cases.measure_model()(details, _shapes(arguments, images), images, repeats, progress)


@contextlib.contextmanager
def _recording(path: str | None, container: "Container") -> Iterator[Recording]:
    """Yield the user's recording, or a temporary WAV file of the built-in ones, repeated up to 30 s."""
    if path is not None:
        yield Recording(path, path)
        return
    folder = container.use_cases.resolve_model()(_SPEECH_MODEL).directory
    names = sorted(name for name in os.listdir(folder) if name.endswith(".wav"))
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        with wave.open(file.name, "wb") as joined:
            for name in itertools.cycle(names):
                with wave.open(f"{folder}/{name}") as part:
                    if not joined.getnframes():
                        joined.setparams(part.getparams())
                    left = _RECORDING_SECONDS * part.getframerate() - joined.getnframes()
                    joined.writeframes(part.readframes(min(part.getnframes(), left)))
                    if left <= part.getnframes():
                        break
        yield Recording(file.name, "the recording of the benchmark")


def _settings(arguments: argparse.Namespace, context: CommandContext) -> Settings:
    """Return settings without a running server: load time and memory can only be measured in this process."""
    return attrs.evolve(computing_settings(arguments, context.settings), use_server=False)


def _shapes(arguments: argparse.Namespace, images: Sequence[int]) -> list[Shape]:
    streams_wanted = arguments.streams or (1,)
    prompts = _sizes(arguments.prompt_tokens, (512,))
    generated, depths = _sizes(arguments.generate, (_TOKENS,)), arguments.depth or (0,)
    shapes = [Shape(Phase.PROMPT, size, streams) for size in prompts for streams in streams_wanted]
    shapes += [
        Shape(Phase.GENERATION, size, streams, depth)
        for size in generated
        for depth in depths
        for streams in streams_wanted
    ]
    if not shapes and not images:
        raise UsageError("nothing to measure: --prompt-tokens and --generate are 0")
    if 1 in generated:
        raise UsageError("--generate takes 2 tokens at least: the first one ends the prompt")
    return shapes


def _measure_server(
    model: str | None, arguments: argparse.Namespace, context: CommandContext, progress: MeasurementProgress
) -> ServerSpeed:
    refuse(_LOCAL_FLAGS, arguments, "has no meaning for a server")
    prompts, generated = _sizes(arguments.prompt_tokens, (512,)), _sizes(arguments.generate, (_TOKENS,))
    if not prompts or not generated:
        raise UsageError("a server needs a prompt and something to generate: --prompt-tokens and --generate from 1")
    loads = [
        Load(streams, words, tokens)
        for words in prompts
        for tokens in generated
        for streams in arguments.streams or (1,)
    ]
    measure = context.build(context.settings).use_cases.measure_server()
    return measure(
        named_server(arguments.url, "--url", arguments), model, loads, arguments.repeats or _REPEATS, progress
    )


def _shown_address(url: str | None) -> str | None:
    return None if url is None else client_address(url, "--url")[0]


def _append(path: str, lines: Sequence[str]) -> None:
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)
    except OSError as error:
        raise StorageError(f"--report: '{path}' cannot be written: {error.strerror}") from error


def _sizes(sizes: tuple[int, ...] | None, usual: tuple[int, ...]) -> tuple[int, ...]:
    """Return the given or the usual sizes, without zeros."""
    return tuple(each for each in (usual if sizes is None else sizes) if each)


def _numbers(least: int, most: int) -> Callable[[str], tuple[int, ...]]:
    """Return an argparse type for whole numbers separated by commas; duplicates are dropped."""
    number = whole_number(least, most)
    return lambda text: tuple(dict.fromkeys(number(each.strip()) for each in text.split(",")))
