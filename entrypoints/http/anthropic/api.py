"""The Anthropic-compatible API: its paths and their resources."""

import functools

import falcon

from mlxk.domain.models.model import Capability
from mlxk.entrypoints.http.anthropic.errors import ERROR_STATUSES, error_body
from mlxk.entrypoints.http.anthropic.renderer import MessagesRenderer, ShownParts
from mlxk.entrypoints.http.anthropic.request import (
    UNSUPPORTED,
    WITHOUT_EFFECT,
    CountRequest,
    MessagesRequest,
    register_request,
)
from mlxk.entrypoints.http.anthropic.translation import MessagesTranslation, translate
from mlxk.entrypoints.http.api import HttpApi, ServerContext
from mlxk.entrypoints.http.generation.responder import report_adaptations
from mlxk.entrypoints.http.middleware import request_id
from mlxk.entrypoints.http.openai.audio.upload import AudioReader
from mlxk.entrypoints.http.openai.chat.jobs import ChatJobs
from mlxk.entrypoints.http.requests.body import BodyReader, R, report_ignored
from mlxk.entrypoints.http.requests.validation import raise_for
from mlxk.entrypoints.http.resources import send_json

PATH = "/v1/messages"
COUNT_PATH = f"{PATH}/count_tokens"
REQUEST_ID_HEADER = "request-id"
VERSION_HEADER = "anthropic-version"


def anthropic_api(server: ServerContext) -> HttpApi:
    """Build the API."""
    return HttpApi(
        resources={PATH: Messages(server), COUNT_PATH: CountTokens(server)},
        error_body=error_body,
        error_statuses=ERROR_STATUSES,
        claims=is_meant,
        request_id_header=REQUEST_ID_HEADER,
    )


def is_meant(request: falcon.Request) -> bool:
    """Whether a request is meant for this API: by its path, or by the version that its clients state.

    The version decides for the list of models, which several APIs have, and where there is no such path.
    """
    if request.path == PATH or request.path.startswith(f"{PATH}/"):
        return True
    shared = request.path.startswith("/v1/models") or request.uri_template is None
    return shared and request.get_header(VERSION_HEADER) is not None


class _MessagesResource:
    """What both resources share."""

    def __init__(self, server: ServerContext) -> None:
        self._server = server
        self._services = server.services

    def _reader(self, kind: type[R]) -> BodyReader[R]:
        return BodyReader(
            kind,
            (register_request,),
            UNSUPPORTED,
            WITHOUT_EFFECT,
            default_model=lambda: self._services.catalogue.default,
        )

    def _translate(self, body: CountRequest, response: falcon.Response) -> MessagesTranslation:
        details = self._services.catalogue.find(body.model, lambda _: None).details
        translation = translate(
            body,
            sees=details.description.can(Capability.VISION),
            reasons=details.may_reason,
        )
        report_ignored(response, translation.ignored)
        return translation


class Messages(_MessagesResource):
    """Generates the next message of a conversation."""

    def __init__(self, server: ServerContext) -> None:
        super().__init__(server)
        self._read = self._reader(MessagesRequest).read
        self._jobs = ChatJobs(server)

    def on_post(self, request: falcon.Request, response: falcon.Response) -> None:
        """Generate one message."""
        response.set_header(REQUEST_ID_HEADER, request_id(request))
        body = self._read(request, response)
        translation = self._translate(body, response)
        shown = ShownParts(
            thinking=body.thinking is None or body.thinking.display != "omitted", answer=body.max_tokens > 0
        )
        job = self._jobs.job(
            translation.chat, functools.partial(MessagesRenderer, shown=shown), names=translation.names
        )
        self._server.responder.respond(request, response, job)


class CountTokens(_MessagesResource):
    """Counts the tokens of a conversation, with the tokenizer alone."""

    def __init__(self, server: ServerContext) -> None:
        super().__init__(server)
        self._read = self._reader(CountRequest).read
        self._read_audio = AudioReader(server.services.audio_decoder)

    def on_post(self, request: falcon.Request, response: falcon.Response) -> None:
        """Return the number of tokens that the prompt of a message would have."""
        response.set_header(REQUEST_ID_HEADER, request_id(request))
        body = self._read(request, response)
        self._server.lifecycle.require_open()
        translation = self._translate(body, response)
        send_json(response, translation.names.naming(lambda: self._count(translation, response)))

    def _count(self, translation: MessagesTranslation, response: falcon.Response) -> dict[str, object]:
        chat = translation.chat
        raise_for(chat.faults())
        model = self._services.catalogue.find(chat.model)
        chat.require_abilities(model, self._server.settings)
        options = chat.generation_options(model, self._server.settings, chat.forced_call)
        prompts = self._services.tokenize(model.details, chat.incoming(self._read_audio), options)
        report_adaptations(response, (each for prompt in prompts for each in prompt.adaptations))
        notes = [prompt.approximation for prompt in prompts if prompt.approximation is not None]
        count = sum(len(prompt.tokens) for prompt in prompts)
        return {"input_tokens": count, **({"notes": notes} if notes else {})}
