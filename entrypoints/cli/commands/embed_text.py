"""``mlxk embed MODEL [TEXT]``: embeddings of texts, one JSON record per line."""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from typing import BinaryIO

from mlxk.application.use_cases.model_tasks import EmbeddingResult, EmbedText
from mlxk.domain.embedding import EmbeddingSettings, InputKind, as_number
from mlxk.domain.errors import FeatureGateError, UsageError, ValidationError
from mlxk.domain.models.model import ModelDescription
from mlxk.entrypoints.cli.command import (
    CommandContext,
    add_cpu_argument,
    add_model_argument,
    add_pull_argument,
    add_server_argument,
    computing_settings,
    fetch_absent,
    naming_the_flag,
    print_place,
)
from mlxk.entrypoints.cli.exit_status import DONE
from mlxk.entrypoints.cli.output import Output
from mlxk.entrypoints.cli.render.model_json import Json

STDIN = "-"

BATCH_SIZE = 256
"""Records per batch: read, computed and printed together, so that output begins before the input ends."""

MAX_LINE_CHARACTERS = 4 * 1024 * 1024

Fields = dict[str, object]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the model, the text and how to embed it."""
    add_model_argument(parser)
    parser.add_argument_group("alpha", "It requires MLXK2_ENABLE_ALPHA_FEATURES=1, and may still change.")
    parser.add_argument("text", nargs="?", metavar="TEXT", help="the text; '-' reads standard input")
    parser.add_argument("--batch", action="store_true", help="standard input is JSONL; each line has a 'text'")
    parser.add_argument("--query", action="store_true", help="texts are queries, not documents")
    parser.add_argument("--instruct", metavar="TASK", help="what the queries are for, for models that take it")
    parser.add_argument("--dimensions", type=int, metavar="N", help="shorten the vectors, for models made for it")
    parser.add_argument(
        "--truncate", action=argparse.BooleanOptionalAction, help="cut texts that are too long for the model"
    )
    add_pull_argument(parser)
    parser.add_argument("-v", "--verbose", action="store_true", help="say where the vectors were computed")
    add_server_argument(parser)
    add_cpu_argument(parser)


def execute(arguments: argparse.Namespace, context: CommandContext, output: Output) -> int:
    """Print the records: one per line, or all in one JSON document."""
    if not context.settings.enable_alpha:
        raise FeatureGateError(
            "embed requires MLXK2_ENABLE_ALPHA_FEATURES=1", hint="Set the variable; the command may still change."
        )
    if arguments.batch and arguments.text not in (None, STDIN):
        raise UsageError("--batch reads standard input; leave TEXT out")
    if arguments.text is None and not arguments.batch:
        raise UsageError("embed requires <text> or '-' to read stdin")
    settings = _settings(arguments)
    container = context.build(computing_settings(arguments, context.settings))
    try:
        with naming_the_flag(context.settings):
            fetch_absent((arguments.model,), lambda: container, output, pull=arguments.pull)
            description = container.use_cases.describe_model()(container.use_cases.resolve_model()(arguments.model))
        records = _records(arguments, output, container.use_cases.embed_text(), description, settings)
        if output.as_json:
            output.document("embed", {"records": list(records)})
        else:
            for record in records:
                output.line(json.dumps(record, ensure_ascii=False, allow_nan=False))
        if arguments.verbose:
            print_place(container, output)
        return DONE
    finally:
        container.adapters.text_generator().close()


def _records(
    arguments: argparse.Namespace,
    output: Output,
    embed: EmbedText,
    model: ModelDescription,
    settings: EmbeddingSettings,
) -> Iterator[Fields]:
    """Yield the input records with their embeddings, and say which texts were truncated."""
    before = 0
    for batch in _batches(_inputs(arguments)):
        result = embed(model, tuple(str(fields["text"]) for fields in batch), settings)
        for each in result.embeddings.truncations:
            text = f"text {before + each.index + 1}" if arguments.batch else "the text"
            output.note(f"[{text} was truncated: the vector is of {each.kept} of its {each.tokens} tokens]")
        for index, fields in enumerate(batch):
            yield _embedded(fields, index, result)
        before += len(batch)


def _settings(arguments: argparse.Namespace) -> EmbeddingSettings:
    if arguments.instruct and not arguments.query:
        raise UsageError("--instruct belongs to --query")
    return EmbeddingSettings(
        kind=InputKind.QUERY if arguments.query else InputKind.DOCUMENT,
        instruction=arguments.instruct,
        dimensions=arguments.dimensions,
        truncate=bool(arguments.truncate),
    )


def _batches(inputs: Iterator[Fields]) -> Iterator[list[Fields]]:
    batch: list[Fields] = []
    for fields in inputs:
        batch.append(fields)
        if len(batch) == BATCH_SIZE:
            yield batch
            batch = []
    if batch:
        yield batch


def _inputs(arguments: argparse.Namespace) -> Iterator[Fields]:
    """Yield the input records."""
    if arguments.batch:
        yield from records_of(sys.stdin.buffer)
        return
    text = _text_input() if arguments.text == STDIN else str(arguments.text)
    if not text.strip():
        raise ValidationError("the text is empty")
    yield {"text": text}


def _text_input() -> str:
    text = sys.stdin.buffer.read(MAX_LINE_CHARACTERS + 1)
    if len(text) > MAX_LINE_CHARACTERS:
        raise ValidationError(f"standard input is larger than {MAX_LINE_CHARACTERS // 1024**2} MiB")
    return text.decode("utf-8", errors="replace").rstrip("\n")


def records_of(stream: BinaryIO) -> Iterator[Fields]:
    """Yield the records of JSON lines, each with a ``text``; skip blank lines.

    Raises:
        ValidationError: A line has none, or there is no line; it is named by its number.
    """
    number = found = 0
    while line := stream.readline(MAX_LINE_CHARACTERS + 1):
        number += 1
        if len(line) > MAX_LINE_CHARACTERS:
            raise ValidationError(f"JSONL line {number} is longer than {MAX_LINE_CHARACTERS // 1024**2} MiB")
        if line.strip():
            found += 1
            yield _record(line, number)
    if not found:
        raise ValidationError("No input records found (--batch)")


def _record(line: bytes, number: int) -> Fields:
    try:
        record = json.loads(line)
    except RecursionError as error:
        raise ValidationError(f"Malformed JSONL on line {number}: nested too deeply") from error
    except ValueError as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else type(error).__name__
        raise ValidationError(f"Malformed JSONL on line {number}: {reason}") from error
    if not isinstance(record, dict):
        raise ValidationError(f"Malformed JSONL on line {number}: not an object")
    text = record.get("text")
    if not isinstance(text, str) or not text:
        raise ValidationError(f"JSONL line {number} missing 'text' field")
    return record


def _embedded(fields: Mapping[str, object], index: int, result: EmbeddingResult) -> Json:
    """Return one record of ``embed``: the fields of an input, by its index, the embedding and its metadata."""
    vector = result.embeddings.vectors[index]
    cut = next((each for each in result.embeddings.truncations if each.index == index), None)
    return {
        **fields,
        "embedding": [as_number(value) for value in vector],
        "metadata": {
            "model": result.model,
            "dimensions": len(vector),
            "content_hash": result.content_hash,
            "device": result.embeddings.device,
            **({"truncated": {"tokens": cut.tokens, "kept": cut.kept}} if cut else {}),
        },
    }
