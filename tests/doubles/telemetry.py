"""In-memory double of telemetry.

telemetry = InMemoryTelemetry()
telemetry.record(served)
telemetry.served                            # [served]
"""

from mlxk.application.ports.telemetry import ServedRequest, Telemetry


class InMemoryTelemetry(Telemetry):
    """Keeps the requests recorded before ``close`` in ``served``, oldest first."""

    def __init__(self) -> None:
        self.served: list[ServedRequest] = []
        self._closed = False

    def record(self, served: ServedRequest) -> None:
        if not self._closed:
            self.served.append(served)

    def close(self) -> None:
        self._closed = True
