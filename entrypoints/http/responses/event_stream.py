"""A streamed answer: server-sent events, exactly as OpenAI sends them."""

import json
from collections.abc import Sequence
from typing import Protocol

from mlxk.domain.errors import MlxkError
from mlxk.domain.generation.request import Finished, GenerationEvent, TextDelta
from mlxk.entrypoints.http.errors import error_document
from mlxk.entrypoints.http.responses.response_format import (
    AnswerIdentity,
    Choice,
    Piece,
    Shape,
    envelope,
    usage_document,
)

COMMENT = b": ok\n\n"
"""Sent at once, so that headers leave before the first token."""

PING = b": ping\n\n"
"""Sent into silence, so that nothing between us and the client gives up."""

DONE = b"data: [DONE]\n\n"


class ResponseBody(Protocol):
    """Where a stream is written; see ``server.detached``."""

    def write(self, data: bytes) -> bool:
        """Send some of the body; return False when the client has gone."""

    def finish(self) -> None:
        """End the body."""


def frame(document: object) -> bytes:
    """Return one event."""
    return b"data: " + json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


class EventStream:
    """Writes the events of an answer to its client.

    Args:
        identity: What every chunk repeats.
        shape: The endpoint's.
        count: Choices.
        alternatives: Choices a prompt.
        include_usage: Whether the client asked for the usage.
        body: Where to write.
    """

    def __init__(
        self,
        identity: AnswerIdentity,
        shape: Shape,
        count: int,
        alternatives: int,
        include_usage: bool,
        body: ResponseBody,
    ) -> None:
        self._identity = identity
        self._shape = shape
        self._alternatives = alternatives
        self._usage: dict[str, object] = {"usage": None} if include_usage else {}
        self._body = body
        self._choices = [shape.choice(index) for index in range(count)]
        self._frames = [self._text_frame(choice) for choice in self._choices]

    def open(self) -> bool:
        """Send the headers and who speaks; return False when the client has gone."""
        openings = [piece for choice in self._choices if (piece := choice.opening()) is not None]
        return self._body.write(COMMENT + b"".join(map(self._chunk, openings)))

    def ping(self) -> bool:
        """Send a sign of life; return False when the client has gone."""
        return self._body.write(PING)

    def events(self, index: int, events: Sequence[GenerationEvent]) -> bool:
        """Send what came for a choice; return False when the client has gone."""
        data = b"".join(self._event(index, event) for event in events)
        return self._body.write(data) if data else True

    def close(self, finished: Sequence[Finished]) -> None:
        """End the stream well."""
        trailer = b""
        if self._usage:
            usage = usage_document([each.usage for each in finished], self._alternatives)
            trailer = frame(envelope(self._identity, self._shape.stream_object, (), usage=usage))
        self._body.write(trailer + DONE)
        self._body.finish()

    def fail(self, error: MlxkError) -> None:
        """End the stream with an error."""
        self._body.write(frame(error_document(error, self._identity.request_id)))
        self._body.finish()

    def _event(self, index: int, event: GenerationEvent) -> bytes:
        around = self._frames[index]
        if around is not None and isinstance(event, TextDelta) and not event.logprobs:
            return around[0] + json.dumps(event.text, ensure_ascii=False).encode() + around[1]
        return b"".join(map(self._chunk, self._choices[index].pieces(event)))

    def _chunk(self, piece: Piece) -> bytes:
        return frame(envelope(self._identity, self._shape.stream_object, (piece,), **self._usage))

    def _text_frame(self, choice: Choice) -> tuple[bytes, bytes] | None:
        """Return what stands before and after the text in a chunk: nearly all of them differ in it alone."""
        framed = choice.text_frame()
        if framed is None:
            return None
        piece, text = framed
        before, _, after = self._chunk(piece).rpartition(json.dumps(text).encode())
        return before, after
