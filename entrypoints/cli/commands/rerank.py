"""``mlxk rerank MODEL QUERY FILE``: sorts the lines of a file by their relevance to a query."""

import argparse
import io
from collections.abc import Sequence

from mlxk.application.ports.model_cache import ModelSource
from mlxk.domain.embedding import ImageInput, as_number
from mlxk.domain.errors import UsageError, ValidationError
from mlxk.domain.reranking import MAX_DOCUMENTS, Relevance, Relevances, RerankSettings, ranked
from mlxk.domain.text import lines_of
from mlxk.entrypoints.cli.command import (
    CommandContext,
    add_cpu_argument,
    add_model_argument,
    add_pull_argument,
    computing_settings,
    fetch_absent,
    print_place,
    suggesting_pull,
)
from mlxk.entrypoints.cli.commands.embed_text import STDIN, records_of
from mlxk.entrypoints.cli.input_files import find_images
from mlxk.entrypoints.cli.output import DONE, Output
from mlxk.entrypoints.cli.progress import Spinner
from mlxk.entrypoints.cli.render.formatting import printable
from mlxk.entrypoints.cli.text_files import piped_text, read_text

MAX_BYTES = 256 * 1024**2
"""Most bytes of documents, in a file or on standard input."""

_JSON_LINES = (".jsonl", ".ndjson")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the model, the query, the documents and the limits."""
    add_model_argument(parser)
    parser.add_argument("query", metavar="QUERY", help="what is looked for")
    parser.add_argument(
        "file",
        nargs="?",
        metavar="FILE",
        help="one document a line, or of .jsonl an object a line with a 'text'; '-' is stdin",
    )
    parser.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="FILE",
        help="an image as a document after those of FILE, for models that take some; repeatable",
    )
    parser.add_argument("--query-image", metavar="FILE", help="an image that belongs to the query")
    parser.add_argument("-n", "--top-n", type=int, metavar="N", help="print the N most relevant only")
    parser.add_argument("--jsonl", action="store_true", help="read FILE as .jsonl, whatever its name")
    parser.add_argument("--instruction", metavar="TEXT", help="what makes a document relevant, for models that take it")
    parser.add_argument("--max-tokens-per-doc", type=int, metavar="N", help="read at most N tokens of a document")
    parser.add_argument(
        "--truncate",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="cut documents that are too long for the model (default), or refuse them",
    )
    add_pull_argument(parser)
    parser.add_argument("-v", "--verbose", action="store_true", help="say where the scores were computed")
    add_cpu_argument(parser)


def execute(arguments: argparse.Namespace, context: CommandContext, output: Output) -> int:
    """Print a document a line, with its score and its number; or all as one JSON document."""
    if arguments.top_n is not None and arguments.top_n < 1:
        raise ValidationError(f"--top-n must be at least 1 (got {arguments.top_n})")
    if arguments.file is None and not arguments.image:
        raise UsageError("the following arguments are required: FILE", hint="Or name images with --image.")
    texts = () if arguments.file is None else _documents(arguments)
    settings = RerankSettings(arguments.instruction, arguments.truncate, arguments.max_tokens_per_doc)
    container = context.build(computing_settings(arguments, context.settings))
    try:
        with suggesting_pull(context.settings):
            fetch_absent((arguments.model,), lambda: container, output, pull=arguments.pull)
            description = container.use_cases.describe_model()(container.use_cases.resolve_model()(arguments.model))
        built_in = container.adapters.built_in_models()
        files = [each for typed in arguments.image for each in find_images(typed, built_in)]
        documents: tuple[str | ImageInput, ...] = (*texts, *(ImageInput(each()) for each in files))
        labels = (*texts, *(each.path for each in files))
        with Spinner(output, f"comparing {len(documents)} documents"):
            query = _query(arguments, built_in)
            relevances = container.use_cases.rerank_documents()(description, query, documents, settings)
        best = ranked(relevances.documents, arguments.top_n)
        if output.as_json:
            output.document("rerank", _json(description.handle.name, relevances, best, (labels, len(texts))))
        else:
            for each in relevances.truncations:
                output.note(f"[document {each.index + 1} was truncated: {each.kept} of its {each.tokens} tokens count]")
            _print(best, labels, output)
        if arguments.verbose:
            print_place(container, output)
        return DONE
    finally:
        container.adapters.text_generator().close()


def _query(arguments: argparse.Namespace, built_in: ModelSource) -> str | ImageInput:
    if arguments.query_image is None:
        return str(arguments.query)
    files = find_images(arguments.query_image, built_in, "--query-image")
    if len(files) > 1:
        raise UsageError(f"--query-image takes one image (got {len(files)})")
    return ImageInput(files[0](), arguments.query)


def _documents(arguments: argparse.Namespace) -> tuple[str, ...]:
    text = piped_text(MAX_BYTES) if arguments.file == STDIN else read_text(arguments.file, "FILE", MAX_BYTES)
    if arguments.jsonl or arguments.file.endswith(_JSON_LINES):
        documents = [str(each["text"]) for each in records_of(io.BytesIO(text.encode()))]
    else:
        documents = [line for line in lines_of(text) if line.strip()]
    if not documents:
        raise ValidationError(
            "There are no documents: standard input is empty."
            if arguments.file == STDIN
            else f"There are no documents: '{arguments.file}' is empty."
        )
    if len(documents) > MAX_DOCUMENTS:
        raise ValidationError(f"There are {len(documents)} documents; at most {MAX_DOCUMENTS} are compared at once.")
    return tuple(documents)


def _print(best: Sequence[Relevance], documents: Sequence[str], output: Output) -> None:
    digits = max(len(str(each.index + 1)) for each in best)
    for each in best:
        line = f"{each.score:.4f}  {each.index + 1:>{digits}}  {printable(' '.join(documents[each.index].split()))}"
        width = output.width
        output.line(line if width is None or len(line) <= width else f"{line[: width - 1]}…")


def _json(
    model: str, relevances: Relevances, best: Sequence[Relevance], documents: tuple[Sequence[str], int]
) -> dict[str, object]:
    """Return the result as JSON.

    Args:
        model: The model's name.
        relevances: The relevance of every document.
        best: The documents to return, most relevant first.
        documents: Texts, then paths of images; and the number of texts.
    """
    labels, texts = documents
    return {
        "model": model,
        "results": [
            {
                "index": each.index,
                "relevance_score": as_number(each.score),
                "logit": as_number(each.logit),
                ("document" if each.index < texts else "image"): labels[each.index],
            }
            for each in best
        ],
        "documents": len(labels),
        "tokens": relevances.tokens,
        "device": relevances.device,
        "truncated": [
            {"index": each.index, "tokens": each.tokens, "kept": each.kept} for each in relevances.truncations
        ],
    }
