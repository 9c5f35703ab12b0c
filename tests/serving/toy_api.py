"""A small HTTP API that exists in tests only: newline-delimited JSON, with errors and keep-alive lines of its own.

It is what a new API costs: a request reader, a renderer, a resource, and a function that lists its paths.
"""

import json
from collections.abc import Sequence
from types import MappingProxyType

import attrs
import falcon

from mlxk.application.generation_input import GenerationOptions
from mlxk.domain.errors import MlxkError
from mlxk.domain.generation.request import Finished, GenerationEvent, ReasoningDelta, TextDelta, ToolCallDelta
from mlxk.domain.generation.settings import GenerationSettings
from mlxk.entrypoints.http.api import HttpApi, ServerContext
from mlxk.entrypoints.http.generation.renderer import ResponseContext, ResponseRenderer
from mlxk.entrypoints.http.generation.responder import GenerationJob
from mlxk.entrypoints.http.requests.body import BodyReader
from mlxk.entrypoints.http.requests.validation import FieldError

PATH = "/toy/generate"
MEDIA_TYPE = "application/x-ndjson"


@attrs.frozen(kw_only=True)
class ToyRequest:
    """The body of a request."""

    model: str
    text: str
    whole: bool = False
    words: int | None = None

    def faults(self) -> list[FieldError]:
        """Return the faults of combinations of fields."""
        return [] if self.text else [FieldError("text", "is empty")]


class ToyRenderer(ResponseRenderer):
    """Renders one line for each event."""

    media_type = MEDIA_TYPE
    stream_headers = MappingProxyType({"Content-Type": MEDIA_TYPE})

    def __init__(self, context: ResponseContext) -> None:
        self._context = context

    def opening(self) -> bytes:
        return line({"model": self._context.model})

    def keep_alive(self) -> bytes:
        return b"\n"

    def event(self, index: int, event: GenerationEvent) -> bytes:
        match event:
            case TextDelta(text):
                return line({"text": text})
            case ReasoningDelta(text):
                return line({"thought": text})
            case ToolCallDelta(call=call):
                return line({"call": call.name} if event.begins else {"arguments": call.arguments})
            case Finished(reason):
                return line({"end": reason.value})

    def closing(self, finished: Sequence[Finished]) -> bytes:
        return line({"tokens": sum(each.usage.completion_tokens for each in finished)})

    def error(self, error: MlxkError) -> bytes:
        return line({"failed": error.code})

    def whole(self, choices: Sequence[Sequence[GenerationEvent]], finished: Sequence[Finished]) -> bytes:
        events = b"".join(self.event(0, event) for event in choices[0])
        return self.opening() + events + self.closing(finished)


class ToyResource:
    """Generates text."""

    def __init__(self, server: ServerContext) -> None:
        self._reader = BodyReader(ToyRequest)
        self._services = server.services
        self._responder = server.responder

    def on_post(self, request: falcon.Request, response: falcon.Response) -> None:
        """Generate text for a prompt."""
        body = self._reader.read(request, response)
        model = self._services.catalogue.find(body.model)
        options = GenerationOptions(GenerationSettings(max_tokens=body.words))
        job = GenerationJob(
            model=model,
            model_name=body.model,
            start=lambda _: self._services.generate(model.details, [body.text], options),
            renderer=ToyRenderer,
            stream=not body.whole,
        )
        self._responder.respond(request, response, job)


def toy_api(server: ServerContext) -> HttpApi:
    """Build the API."""
    return HttpApi({PATH: ToyResource(server)}, lambda error, identity, field: (MEDIA_TYPE, line({"no": error.code})))


def line(document: object) -> bytes:
    """Return a document as a line."""
    return json.dumps(document).encode() + b"\n"
