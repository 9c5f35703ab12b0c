"""``mlxk embed MODEL [TEXT]``: prints embeddings of texts and images, one JSON record per line."""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from typing import BinaryIO

from mlxk.application.ports.model_cache import ModelSource
from mlxk.application.use_cases.model_tasks import EmbeddingResult, EmbedText
from mlxk.domain.embedding import MAX_IMAGES, EmbeddingSettings, ImageInput, Input, InputKind, as_number
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
    print_place,
    suggesting_pull,
)
from mlxk.entrypoints.cli.input_files import find_images
from mlxk.entrypoints.cli.output import DONE, Output
from mlxk.entrypoints.cli.render.model_json import Json
from mlxk.entrypoints.cli.text_files import NoNumberError, RepeatedKeyError, piped_text, strict_json

STDIN = "-"

BATCH_SIZE = 256
"""Records per batch: read, computed and printed together, so that output begins before the input ends."""

_MAX_LINE_BYTES = 4 * 1024 * 1024

Fields = dict[str, object]
_Record = tuple[Fields, Input]
"""The fields of a record, and the text or image to embed."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the model, the text and how to embed it."""
    add_model_argument(parser)
    parser.add_argument_group("alpha", "It requires MLXK2_ENABLE_ALPHA_FEATURES=1, and may still change.")
    parser.add_argument("text", nargs="?", metavar="TEXT", help="the text; '-' reads standard input")
    parser.add_argument("--batch", action="store_true", help="standard input is JSONL; each line has a 'text'")
    parser.add_argument(
        "--image", action="append", default=[], metavar="FILE", help="an image, for models that take some; repeatable"
    )
    role = parser.add_mutually_exclusive_group()
    role.add_argument("--query", action="store_true", help="texts are queries, not documents")
    role.add_argument("--document", action="store_true", help="texts are documents, as they are without a flag")
    role.add_argument("--prompt-name", metavar="NAME", help="one of the model's own prompts stands before the texts")
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
    if arguments.batch and arguments.image:
        raise UsageError("--batch reads standard input; leave --image out")
    if arguments.text is None and not arguments.batch and not arguments.image:
        raise UsageError("embed requires <text> or '-' to read stdin")
    settings = _settings(arguments)
    container = context.build(computing_settings(arguments, context.settings))
    try:
        with suggesting_pull(context.settings):
            fetch_absent((arguments.model,), lambda: container, output, pull=arguments.pull)
            description = container.use_cases.describe_model()(container.use_cases.resolve_model()(arguments.model))
        inputs = _inputs(arguments, container.adapters.built_in_models())
        records = _records(arguments, output, container.use_cases.embed_text(), description, (settings, inputs))
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
    request: tuple[EmbeddingSettings, Iterator[_Record]],
) -> Iterator[Fields]:
    """Yield the input records with their embeddings, and note which texts were truncated."""
    before, (settings, inputs) = 0, request
    for batch in _batches(inputs):
        result = embed(model, tuple(given for _, given in batch), settings)
        for each in result.embeddings.truncations:
            text = f"text {before + each.index + 1}" if arguments.batch else "the text"
            output.note(f"[{text} was truncated: the vector is of {each.kept} of its {each.tokens} tokens]")
        for index, (fields, _) in enumerate(batch):
            yield _output_record(fields, index, result)
        before += len(batch)


def _settings(arguments: argparse.Namespace) -> EmbeddingSettings:
    if arguments.instruct and not arguments.query:
        raise UsageError("--instruct belongs to --query")
    return EmbeddingSettings(
        kind=InputKind.QUERY if arguments.query else InputKind.DOCUMENT,
        instruction=arguments.instruct,
        prompt_name=arguments.prompt_name,
        dimensions=arguments.dimensions,
        truncate=bool(arguments.truncate),
    )


def _batches(inputs: Iterator[_Record]) -> Iterator[list[_Record]]:
    batch: list[_Record] = []
    for record in inputs:
        batch.append(record)
        images = sum(isinstance(given, ImageInput) for _, given in batch)
        if len(batch) == BATCH_SIZE or images == MAX_IMAGES:
            yield batch
            batch = []
    if batch:
        yield batch


def _inputs(arguments: argparse.Namespace, built_in: ModelSource) -> Iterator[_Record]:
    """Yield the input records, each with the text or image to embed."""
    if arguments.batch:
        empty = True
        for fields in records_of(sys.stdin.buffer):
            empty = False
            yield fields, str(fields["text"])
        if empty:
            raise ValidationError("No input records found (--batch)")
        return
    text = piped_text(_MAX_LINE_BYTES).rstrip("\n") if arguments.text == STDIN else arguments.text
    if text is not None and not text.strip():
        raise ValidationError("the text is empty")
    beside = {} if text is None else {"text": text}
    files = [file for typed in arguments.image for file in find_images(typed, built_in)]
    for file in files:
        yield {"image": file.path, **beside}, ImageInput(file(), text or "")
    if not files and text is not None:
        yield beside, text


def records_of(stream: BinaryIO) -> Iterator[Fields]:
    """Yield the records of JSON lines, each with a ``text``; skip blank lines.

    Raises:
        ValidationError: A line is too long, is no JSON object or has no text; the message has its number.
    """
    number = 0
    while line := stream.readline(_MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > _MAX_LINE_BYTES:
            raise ValidationError(f"JSONL line {number} is longer than {_MAX_LINE_BYTES // 1024**2} MiB")
        if line.strip():
            yield _record(line, number)


def _record(line: bytes, number: int) -> Fields:
    try:
        record = strict_json(line)
    except RepeatedKeyError as error:
        raise ValidationError(f"JSONL line {number} has the key {error} twice in one object") from error
    except RecursionError as error:
        raise ValidationError(f"Malformed JSONL on line {number}: nested too deeply") from error
    except NoNumberError as error:
        raise ValidationError(f"Malformed JSONL on line {number}: {error}") from error
    except ValueError as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else type(error).__name__
        raise ValidationError(f"Malformed JSONL on line {number}: {reason}") from error
    if not isinstance(record, dict):
        raise ValidationError(f"Malformed JSONL on line {number}: not an object")
    text = record.get("text")
    if not isinstance(text, str) or not text:
        raise ValidationError(f"JSONL line {number} missing 'text' field")
    return record


def _output_record(fields: Mapping[str, object], index: int, result: EmbeddingResult) -> Json:
    """Return an output record: the input's fields, its embedding and metadata; ``index`` is its place in the batch."""
    of_tokens = result.embeddings.of_tokens
    cut = next((each for each in result.embeddings.truncations if each.index == index), None)
    return {
        **fields,
        "embedding": [[as_number(value) for value in vector] for vector in of_tokens[index]]
        if of_tokens
        else [as_number(value) for value in result.embeddings.vectors[index]],
        "metadata": {
            "model": result.model,
            "dimensions": result.embeddings.dimensions,
            **({"vectors": len(of_tokens[index])} if of_tokens else {}),
            "content_hash": result.content_hash,
            "device": result.embeddings.device,
            **({"truncated": {"tokens": cut.tokens, "kept": cut.kept}} if cut else {}),
        },
    }
