"""``DELETE /api/delete``, for servers whose operator allows it; and the operations that are refused by name."""

import contextlib
from collections.abc import Iterator
from typing import NoReturn

import falcon

from mlxk.application.use_cases.remove_model import RemoveRequest
from mlxk.domain.errors import (
    LocksPresentError,
    ModelNotFoundError,
    ParameterNotSupportedError,
    RequiresConfirmationError,
    RevisionNotFoundError,
    ValidationError,
    WorkspaceModelError,
)
from mlxk.domain.models.reference import is_path, is_pattern
from mlxk.entrypoints.http.api import ServerContext
from mlxk.entrypoints.http.ollama.errors import require_changes
from mlxk.entrypoints.http.ollama.names import ModelFields, not_found
from mlxk.entrypoints.http.ollama.pull import NoTerminal, Silence, on_hub
from mlxk.entrypoints.http.requests.body import BodyReader


class Delete:
    """Removes a model from the cache."""

    def __init__(self, server: ServerContext) -> None:
        self._reader = BodyReader(ModelFields)
        self._services = server.services
        self._allowed = server.settings.allow_model_changes

    def on_delete(self, request: falcon.Request, response: falcon.Response) -> None:
        """Remove the model of exactly this name, in any case of letters.

        Raises:
            FeatureGateError: The operator has not allowed it.
            ModelNotFoundError, RevisionNotFoundError: There is none.
            ValidationError: The name is a part of one.
            WorkspaceModelError: It is a workspace or a built-in model.
            LocksPresentError: It is in use.
        """
        require_changes(self._allowed)
        name = self._reader.read(request, response).required_name
        reference = self._whole_name(on_hub(name), name)
        self._unload(reference.partition("@")[0])
        with _in_words_of_the_api(name):
            self._services.remove()(RemoveRequest(reference), NoTerminal(), Silence())
        self._services.catalogue.forget()

    def _whole_name(self, reference: str, name: str) -> str:
        """Return the name as the cache spells it.

        Raises:
            MlxkError: As of ``on_delete``.
        """
        if is_path(reference) or is_pattern(reference):
            raise not_found(name)
        with _in_words_of_the_api(name):
            plan = self._services.remove()(RemoveRequest(reference, dry_run=True), NoTerminal(), Silence())
        removal = plan.removals[0]
        wanted, at, revision = reference.partition("@")
        if removal.name.lower() != wanted.lower():
            raise ValidationError(
                f"'{name}' is a part of the name of '{removal.name}'", hint="Write the whole name to delete it."
            )
        return f"{removal.name}{at}{revision}"

    def _unload(self, name: str) -> None:
        """Unload the model.

        Raises:
            LocksPresentError: It answers requests.
        """
        loaded = self._services.catalogue.loaded().get(name)
        if loaded is None:
            return
        self._services.generator.unload(loaded)
        if name in self._services.catalogue.loaded():
            raise LocksPresentError(f"'{name}' answers requests", hint="Delete it once they have ended.")


@contextlib.contextmanager
def _in_words_of_the_api(name: str) -> Iterator[None]:
    try:
        yield
    except (ModelNotFoundError, RevisionNotFoundError) as error:
        raise not_found(name) from error
    except RequiresConfirmationError as error:
        raise ValidationError(f"'{name}' is a part of a name", hint="Write the whole name to delete it.") from error
    except WorkspaceModelError as error:
        raise WorkspaceModelError(error.message) from error  # the hint has a directory of this machine


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
