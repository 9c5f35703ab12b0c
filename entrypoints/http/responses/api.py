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
from mlxk.entrypoints.http.responses.renderer import Answering, ResponsesRenderer, request_fields
from mlxk.entrypoints.http.responses.request import (
    NEUTRAL,
    UNSUPPORTED,
    WITHOUT_EFFECT,
    ResponseRequest,
    register_request,
    translated,
)
from mlxk.entrypoints.http.responses.store import PREVIOUS, ResponseStore, listed, text_item
from mlxk.entrypoints.http.responses.tools import register_tools

Json = dict[str, Any]


class Responses:
    """Answers a list of items with a list of items.

    Args:
        server: The services and settings.
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
        asked = self._reader.structured(body, response)
        owner = owner_of(request)
        history = self._history(asked, owner)
        own, sent = self._own(asked, body, owner)
        left_out = [path for path, item in own if isinstance(item, dict)]
        items = [(path, item) for path, item in (*history, *own) if isinstance(item, Item)]
        translation = translated(asked, items, left_out)
        report_ignored(response, translation.ignored)
        # Here, not at the end: there it would keep the thread that writes all streams.
        inputs = () if asked.store is False else listed(sent)
        answering = Answering(
            fields=request_fields(asked, body),
            toolbox=translation.toolbox,
            keep=functools.partial(self._store.keep, owner, inputs),
            clock=self._clock,
            response_id=f"resp_{uuid.uuid4().hex}",
        )
        renderer = functools.partial(ResponsesRenderer, answering=answering)
        shortens = asked.truncation == "auto"
        job = self._jobs.job(translation.chat, renderer, names=translation.names, shortens=shortens)
        self._responder.respond(request, response, job)

    def _history(self, asked: ResponseRequest, owner: str) -> list[tuple[str, AnyItem]]:
        """Return the items of the responses that a request goes on from."""
        if asked.previous_response_id is None:
            return []
        return [
            (PREVIOUS, self._structured(item)) for item in self._store.conversation(owner, asked.previous_response_id)
        ]

    def _own(
        self, asked: ResponseRequest, body: Mapping[str, Any], owner: str
    ) -> tuple[list[tuple[str, AnyItem]], list[Json]]:
        """Return the items of the request itself, those that are referred to included; and the same as JSON."""
        items: list[tuple[str, AnyItem]] = []
        sent: list[Json] = []
        given = body.get(asked.items_field)
        for (path, item), document in zip(asked.items, given if isinstance(given, list) else (), strict=False):
            if isinstance(item, ItemReference):
                document = self._store.item(owner, item.id, f"{path}.id")
                items.append((path, self._structured(document)))
            else:
                items.append((path, item))
            sent.append(document)
        return items, sent if asked.plain_input is None else [text_item(asked.plain_input)]

    def _structured(self, document: Json) -> AnyItem:
        """Return an item that was structured once before, or that was an answer."""
        items, faults = self._converter.structure([document], list[AnyItem])
        raise_for(faults)
        return (items or [])[0]


class KeptResponse(Readable):
    """A response that is kept."""

    def __init__(self, store: ResponseStore) -> None:
        self._store = store

    def on_get(self, request: falcon.Request, response: falcon.Response, response_id: str) -> None:
        """Send it."""
        if request.get_param_as_bool("stream"):
            reason = "is not supported: what is kept is complete; leave it out"
            raise ParameterNotSupportedError.in_field("stream", reason)
        send_json(response, self._store.find(owner_of(request), response_id).response())

    def on_delete(self, request: falcon.Request, response: falcon.Response, response_id: str) -> None:
        """Forget it."""
        self._store.forget(owner_of(request), response_id)
        send_json(response, {"id": response_id, "object": "response", "deleted": True})


class InputItems(Readable):
    """The items that a kept response was the answer to."""

    def __init__(self, store: ResponseStore) -> None:
        self._store = store

    def on_get(self, request: falcon.Request, response: falcon.Response, response_id: str) -> None:
        """Send a page of them, the latest first unless another order is asked for."""
        items = self._store.find(owner_of(request), response_id).inputs
        order = request.get_param("order") or "desc"
        if order not in ("asc", "desc"):
            raise ValidationError.in_field("order", "must be asc or desc")
        ordered = items if order == "asc" else items[::-1]
        after = request.get_param("after")
        if after:
            places = [index for index, (item_id, _) in enumerate(ordered) if item_id == after]
            if not places:
                raise NotFoundError.in_field("after", "there is no such item")
            ordered = ordered[places[0] + 1 :]
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
"""Most items of a page, and how many it has unless another number is asked for."""


def owner_of(request: falcon.Request) -> str:
    """Return who sends a request, by the keys in it: what was kept for other keys cannot be read."""
    keys = "\n".join(given_keys(request))
    return hashlib.sha256(keys.encode("utf-8", "surrogateescape")).hexdigest()


def error_body(error: MlxkError, request_id: str, parameter: str | None = None) -> tuple[str, bytes]:
    """Return content type and body of an error response: OpenAI's, with its code for a response that is gone."""
    document: Any = error_document(error, request_id, parameter)
    if error.code == "not_found" and document["error"]["param"] == PREVIOUS:
        document["error"]["code"] = "previous_response_not_found"
    return "application/json", json.dumps(document, ensure_ascii=False).encode()


def responses_api(server: ServerContext) -> HttpApi:
    """Build the API; its paths are served with and without the version."""
    store = ResponseStore()
    resources: dict[str, object] = {
        "/responses": Responses(server, store),
        "/responses/{response_id}": KeptResponse(store),
        "/responses/{response_id}/input_items": InputItems(store),
    }
    return HttpApi({**{f"/v1{path}": each for path, each in resources.items()}, **resources}, error_body)
