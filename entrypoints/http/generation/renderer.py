"""The extension point for HTTP APIs: how one API renders the events of a response.

The events are the values of ``domain.generation.request``. A new API that generates text has a request reader, a
renderer, a resource, and one entry in ``app.APIS``; everything else is shared.
"""

import datetime
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import attrs

from mlxk.domain.errors import MlxkError
from mlxk.domain.generation.request import Finished, GenerationEvent


@attrs.frozen
class ResponseContext:
    """Metadata of a response that its body may contain."""

    request_id: str
    created: datetime.datetime
    model: str
    """Its name in the request."""
    fingerprint: str
    """Fingerprint of the weights."""
    choices: int
    """Completions in the response."""
    alternatives: int
    """Completions of the same prompt; those of one prompt have successive indices."""
    prompt_tokens: int = 0
    """Tokens of all prompts; 0 for a recording."""


class ResponseRenderer(Protocol):
    """Renders one response in the format of an API.

    A streamed response is ``opening``, any number of ``event`` and ``keep_alive``, then ``closing`` or ``error``. A
    whole response is ``whole`` alone. An instance serves one response, from one thread at a time.
    """

    media_type: str
    """Content type of a whole response."""
    stream_headers: Mapping[str, str]
    """Headers of a streamed response, its content type among them."""

    @abstractmethod
    def opening(self) -> bytes:
        """Return the first bytes of a stream; not empty, so that the headers leave before the first token."""

    @abstractmethod
    def keep_alive(self) -> bytes:
        """Return a frame without content, sent during silence; empty when the format has none."""

    @abstractmethod
    def event(self, index: int, event: GenerationEvent) -> bytes:
        """Return the frames of one event.

        Args:
            index: The choice, from 0.
            event: The next event of that choice.
        """

    @abstractmethod
    def closing(self, finished: Sequence[Finished]) -> bytes:
        """Return the last frames of a stream that succeeded.

        Args:
            finished: The last event of each choice, in order.
        """

    @abstractmethod
    def error(self, error: MlxkError) -> bytes:
        """Return the last frames of a stream that failed after its headers were sent."""

    @abstractmethod
    def whole(self, choices: Sequence[Sequence[GenerationEvent]], finished: Sequence[Finished]) -> bytes:
        """Return the body of a response that is not streamed.

        Args:
            choices: All events of each choice, in order.
            finished: The last event of each choice, in order.
        """


RendererFactory = Callable[[ResponseContext], ResponseRenderer]
"""Makes the renderer of a response once its context is known."""
