"""Port: the models in memory, and how the engine that runs them is doing."""

from abc import abstractmethod
from typing import Protocol, runtime_checkable

import attrs

from mlxk.domain.models.model import ModelHandle


@attrs.frozen
class EngineState:
    """The engine at one moment."""

    responding: bool
    """Whether its loop answered in time; everything else is stale when it did not."""
    running: int
    """Answers being computed."""
    waiting: int
    """Answers that queue for a place or for their model."""
    models: tuple[ModelHandle, ...]
    """What is in memory, sorted by name."""
    prompt_tokens: int = 0
    """Prompt tokens computed since the engine began."""
    cached_tokens: int = 0
    """Prompt tokens that were not computed again."""
    generated_tokens: int = 0
    ended: int = 0
    """Answers that have ended, in whatever way."""
    failed: int = 0
    """Those of them that ended with an error."""
    prefix_cache_bytes: int = 0
    """What is kept of earlier prompts."""
    active_bytes: int = 0
    """What the engine's arrays take in memory."""
    fault_seconds: float | None = None
    """How long ago its loop failed as a whole, ending every answer; None when it never did."""


@runtime_checkable
class ResidentModels(Protocol):
    """Looks into a running engine, and frees memory on request. Callable from any thread."""

    @abstractmethod
    def state(self, timeout_seconds: float) -> EngineState:
        """Ask the engine's loop how it is doing; an engine that was never used counts as responding.

        Args:
            timeout_seconds: How long to wait for the answer.
        """

    @abstractmethod
    def unload(self, model: ModelHandle | None = None) -> tuple[ModelHandle, ...]:
        """Free the idle models, or one of them, and return which went. A model in use stays.

        Args:
            model: The one to free; None frees every idle one.
        """
