"""Limits of the engine: concurrent sequences, KV caches, loaded models, and idle time."""

import attrs


@attrs.frozen
class EngineLimits:
    """Limits of the engine. The composition root derives those in bytes from the machine's memory."""

    max_rows: int = 32
    """Sequences computed at the same time."""
    prefix_cache_bytes: int = 1024**3
    """0: no prefix cache."""
    cache_budget_bytes: int | None = None
    """KV caches of running sequences and the prefix cache together; None: no limit."""
    model_budget_bytes: int | None = None
    """Weights of all loaded models together; None: no limit."""
    keep_alive_seconds: float | None = None
    """Idle time after which a model is unloaded; None: never."""
