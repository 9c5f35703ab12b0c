"""The Responses API: its paths and their resources."""

import functools
import hashlib
import json
import uuid
from collections.abc import Mapping
from typing import Any

import falcon

from mlxk.domain.errors import MlxkError, NotFoundError, ParameterNotSupportedError, ValidationError
from mlxk.entrypoints.http.access import given_keys
from mlxk.entrypoints.http.api import HttpApi, ServerContext
from mlxk.entrypoints.http.openai.chat.jobs import ChatJobs
from mlxk.entrypoints.http.openai.chat.tools import register_tool_choice
from mlxk.entrypoints.http.openai.errors import error_document
from mlxk.entrypoints.http.openai.sampling import register_sampling
from mlxk.entrypoints.http.requests.body import BodyReader, read_object, report_ignored
from mlxk.entrypoints.http.requests.validation import StrictConverter, raise_for
from mlxk.entrypoints.http.resources import Readable, page_size, send_json
from mlxk.entrypoints.http.responses.items import AnyItem, Item, ItemReference, register_items
from mlxk.entrypoints.http.responses.renderer import RequestContext, ResponsesRenderer, request_fields
from mlxk.entrypoints.http.responses.request import (
    NEUTRAL,
    UNSUPPORTED,
    WITHOUT_EFFECT,
    ResponseRequest,
    register_request,
    translate,
)
from mlxk.entrypoints.http.responses.store import PREVIOUS, ResponseStore, listed, text_item
from mlxk.entrypoints.http.responses.tools import register_tools

Json = dict[str, Any]


class Responses:
    """Generates responses: lists of items for lists of items.

    Args:
        server: Services and settings.
        store: Keeps responses.
    """

    def __init__(self, server: ServerContext, store: ResponseStore) -> None:
        registers = (register_sampling, register_tool_choice, register_tools, register_items, register_request)
        self._reader = BodyReader(
            ResponseRequest,
            registers,
            UNSUPPORTED,
            WITHOUT_EFFECT,
            neutral=NEUTRAL,
            default_model=lambda: server.services.catalogue.default,
        )
        self._converter = StrictConverter()
        for register in registers:
            register(self._converter)
        self._jobs = ChatJobs(server)
        self._responder = server.responder
        self._clock = server.services.clock
        self._store = store

    def on_post(self, request: falcon.Request, response: falcon.Response) -> None:
        """Generate a response."""
        request.context.prompt_field = "input"
        body = read_object(request)
        fields = self._reader.structured(body, response)
        owner = owner_of(request)
        history = self._history(fields, owner)
        own, documents = self._own(fields, body, owner)
        left_out = [path for path, item in own if isinstance(item, dict)]
        items = [(path, item) for path, item in (*history, *own) if isinstance(item, Item)]
        translation = translate(fields, items, left_out)
        report_ignored(response, translation.ignored)
        # Encoded here: at the end of the response it would block the thread that writes all streams.
        inputs = () if fields.store is False else listed(documents)
        request_context = RequestContext(
            fields=request_fields(fields, body),
            toolbox=translation.toolbox,
            keep=functools.partial(self._store.keep, owner, inputs),
            clock=self._clock,
            response_id=f"resp_{uuid.uuid4().hex}",
        )
        renderer = functools.partial(ResponsesRenderer, request=request_context)
        shortens = fields.truncation == "auto"
        job = self._jobs.job(translation.chat, renderer, names=translation.names, shortens=shortens)
        self._responder.respond(request, response, job)

    def _history(self, fields: ResponseRequest, owner: str) -> list[tuple[str, AnyItem]]:
        """Return the items of the previous responses."""
        if fields.previous_response_id is None:
            return []
        return [
            (PREVIOUS, self._structured(item)) for item in self._store.conversation(owner, fields.previous_response_id)
        ]

    def _own(
        self, fields: ResponseRequest, body: Mapping[str, Any], owner: str
    ) -> tuple[list[tuple[str, AnyItem]], list[Json]]:
        """Return the items of the request, with references resolved, and the same items as JSON."""
        if fields.plain_input is not None:
            return [], [text_item(fields.plain_input)]
        sent = fields.items
        references: dict[str, str] = {}
        for path, item in sent:
            if isinstance(item, ItemReference):
                references.setdefault(item.id, f"{path}.id")
        stored = self._store.items(owner, references)
        items: list[tuple[str, AnyItem]] = []
        documents: list[Json] = []
        for (path, item), document in zip(sent, body.get(fields.items_field) or (), strict=True):
            if isinstance(item, ItemReference):
                document = stored[item.id]
                items.append((path, self._structured(document)))
            else:
                items.append((path, item))
            documents.append(document)
        return items, documents

    def _structured(self, document: Json) -> AnyItem:
        """Return a stored item, which was valid when it was stored."""
        items, faults = self._converter.structure([document], list[AnyItem])
        raise_for(faults)
        return (items or [])[0]


