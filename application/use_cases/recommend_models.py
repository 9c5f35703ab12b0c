"""Recommend models from the list that comes with the program, and judge which of them this machine can hold."""

import attrs

from mlxk.application.ports.system import MemoryProbe
from mlxk.domain.models.memory import judge_memory
from mlxk.domain.recommendation import Purpose, Recommendation, Recommendations, best_first


@attrs.frozen
class RecommendModels:
    """Recommends models; nothing is asked of the hub."""

    recommendations: Recommendations
    memory: MemoryProbe

    def __call__(self, purpose: Purpose | None = None) -> tuple[Recommendation, ...]:
        """Return the models for a purpose, or for all of them, the best for this machine first.

        Whether a model fits is judged by its weights and a reserve, as in a search.
        """
        reading = self.memory.read()
        return best_first(
            Recommendation(model, judge_memory(reading, model.weight_bytes).fit)
            for model in self.recommendations.models
            if purpose in (None, model.purpose)
        )

    def terms(self, purpose: Purpose | None = None) -> tuple[str, ...]:
        """Return the terms that find further models on the hub, for a purpose or for each."""
        searches = self.recommendations.searches
        return tuple(searches[each] for each in Purpose if purpose in (None, each))
