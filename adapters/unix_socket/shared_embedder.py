"""Vectors from a running server: requests are computed there, or here where no server takes them."""

import itertools
from array import array
from collections.abc import Callable, Sequence

import attrs

from mlxk.adapters.unix_socket.protocol import DisconnectedError, decoded, encoded, error_of, receive, send
from mlxk.adapters.unix_socket.servers import SocketRunningServers
from mlxk.adapters.unix_socket.sharing import ARRIVAL_SECONDS, ENDED
from mlxk.application.ports.model_tasks import TextEmbedder
from mlxk.domain.embedding import EmbeddingRequest, Embeddings


class SharedTextEmbedder(TextEmbedder):
    """Embeds texts on a running server of this user, or else with the embedder of this process.

    Args:
        local: Returns the embedder of this process.
        servers: Finds the server.
    """

    def __init__(self, local: Callable[[], TextEmbedder], servers: SocketRunningServers) -> None:
        self._local = local
        self._servers = servers

    def embed(self, request: EmbeddingRequest) -> Embeddings:
        offer = self._servers.offer(request.model)
        if offer is None:
            return self._local().embed(request)
        with offer.connection as connection:
            try:
                connection.settimeout(ARRIVAL_SECONDS)
                sent: list[bytes] = []
                send(connection, {"request": encoded(request, sent)}, sent)
                connection.settimeout(None)
                reply, blobs = receive(connection)
                if "error" in reply:
                    raise error_of(reply["error"])
                if "embeddings" in reply:
                    found = decoded(reply["embeddings"])
                    return _with_vectors(found, blobs[0], int(reply["dimensions"]), reply["counts"])
                reason = f"the server says: {reply.get('declined')}"
            except (OSError, DisconnectedError, LookupError, ValueError, TypeError):
                reason = ENDED
        self._servers.computed_here(reason)
        return self._local().embed(request)


def _with_vectors(found: Embeddings, data: bytes, dimensions: int, counts: Sequence[int]) -> Embeddings:
    """Return embeddings with their vectors, of which an input of a multi-vector model has so many."""
    numbers = array("d", data)
    starts = range(0, len(numbers), dimensions or 1)
    vectors = tuple(tuple(numbers[start : start + dimensions]) for start in starts)
    if not counts:
        return attrs.evolve(found, vectors=vectors)
    rest = iter(vectors)
    return attrs.evolve(found, of_tokens=tuple(tuple(itertools.islice(rest, count)) for count in counts))
