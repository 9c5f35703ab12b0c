"""Answers about chunks of images that are cancelled or fail while the next chunk is being prepared."""

import hashlib
import threading
from collections.abc import Iterator

import pytest
from doubles.text_generator import InMemoryTextGenerator

from mlxk.application.text_streams import ChunkedStream, DescribedChunk
from mlxk.domain.errors import ExecutionError
from mlxk.domain.generation.image_table import Chunk, ShownImage
from mlxk.domain.generation.media import EncodedImage, ImageFormat
from mlxk.domain.generation.request import Finished, FinishReason, GenerationRequest, TextDelta
from mlxk.domain.generation.settings import GenerationSettings
from mlxk.domain.models.model import ModelHandle, Origin

HANDLE = ModelHandle("org/eye", "/cache/org/eye", Origin.CACHE)
SECONDS = 10.0


class Preparation:
    """Two chunks; the second is prepared when ``go_on`` is set, and fails with ``fault`` if there is one."""

    def __init__(self, fault: Exception | None = None) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.generator = InMemoryTextGenerator(lambda request: ("One.",) if request.prompt == "1" else (" two",) * 9999)
        self._fault = fault
        parts = self._parts()
        self.stream = ChunkedStream(next(parts), parts)

    def _parts(self) -> Iterator[DescribedChunk]:
        for index in (1, 2):
            if index == 2:
                self.begun.set()
                assert self.go_on.wait(SECONDS)
                if self._fault is not None:
                    raise self._fault
            image = ShownImage(index, EncodedImage(b"", ImageFormat.PNG, hashlib.sha256(b"%d" % index).hexdigest()))
            request = GenerationRequest(HANDLE, str(index), GenerationSettings())
            yield DescribedChunk(Chunk((image,), index, 2), self.generator.submit(request))


def test_a_cancellation_while_the_next_chunk_is_prepared_reaches_its_answer() -> None:
    prepared, events = Preparation(), []
    reader = threading.Thread(target=lambda: events.extend(prepared.stream))
    reader.start()
    assert prepared.begun.wait(SECONDS)
    prepared.stream.cancel()
    prepared.go_on.set()
    reader.join(SECONDS)
    assert not reader.is_alive()
    assert [each.cancelled for each in prepared.generator.streams][1:] == [True]
    assert isinstance(events[-1], Finished)
    assert events[-1].reason is FinishReason.CANCELLED
    prepared.generator.close()


def test_a_reader_is_called_when_the_next_chunk_comes() -> None:
    prepared, called = Preparation(), threading.Event()
    events = [next(prepared.stream)]
    while not prepared.begun.is_set():
        events += prepared.stream.take()
    assert prepared.stream.take() == ()
    prepared.stream.subscribe(called.set)
    called.clear()
    prepared.go_on.set()
    assert called.wait(SECONDS)
    assert TextDelta("One.") in events
    assert prepared.stream.take()
    prepared.stream.cancel()
    prepared.generator.close()


@pytest.mark.parametrize("fault", [ExecutionError("It broke."), OSError("A disk."), RuntimeError("Never mind.")])
def test_whatever_fails_while_the_next_chunk_is_prepared_ends_the_answer_with_an_error(fault: Exception) -> None:
    prepared, events = Preparation(fault), []
    prepared.go_on.set()
    with pytest.raises(ExecutionError):
        for event in prepared.stream:
            events.append(event)
    assert not any(isinstance(event, Finished) for event in events)
    assert list(prepared.stream) == []
    prepared.generator.close()
