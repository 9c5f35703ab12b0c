"""Browse the hub without downloading: search, recommend, show one model, and find newer revisions."""

import enum

import attrs

from mlxk.application.ports.hub import ModelHub
from mlxk.application.ports.memory import MemoryProbe
from mlxk.application.ports.model_cache import ModelCache
from mlxk.domain.errors import (
    AccessDeniedError,
    Advice,
    IncompatibleModelError,
    ModelNotFoundError,
    Remedy,
    RevisionNotFoundError,
    ValidationError,
)
from mlxk.domain.hub import (
    MAX_RESULTS,
    DownloadPlan,
    FoundModel,
    Purpose,
    Recommendation,
    Recommendations,
    RemoteCard,
    best_first,
    check_revision,
    check_terms,
    mlx_first,
    plan_download,
)
from mlxk.domain.models.detection import context_length
from mlxk.domain.models.footprint import (
    WEIGHT_SUFFIXES,
    MemoryFit,
    MemoryVerdict,
    cache_bytes_per_token,
    expected_context,
    judge_memory,
)
from mlxk.domain.models.reference import ModelRef, check_name

DEFAULT_RESULTS = 20


@attrs.frozen
class SearchResult:
    """One model, and whether it fits into this machine's memory."""

    model: FoundModel
    fit: MemoryFit
    """Judged by its weights and a reserve; UNKNOWN when the hub does not state their size."""


@attrs.frozen
class SearchModels:
    """Searches the hub; sends no other requests."""

    hub: ModelHub
    memory: MemoryProbe

    def __call__(self, terms: str, limit: int = DEFAULT_RESULTS, *, mlx_only: bool = False) -> tuple[SearchResult, ...]:
        """Return the models that have all terms in their names, those for MLX first, then by downloads.

        Args:
            terms: Words separated by spaces.
            limit: Maximum number of models.
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
        models = list(self.hub.search(terms, limit, mlx_only=True))
        if len(models) < limit and not mlx_only:
            models += self.hub.search(terms, limit, mlx_only=False)
        reading = self.memory.read()
        return tuple(
            SearchResult(
                model,
                MemoryFit.UNKNOWN if model.weight_bytes is None else judge_memory(reading, model.weight_bytes).fit,
            )
            for model in mlx_first(models)[:limit]
        )


@attrs.frozen
class RecommendModels:
    """Recommends models from the built-in list; sends no requests to the hub."""

    recommendations: Recommendations
    memory: MemoryProbe

    def __call__(self, purpose: Purpose | None = None) -> tuple[Recommendation, ...]:
        """Return the models for a purpose, the best for this machine first; None means all purposes.

        Whether a model fits is judged by its weights and a reserve, as in a search.
        """
        reading = self.memory.read()
        return best_first(
            Recommendation(model, judge_memory(reading, model.weight_bytes).fit)
            for model in self.recommendations.models
            if purpose in (None, model.purpose)
        )

    def terms(self, purpose: Purpose | None = None) -> tuple[str, ...]:
        """Return search terms that find more models for a purpose on the hub; None means all purposes."""
        searches = self.recommendations.searches
        return tuple(searches[each] for each in Purpose if purpose in (None, each))


@attrs.frozen
class RemoteDetails:
    """A model on the hub, and whether it fits onto this machine."""

    card: RemoteCard
    plan: DownloadPlan | None
    """What a pull would download; None when the model has no weights that can be used."""
    reason: str | None
    """Why there is no plan; None with one."""
    missing_bytes: int | None
    """Bytes of the plan that are not in the cache; None without a plan."""
    free_bytes: int | None
    """Free bytes of the cache's disk; None when unknown."""
    verdict: MemoryVerdict | None
    """None without a plan."""
    context_length: int | None
    """Tokens; None when ``config.json`` does not state it, or is not accessible."""


@attrs.frozen
class ShowRemoteModel:
    """Requests a model's metadata, its file list, and ``config.json`` where that is accessible."""

    cache: ModelCache
    hub: ModelHub
    memory: MemoryProbe
    default_owner: str
    """The hub owner added to a name without one; empty for none."""

    def __call__(self, reference: str) -> RemoteDetails:
        """Return the details of a model on the hub.

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


class Freshness(enum.Enum):
    """How a cached model relates to the hub."""

    CURRENT = "current"
    OUTDATED = "outdated"
    """The default branch has moved since."""
    UNKNOWN = "unknown"


@attrs.frozen
class ComparedModel:
    """One cached model, compared with the hub."""

    name: str
    """``org/name``."""
    freshness: Freshness
    commit: str | None
    """The current revision in the cache; None when it is not a commit, or there is none."""
    newest: str | None
    """The head of the hub's default branch; None when unknown."""
    reason: str | None = None
    """Why the freshness is unknown; None when it is known."""


@attrs.frozen
class FindOutdated:
    """Compares cached models with the newest commits on the hub; sends no other requests."""

    cache: ModelCache
    hub: ModelHub

    def __call__(self, pattern: str | None = None) -> tuple[ComparedModel, ...]:
        """Return the selected cached models, sorted by name.

        Args:
            pattern: A part of the name, case-insensitive; None selects all models.

        Raises:
            ModelNotFoundError: No cached model matches the pattern.
            ValidationError: A proxy of the environment cannot be used.
            NetworkError: The hub cannot be reached, limits requests, or offline mode is set.
            DownloadFailedError: The hub sent an invalid response.
            StorageError: The cache cannot be read.
        """
        part = (pattern or "").strip().lower()
        names = [name for name in self.cache.names() if part in name.lower()]
        if pattern is not None and not names:
            raise ModelNotFoundError(f"no cached model has '{pattern}' in its name", hint=Advice(Remedy.LIST_ALL))
        return tuple(map(self._compare, names))

    def _compare(self, name: str) -> ComparedModel:
        handle = self.cache.find(name)
        commit = handle.commit if handle else None
        if commit is None:
            return ComparedModel(name, Freshness.UNKNOWN, None, None, "no complete revision of it is in the cache")
        try:
            check_name(name)
        except ValidationError as error:
            return ComparedModel(name, Freshness.UNKNOWN, commit, None, error.message)
        try:
            newest = self.hub.newest_commit(name)
        except (ModelNotFoundError, RevisionNotFoundError, AccessDeniedError) as error:
            return ComparedModel(name, Freshness.UNKNOWN, commit, None, error.message)
        freshness = Freshness.CURRENT if newest == commit else Freshness.OUTDATED
        return ComparedModel(name, freshness, commit, newest)
