"""The models of a server under the names that clients use, and the lookup of a model by such a name.

A client may name a model by its path only where the operator allows it, and never sees a directory of this machine.
Lookups are cached for ``FRESH_SECONDS``, since clients repeat them.
"""

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping

import attrs

from mlxk.application.policy import Requirement, require_served_model, require_text_model
from mlxk.application.ports.system import Clock
from mlxk.application.ports.text_generator import STATE_SECONDS, TextGenerator
from mlxk.application.use_cases.describe_model import DescribeModel
from mlxk.application.use_cases.resolve_model import DEFAULT_TAG, ResolveModel
from mlxk.domain.errors import (
    Advice,
    CapabilityError,
    MlxkError,
    ModelNotFoundError,
    Remedy,
    RevisionNotFoundError,
    ValidationError,
)
from mlxk.domain.models.model import ModelHandle, ServedModel, served_id
from mlxk.domain.models.reference import is_path, own_name, own_name_fault

FRESH_SECONDS = 2.0
"""How long a lookup or a listing is cached."""

MOST_REMEMBERED = 256
"""Most lookups in the cache."""


class ServeCatalogue:
    """Lists and finds the models of a server. Thread-safe.

    Args:
        resolve: Resolves references.
        describe: Reads a model's files.
        resident: Reports the loaded models.
        clock: Measures the age of cached lookups.
        allow_paths: Whether a client may name a model by its path.
        adapter_version: Returns the version of the adapter of a handle, None for a handle without one; raises
            ``ValidationError`` for an adapter that cannot be used.
    """

    def __init__(
        self,
        resolve: ResolveModel,
        describe: DescribeModel,
        resident: TextGenerator,
        clock: Clock,
        allow_paths: bool = False,
        adapter_version: Callable[[ModelHandle], str | None] = lambda _: None,
    ) -> None:
        self._adapter_version = adapter_version
        self._resolve = resolve
        self._describe = describe
        self._resident = resident
        self._clock = clock
        self._allow_paths = allow_paths
        self._named: dict[str, ModelHandle] = {}
        """The models that the operator named, by their names for clients and by the operator's references."""
        self.default: str | None = None
        """Name of the model that the operator named first, for requests that name none."""
        self._found: dict[str, tuple[float, ServedModel]] = {}
        """Cached lookups by the client's reference, each with its time."""
        self._fallback: ModelHandle | None = None
        self._listed: tuple[float, tuple[ServedModel, ...]] | None = None
        """The cached listing with its time."""
        self._lock = threading.Lock()
        """Guards the listing."""

    def offer(self, reference: str) -> ServedModel:
        """Offer a model that the operator named, possibly by its path, under its short name.

        Raises:
            MlxkError: It cannot be found, or cannot run.
        """
        handle, served = self._runnable_model(reference)
        self.default = self.default or handle.alias or served.id
        self._named[served.id] = _plain(handle)
        self._named[reference] = handle
        if handle.adapter is not None and handle.alias is not None:
            self._named[handle.alias] = handle
        return served

    def offer_all(
        self,
        model: str | None,
        aliases: Iterable[tuple[str, str]],
        fallback: str | None,
        ready: Iterable[str] = (),
    ) -> str | None:
        """Offer the models that the operator named; return the name of the model to load, or None.

        Args:
            model: Reference of the model to load; None loads none.
            aliases: Pairs of arguments for ``add_alias``.
            fallback: See ``set_fallback``; None refuses unknown names.
            ready: Further references and aliases that must be usable from the start.

        Raises:
            MlxkError: A model cannot be found or cannot run, or a name is not allowed as an alias.
        """
        aliases = tuple(aliases)
        for alias, reference in aliases:
            self.add_alias(alias, reference)
        offered = None
        if model is not None:
            served = self.offer(model)
            offered = served.handle.alias or served.id
        if fallback is not None:
            self.set_fallback(fallback)
        for name in ready:
            handle, served = self._runnable_model(name)
            if handle.alias is None:
                self._named.setdefault(served.id, handle)
                self._named[name] = handle
            else:
                self._require_unhidden(name)
        for alias, _ in aliases:
            self._require_unhidden(alias)
        return offered

    def _require_unhidden(self, name: str) -> None:
        """Refuse an alias that is also the name of a model that the operator named by its path."""
        offered = self._named.get(name)
        if offered is not None and offered.alias is None:
            raise ValidationError(
                f"'{name}' is the name of a model of this server already", hint="Give each model a name of its own."
            )

    def add_alias(self, alias: str, reference: str) -> None:
        """Add a further name for a model.

        Args:
            alias: The name. It must not hide a built-in model, a path, or the full name of a model.
            reference: The model, as the operator typed it.

        Raises:
            ValidationError: The name is not allowed as an alias.
            MlxkError: The model cannot be found, or cannot run.
        """
        if fault := own_name_fault(alias):
            raise ValidationError(f"'{alias}' cannot be an alias: {fault}")
        if self._is_full_name(alias):
            raise ValidationError(f"'{alias}' cannot be an alias: a model on this machine has this name")
        self._runnable_model(reference)
        aliases = self._resolve.aliases
        other = own_name(reference, aliases)  # aliases do not refer to one another
        self._resolve = attrs.evolve(self._resolve, aliases={**aliases, alias: aliases[other] if other else reference})

    def unusable(self) -> Iterator[tuple[str, str]]:
        """Yield the aliases whose model cannot be found or cannot run, each with the reason."""
        for alias in self._resolve.aliases:
            try:
                self._runnable_model(alias)
            except MlxkError as error:
                yield alias, error.message

    def set_fallback(self, reference: str) -> None:
        """Set the model that serves requests which name an unknown model, or none.

        Raises:
            MlxkError: It cannot be found, or cannot run.
        """
        self._fallback, served = self._runnable_model(reference)
        self.default = self.default or self._fallback.alias or served.id
        self._named.setdefault(served.id, _plain(self._fallback))

    def _runnable_model(self, reference: str) -> tuple[ModelHandle, ServedModel]:
        """Return the handle of a model, and the model as clients see it.

        Raises:
            MlxkError: It cannot be found, or cannot run.
        """
        handle = self._resolve(reference)
        served = self._served(handle)
        require_served_model(served.description)
        return handle, served

    def find(self, reference: str, require: Requirement = require_text_model) -> ServedModel:
        """Return the model that a client's reference means.

        Args:
            reference: As the client wrote it.
            require: Checks the capabilities that the request needs; by default, to generate text.

        Raises:
            ValidationError: The name is malformed, or a path where paths are not allowed.
            ModelNotFoundError, AmbiguousModelError, RevisionNotFoundError: It means no single model.
            UnhealthyModelError, IncompatibleModelError, CapabilityError: ``require`` refuses the model.
        """
        served = self._find(reference)
        if served.stands_in:
            try:
                require(served.description)
            except CapabilityError:
                self._resolved(reference)  # raises that there is no such model, not what the fallback lacks
        require(served.description)
        return served

    def only(self, require: Requirement = require_text_model) -> ServedModel:
        """Return the model of a request that names none: the only loaded one, else the only one offered.

        Args:
            require: See ``find``.

        Raises:
            ValidationError: No model is loaded or offered, or several are.
            UnhealthyModelError, IncompatibleModelError, CapabilityError: See ``find``.
        """
        loaded = self.loaded() or {served_id(handle): handle for handle in self._named.values()}
        if len(loaded) != 1:
            fault = f"is required, since {len(loaded) or 'no'} models are loaded"
            raise ValidationError.in_field("model", fault, hint=Advice(Remedy.NAME_SERVED_MODEL))
        (handle,) = loaded.values()
        served = self._served(handle)
        require(served.description)
        return served

    def _find(self, reference: str) -> ServedModel:
        """Look a reference up, or return the cached result."""
        now = self._clock.monotonic()
        cached = self._found.get(reference)
        if cached is not None and now - cached[0] < FRESH_SECONDS:
            return cached[1]
        served = self._look_up(reference)
        if len(self._found) >= MOST_REMEMBERED:
            self._found.clear()
        self._found[reference] = (now, served)
        return served

    def _look_up(self, reference: str) -> ServedModel:
        handle = self._named.get(reference)
        if handle is not None:
            return self._served(handle)
        if is_path(reference.strip()) and not self._allow_paths:
            raise ValidationError.in_field(
                "model",
                "paths are not accepted by this server",
                hint=Advice(Remedy.NAME_SERVED_MODEL),
            )
        try:
            return self._served(self._resolved(reference))
        except (ModelNotFoundError, RevisionNotFoundError, ValidationError):
            if self._fallback is None:
                raise
            return attrs.evolve(self._served(self._fallback), stands_in=True)

    def _is_full_name(self, name: str) -> bool:
        with contextlib.suppress(MlxkError):
            return "/" in name and self._resolve(name).name == name
        return False

    def _resolved(self, reference: str) -> ModelHandle:
        """Resolve a reference; a trailing ``:latest`` is ignored, unless it is part of a name.

        Raises:
            MlxkError: It means no single model.
        """
        try:
            return self._resolve.as_written(reference)
        except (ModelNotFoundError, ValidationError) as error:
            if own_name(reference, self._resolve.aliases):  # the original message may name a directory
                message = f"'{reference}' stands for a model that is not here"
                raise ModelNotFoundError(message, hint=Advice(Remedy.NAME_SERVED_MODEL)) from error
            plain = reference.removesuffix(DEFAULT_TAG)
            if plain == reference or not plain:
                raise
        return self._named.get(plain) or self._resolve.as_written(plain)

    def __call__(self) -> tuple[ServedModel, ...]:
        """Return the models that can run here and the aliases: loaded models first, then the others, sorted by name."""
        loaded = self.loaded()
        models = {served.id: served for served in self._on_disk()}
        for handle in (*self._named.values(), *loaded.values()):
            if served_id(handle) not in models:
                with contextlib.suppress(MlxkError):  # a removed model is missing from the list
                    models[served_id(handle)] = self._served(handle)
        for handle in self._named.values():
            if handle.adapter is not None and handle.alias is not None:
                with contextlib.suppress(MlxkError):
                    served = self._served(handle)
                    models.setdefault(handle.alias, attrs.evolve(served, id=handle.alias, alias_of=served.id))
        for alias in self._resolve.aliases:
            with contextlib.suppress(MlxkError):
                _, served = self._runnable_model(alias)
                models.setdefault(alias, attrs.evolve(served, id=alias, alias_of=served.id))
        return tuple(sorted(models.values(), key=lambda each: ((each.alias_of or each.id) not in loaded, each.id)))

    def forget(self) -> None:
        """Drop the cached lookups and the listing, after models were added or removed."""
        with self._lock:
            self._found = {}
            self._listed = None

    def loaded(self) -> Mapping[str, ModelHandle]:
        """Return the loaded models by the names that clients use."""
        models = self._resident.state(STATE_SECONDS).models
        return {served_id(handle): _plain(handle) for handle in models}

    def _served(self, handle: ModelHandle) -> ServedModel:
        """Describe a model under its name for clients, which engine, errors and logs then use too."""
        name = served_id(handle)
        details = self._describe.details(attrs.evolve(handle, name=name, display_name=None))
        version = None if handle.alias is None else self._adapter_version(handle)
        return ServedModel(name, details, adapter_version=version)

    def _on_disk(self) -> tuple[ServedModel, ...]:
        with self._lock:
            now = self._clock.monotonic()
            if self._listed is None or now - self._listed[0] >= FRESH_SECONDS:
                self._listed = (now, tuple(self._runnable()))
            return self._listed[1]

    def _runnable(self) -> list[ServedModel]:
        models = []
        for handle in self._resolve.matching():
            try:
                handle = self._resolve.with_base(handle)
                served = self._served(handle)
            except MlxkError:  # removed since it was listed, or an adapter without its base
                continue
            if handle.adapter is not None and handle.alias is not None:
                served = attrs.evolve(served, id=handle.alias, alias_of=served.id)
            if served.description.runnable and served.description.capabilities:
                models.append(served)
        return models


def _plain(handle: ModelHandle) -> ModelHandle:
    """Return a handle without the alias and the adapter with which it was resolved."""
    return attrs.evolve(handle, alias=None, adapter=None)
