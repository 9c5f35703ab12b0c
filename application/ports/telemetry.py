"""The port to a collector of traces and metrics of served requests."""

import datetime
from abc import abstractmethod
from collections.abc import Mapping
from typing import Protocol

import attrs


@attrs.frozen(kw_only=True)
class ServedRequest:
    """Figures of a completed request. Holds no text of prompts or answers, and no API key."""

    operation: str
    """One of chat, text_completion, embeddings, rerank, transcription, translation."""
    api: str
    """The HTTP API of the request, such as ``messages``."""
    request_id: str
    ended: datetime.datetime
    """UTC."""
    seconds: float
    """From the first byte of the body to the end of the response."""
    asked_model: str | None = None
    """The model as the client named it; None when the request named none, or could not be parsed."""
    model: str | None = None
    """The id of the model that served it; None when none was found."""
    parameters: Mapping[str, int | float] = attrs.field(factory=dict)
    """Those sent of temperature, top_p, top_k, frequency_penalty, presence_penalty, seed, max_tokens and n."""
    input_tokens: int | None = None
    cached_tokens: int | None = None
    """Input tokens taken from the prefix cache."""
    output_tokens: int | None = None
    finish_reasons: tuple[str, ...] = ()
    """One for each choice."""
    queue_ended: float | None = None
    """Seconds from the start of the request to its admission by the engine."""
    first_token: float | None = None
    """Seconds from the start of the request to the first token."""
    seconds_per_token: float | None = None
    """Mean time between tokens after the first, in seconds."""
    error: str | None = None
    """The code of the error that ended it; None after success."""
    parent: Mapping[str, str] = attrs.field(factory=dict)
    """The headers ``traceparent`` and ``tracestate`` as the client sent them; they may be malformed."""


class Telemetry(Protocol):
    """Exports the figures of served requests to a collector, in the background. Thread-safe.

    No method raises. ``record`` does not block: records are dropped when the collector is slow or unreachable.
    """

    @abstractmethod
    def record(self, served: ServedRequest) -> None:
        """Queue a request for export."""

    @abstractmethod
    def close(self) -> None:
        """Export the queued records, for a few seconds at most; later records are dropped."""


class NoTelemetry(Telemetry):
    """Exports nothing."""

    def record(self, served: ServedRequest) -> None:
        """Drop the record."""

    def close(self) -> None:
        """Do nothing."""
