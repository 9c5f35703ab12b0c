"""In-memory double of the server probe.

probe = InMemoryServerProbe({"http://example.test": ServerReading("http://example.test", None, ())})
"""

from collections.abc import Mapping

from mlxk.application.ports.measuring import CompletionServer, ServerProbe
from mlxk.domain.errors import AccessDeniedError, NetworkError
from mlxk.domain.monitoring import ServerReading


class InMemoryServerProbe(ServerProbe):
    """Returns given readings.

    Args:
        readings: Readings by the URL of the server.
        key: The API key of every server; None for none.
    """

    def __init__(self, readings: Mapping[str, ServerReading], key: str | None = None) -> None:
        self.readings = dict(readings)
        self.key = key

    def read(self, server: CompletionServer) -> ServerReading:
        if server.url not in self.readings:
            raise NetworkError("the server cannot be asked: nothing is there")
        if self.key is not None and server.api_key != self.key:
            raise AccessDeniedError("the server wants another key")
        return self.readings[server.url]
