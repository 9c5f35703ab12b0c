"""``/api/tags``, ``/api/ps``, ``/api/show`` and ``/api/delete``: list, describe and delete models.

Models are deleted only if the operator allows it. Unsupported operations are refused by name.
"""

import contextlib
import datetime
import hashlib
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import NoReturn

import attrs
import falcon

from mlxk.application.ports.text_generator import STATE_SECONDS, ResidentModel
from mlxk.application.use_cases.remove_models import RemoveRequest
from mlxk.domain.errors import (
    LocksPresentError,
    MlxkError,
    ModelNotFoundError,
    ParameterNotSupportedError,
    RequiresConfirmationError,
    RevisionNotFoundError,
    ValidationError,
    WorkspaceModelError,
)
from mlxk.domain.models.model import Capability, ModelHandle, ServedModel, served_id
from mlxk.domain.models.reference import is_path, is_pattern
from mlxk.domain.models.snapshot import text_section
from mlxk.entrypoints.http.api import ServerContext, Services
from mlxk.entrypoints.http.ollama.fields import FOREVER
from mlxk.entrypoints.http.ollama.names import ModelFields, ModelNames, NamedModel, not_found, require_any, tagged
from mlxk.entrypoints.http.ollama.pull import NoProgress, NoTerminal, on_hub
from mlxk.entrypoints.http.ollama.renderer import require_changes, timestamp
from mlxk.entrypoints.http.requests.body import BodyReader
from mlxk.entrypoints.http.requests.validation import Unsupported
from mlxk.entrypoints.http.resources import Readable, send_json

SHOW_WITHOUT_EFFECT: Mapping[str, Unsupported] = {
    "verbose": Unsupported("the answer is the same", (False,)),
}
"""Documented fields of ``/api/show`` that are accepted and reported as ignored."""

_SUFFIX_MARK = "{# .Suffix #}"
"""Prefix of the template of a model that supports a suffix: editors search templates for this variable of Ollama."""

_MODEL_INFO = MappingProxyType(
    {
        "hidden_size": "embedding_length",
        "num_hidden_layers": "block_count",
        "intermediate_size": "feed_forward_length",
        "num_attention_heads": "attention.head_count",
        "num_key_value_heads": "attention.head_count_kv",
        "vocab_size": "vocab_size",
    }
)
"""Names of the facts in ``model_info`` by their names in the config."""


class Tags(Readable):
    """Lists the models that can run here."""

    def __init__(self, services: Services) -> None:
        self._catalogue = services.catalogue

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """List the models, those in memory first."""
        send_json(response, {"models": [tag_document(served) for served in self._catalogue()]})


