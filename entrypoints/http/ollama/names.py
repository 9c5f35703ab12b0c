"""Model names as Ollama's clients write them: with a tag, in any case, in ``model`` or ``name``."""

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
"""The default tag."""

_NOT_FOUND = (ModelNotFoundError, RevisionNotFoundError)
_TAG_NOT_FOUND = (*_NOT_FOUND, AmbiguousModelError, ValidationError)
"""What the catalogue raises for an unknown name, and for a reference with an unknown tag."""

_HUBS = ("hf.co/", "huggingface.co/")


@attrs.frozen(kw_only=True)
class ModelFields:
    """The model of a request; older clients send it as ``name``."""

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
    """The model that a name resolves to."""

    name: str
    """Name in the request; the id of the model that answers in place of an unknown one."""
    reference: str
    """Name of the model in the catalogue."""
    served: ServedModel


def tagged(name: str) -> str:
    """Return the name of a model with the default tag, as in lists."""
    return f"{name}:{LATEST}"


def parts_of(name: str) -> tuple[str, str | None]:
    """Return a name without the host of the hub and the tag, and its tag; None for none or the default one."""
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
    """Resolves the model names of clients.

    Args:
        catalogue: The models of the server.
    """

    def __init__(self, catalogue: ServeCatalogue) -> None:
        self._catalogue = catalogue

    def find(self, body: ModelFields, require: Requirement = require_text_model) -> NamedModel:
        """Return the model of a request; without a name, the operator's default.

        Args:
            body: The request.
            require: Refuses a model that lacks what the request needs; by default, text generation.

        Raises:
            ModelNotFoundError: There is no such model; the message is Ollama's.
            ValidationError: There is no name, or it is malformed.
            AmbiguousModelError: The name matches several models.
            UnhealthyModelError, IncompatibleModelError, CapabilityError: Raised by ``require``.
        """
        name = body.named or self._catalogue.default
        if name is None:
            raise ValidationError("model is required")
        base, tag = parts_of(name)
        references = [base] if tag is None else self._tagged(base, tag)
        stand_in: NamedModel | None = None
        for reference in references:
            with contextlib.suppress(*(_NOT_FOUND if tag is None else _TAG_NOT_FOUND)):
                served = self._catalogue.find(reference, require)
                if not served.stands_in:
                    return NamedModel(name, reference, served)
                stand_in = stand_in or NamedModel(served.id, reference, served)
        if stand_in is None:
            raise not_found(name)
        return stand_in

    def _tagged(self, base: str, tag: str) -> Iterator[str]:
        """Yield references for a name with a tag: the name, a revision, a variant, or the only name with both parts."""
        yield f"{base}:{tag}"
        yield f"{base}@{tag}"
        yield f"{base}-{tag}"
        ids = [served.id for served in self._catalogue()]
        variants = [model for model in ids if _is_variant(model.lower(), base.lower(), tag.lower())]
        if len(variants) == 1:
            yield variants[0]


def not_found(name: str) -> ModelNotFoundError:
    """Return the error for an unknown name, with Ollama's message."""
    return ModelNotFoundError(f"model '{name}' not found")


def _is_variant(model: str, base: str, tag: str) -> bool:
    """Whether a name contains the base, and behind it the tag as a separate word."""
    _, match, rest = model.partition(base)
    return bool(match) and tag in rest.replace("_", "-").split("-")
