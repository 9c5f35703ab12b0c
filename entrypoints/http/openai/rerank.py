"""``POST /v1/rerank`` and its other paths: ranks documents by their relevance to a query.

The body is that of Jina's API or of either version of Cohere's, or, with ``texts``, the shorter one of
text-embeddings-inference, which gets its own form of response.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import attrs
import falcon

from mlxk.application.policy import require_reranker
from mlxk.domain.embedding import ImageInput, as_number
from mlxk.domain.errors import CapabilityError, ContextLengthError
from mlxk.domain.models.model import Capability
from mlxk.domain.reranking import MAX_DOCUMENTS, Relevance, Relevances, RerankSettings, ranked
from mlxk.entrypoints.http.api import ServerContext
from mlxk.entrypoints.http.generation.responder import ADAPTATIONS
from mlxk.entrypoints.http.lifecycle import api_of
from mlxk.entrypoints.http.openai.embeddings import INPUTS_TRUNCATED
from mlxk.entrypoints.http.openai.media_items import IMAGE_KEYS, is_image_url, read_item
from mlxk.entrypoints.http.request_scope import request_id, trace_of
from mlxk.entrypoints.http.requests.body import BodyReader
from mlxk.entrypoints.http.requests.media import PartReader
from mlxk.entrypoints.http.requests.validation import FieldError, Range, StrictConverter, Unsupported
from mlxk.entrypoints.http.resources import send_json

PATHS = ("/rerank", "/reranking", "/v1/rerank", "/v1/reranking", "/v2/rerank")

_TEXTS_ONLY = Unsupported("a document is its 'text' and its image")
_UNSUPPORTED: Mapping[str, Unsupported] = {
    "rank_fields": attrs.evolve(_TEXTS_ONLY, neutral=(["text"],)),
}
_WITHOUT_EFFECT = {
    "max_chunks_per_doc": Unsupported("a document is read as one"),
    "priority": Unsupported("requests are served in the order they come"),
}
Query = str | dict[str, Any]
_RIGHT = ("right", "Right", "RIGHT")
_SEARCH_UNIT = 100
"""Documents in one of Cohere's search units."""


@attrs.frozen(kw_only=True)
class RerankBody:
    """The body of a request."""

    aliases: ClassVar[Mapping[str, str]] = {"top_k": "top_n", "truncation": "truncate"}
    """Field names of Voyage's and Jina's APIs."""

    model: Annotated[str, Range(1, None)]
    query: Query
    documents: Annotated[list[Any], Range(1, MAX_DOCUMENTS)] | None = None
    texts: Annotated[list[str], Range(1, MAX_DOCUMENTS)] | None = None
    top_n: Annotated[int, Range(1, None)] | None = None
    return_documents: bool | None = None
    return_text: bool | None = None
    max_tokens_per_doc: Annotated[int, Range(1, None)] | None = None
    instruction: Annotated[str, Range(1, None)] | None = None
    truncate: bool | None = None
    truncation_direction: str | None = None
    raw_scores: bool | None = None
    max_chunks_per_doc: int | None = None
    priority: int | None = None

    def faults(self) -> list[FieldError]:
        """Return the faults of combinations of fields, and of documents."""
        if (self.documents is None) == (self.texts is None):
            return [FieldError("documents", "is missing" if self.texts is None else "and texts exclude each other")]
        faults = [FieldError("query", "is empty")] if isinstance(self.query, str) and not self.query.strip() else []
        faults += [
            FieldError(f"documents[{index}]", "must be a string, or an object with a string 'text'")
            for index, document in enumerate(self.documents or ())
            if not isinstance(_text(document), str) and not _has_image(document)
        ]
        if self.truncation_direction not in (None, *_RIGHT):
            faults.append(FieldError("truncation_direction", "must be 'right': documents are cut at their end"))
        return faults

    @property
    def sent_documents(self) -> list[Any]:
        """The documents as sent."""
        return self.texts if self.documents is None else self.documents  # type: ignore[return-value]

    @property
    def settings(self) -> RerankSettings:
        """How the documents are compared."""
        return RerankSettings(self.instruction, self.truncate is not False, self.max_tokens_per_doc)


def register_query(converter: StrictConverter) -> None:
    """Register the union of query types with a converter."""
    converter.union(Query, _query_kind)


def _query_kind(value: object) -> object:
    if isinstance(value, str):
        return Annotated[str, Range(1, None)]
    if isinstance(value, dict):
        return dict[str, Any]
    raise TypeError("must be a string, or an object with a text and an image")


