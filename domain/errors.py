"""Every failure the product can name.

One class a code. The code is the stable, public name of the failure (``error.type`` in JSON); each entrypoint
owns one table from code to exit status or HTTP status, and ``docs/errors.md`` explains each one to people.

    MlxkError
    ├── UsageError                 usage_error
    ├── ValidationError            validation_error
    ├── ModelNotFoundError         model_not_found
    ├── AmbiguousModelError        ambiguous_match
    ├── RevisionNotFoundError      hash_not_found
    ├── StorageError               storage_error
    ├── UnhealthyModelError        model_unhealthy
    ├── IncompatibleModelError     incompatible_model
    ├── UntrustedModelCodeError    untrusted_model_code
    ├── BackendNotInstalledError   backend_not_installed
    ├── CapabilityError            capability_not_supported
    ├── ContextLengthError         context_length_exceeded
    ├── InsufficientMemoryError    insufficient_memory
    ├── QueueFullError             queue_full
    ├── FeatureGateError           feature_disabled
    ├── AccessDeniedError          access_denied
    ├── NetworkError               network_error
    ├── DownloadFailedError        download_failed
    ├── UploadFailedError          upload_failed
    ├── RequiresConfirmationError  requires_confirmation
    ├── LocksPresentError          locks_present
    ├── WorkspaceModelError        workspace_model
    ├── SecretsFoundError          secrets_found
    ├── ConversionFailedError      conversion_failed
    ├── ExecutionError             execution_error
    ├── InterruptedRunError        interrupted
    ├── ParameterNotSupportedError parameter_not_supported
    ├── NotFoundError              not_found
    ├── MethodNotAllowedError      method_not_allowed
    ├── UnsupportedMediaTypeError  unsupported_media_type
    ├── PayloadTooLargeError       payload_too_large
    ├── RequestTimeoutError        request_timeout
    ├── UnauthorizedError          unauthorized
    ├── ForbiddenOriginError       forbidden_origin
    ├── ServerShutdownError        server_shutdown
    ├── PortInUseError             port_in_use
    └── InternalError              internal_error
"""

import enum
from collections.abc import Mapping
from typing import ClassVar, Self

import attrs


class Remedy(enum.Enum):
    """What a user can do about a failure. Each entrypoint has its own sentence for each of them."""

    ALLOW_SECRET = "allow-secret"
    CHECK_HEALTH = "check-health"
    CLONE_UNCHECKED = "clone-unchecked"
    COMPLETE_OR_REMOVE = "complete-or-remove"
    CONFIRM_REMOVAL = "confirm-removal"
    CREATE_REPOSITORY = "create-repository"
    FETCH = "fetch"
    FETCH_AGAIN = "fetch-again"
    FETCH_BEFORE_CONVERTING = "fetch-before-converting"
    FETCH_OR_USE_CLOSE_NAME = "fetch-or-use-close-name"
    FIND_CONVERSION = "find-conversion"
    LEAVE_OUT_REASONING = "leave-out-reasoning"
    LEAVE_OUT_TOOLS = "leave-out-tools"
    LIST_ALL = "list-all"
    LIST_VISION_MODELS = "list-vision-models"
    MAKE_MANAGED = "make-managed"
    MAKE_MANAGED_BY_CLONING = "make-managed-by-cloning"
    NAME_SERVED_MODEL = "name-served-model"
    NAME_WITH_OWNER = "name-with-owner"
    PUBLISH_OPENLY = "publish-openly"
    REPAIR_INDEX = "repair-index"
    SMALLER_GROUPS = "smaller-groups"
    USE_CHAT = "use-chat"
    USE_COMPLETIONS = "use-completions"
    USE_EMBEDDINGS = "use-embeddings"
    USE_TRANSCRIPTION = "use-transcription"
    USE_TRANSLATING_MODEL = "use-translating-model"


@attrs.frozen
class Advice:
    """A remedy with the names it is about; entrypoints turn it into a sentence for their users."""

    remedy: Remedy
    values: Mapping[str, str] = attrs.field(factory=dict)
    """Names by the placeholders of the sentences, such as ``name`` of a model."""


class MlxkError(Exception):
    """A failure with a stable code, a sentence for people, and optionally what to do next.

    Args:
        message: One sentence that names the field, file or model at fault. No absolute path of the machine
            unless the user typed it, no prompt text, no token.
        hint: What to do next: a sentence, or an ``Advice`` where the sentence depends on the entrypoint.
        matches: The sorted names among which a reference was ambiguous.
        detail: Numbers and names for programs, JSON values only.
        options: Words of the message that name options of the request; each entrypoint has its own spelling of them.
        fix: What repairs the damage that ends the message.
    """

    code: ClassVar[str] = "internal_error"
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        hint: str | Advice | None = None,
        matches: tuple[str, ...] = (),
        detail: Mapping[str, object] | None = None,
        options: tuple[str, ...] = (),
        fix: Remedy | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.matches = matches
        self.detail = dict(detail) if detail else None
        self.options = options
        self.fix = fix

    @classmethod
    def in_field(cls, field: str, message: str, *, hint: str | Advice | None = None) -> Self:
        """Return a failure that one field of a request is at fault for, which programs find in ``detail``.

        Args:
            field: Its path, such as ``messages[0].content``.
            message: What is wrong with it, without its name.
            hint: What to do next.
        """
        return cls(f"{field}: {message}", hint=hint, detail={"problems": [{"param": field, "message": message}]})


