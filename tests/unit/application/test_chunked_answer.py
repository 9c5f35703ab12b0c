"""Several answers about images as one stream."""

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence

import pytest
from doubles.text_generator import InMemoryTextGenerator

from mlxk.application.text_streams import ChunkedStream, DescribedChunk, ImageTableDelta, QueuedTextStream
from mlxk.domain.errors import ExecutionError, MlxkError, ValidationError
from mlxk.domain.generation.image_table import Chunk, ShownImage
from mlxk.domain.generation.media import EncodedImage, ImageFormat
from mlxk.domain.generation.request import Finished, FinishReason, GenerationRequest, TextDelta
from mlxk.domain.generation.settings import GenerationSettings
from mlxk.domain.models.model import ModelHandle, Origin

HANDLE = ModelHandle("org/eye", "/cache/org/eye", Origin.CACHE)


def chunk(index: int, count: int) -> Chunk:
    digest = hashlib.sha256(str(index).encode()).hexdigest()
    return Chunk((ShownImage(index, EncodedImage(b"", ImageFormat.PNG, digest)),), index, count)


def answered(*scripts: Sequence[str | MlxkError], next_fails: MlxkError | None = None) -> ChunkedStream:
    """Return an answer of as many chunks as there are scripts."""
    coming = iter(scripts)
    generator = InMemoryTextGenerator(lambda _: next(coming))
    request = GenerationRequest(HANDLE, "", GenerationSettings())

    def described() -> Iterator[DescribedChunk]:
        for index in range(1, len(scripts) + 1):
            if index > 1 and next_fails is not None:
                raise next_fails
            yield DescribedChunk(chunk(index, len(scripts)), generator.submit(request))

    parts = described()
    return ChunkedStream(next(parts), parts)


def read(stream: ChunkedStream) -> tuple[str, Finished]:
    *said, end = stream
    assert isinstance(end, Finished)
    return "".join(event.text for event in said if isinstance(event, TextDelta)), end


def test_every_part_stands_behind_its_table() -> None:
    text, end = read(answered(("One", " one."), ("Two.",), ("Three.",)))
    tables = [chunk(index, 3).table() for index in (1, 2, 3)]
    assert text == f"{tables[0]}\n\nOne one.\n\n{tables[1]}\n\nTwo.\n\n{tables[2]}\n\nThree."
    assert (end.reason, end.usage.completion_tokens) == (FinishReason.STOP, 4)


def test_one_chunk_is_one_table_and_one_answer() -> None:
    text, end = read(answered(("One.",)))
    assert text == f"{chunk(1, 1).table()}\n\nOne."
    assert end.usage.completion_tokens == 1


def test_a_reader_of_many_streams_is_told_when_there_is_something() -> None:
    stream, told, events = answered(("One.",), ("Two.",)), threading.Semaphore(0), []
    stream.subscribe(told.release)
    while not any(isinstance(event, Finished) for event in events):
        assert told.acquire(timeout=60)
        while taken := stream.take():
            events += taken
    assert stream.take() == ()
    assert [event.text for event in events if isinstance(event, TextDelta)][1] == "One."


@pytest.mark.parametrize(
    "make",
    [
        lambda: answered(("One.",), ("Half", ExecutionError("It broke."))),
        lambda: answered(("One.",), ("Two.",), next_fails=ValidationError("It broke.")),
    ],
    ids=["while it is told", "before it begins"],
)
def test_a_part_that_fails_fails_after_what_was_said(make: Callable[[], ChunkedStream]) -> None:
    stream, said = make(), []
    with pytest.raises(MlxkError, match="It broke"):
        for event in stream:
            said.append(event)
    assert TextDelta("One.") in said


def test_a_part_that_fails_at_once_still_shows_its_table_first() -> None:
    broken = QueuedTextStream()
    broken.put(ExecutionError("It broke."))
    stream = ChunkedStream(DescribedChunk(chunk(1, 1), broken), iter(()))
    (opening,) = stream.take()
    assert isinstance(opening, ImageTableDelta)
    assert opening.text.startswith(chunk(1, 1).table())
    with pytest.raises(ExecutionError, match="It broke"):
        stream.take()
    assert stream.take() == ()


def test_a_cancelled_answer_shows_no_more_images() -> None:
    stream = answered(tuple("word " for _ in range(10_000)), ("Two.",))
    next(stream)
    stream.cancel()
    *said, end = stream
    assert isinstance(end, Finished)
    assert end.reason is FinishReason.CANCELLED
    assert TextDelta("Two.") not in said


def test_leaving_the_block_cancels() -> None:
    with answered(tuple("word " for _ in range(10_000))) as stream:
        next(stream)
    assert isinstance(list(stream)[-1], Finished)