class KeptResponse(Readable):
    """A stored response."""

    def __init__(self, store: ResponseStore) -> None:
        self._store = store

    def on_get(self, request: falcon.Request, response: falcon.Response, response_id: str) -> None:
        """Send the response."""
        if request.get_param_as_bool("stream"):
            reason = "is not supported: what is kept is complete; leave it out"
            raise ParameterNotSupportedError.in_field("stream", reason)
        send_json(response, self._store.find(owner_of(request), response_id).response())

    def on_delete(self, request: falcon.Request, response: falcon.Response, response_id: str) -> None:
        """Delete the response."""
        self._store.forget(owner_of(request), response_id)
        send_json(response, {"id": response_id, "object": "response", "deleted": True})


class InputItems(Readable):
    """The input items of a stored response."""

    def __init__(self, store: ResponseStore) -> None:
        self._store = store

    def on_get(self, request: falcon.Request, response: falcon.Response, response_id: str) -> None:
        """Send a page of the items, by default the latest first."""
        items = self._store.find(owner_of(request), response_id).inputs
        order = request.get_param("order") or "desc"
        if order not in ("asc", "desc"):
            raise ValidationError.in_field("order", "must be asc or desc")
        ordered = items if order == "asc" else items[::-1]
        after = request.get_param("after")
        if after:
            ids = [item_id for item_id, _ in ordered]
            if after not in ids:
                raise NotFoundError.in_field("after", "there is no such item")
            ordered = ordered[ids.index(after) + 1 :]
        page = ordered[: page_size(request, USUAL_PAGE, MAX_PAGE)]
        ids = [item_id for item_id, _ in page]
        send_json(
            response,
            {
                "object": "list",
                "data": [json.loads(item) for _, item in page],
                "first_id": ids[0] if ids else None,
                "last_id": ids[-1] if ids else None,
                "has_more": len(ordered) > len(page),
            },
        )


MAX_PAGE, USUAL_PAGE = 100, 20
"""Most items on a page, and the default."""


def owner_of(request: falcon.Request) -> str:
    """Return the owner of a request's responses: a hash of its API keys, so that other keys cannot read them."""
    keys = "\n".join(given_keys(request))
    return hashlib.sha256(keys.encode("utf-8", "surrogateescape")).hexdigest()


def error_body(error: MlxkError, request_id: str, parameter: str | None = None) -> tuple[str, bytes]:
    """Return content type and body of an error response: OpenAI's, with its code for an unknown previous response."""
    document: Any = error_document(error, request_id, parameter)
    if error.code == "not_found" and document["error"]["param"] == PREVIOUS:
        document["error"]["code"] = "previous_response_not_found"
    return "application/json", json.dumps(document, ensure_ascii=False).encode()


def responses_api(server: ServerContext) -> HttpApi:
    """Build the API; its paths exist with and without ``/v1``."""
    store = ResponseStore()
    resources: dict[str, object] = {
        "/responses": Responses(server, store),
        "/responses/{response_id}": KeptResponse(store),
        "/responses/{response_id}/input_items": InputItems(store),
    }
    return HttpApi({**{f"/v1{path}": resource for path, resource in resources.items()}, **resources}, error_body)
