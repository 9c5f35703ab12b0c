"""Model names as Ollama's clients write them: with a tag, in any case of letters, in ``model`` or in ``name``."""

import contextlib
from collections.abc import Iterator

import attrs

from mlxk.application.policy import Requirement, require_text_model
from mlxk.application.use_cases.serve_catalogue import ServeCatalogue
from mlxk.domain.errors import (
    AmbiguousModelError,
    ModelNotFoundError,
    RevisionNotFoundError,
    ValidationError,
)
from mlxk.domain.models.model import ModelDescription, ServedModel
from mlxk.domain.models.reference import is_path
from mlxk.entrypoints.http.requests.validation import FieldError

LATEST = "latest"
"""The tag that is meant without one."""

_NOT_THIS = (ModelNotFoundError, RevisionNotFoundError)
_NOT_THIS_TAG = (*_NOT_THIS, AmbiguousModelError, ValidationError)
"""What the catalogue raises for a name that means nothing, and for a tag."""

_HUBS = ("hf.co/", "huggingface.co/")


@attrs.frozen(kw_only=True)
class ModelFields:
    """The model of a request; older clients call it ``name``."""

    model: str | None = None
    name: str | None = None

    def faults(self) -> list[FieldError]:
        """Return the faults of combinations of fields."""
        if self.model and self.name and self.model != self.name:
            return [FieldError("name", "contradicts model; send one of them")]
        return []

    @property
    def named(self) -> str | None:
        """The name; None without one."""
        return self.model or self.name or None

    @property
    def required_name(self) -> str:
        """The name.

        Raises:
            ValidationError: There is none.
        """
        if self.named is None:
            raise ValidationError("model is required")
        return self.named


@attrs.frozen
class NamedModel:
    """The model that a name means."""

    name: str
    """As the client wrote it; that of the model, for one that answers to names that no model has."""
    reference: str
    """A name by which the catalogue finds it."""
    served: ServedModel


def tagged(name: str) -> str:
    """Return the name of a model with its tag, as listings have it."""
    return f"{name}:{LATEST}"


def parts_of(name: str) -> tuple[str, str | None]:
    """Return a name without the address of the hub, and its tag; None for no tag, or the one that is meant anyway."""
    plain = name.strip()
    for hub in _HUBS:
        if plain.lower().startswith(hub):
            plain = plain[len(hub) :]
    base, colon, tag = plain.rpartition(":")
    if not colon or not base or "/" in tag or is_path(plain):
        return plain, None
    return base, None if tag.lower() == LATEST else tag


def require_any(description: ModelDescription) -> None:
    """Accept every model."""


class ModelNames:
    """Finds the models that clients mean.

    Args:
        catalogue: Has the models of the server.
    """

    def __init__(self, catalogue: ServeCatalogue) -> None:
        self._catalogue = catalogue

    def find(self, body: ModelFields, require: Requirement = require_text_model) -> NamedModel:
        """Return the model of a request; without a name, the one that the operator named.

        Args:
            body: The request.
            require: Refuses a model that cannot do what the request needs; by default, to generate text.

        Raises:
            ModelNotFoundError: There is none of this name; the message is Ollama's.
            ValidationError: There is no name, or it is malformed.
            AmbiguousModelError: It means several models.
            UnhealthyModelError, IncompatibleModelError, CapabilityError: The model cannot do that.
        """
        name = body.named or self._catalogue.default
        if name is None:
            raise ValidationError("model is required")
        base, tag = parts_of(name)
        references = [base] if tag is None else self._tagged(base, tag)
        other: NamedModel | None = None
        for reference in references:
            with contextlib.suppress(*(_NOT_THIS if tag is None else _NOT_THIS_TAG)):
                served = self._catalogue.find(reference, require)
                if not served.stands_in:
                    return NamedModel(name, reference, served)
                other = other or NamedModel(served.id, reference, served)
        if other is None:
            raise not_found(name)
        return other

    def _tagged(self, base: str, tag: str) -> Iterator[str]:
        """Yield what a name with a tag may mean, the likeliest first: a revision, a variant, or a part of one name."""
        yield f"{base}:{tag}"
        yield f"{base}@{tag}"
        yield f"{base}-{tag}"
        alike = [served.id for served in self._catalogue() if _is_variant(served.id.lower(), base.lower(), tag.lower())]
        if len(alike) == 1:
            yield alike[0]


def not_found(name: str) -> ModelNotFoundError:
    """Return the error for a name that nothing has, in Ollama's words."""
    return ModelNotFoundError(f"model '{name}' not found")


def _is_variant(known: str, base: str, tag: str) -> bool:
    """Whether a name contains the base, and the tag after it as a word of its own."""
    _, found, rest = known.partition(base)
    return bool(found) and tag in rest.replace("_", "-").split("-")
