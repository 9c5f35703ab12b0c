"""The limits of the engine, as the composition root sets them."""

import attrs


@attrs.frozen
class EngineLimits:
    """Limits of the engine. The composition root sets those in bytes from what the machine has."""

    max_rows: int = 32
    """Answers computed at the same time."""
    prefix_cache_bytes: int = 1024**3
    """What is kept of earlier prompts for later ones that begin the same way; 0: nothing."""
    cache_budget_bytes: int | None = None
    """What running answers and kept prefixes may take together; None: no limit."""
    model_budget_bytes: int | None = None
    """Weights in memory altogether; None: no limit."""
    keep_alive_seconds: float | None = None
    """Idle models are unloaded after this long; None: never."""
