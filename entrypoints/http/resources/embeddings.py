"""``POST /v1/embeddings``."""

from collections.abc import Callable

import falcon

from mlxk.application.policy import require_embedding_model
from mlxk.application.use_cases.embed_text import EmbeddingResult, EmbedText
from mlxk.application.use_cases.serve_catalogue import ServeCatalogue
from mlxk.domain.embedding import Vector, as_base64
from mlxk.entrypoints.http.lifecycle import ConcurrencyLimit, ServerLifecycle
from mlxk.entrypoints.http.requests.embeddings import UNSUPPORTED, EmbeddingsRequest, register_inputs
from mlxk.entrypoints.http.requests.reader import BodyReader
from mlxk.entrypoints.http.resources.generation import report_ignored
from mlxk.entrypoints.http.resources.readable import send_json


class EmbeddingsResource:
    """Texts as vectors.

    Args:
        embed: Turns texts into vectors.
        catalogue: Finds the model.
        life: Says whether the server takes work.
        admission: Counts what is in progress.
        always: The model that answers whatever a request names; None lets requests name it.
    """

    def __init__(
        self,
        embed: EmbedText,
        catalogue: ServeCatalogue,
        life: ServerLifecycle,
        admission: ConcurrencyLimit,
        always: str | None = None,
    ) -> None:
        self._reader = BodyReader(register_inputs)
        self._embed = embed
        self._catalogue = catalogue
        self._life = life
        self._admission = admission
        self._always = always

    def on_post(self, request: falcon.Request, response: falcon.Response) -> None:
        """Turn texts into vectors."""
        request.context.prompt_field = "input"
        asked, ignored = self._reader.read(request, EmbeddingsRequest, UNSUPPORTED)
        report_ignored(response, ignored)
        self._life.require_open()
        model = self._catalogue.find(self._always or asked.model, require_embedding_model)
        leave = self._admission.enter(1)
        try:
            result = self._embed.embed(model.description, asked.inputs, asked.settings())
        finally:
            leave()
        send_json(response, _document(asked, result))


def _document(asked: EmbeddingsRequest, result: EmbeddingResult) -> dict[str, object]:
    encode: Callable[[Vector], object] = as_base64 if asked.encoding_format == "base64" else _as_numbers
    tokens = result.embeddings.tokens
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": encode(vector)}
            for index, vector in enumerate(result.embeddings.vectors)
        ],
        "model": result.model,
        "system_fingerprint": result.fingerprint,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def _as_numbers(vector: Vector) -> list[float]:
    # Nine digits are all that a 32-bit number has.
    return [float(f"{value:.9g}") for value in vector]