class Running(Readable):
    """Lists the models in memory."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """List the models, with the time at which each is unloaded if it stays idle."""
        state = self._services.generator.state(STATE_SECONDS)
        residents = {resident.handle: resident for resident in state.residents}
        send_json(response, {"models": list(self._documents(state.models, residents))})

    def _documents(
        self, handles: tuple[ModelHandle, ...], residents: Mapping[ModelHandle, ResidentModel]
    ) -> Iterator[Mapping[str, object]]:
        for handle in handles:
            with contextlib.suppress(MlxkError):  # its files have just been removed
                served = self._services.catalogue.find(served_id(handle), require_any)
                yield self._document(served, residents.get(handle))

    def _document(self, served: ServedModel, resident: ResidentModel | None) -> Mapping[str, object]:
        document = tag_document(served)
        size = served.description.weight_bytes if resident is None else resident.weight_bytes
        left = None if resident is None else resident.idle_seconds_left
        expires = self._services.clock.now() + (FOREVER if left is None else datetime.timedelta(seconds=left))
        del document["modified_at"], document["capabilities"]
        return {**document, "size": size, "size_vram": size, "expires_at": timestamp(expires)}


@attrs.frozen(kw_only=True)
class ShowBody(ModelFields):
    """The body of ``/api/show``."""

    verbose: bool | None = None


class Show:
    """Describes one model."""

    def __init__(self, services: Services) -> None:
        self._reader = BodyReader(ShowBody, (), {}, SHOW_WITHOUT_EFFECT)
        self._names = ModelNames(services.catalogue)

    def on_post(self, request: falcon.Request, response: falcon.Response) -> None:
        """Describe the model."""
        body = self._reader.read(request, response)
        send_json(response, show_document(self._names.find(body, require_any)))


def tag_document(served: ServedModel) -> dict[str, object]:
    """Return the JSON document of a model in a list."""
    description = served.description
    return {
        "name": tagged(served.id),
        "model": tagged(served.id),
        "modified_at": timestamp(description.modified),
        "size": description.size_bytes,
        "digest": _digest(served),
        "details": _details(served),
        "context_length": description.context_length,
        "capabilities": capabilities(served),
    }


def show_document(model: NamedModel) -> Mapping[str, object]:
    """Return the JSON document of one model."""
    served, details = model.served, model.served.details
    window = served.description.context_length
    return {
        "license": details.license or "",
        "modelfile": f"FROM {served.id}\n",
        "parameters": "" if window is None else f"num_ctx {window}",
        "template": (_SUFFIX_MARK if details.inserts else "") + details.template_text,
        "details": _details(served),
        "model_info": _model_info(served),
        "capabilities": capabilities(served),
        "context_length": window,
        "modified_at": timestamp(served.description.modified),
    }


def capabilities(served: ServedModel) -> list[str]:
    """Return Ollama's names of a model's capabilities."""
    description, details = served.description, served.details
    generates = description.operation is Capability.TEXT_GENERATION
    has = {
        "completion": generates,
        "tools": generates and served.can_chat and details.supports_tools,
        "insert": generates and details.inserts,
        "vision": generates and description.can(Capability.VISION),
        "embedding": description.operation is Capability.EMBEDDINGS,
        "thinking": generates and details.supports_reasoning,
        "audio": description.can(Capability.AUDIO),
    }
    return [name for name, has_capability in has.items() if has_capability]


def _digest(served: ServedModel) -> str:
    """Return 64 hexadecimal digits that identify the content: its SHA-256, or one of its name, commit and size."""
    content_hash = served.description.content_hash or ""
    if content_hash.startswith("sha256:"):
        return content_hash.removeprefix("sha256:")
    return hashlib.sha256(
        f"{served.alias_of or served.id}\n{content_hash}\n{served.description.size_bytes}".encode()
    ).hexdigest()


def _details(served: ServedModel) -> Mapping[str, object]:
    family = _family(served)
    return {
        "parent_model": "",
        "format": "safetensors",
        "family": family,
        "families": [family],
        "parameter_size": _parameter_size(served.details.parameters),
        "quantization_level": _quantization(served),
    }


def _family(served: ServedModel) -> str:
    family = (served.details.config or {}).get("model_type")
    return family if isinstance(family, str) else "unknown"


def _parameter_size(parameters: int | None) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if parameters is not None and parameters >= size:
            return f"{parameters / size:.1f}{unit}"
    return "" if parameters is None else str(parameters)


_FLOATS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def _quantization(served: ServedModel) -> str:
    quantization, config = served.details.quantization, served.details.config or {}
    if quantization is not None:
        return f"{quantization.bits}bit"
    dtype = config.get("dtype", config.get("torch_dtype"))
    return _FLOATS.get(dtype, "") if isinstance(dtype, str) else ""


def _model_info(served: ServedModel) -> Mapping[str, object]:
    config, family = served.details.config or {}, _family(served)
    inner = text_section(config)
    facts: dict[str, object] = {
        "general.architecture": family,
        "general.parameter_count": served.details.parameters,
        f"{family}.context_length": served.description.context_length,
    }
    for key, name in _MODEL_INFO.items():
        value = config.get(key, inner.get(key))
        if isinstance(value, int):
            facts[f"{family}.{name}"] = value
    return {name: value for name, value in facts.items() if value is not None}


class Delete:
    """Removes a model from the cache."""

    def __init__(self, server: ServerContext) -> None:
        self._reader = BodyReader(ModelFields)
        self._services = server.services
        self._allowed = server.settings.allow_model_changes

    def on_delete(self, request: falcon.Request, response: falcon.Response) -> None:
        """Remove the model with exactly this name, ignoring case.

        Raises:
            FeatureGateError: The operator has not allowed changes.
            ModelNotFoundError, RevisionNotFoundError: There is no such model.
            ValidationError: The name is only a part of a name.
            WorkspaceModelError: It is a workspace or a built-in model.
            LocksPresentError: It is in use.
        """
        require_changes(self._allowed)
        name = self._reader.read(request, response).required_name
        reference = self._cached_reference(on_hub(name), name)
        self._unload(reference.partition("@")[0])
        with _translated_errors(name):
            self._services.remove()(RemoveRequest(reference), NoTerminal(), NoProgress())
        self._services.catalogue.forget()

    def _cached_reference(self, reference: str, name: str) -> str:
        """Return the reference with the name as spelled in the cache.

        Raises:
            MlxkError: As in ``on_delete``.
        """
        if is_path(reference) or is_pattern(reference):
            raise not_found(name)
        with _translated_errors(name):
            plan = self._services.remove()(RemoveRequest(reference, dry_run=True), NoTerminal(), NoProgress())
        removal = plan.removals[0]
        model, at, revision = reference.partition("@")
        if removal.name.lower() != model.lower():
            raise ValidationError(
                f"'{name}' is a part of the name of '{removal.name}'", hint="Write the whole name to delete it."
            )
        return f"{removal.name}{at}{revision}"

    def _unload(self, name: str) -> None:
        """Unload the model.

        Raises:
            LocksPresentError: It is in use.
        """
        loaded = self._services.catalogue.loaded().get(name)
        if loaded is None:
            return
        self._services.generator.unload(loaded)
        if name in self._services.catalogue.loaded():
            raise LocksPresentError(f"'{name}' answers requests", hint="Delete it once they have ended.")


@contextlib.contextmanager
def _translated_errors(name: str) -> Iterator[None]:
    """Replace errors about a name with those of this API."""
    try:
        yield
    except (ModelNotFoundError, RevisionNotFoundError) as error:
        raise not_found(name) from error
    except RequiresConfirmationError as error:
        raise ValidationError(f"'{name}' is a part of a name", hint="Write the whole name to delete it.") from error
    except WorkspaceModelError as error:
        raise WorkspaceModelError(error.message) from error  # the hint names a local directory


class Refused:
    """A documented operation that is not supported.

    Args:
        operation: Its name.
        reason: Why, and what to do instead.
    """

    def __init__(self, operation: str, reason: str) -> None:
        self._operation = operation
        self._reason = reason

    def on_post(self, request: falcon.Request, response: falcon.Response, **_: str) -> NoReturn:
        """Refuse.

        Raises:
            ParameterNotSupportedError: Always.
        """
        raise ParameterNotSupportedError(f"{self._operation} is not supported", hint=self._reason)
