"""An answer in one piece: the chunks a stream would have sent, put together when the last has come."""

import threading
from collections.abc import Sequence

from mlxk.domain.errors import MlxkError
from mlxk.domain.generation.request import Finished, GenerationEvent
from mlxk.entrypoints.http.responses.response_format import AnswerIdentity, Piece, Shape, envelope, usage_document


class BatchAnswer:
    """Collects the events of an answer; the thread of the request waits in ``wait``.

    Args:
        identity: What the response says of itself.
        shape: The endpoint's.
        count: Choices.
        alternatives: Choices a prompt.
    """

    def __init__(self, identity: AnswerIdentity, shape: Shape, count: int, alternatives: int) -> None:
        self._identity = identity
        self._shape = shape
        self._alternatives = alternatives
        self._choices = [shape.choice(index) for index in range(count)]
        self._pieces: list[list[Piece]] = [[] for _ in range(count)]
        self._ended = threading.Event()
        self._finished: Sequence[Finished] = ()
        self._error: MlxkError | None = None

    def open(self) -> bool:
        """Begin every choice."""
        for choice, pieces in zip(self._choices, self._pieces, strict=True):
            opening = choice.opening()
            if opening is not None:
                pieces.append(opening)
        return True

    def ping(self) -> bool:
        """Do nothing: there is no way to show a sign of life."""
        return True

    def events(self, index: int, events: Sequence[GenerationEvent]) -> bool:
        """Take what came for a choice."""
        for event in events:
            self._pieces[index].extend(self._choices[index].pieces(event))
        return True

    def close(self, finished: Sequence[Finished]) -> None:
        """Release the waiting thread."""
        self._finished = finished
        self._ended.set()

    def fail(self, error: MlxkError) -> None:
        """Release the waiting thread, which raises the error."""
        self._error = error
        self._ended.set()

    def wait(self) -> dict[str, object]:
        """Wait for the end and return the response.

        Raises:
            MlxkError: Whatever made the answer fail.
        """
        self._ended.wait()
        if self._error is not None:
            raise self._error
        choices = [choice.whole(pieces) for choice, pieces in zip(self._choices, self._pieces, strict=True)]
        usage = usage_document([each.usage for each in self._finished], self._alternatives)
        return envelope(self._identity, self._shape.batch_object, choices, usage=usage)