class UsageError(MlxkError):
    """The command line cannot be understood: an unknown flag, a missing argument, two that exclude each other."""

    code = "usage_error"


class ValidationError(MlxkError):
    """A value was understood but is not allowed; the message names the field."""

    code = "validation_error"


class ModelNotFoundError(MlxkError):
    """A model reference resolves to nothing on this machine, or on the hub where that is asked."""

    code = "model_not_found"


class AmbiguousModelError(MlxkError):
    """A model reference fits several models; ``matches`` lists them, sorted."""

    code = "ambiguous_match"


class RevisionNotFoundError(MlxkError):
    """The model is here but the revision asked for is not."""

    code = "hash_not_found"


class StorageError(MlxkError):
    """The file system refused: no permission, no space, not a directory, an I/O error."""

    code = "storage_error"


class UnhealthyModelError(MlxkError):
    """The model's files are damaged or incomplete, so it cannot be loaded."""

    code = "model_unhealthy"


class IncompatibleModelError(MlxkError):
    """The files are whole but no installed backend can run them."""

    code = "incompatible_model"


class UntrustedModelCodeError(MlxkError):
    """The model asks for its own code to be executed; it never is."""

    code = "untrusted_model_code"


class BackendNotInstalledError(MlxkError):
    """The package that would run this model is not installed."""

    code = "backend_not_installed"


class CapabilityError(MlxkError):
    """The model cannot do what was asked of it, such as reading an image."""

    code = "capability_not_supported"


class ContextLengthError(MlxkError):
    """The prompt leaves no room in the model's context window; the message states both numbers."""

    code = "context_length_exceeded"


class InsufficientMemoryError(MlxkError):
    """The estimate for weights and cache does not fit into this machine's memory budget."""

    code = "insufficient_memory"


class QueueFullError(MlxkError):
    """As many requests as the engine lets queue are queueing already; try again later."""

    code = "queue_full"
    retryable = True


class FeatureGateError(MlxkError):
    """The feature is switched off; the message names the variable that switches it on."""

    code = "feature_disabled"


class AccessDeniedError(MlxkError):
    """The hub does not let this token, or no token, at the model."""

    code = "access_denied"


class NetworkError(MlxkError):
    """The hub cannot be reached, does not answer in time, or answers that it is not well."""

    code = "network_error"
    retryable = True


class DownloadFailedError(MlxkError):
    """The hub answered, but what arrived was not the file; what is right of it has been kept."""

    code = "download_failed"
    retryable = True


class UploadFailedError(MlxkError):
    """The hub refused the upload; nothing was committed."""

    code = "upload_failed"
    retryable = True


class RequiresConfirmationError(MlxkError):
    """What was asked needs a yes, and nobody is there to give it; the hint names the flag that does."""

    code = "requires_confirmation"


class LocksPresentError(MlxkError):
    """Another process is working on the model right now; the message says which, where that is known."""

    code = "locks_present"
    retryable = True


class WorkspaceModelError(MlxkError):
    """The operation is for models in the cache, and this one is a workspace or comes with the program."""

    code = "workspace_model"


class SecretsFoundError(MlxkError):
    """Files to be published look as if they held secrets; ``detail`` lists file, line and kind, never the secret."""

    code = "secrets_found"


class ConversionFailedError(MlxkError):
    """The weights cannot be converted, or what came out is not whole; no target was left behind."""

    code = "conversion_failed"


class ExecutionError(MlxkError):
    """Generation failed while running."""

    code = "execution_error"


class InterruptedRunError(MlxkError):
    """The user interrupted the work; what was done until then has been delivered."""

    code = "interrupted"


class ParameterNotSupportedError(MlxkError):
    """A documented field of a request asks for something that is not supported; the message names it."""

    code = "parameter_not_supported"


class NotFoundError(MlxkError):
    """The server has no such address."""

    code = "not_found"


class MethodNotAllowedError(MlxkError):
    """The address exists but not for this HTTP method."""

    code = "method_not_allowed"


class UnsupportedMediaTypeError(MlxkError):
    """The body of a request is not in the format the address takes."""

    code = "unsupported_media_type"


class PayloadTooLargeError(MlxkError):
    """A request is larger, or nested deeper, than the server takes."""

    code = "payload_too_large"


class RequestTimeoutError(MlxkError):
    """A request was not sent completely within its time."""

    code = "request_timeout"
    retryable = True


class UnauthorizedError(MlxkError):
    """The server asks for an API key, and the request carries none of the right ones."""

    code = "unauthorized"


class ForbiddenOriginError(MlxkError):
    """A request from a web page, or for a host name, that the operator has not allowed."""

    code = "forbidden_origin"


class ServerShutdownError(MlxkError):
    """The server is shutting down and takes no new work."""

    code = "server_shutdown"
    retryable = True


class PortInUseError(MlxkError):
    """Another program listens at the address the server was to use."""

    code = "port_in_use"


class InternalError(MlxkError):
    """A fault of ours; the log says more."""

    code = "internal_error"


def all_error_types() -> tuple[type[MlxkError], ...]:
    """Return every error class, in order of definition; the totality tests walk it."""
    return tuple(MlxkError.__subclasses__())