def _has_image(item: object) -> bool:
    return isinstance(item, dict) and any(item.get(key) is not None for key in (*IMAGE_KEYS, "content"))


def _text(document: object) -> object:
    """Return the text of a document, from its parts if it has no ``text``; None if a part is not a text."""
    if not isinstance(document, dict):
        return document
    if document.get("text") is not None:
        return document["text"]
    content = document.get("content")
    parts = [_text(part) for part in content] if isinstance(content, list) else [content]
    texts = [part for part in parts if isinstance(part, str) and not is_image_url(part)]
    return "\n".join(texts) if len(texts) == len(parts) else None


class RerankResource:
    """Orders documents by their relevance to a query."""

    def __init__(self, server: ServerContext) -> None:
        self._reader = BodyReader(
            RerankBody,
            (register_query,),
            unsupported=_UNSUPPORTED,
            without_effect=_WITHOUT_EFFECT,
            default_model=lambda: server.services.catalogue.default,
        )
        self._services = server.services
        self._media = server.media
        self._lifecycle = server.lifecycle
        self._limit = server.limit
        self._metrics = server.metrics

    def on_post(self, request: falcon.Request, response: falcon.Response) -> None:
        """Return the documents' indices and scores, the most relevant first."""
        body = self._reader.read(request, response)
        self._lifecycle.require_open()
        model = self._services.catalogue.find(body.model, require_reranker)
        media = self._media.of_request() if model.description.can(Capability.VISION) else None
        query = _item(body.query, "query", media)
        documents = tuple(
            _item(document, f"documents[{index}]", media) for index, document in enumerate(body.sent_documents)
        )
        trace = trace_of(request)
        trace.model = model.id
        release, clock = self._limit.enter(1), self._services.clock
        began = clock.monotonic()
        try:
            relevances = self._services.rerank(model.description, query, documents, body.settings)
        except ContextLengthError as error:
            index = (error.detail or {}).get("index")
            request.context.prompt_field = "query" if index is None else f"documents[{index}]"
            raise
        finally:
            release()
        seconds = clock.monotonic() - began
        trace.tokens = relevances.tokens
        self._metrics.reranking(model.id, api_of(request.uri_template), relevances.tokens, seconds)
        if relevances.truncations:
            response.set_header(ADAPTATIONS, INPUTS_TRUNCATED)
        best = ranked(relevances.documents, body.top_n)
        if body.documents is None:
            send_json(response, [_short(body, relevance) for relevance in best])
        else:
            version = "2" if (request.uri_template or "").startswith("/v2/") else "1"
            send_json(response, _document(body, relevances, best, model.id, request_id(request), version))


def _item(value: object, path: str, media: PartReader | None) -> str | ImageInput:
    """Return a query or a document; for a model that reads texts only (``media`` is None) its text.

    Raises:
        ValidationError: Its image cannot be read.
        CapabilityError: It has no text, and the model reads no images.
    """
    text = _text(value)
    is_image = isinstance(value, str) and is_image_url(value)
    if media is not None and (is_image or not isinstance(value, str)):
        return read_item(value, path, media)
    if is_image or not isinstance(text, str):
        raise CapabilityError.in_field(path, "this reranker reads texts, not images")
    return text


def _number(body: RerankBody, relevance: Relevance) -> float:
    return as_number(relevance.logit if body.raw_scores else relevance.score)


def _short(body: RerankBody, relevance: Relevance) -> dict[str, object]:
    text = {"text": body.sent_documents[relevance.index]} if body.return_text else {}
    return {"index": relevance.index, "score": _number(body, relevance), **text}


def _document(
    body: RerankBody,
    relevances: Relevances,
    best: tuple[Relevance, ...],
    model: str,
    identity: str,
    version: str,
) -> dict[str, object]:
    results = []
    for relevance in best:
        sent = body.sent_documents[relevance.index]
        document = {"document": sent if isinstance(sent, dict) else {"text": sent}} if body.return_documents else {}
        results.append({"index": relevance.index, "relevance_score": _number(body, relevance), **document})
    truncated = [attrs.asdict(truncation) for truncation in relevances.truncations]
    return {
        "id": identity,
        "object": "list",
        "model": model,
        "results": results,
        "usage": {"prompt_tokens": relevances.tokens, "total_tokens": relevances.tokens},
        "meta": {
            "api_version": {"version": version},
            "billed_units": {"search_units": -(-len(body.sent_documents) // _SEARCH_UNIT)},
            "tokens": {"input_tokens": relevances.tokens},
        },
        **({"truncated": truncated} if truncated else {}),
    }
