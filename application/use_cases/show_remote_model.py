"""Describe a model on the hub before any of its weights is fetched: its card, its sizes, and whether it fits."""

import attrs

from mlxk.application.ports.hub import ModelHub
from mlxk.application.ports.model_cache import ModelCache
from mlxk.application.ports.system import MemoryProbe
from mlxk.domain.download import DownloadPlan, check_revision, plan_download
from mlxk.domain.errors import IncompatibleModelError, ValidationError
from mlxk.domain.models.detection import context_length
from mlxk.domain.models.memory import (
    WEIGHT_SUFFIXES,
    MemoryVerdict,
    cache_bytes_per_token,
    expected_context,
    judge_memory,
)
from mlxk.domain.models.reference import ModelRef
from mlxk.domain.search import RemoteCard


@attrs.frozen
class RemoteDetails:
    """A model on the hub, and this machine."""

    card: RemoteCard
    plan: DownloadPlan | None
    """What a pull would fetch; None when the model has no weights that can be used."""
    reason: str | None
    """Why there is no plan."""
    missing_bytes: int | None
    """The part of the plan that is not in the cache; None without a plan."""
    free_bytes: int | None
    """Free space of the cache's disk; None when it is unknown."""
    verdict: MemoryVerdict | None
    """None without a plan."""
    context_length: int | None
    """Tokens; None when the configuration does not state it, or cannot be read."""


@attrs.frozen
class ShowRemoteModel:
    """Asks the hub for a model's description, the list of its files, and its configuration where that is accessible."""

    cache: ModelCache
    hub: ModelHub
    memory: MemoryProbe
    default_owner: str
    """The hub owner of a name without one."""

    def __call__(self, reference: str) -> RemoteDetails:
        """Return the description of a model.

        Args:
            reference: A name, or a name with ``@revision``.

        Raises:
            ValidationError: The reference is not the name of a model on the hub.
            ModelNotFoundError, RevisionNotFoundError: The hub does not have it, or does not show it.
            AccessDeniedError: The model is disabled, or the token is invalid.
            NetworkError, DownloadFailedError: See ``ModelHub``.
        """
        ref = ModelRef.parse(reference)
        if ref.is_path:
            raise ValidationError(f"'{reference}' is a path; the hub is asked for names, ORG/NAME")
        if ref.revision is not None:
            check_revision(ref.revision)
        name = ref.name if "/" in ref.name or not self.default_owner else f"{self.default_owner}/{ref.name}"
        card = self.hub.card(name, ref.revision)
        config = card.config or {}
        window, free = context_length(config), self.cache.free_bytes()
        try:
            plan = plan_download(card.model)
        except IncompatibleModelError as error:
            return RemoteDetails(card, None, error.message, None, free, None, window)
        tokens = expected_context(window)
        weights = sum(file.size_bytes for file in plan.files if file.path.endswith(WEIGHT_SUFFIXES))
        verdict = judge_memory(self.memory.read(), weights, cache_bytes_per_token(config), tokens)
        return RemoteDetails(card, plan, None, self.hub.missing_bytes(plan), free, verdict, window)
