"""The port to a collector of traces and metrics, for the requests that a server has answered."""

import datetime
from abc import abstractmethod
from collections.abc import Mapping
from typing import Protocol

import attrs


@attrs.frozen(kw_only=True)
class ServedRequest:
    """A request that has ended. It holds no text of a prompt or an answer, and no key."""

    operation: str
    """What was asked for: chat, text_completion, embeddings, rerank, transcription or translation."""
    api: str
    """The API it came through, such as ``messages``."""
    request_id: str
    ended: datetime.datetime
    """UTC."""
    seconds: float
    """From the first byte of the body to the end of the answer."""
    asked_model: str | None = None
    """As the client wrote it; None where the request named none, or could not be read."""
    model: str | None = None
    """The id of the model that served it; None where none was found."""
    parameters: Mapping[str, int | float] = attrs.field(factory=dict)
    """What was sent of temperature, top_p, top_k, frequency_penalty, presence_penalty, seed, max_tokens and n."""
    input_tokens: int | None = None
    cached_tokens: int | None = None
    """Those of the input that were not computed again."""
    output_tokens: int | None = None
    finish_reasons: tuple[str, ...] = ()
    """One for each answer."""
    queue_ended: float | None = None
    """Seconds from the start to the end of the wait for its turn."""
    first_token: float | None = None
    """Seconds from the start to the first token."""
    seconds_per_token: float | None = None
    """Mean seconds of the tokens after the first."""
    error: str | None = None
    """The code of the error that ended it."""
    parent: Mapping[str, str] = attrs.field(factory=dict)
    """The headers ``traceparent`` and ``tracestate`` of the request, as they were sent; they may be malformed."""


class Telemetry(Protocol):
    """Sends what was served to a collector, in the background. Thread-safe.

    Neither method raises, and ``record`` does not wait for the collector: where that is slow or away, records are lost.
    """

    @abstractmethod
    def record(self, served: ServedRequest) -> None:
        """Take a request to be sent."""

    @abstractmethod
    def close(self) -> None:
        """Send what is left, for a few seconds at most; what is recorded afterwards is lost."""


class NoTelemetry(Telemetry):
    """Sends nothing anywhere."""

    def record(self, served: ServedRequest) -> None:
        """Drop it."""

    def close(self) -> None:
        """Do nothing."""
