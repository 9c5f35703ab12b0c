"""In-memory double of the completion client.

client = InMemoryCompletionClient(("demo",))
client.status = 503                         # from now on every request is refused
"""

import itertools
from collections.abc import Callable

import attrs

from mlxk.application.ports.measuring import CompletionClient, CompletionServer, RemoteRequest
from mlxk.domain.benchmark import RemoteCompletion
from mlxk.domain.errors import NetworkError


class InMemoryCompletionClient(CompletionClient):
    """Simulates a server that needs 0.1 s to the first token, and 0.01 s for each further token.

    Args:
        names: The models that the server lists.
        knows_ignore_eos: Whether the server accepts that field; otherwise it answers with status 400.
    """

    def __init__(self, names: tuple[str, ...], *, knows_ignore_eos: bool = True) -> None:
        self._names = names
        self._knows_ignore_eos = knows_ignore_eos
        self.status = 200
        self.counts_tokens = True
        self.cached_tokens = 0
        self.asked: list[RemoteRequest] = []
        self.loaded: set[str] = set()
        self._clock = itertools.count()

    def identify(self, server: CompletionServer) -> CompletionServer:
        return server if server.api else attrs.evolve(server, api="only")

    def models(self, server: CompletionServer) -> tuple[str, ...]:
        if self.status != 200:
            raise NetworkError(f"the server does not list its models: HTTP {self.status}")
        return self._names

    def complete(self, server: CompletionServer, request: RemoteRequest) -> RemoteCompletion:
        began = float(next(self._clock))
        self.asked.append(request)
        known = request.model in self._names
        status = 400 if request.ignore_eos and not self._knows_ignore_eos else self.status if known else 404
        if status != 200:
            return RemoteCompletion(began, began + 0.1, failure=f"HTTP {status}: refused", status=status)
        tokens = request.max_tokens
        counts = (len(request.prompt.split()), tokens, self.cached_tokens) if self.counts_tokens else (None, None, None)
        read, written, cached = counts
        first = began + 0.1
        ended = first + 0.01 * (tokens - 1)
        return RemoteCompletion(began, ended, first, read, written, cached, status=200, text="word " * tokens)

    def manages(self, server: CompletionServer) -> bool:
        return True

    def load(self, server: CompletionServer, model: str) -> float | None:
        self._require(model)
        self.loaded.add(model)
        return 0.5

    def unload(self, server: CompletionServer, model: str) -> None:
        self._require(model)
        self.loaded.discard(model)

    def memory_bytes(self, server: CompletionServer, model: str) -> int | None:
        return 10**9 if model in self.loaded else None

    def pull(self, server: CompletionServer, model: str, report: Callable[[int, int], None]) -> None:
        if self.status != 200 or model == "nosuch":
            raise NetworkError(f"the server does not fetch '{model}'")
        report(10**9, 10**9)
        self._names = (*self._names, model)

    def _require(self, model: str) -> None:
        if self.status != 200 or model not in self._names:
            raise NetworkError(f"the server refuses: HTTP {self.status if self.status != 200 else 404}")
