"""Search the hub for models, and judge which of them fit into this machine's memory."""

import attrs

from mlxk.application.ports.hub import ModelHub
from mlxk.application.ports.system import MemoryProbe
from mlxk.domain.errors import ValidationError
from mlxk.domain.models.memory import MemoryFit, judge_memory
from mlxk.domain.search import MAX_RESULTS, FoundModel, check_terms, mlx_first

DEFAULT_RESULTS = 20


@attrs.frozen
class SearchResult:
    """One model and this machine."""

    model: FoundModel
    fit: MemoryFit
    """By its weights and a reserve; UNKNOWN where the hub does not state their size."""


@attrs.frozen
class SearchModels:
    """Searches the hub; nothing else is asked of it."""

    hub: ModelHub
    memory: MemoryProbe

    def __call__(self, terms: str, limit: int = DEFAULT_RESULTS, *, mlx_only: bool = False) -> tuple[SearchResult, ...]:
        """Return the models that have the terms in their names, those for MLX first, then by downloads.

        Args:
            terms: Words.
            limit: Most models.
            mlx_only: Whether to leave out models that are not made for MLX.

        Raises:
            ValidationError: The terms are blank or too long, or the limit is out of range.
            NetworkError: The hub cannot be reached, limits requests, or offline mode is set.
            AccessDeniedError: The token is invalid.
            DownloadFailedError: The hub sent an invalid response.
        """
        terms = check_terms(terms)
        if not 1 <= limit <= MAX_RESULTS:
            raise ValidationError(f"limit must be from 1 to {MAX_RESULTS}", options=("limit",))
        found = list(self.hub.search(terms, limit, mlx_only=True))
        if len(found) < limit and not mlx_only:
            found += self.hub.search(terms, limit, mlx_only=False)
        reading = self.memory.read()
        return tuple(
            SearchResult(
                model,
                MemoryFit.UNKNOWN if model.weight_bytes is None else judge_memory(reading, model.weight_bytes).fit,
            )
            for model in mlx_first(found)[:limit]
        )
