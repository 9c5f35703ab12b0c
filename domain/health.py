"""Health: whether a model's files are whole, with the first reason when they are not.

The values only; the rules that decide stand in ``domain.integrity``.
"""

import enum

import attrs


class HealthStatus(enum.Enum):
    """Whole or not. There is no third state: what is not understood is unhealthy."""

    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"


@attrs.frozen
class HealthReport:
    """What a check of a model's files found."""

    status: HealthStatus
    reason: str
    """One sentence; also given when healthy."""
    files: tuple[str, ...] = ()
    """The files at fault, relative to the model's directory, sorted."""
    missing_bytes: int | None = None
    """How many bytes a partial download still lacks, where that is known."""

    @property
    def healthy(self) -> bool:
        """Whether the model will run as far as its files are concerned."""
        return self.status is HealthStatus.HEALTHY


def healthy(reason: str = "Model is healthy") -> HealthReport:
    """Build a report of a whole model."""
    return HealthReport(HealthStatus.HEALTHY, reason)


def unhealthy(reason: str, files: tuple[str, ...] = (), missing_bytes: int | None = None) -> HealthReport:
    """Build a report of a damaged or incomplete model."""
    return HealthReport(HealthStatus.UNHEALTHY, reason, tuple(sorted(files)), missing_bytes or None)
